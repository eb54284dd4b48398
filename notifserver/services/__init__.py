"""The use cases: hold a poll, take hints, learn heads."""
