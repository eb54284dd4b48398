"""Use cases: access, transactions, the order of steps."""
