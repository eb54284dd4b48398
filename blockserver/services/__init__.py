"""The use cases: take blocks, hand blocks out."""
