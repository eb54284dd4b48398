"""Holds long-polls, and answers them within milliseconds of a commit."""
