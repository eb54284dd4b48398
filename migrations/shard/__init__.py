"""Migrations of each shard database."""
