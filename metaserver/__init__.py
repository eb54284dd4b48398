"""The metadata API: namespaces, entries, journal, accounts, devices, block rows; the outbox relay."""
