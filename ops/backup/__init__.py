"""Backups of single PostgreSQL servers: base backups, and an archive of their write-ahead logs."""
