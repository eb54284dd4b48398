"""The matrix is whole whatever the points are. No server is started."""

from itertools import product

from sharding.reshard.model import MoveState
from tests.reshard.matrix import (
    Course,
    Ending,
    Kind,
    Passing,
    Victim,
    make_cells,
    merge_passings,
    missed_points,
    read_passings,
    spread_cells,
)

START = (
    "metaserver.something",
    "reshard.recorded",
    "reshard.preparing.before",
    "reshard.preparing.after",
    "reshard.copying.before",
    "reshard.stream.slot_made",
    "reshard.copy.table_done",
    "reshard.copy.table_done",
    "reshard.copying.after",
    "reshard.reversing.before",
    "reshard.stream.slot_made",
    "reshard.reversing.after",
    "reshard.ready.entered",
)


def test_a_point_is_cut_once_in_each_state_that_passes_it():
    passings = read_passings(Course.START, START)

    assert passings[0] == Passing(Course.START, None, "reshard.recorded", 1)
    assert [(p.state, p.number) for p in passings if p.point == "reshard.stream.slot_made"] == [
        (MoveState.COPYING, 1),
        (MoveState.REVERSING, 2),
    ]
    assert [p.number for p in passings if p.point == "reshard.copy.table_done"] == [1]
    assert len(passings) == len(START) - 2


def test_what_several_courses_pass_is_cut_in_the_first_one():
    cancel = read_passings(Course.CANCEL, ["reshard.cancelling.before", "reshard.stream.dropped"])
    again = read_passings(Course.ABORT, ["reshard.cancelling.before", "reshard.abort.heir_raised"])

    merged = merge_passings({Course.ABORT: again, Course.CANCEL: cancel})

    assert [(p.course, p.point) for p in merged] == [
        (Course.CANCEL, "reshard.cancelling.before"),
        (Course.CANCEL, "reshard.stream.dropped"),
        (Course.ABORT, "reshard.abort.heir_raised"),
    ]


def test_a_point_that_no_course_meets_is_told():
    passings = read_passings(Course.START, START)

    assert missed_points([*START, "reshard.new.point"], passings) == ["reshard.new.point"]


def test_each_state_meets_each_ending_and_each_point_each_victim():
    for seed in range(4):
        cells = make_cells(read_passings(Course.START, START), seed)
        states = {cell.passing.state for cell in cells}
        points = {(cell.passing.state, cell.passing.point) for cell in cells}

        assert {(c.passing.state, c.ending) for c in cells} == set(product(states, Ending))
        assert {((c.passing.state, c.passing.point), c.victim) for c in cells} == set(product(points, Victim))
        assert len({cell.name for cell in cells}) == len(cells) == len(points) * len(Victim)


def test_six_seeds_are_all_that_there_is():
    passings = read_passings(Course.START, START)
    met = {cell.name for seed in range(6) for cell in make_cells(passings, seed)}

    assert len(met) == len(passings) * len(Victim) * len(Ending) * len(Kind)


def test_a_state_of_two_points_meets_each_ending_with_each_kind():
    passings = read_passings(Course.CANCEL, ["reshard.cancelling.before", "reshard.cancelling.after"])

    assert {(c.ending, c.kind) for c in make_cells(passings)} == set(product(Ending, Kind))


def test_a_few_cells_have_every_victim():
    cells = make_cells(read_passings(Course.START, START))

    for seed in range(20):
        some = spread_cells(cells, 5, seed)
        assert {cell.victim for cell in some} == set(Victim)
        assert len(set(some)) == 5
        more = spread_cells(cells, 15, seed)
        assert {cell.ending for cell in more} == set(Ending)
        assert {cell.kind for cell in more} == set(Kind)
        assert len(set(more)) == 15
    assert spread_cells(cells, None) == spread_cells(cells, len(cells) + 1) == cells
