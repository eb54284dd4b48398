"""Fixtures of these tests."""

from tests.support.estate import estate, slot_estate

__all__ = ["estate", "slot_estate"]
