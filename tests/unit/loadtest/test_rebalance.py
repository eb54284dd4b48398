"""What has to move at the least, as the benchmark of rebalancing reckons it."""

from collections import Counter

import pytest

from loadtest.rebalance_course import least_share, least_slots

FOUR = dict.fromkeys("abcd", 1)


def test_one_shard_gives_all_that_is_beyond_its_bound():
    assert least_share({"a": 1000, "b": 0, "c": 0, "d": 0}, FOUR) == pytest.approx(1 - 1.15 / 4)
    assert least_slots(Counter(a=64), FOUR) == 64 - 18


def test_nothing_has_to_move_within_the_bound():
    assert least_share({"a": 28, "b": 24, "c": 24, "d": 24}, FOUR) == 0
    assert least_slots(Counter(a=18, b=16, c=15, d=15), FOUR) == 0


def test_a_shard_that_goes_gives_all():
    assert least_share({"a": 30, "b": 30, "c": 40}, {"a": 1, "b": 1}) == pytest.approx(0.4)
    assert least_slots(Counter(a=20, b=20, c=24), {"a": 1, "b": 1}) == 24


def test_shares_are_by_weight():
    weights = {"a": 3, "b": 1}
    assert least_share({"a": 50, "b": 50}, weights) == pytest.approx(0.5 - 1.15 / 4)
    assert least_slots(Counter(a=32, b=32), weights) == 32 - 18
