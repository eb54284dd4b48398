"""Which cells there are: what is passed where, who is killed there, and what the operator does next. Pure."""

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from sharding.reshard.model import MoveState

PREFIX = "reshard."


class Course(StrEnum):
    """A command that is cut, after those that bring a move to where it is given."""

    START = "start"
    """Nothing → ready."""
    SWITCH = "switch"
    """Ready → soaking."""
    ROLLBACK = "rollback"
    """Soaking → ready."""
    COMPLETE = "complete"
    """Soaking → completed."""
    CANCEL = "cancel"
    """Ready → cancelled."""
    ABORT = "abort"
    """A switch whose runner died between fence and activation → ready, by `rollback`."""
    PIN = "pin"
    """No move: a namespace is pinned where it is, and so gets a row of its own."""
    UNPIN = "unpin"
    """It comes home to its slot, on the same shard."""


class Victim(StrEnum):
    """Who is killed."""

    RUNNER = "runner"
    SOURCE = "source"
    TARGET = "target"
    DIRECTORY = "directory"
    METASERVER = "metaserver"


class Kind(StrEnum):
    """What moves."""

    SLOTS = "slots"
    NAMESPACE = "namespace"
    """One by itself, out of its slot or back home to it."""


class Ending(StrEnum):
    """What the operator makes of a move that was cut."""

    RESUME = "resume"
    ROLLBACK = "rollback"
    CANCEL = "cancel"


@dataclass(frozen=True, slots=True)
class Passing:
    """A fault point as a course comes by it in a state of the move."""

    course: Course
    state: MoveState | None
    """None: before the first one, or of no move."""
    point: str
    number: int
    """Which time of the course's command it is, from 1."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One of the matrix."""

    passing: Passing
    victim: Victim
    ending: Ending
    kind: Kind

    @property
    def name(self) -> str:
        """What `--only` finds it by."""
        state = self.passing.state or self.passing.course
        return f"{self.passing.point}/{state}/{self.victim}/{self.ending}/{self.kind}"


def read_passings(course: Course, trace: Iterable[str]) -> list[Passing]:
    """The first time of each point in each state, in order.

    Args:
        course: whose command it was.
        trace: the names of the points that it passed; `reshard.STATE.before` begins a state, and so does
            `reshard.STATE.entered` of one without work.
    """
    passings: dict[tuple[MoveState | None, str], Passing] = {}
    counts: Counter[str] = Counter()
    state: MoveState | None = None
    for point in trace:
        if not point.startswith(PREFIX):
            continue
        counts[point] += 1
        state = _state_begun_at(point) or state
        passings.setdefault((state, point), Passing(course, state, point, counts[point]))
    return list(passings.values())


def _state_begun_at(point: str) -> MoveState | None:
    name, _, when = point.removeprefix(PREFIX).partition(".")
    return MoveState(name) if when in ("before", "entered") and name in set(MoveState) else None


def merge_passings(passings: Mapping[Course, Sequence[Passing]]) -> list[Passing]:
    """Each point in each state once, by the first course that meets it."""
    merged: dict[tuple[MoveState | None, str], Passing] = {}
    for course in Course:
        for passing in passings.get(course, ()):
            merged.setdefault((passing.state, passing.point), passing)
    return list(merged.values())


def missed_points(declared: Iterable[str], passings: Iterable[Passing]) -> list[str]:
    """Points of moves that no course meets."""
    met = {passing.point for passing in passings}
    return sorted(point for point in declared if point.startswith(PREFIX) and point not in met)


def make_cells(passings: Iterable[Passing], seed: int = 0) -> list[Cell]:
    """Every victim at every passing; endings and kinds take turns within each state.

    Five, three and two have no common divisor: in a state of two passings each ending meets each kind, and
    six seeds are all that there is.
    """
    endings, kinds = list(Ending), list(Kind)
    turns: Counter[MoveState | None] = Counter()
    cells: list[Cell] = []
    for passing in passings:
        for victim in Victim:
            turn = turns[passing.state] + seed
            turns[passing.state] += 1
            cells.append(Cell(passing, victim, endings[turn % len(endings)], kinds[turn % len(kinds)]))
    return cells


def spread_cells(cells: Sequence[Cell], count: int | None, seed: int = 0) -> list[Cell]:
    """So many cells, from one end to the other, others for another seed; all if there are no more.

    The step has no divisor in common with the numbers of victims, endings and kinds, so that it meets them
    in turn, and none with that of cells, so that it meets no cell twice.
    """
    if count is None or count >= len(cells):
        return list(cells)
    turns = len(Victim) * len(Ending) * len(Kind) * len(cells)
    step = next(n for n in itertools.count(max(1, len(cells) // count)) if math.gcd(n, turns) == 1)
    return [cells[(seed + number * step) % len(cells)] for number in range(count)]
