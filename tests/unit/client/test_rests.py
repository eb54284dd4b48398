"""How long entries that failed are left alone."""

import time

from client.rests import Rests
from client.transfer import Failed

BEFORE = 0.0
"""A time before all of it."""


def test_fresh_trees_are_reason_enough_to_try_again() -> None:
    rests = Rests()
    rests.add(Failed(1, "look_again", ""), b"f", "state")
    assert not rests.is_resting(1, lambda _: "state")
    assert rests.problems() == []


def test_what_keeps_failing_rests_until_it_changes() -> None:
    rests = Rests()
    for _ in range(4):
        rests.add(Failed(1, "occupied", "in the way"), b"f", "state")
    assert rests.is_resting(1, lambda _: "state")
    assert not rests.is_resting(1, lambda _: "another state")
    assert rests.problems() == [(b"f", "occupied", "in the way")]
    assert not rests.is_worth_waiting(BEFORE)


def test_a_file_that_keeps_changing_rests_all_the_same() -> None:
    rests = Rests()
    rests.add(Failed(1, "changing", ""), b"f", "state")
    assert rests.is_resting(1, lambda _: "another state")
    assert rests.is_worth_waiting(BEFORE)
    pause_s = rests.next_s(BEFORE)
    assert pause_s is not None
    assert pause_s < 1


def test_entries_in_step_have_no_trouble() -> None:
    rests = Rests()
    rests.add(Failed(1, "unreachable", ""), b"f", None)
    rests.forget_except(set())
    assert rests.next_s(BEFORE) is None


def test_a_server_that_asks_for_rest_gets_it() -> None:
    rests = Rests()
    rests.add(Failed(1, "unreachable", "", retry_after_s=30), b"f", "state")
    assert rests.is_resting(1, lambda _: "another state")
    pause_s = rests.next_s(BEFORE)
    assert pause_s is not None
    assert pause_s > 29


def test_a_rest_that_ends_after_the_round_has_looked_is_not_forgotten() -> None:
    rests = Rests()
    began = time.monotonic()
    rests.add(Failed(1, "look_again", ""), b"f", "state")  # over at once
    assert rests.next_s(began) == 0
    assert rests.is_worth_waiting(began)
    # The next round has found it due.
    began = time.monotonic()
    assert rests.next_s(began) is None
    assert not rests.is_worth_waiting(began)
