"""How long entries that failed are left alone."""

from client.rests import Rests
from client.transfer import Failed


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
    assert not rests.is_worth_waiting


def test_a_file_that_keeps_changing_rests_all_the_same() -> None:
    rests = Rests()
    rests.add(Failed(1, "changing", ""), b"f", "state")
    assert rests.is_resting(1, lambda _: "another state")
    assert rests.is_worth_waiting
    pause_s = rests.next_s()
    assert pause_s is not None
    assert pause_s < 1


def test_entries_in_step_have_no_trouble() -> None:
    rests = Rests()
    rests.add(Failed(1, "unreachable", ""), b"f", None)
    rests.forget_except(set())
    assert rests.next_s() is None


def test_a_server_that_asks_for_rest_gets_it() -> None:
    rests = Rests()
    rests.add(Failed(1, "unreachable", "", retry_after_s=30), b"f", "state")
    assert rests.is_resting(1, lambda _: "another state")
    pause_s = rests.next_s()
    assert pause_s is not None
    assert pause_s > 29
