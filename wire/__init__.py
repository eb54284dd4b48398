"""What crosses a process border: types, error codes, ids, cursors, names and hashes. Pure, no I/O."""
