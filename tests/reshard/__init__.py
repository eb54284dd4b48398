"""Every process killed at every fault point of a move; a short form is in `make test`."""
