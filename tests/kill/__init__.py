"""Every process killed, during syncs, with polls of 480 s; a short form is in `make test`."""
