"""A move: its states, what each asks for, and the way from one to another. Pure.

A state is persisted before its work is begun, so that whoever finds a move in a state knows what may have
been done: nothing beyond that state's work. All work can be repeated.
"""

from dataclasses import dataclass
from enum import StrEnum

import msgspec

from sharding.reshard.errors import MoveError
from wire.ids import MAX_COUNT, NsId, make_ns_id, slot_of, system_ns


class MoveState(StrEnum):
    """How far a move is."""

    PLANNED = "planned"
    """Recorded; neither server knows of it."""
    PREPARING = "preparing"
    """Is checked; the target's ownership rows and the publication are made."""
    COPYING = "copying"
    """A replication slot holds the changes back while the rows are copied as of its snapshot."""
    STREAMING = "streaming"
    """The subscription is made, and catches up."""
    REVERSING = "reversing"
    """The stream from the target back to the source is made."""
    READY = "ready"
    """Both streams run; the source owns. A move may rest here."""
    SWITCHING = "switching"
    """Verified, then unit after unit is cut over to the target."""
    SOAKING = "soaking"
    """The target owns, and its writes are carried back. A move may rest here."""
    ROLLING_BACK = "rolling_back"
    """Verified, then unit after unit is cut over to the source."""
    RETIRING = "retiring"
    """No way back from here: the streams are dropped, the source's rows disowned."""
    DELETING = "deleting"
    """After a quarantine the source's rows are deleted."""
    COMPLETED = "completed"
    CANCELLING = "cancelling"
    """The streams are dropped, the target's rows disowned."""
    CLEARING = "clearing"
    """The target's rows are deleted."""
    CANCELLED = "cancelled"


class Goal(StrEnum):
    """Where an operator wants a move to come to rest."""

    READY = "ready"
    SOAKING = "soaking"
    COMPLETED = "completed"
    CANCELLED = "cancelled"


ENDED = frozenset({MoveState.COMPLETED, MoveState.CANCELLED})
RESTING = frozenset({MoveState.PLANNED, MoveState.READY, MoveState.SOAKING}) | ENDED
"""States whose work is none."""
STREAMED = frozenset(MoveState) - ENDED - {MoveState.PLANNED, MoveState.DELETING, MoveState.CLEARING}
"""States in which a change of the tables would break a stream."""
BEFORE_COPY = frozenset({MoveState.PLANNED, MoveState.PREPARING})
"""States in which a move has no rows on its target yet."""
_BUILD = (
    MoveState.PLANNED,
    MoveState.PREPARING,
    MoveState.COPYING,
    MoveState.STREAMING,
    MoveState.REVERSING,
    MoveState.READY,
)
_RETIRE = (MoveState.SOAKING, MoveState.RETIRING, MoveState.DELETING, MoveState.COMPLETED)
_CLEAR = (MoveState.READY, MoveState.CANCELLING, MoveState.CLEARING, MoveState.CANCELLED)


class IllegalGoal(MoveError):
    """There is no way from a move's state to the goal."""

    code = "move_state"

    def __init__(self, state: MoveState, goal: Goal):
        super().__init__(f"a move that is {state} cannot become {goal}")


def next_state(state: MoveState, goal: Goal, *, is_done: bool) -> MoveState | None:
    """The state whose work is next; None when the goal is reached.

    Args:
        state: the persisted one.
        goal: where to come to rest.
        is_done: whether the work of `state` is done; a state found in the directory counts as not done,
            and is answered with itself unless the goal makes it pointless.

    Raises:
        IllegalGoal: beyond the point of no return, or ended otherwise.
    """
    if state.value == goal.value:
        return None
    if state in ENDED:
        raise IllegalGoal(state, goal)
    turned = _turn(state, goal)
    if turned is not None:
        return turned
    if not is_done and state not in RESTING:
        return state
    for path in (_BUILD, _RETIRE):
        if state in path[:-1]:
            return path[path.index(state) + 1]
    return _after_cutovers(state, goal)


