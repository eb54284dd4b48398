"""What the commands that move things have in common: choosing units, running a move, telling how it goes."""

import re
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from ops.errors import UsageError
from ops.output import say
from ops.session import connect_directory
from ops.shards import connect_shard
from sharding.directory import load_map_sync
from sharding.reshard.cleanup import DeleteProgress
from sharding.reshard.copy import CopyProgress
from sharding.reshard.fence import CutoverTimes
from sharding.reshard.model import (
    RESTING,
    STREAMED,
    Goal,
    Move,
    MoveState,
    Side,
    Unit,
    namespace_unit,
    slot_unit,
)
from sharding.reshard.records import list_moves
from sharding.reshard.runner import Entered, Event, MoveRunner, Progressed, RunReport
from sharding.reshard.sites import site_of
from sharding.reshard.stream import renew_connection, stream_name
from sharding.reshard.verify import Verified
from sharding.shardmap import ShardMap
from wire.errors import NotFound
from wire.ids import NsId, Slot, slot_of, system_ns

_SLOT_RANGE = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")
MAX_QUARANTINE_S = 10 * 365 * 86400.0
MAX_LAG_MB = 1 << 30
MAX_COMMIT_MS = 1e6
MAX_ROWS_PER_S = 10**12
"""Bounds beyond all sense, which keep infinity out: JSON, in which options are recorded, does not have it."""


class UnitReport(msgspec.Struct, frozen=True, kw_only=True):
    """A unit of a move."""

    key: str
    name: str
    holder: str
    """The shard that owns it by the map."""
    is_cutting: bool


class CutoverReport(msgspec.Struct, frozen=True, kw_only=True):
    """How long the writers of a unit were held off, in ms."""

    key: str
    fence_ms: float
    drain_ms: float
    activate_ms: float
    total_ms: float


class ProgressReport(msgspec.Struct, frozen=True, kw_only=True):
    """How far the work of a move's state is."""

    what: str
    rows: int
    rows_expected: int | None = None
    bytes: int | None = None
    rows_per_s: float | None = None
    mb_per_s: float | None = None
    eta_s: float | None = None
    held_back_by: str | None = None
    """Why it is slower than it could be."""


class MoveReport(msgspec.Struct, frozen=True, kw_only=True):
    """A move as a command shows it."""

    move_id: int
    source: str
    target: str
    state: str
    goal: str
    is_paused: bool
    error: str | None
    units: list[UnitReport]
    cutovers: list[CutoverReport] = []
    """That this command made."""
    copied: CopyProgress | None = None
    """What this command copied."""
    runner: str | None = None
    progress: ProgressReport | None = None


def report_move(
    move: Move, cutovers: Sequence[CutoverTimes] = (), copied: CopyProgress | None = None
) -> MoveReport:
    """A move for people and programs."""
    return MoveReport(
        move_id=move.move_id,
        source=move.source,
        target=move.target,
        state=move.state,
        goal=move.goal,
        is_paused=move.is_paused,
        error=move.error,
        units=[
            UnitReport(
                key=str(unit.key), name=unit.name, holder=move.shard(unit.holder), is_cutting=unit.is_cutting
            )
            for unit in move.units
        ],
        cutovers=[
            CutoverReport(
                key=str(c.key),
                fence_ms=round(c.fence_ms, 3),
                drain_ms=round(c.drain_ms, 3),
                activate_ms=round(c.activate_ms, 3),
                total_ms=round(c.total_ms, 3),
            )
            for c in cutovers
        ],
        copied=copied,
    )


def report_progress(
    state: MoveState, progress: bytes | None, verified: bytes | None
) -> ProgressReport | None:
    """How far a move is, from what its runner last told; None when it told nothing.

    Args:
        state: the move's.
        progress: of its copy or deletion, as JSON.
        verified: of its comparison, as JSON.
    """
    if state is MoveState.COPYING and progress is not None:
        return report_copy(msgspec.json.decode(progress, type=CopyProgress))
    if state in (MoveState.DELETING, MoveState.CLEARING) and progress is not None:
        deleted = msgspec.json.decode(progress, type=DeleteProgress)
        return ProgressReport(what=f"deleting, now from {deleted.table}", rows=deleted.deleted_rows)
    if verified is not None:
        compared = msgspec.json.decode(verified, type=Verified)
        return ProgressReport(what=f"comparing, now {compared.table or 'done'}", rows=compared.report.rows)
    return None


def report_copy(progress: CopyProgress) -> ProgressReport:
    """How far a copy is."""
    rate = progress.rows_per_s
    return ProgressReport(
        what="copying",
        rows=progress.rows,
        rows_expected=progress.rows_expected,
        bytes=progress.bytes,
        rows_per_s=round(rate, 1),
        mb_per_s=round(progress.mb_per_s, 3),
        eta_s=round((progress.rows_expected - progress.rows) / rate, 1) if rate else None,
        held_back_by=progress.held_back_by or None,
    )


def slot_units(shard_map: ShardMap, slots: Sequence[int]) -> list[Unit]:
    """The units of slots, without their namespaces that are placed by themselves.

    Raises:
        UsageError: a slot is not in use.
    """
    if beyond := [slot for slot in slots if not 0 <= slot < shard_map.slot_count]:
        raise UsageError(f"slots are 0 to {shard_map.slot_count - 1}, not {beyond[0]}")
    own: dict[int, list[NsId]] = {}
    for ns_id in shard_map.overrides:
        own.setdefault(slot_of(ns_id), []).append(ns_id)
    return [slot_unit(system_ns(Slot(slot)), tuple(own.get(slot, ()))) for slot in slots]


