"""The ledger of `make bench-move` finds what it is there to find."""

import calendar
import time

import pytest

from loadtest.move_ledger import FIRST_TIME_S, Differences, Ledger, format_number

Row = tuple[int, int, int | None]


def row(jid: int, number: int | None, at_us: int = 0) -> Row:
    return jid, at_us or jid, None if number is None else (FIRST_TIME_S + number) * 1_000_000


@pytest.fixture
def ledger() -> Ledger:
    """Four commits: the first three acknowledged behind a row that is none, the fourth without an answer."""
    ledger = Ledger()
    numbers = ledger.begin(4)
    for number in numbers[:3]:
        ledger.acknowledge(number, number + 2)
    ledger.fail(numbers[3:])
    return ledger


WHOLE = [row(1, None), row(2, 0), row(3, 1), row(4, 2)]


def test_nothing_is_wrong_with_what_was_told(ledger: Ledger):
    assert ledger.head == 4
    assert ledger.compare(WHOLE) == Differences()


def test_a_commit_without_an_answer_may_be_there_once(ledger: Ledger):
    assert ledger.compare([*WHOLE, row(5, 3)]) == Differences()
    assert ledger.compare([*WHOLE, row(5, 3), row(6, 3)]) == Differences(doubled=1)


def test_an_acknowledged_commit_that_is_gone_is_lost(ledger: Ledger):
    assert ledger.compare(WHOLE[:-1]) == Differences(lost=1)
    assert ledger.compare([]) == Differences(lost=3)


def test_a_commit_that_is_there_twice_is_doubled(ledger: Ledger):
    assert ledger.compare([*WHOLE, row(5, 2)]) == Differences(doubled=1)


def test_a_commit_under_another_jid_is_lost_and_doubled(ledger: Ledger):
    assert ledger.compare([*WHOLE[:3], row(4, 3), row(5, 2)]) == Differences(lost=1, doubled=1)


def test_a_row_that_nobody_sent_is_one_too_many(ledger: Ledger):
    assert ledger.compare([*WHOLE, row(5, 4)]) == Differences(doubled=1)
    assert ledger.compare([*WHOLE, (5, 5, 12_345)]) == Differences(doubled=1)


def test_a_hole_in_the_jids_and_a_time_that_goes_back_are_told(ledger: Ledger):
    assert ledger.compare([*WHOLE[1:]]) == Differences(disordered=1)
    assert ledger.compare([*WHOLE, row(5, 3, at_us=3)]) == Differences(disordered=1)


def test_a_number_is_a_second_of_the_time_that_stands_for_it():
    moment = calendar.timegm(time.strptime(format_number(90_061), "%Y-%m-%dT%H:%M:%SZ"))
    assert moment - FIRST_TIME_S == 90_061
