"""Migrations of the directory database."""