def source_of(shard_map: ShardMap, units: Sequence[Unit]) -> str:
    """The one shard that owns all the units by the map.

    Raises:
        UsageError: they lie on several.
    """
    shards = {placed.shard for unit in units if (placed := shard_map.placement(unit.key)) is not None}
    if len(shards) != 1:
        raise UsageError(f"one move has one source, and these lie on {', '.join(sorted(shards)) or 'none'}")
    return shards.pop()


def one_namespace(shard_map: ShardMap, ns_id: NsId) -> list[Unit]:
    """The unit of a namespace.

    Raises:
        UsageError: it is a slot's system namespace, which goes with its slot.
    """
    if shard_map.placement(ns_id) is None or ns_id == system_ns(slot_of(ns_id)):
        raise UsageError(f"{ns_id} is not a namespace that can be placed by itself")
    return [namespace_unit(ns_id)]


def check_exists(shard_map: ShardMap, ns_id: NsId) -> None:
    """Pass when there is such a namespace.

    Raises:
        NotFound: there is none.
        ShardUnavailable: the shard that would have it does not answer.
    """
    placed = shard_map.placement(ns_id)
    assert placed is not None
    with connect_shard(shard_map.shards[placed.shard]) as conn:
        if conn.execute("SELECT 1 FROM ns.namespaces WHERE ns_id = %s", [ns_id]).fetchone() is None:
            raise NotFound(f"there is no namespace {ns_id}")


def parse_slots(text: str) -> list[int]:
    """Slots of a list such as 3,8-11; ascending, each once.

    Raises:
        UsageError: it is none.
    """
    slots: set[int] = set()
    for part in text.split(","):
        found = _SLOT_RANGE.fullmatch(part.strip())
        if found is None:
            raise UsageError(f"not a list of slots such as 3,8-11: {text!r}")
        begin, end = int(found[1]), int(found[2] or found[1])
        if begin > end:
            raise UsageError(f"{part!r} ends before it begins")
        slots.update(range(begin, end + 1))
    return sorted(slots)


def run_move(directory_dsn: str, move_id: int, goal: Goal | None = None) -> RunReport:
    """A move brought to its goal, in the foreground: Ctrl-C and SIGTERM stop it where it can be resumed."""
    with stop_on_signals() as stop, MoveDisplay() as display:
        return MoveRunner(directory_dsn, display.show, stop).run(move_id, goal)


@contextmanager
def stop_on_signals() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C or SIGTERM sets; the second one ends the process as usual."""
    stop = threading.Event()

    def handle(number: int, _frame: FrameType | None) -> None:
        stop.set()
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.default_int_handler)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, old in before.items():
            signal.signal(number, old)


class MoveDisplay:
    """Moves on the way: bars in a terminal, a line for each state where there is none; on stderr."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tasks: dict[int, TaskID] = {}
        self._bars: Progress | None = None
        if sys.stderr.isatty():
            self._bars = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
                console=Console(stderr=True, markup=False),
            )

    def __enter__(self) -> "MoveDisplay":
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars is not None:
            self._bars.stop()

    def show(self, event: Event) -> None:
        """Show an event of a runner; from whichever thread."""
        with self._lock:
            match event:
                case Entered(move):
                    self._say(move.move_id, f"{move.state}", is_at_rest=move.state in RESTING)
                case Progressed(move, CopyProgress() as progress):
                    self._advance(move, progress)
                case Progressed():
                    pass
                case _:
                    self._say(event.move_id, f"waits: {event.because}")

    def tell(self, text: str) -> None:
        """Show a line that is of no single move; from whichever thread."""
        with self._lock:
            if self._bars is None:
                say(text)
            else:
                self._bars.console.print(text)

    def _say(self, move_id: int, text: str, *, is_at_rest: bool = False) -> None:
        line = f"move {move_id}: {text}"
        if self._bars is None:
            say(line)
            return
        if move_id not in self._tasks:
            self._tasks[move_id] = self._bars.add_task(line, total=None, rate="")
        self._bars.update(self._tasks[move_id], description=line, rate="")
        if is_at_rest:
            self._bars.update(self._tasks[move_id], total=1, completed=1)  # full, and no longer in motion

    def _advance(self, move: Move, progress: CopyProgress) -> None:
        if self._bars is None or move.move_id not in self._tasks:
            return
        self._bars.update(
            self._tasks[move.move_id],
            completed=progress.rows,
            total=progress.rows_expected,
            rate=f"{progress.rows_per_s:,.0f} rows/s",
        )


def renew_streams(directory_dsn: str, shard: str) -> None:
    """Let the streams from a shard connect with its password as it is now.

    Raises:
        StreamBroken: a subscriber does not take it.
    """
    with connect_directory(directory_dsn) as conn:
        moves = [move for move in list_moves(conn, is_live_only=True) if move.state in STREAMED]
        shard_map = load_map_sync(conn)
    for move in moves:
        for side in Side:
            if move.shard(side) != shard:
                continue
            name = stream_name(shard_map.cluster_id, move.move_id, is_back=side is Side.TARGET)
            publisher, subscriber = (site_of(shard_map, end) for end in (shard, move.shard(side.other)))
            with subscriber.connect() as peer:
                renew_connection(peer, publisher, name)
