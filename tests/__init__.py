"""The tests; what each folder is for stands in docs/contributing.md."""
