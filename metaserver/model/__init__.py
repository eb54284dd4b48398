"""Pure and synchronous: the hard rules."""