def _turn(state: MoveState, goal: Goal) -> MoveState | None:
    """Where a goal leads off the way that a move is on, whether or not its state's work is done."""
    match state, goal:
        case MoveState.SWITCHING | MoveState.SOAKING, Goal.READY | Goal.CANCELLED:
            return MoveState.ROLLING_BACK
        case MoveState.ROLLING_BACK, Goal.SOAKING | Goal.COMPLETED:
            return MoveState.SWITCHING
        case MoveState.RETIRING | MoveState.DELETING, Goal.READY | Goal.SOAKING | Goal.CANCELLED:
            raise IllegalGoal(state, goal)
        case MoveState.CANCELLING | MoveState.CLEARING, Goal.READY | Goal.SOAKING | Goal.COMPLETED:
            raise IllegalGoal(state, goal)
        case MoveState.PLANNED, Goal.CANCELLED:
            return MoveState.CANCELLED
        case _, Goal.CANCELLED if state in _BUILD:
            return MoveState.CANCELLING
        case MoveState.READY, _:
            return MoveState.SWITCHING
        case _:
            return None


def _after_cutovers(state: MoveState, goal: Goal) -> MoveState:
    if state is MoveState.SWITCHING:
        return MoveState.SOAKING
    if state is MoveState.ROLLING_BACK:
        return MoveState.READY
    return _CLEAR[_CLEAR.index(state) + 1]


class Side(StrEnum):
    """One of a move's two shards; one byte in the directory."""

    SOURCE = "s"
    TARGET = "t"

    @property
    def other(self) -> "Side":
        """The other one."""
        return Side.TARGET if self is Side.SOURCE else Side.SOURCE


@dataclass(frozen=True, slots=True)
class Unit:
    """What changes hands at once: a slot, or one namespace."""

    key: NsId
    """Of its ownership row: the slot's system namespace, or the namespace."""
    first: NsId
    last: NsId
    """Inclusive: the last slot's exclusive bound is not a bigint."""
    excluded: tuple[NsId, ...] = ()
    """Namespaces of the slot that are placed by themselves; ascending."""
    holder: Side = Side.SOURCE
    """Who owns it by the map."""
    is_cutting: bool = False
    """Whether a cutover away from the holder was begun, and not ended."""

    @property
    def is_slot(self) -> bool:
        """Whether it is a slot, and not a single namespace."""
        return self.key == system_ns(slot_of(self.key))

    @property
    def name(self) -> str:
        """For people."""
        return f"slot {slot_of(self.key)}" if self.is_slot else f"namespace {self.key}"


def slot_unit(key: NsId, excluded: tuple[NsId, ...] = ()) -> Unit:
    """The unit of a slot, by its system namespace."""
    return Unit(key, key, make_ns_id(slot_of(key), MAX_COUNT), tuple(sorted(excluded)))


def namespace_unit(ns_id: NsId) -> Unit:
    """The unit of a single namespace."""
    return Unit(ns_id, ns_id, ns_id)


class Throttle(msgspec.Struct, frozen=True, kw_only=True):
    """What a move's copy and deletions keep below; may be changed while they run."""

    max_lag_bytes: int = 256 * 1024 * 1024
    """WAL that any standby or stream of the source, or of the target, has not confirmed yet."""
    max_commit_ms: float = 50.0
    """A small commit's latency on the source: an idle server of this kind takes 1 to 5 ms."""
    max_rows_per_s: int = 0
    """0: as fast as it goes."""


class MoveOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How a move is made."""

    is_verified: bool = True
    """Whether every switch, and every rollback, begins with an exact comparison."""
    quarantine_s: float = 3600.0
    """How long the source's rows stay after the point of no return."""
    throttle: Throttle = Throttle()


@dataclass(frozen=True, slots=True)
class Move:
    """A move as the directory has it."""

    move_id: int
    source: str
    target: str
    state: MoveState
    goal: Goal
    options: MoveOptions
    units: tuple[Unit, ...]
    """Ascending by key."""
    is_paused: bool = False
    error: str | None = None
    """Why its last runner stopped, if that was not what it wanted."""
    retired_at_s: float | None = None
    """Since when the source's rows are disowned; seconds of the directory's clock."""

    def shard(self, side: Side) -> str:
        """The name of one of its shards."""
        return self.source if side is Side.SOURCE else self.target

    def covers(self, ns_id: NsId) -> bool:
        """Whether a namespace's rows are among those that move."""
        return any(unit.first <= ns_id <= unit.last and ns_id not in unit.excluded for unit in self.units)
