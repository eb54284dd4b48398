"""The sync client: keeps one folder the same as an account's files. Knows only `wire/` of the server."""
