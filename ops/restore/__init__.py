"""Bringing a lost server back: recovery from a backup, then making its past fit the others' present."""
