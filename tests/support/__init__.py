"""Fixtures: real servers for every test that touches one."""
