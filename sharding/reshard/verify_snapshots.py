"""Two snapshots, one of each shard, that hold the same rows unless something went wrong.

A marker is written while no writer of the units can commit, and the owner's snapshot is taken at that very
moment: it has all that was committed before the marker, and not the marker. The marker names a gate, a lock
that is held on the follower, where a trigger makes the stream's worker wait for it inside the marker's own
transaction: so there, too, everything before the marker is visible and the marker is not. That is when the
follower's snapshot is taken. Writers are held off for a few round trips, and the stream for a few more.

Both locks belong to sessions whose servers end them when they are left alone, so that a runner that dies, or
is stopped, holds nobody off.
"""

import random
import time
from collections.abc import Generator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import LiteralString

import psycopg
from psycopg import sql

from sharding.directory import Connection
from sharding.locks import GATE_LOCK_CLASS, SLOT_LOCK_CLASS
from sharding.reshard.errors import FenceHeld, MoveBusy, MoveError
from sharding.reshard.fence import FENCE_TRIES, LOCK_TIMEOUT_MS, describe_holders
from sharding.reshard.marker import POLL_S, MarkerLate, bump_marker, read_marker, wait_for_marker
from sharding.reshard.model import Unit
from sharding.reshard.sites import Site
from wire import faults
from wire.ids import NsId, Slot, slot_of

PAIR_MAX_S = 60.0
"""How long a pair is used: as long as a snapshot is held, nothing that was deleted or replaced since can be
cleaned up, on the whole server, and a busy small table grows by every version of its rows."""
MARKER_TIMEOUT_S = 30.0
"""How long the stream may take for a marker; a publisher gives up a silent subscriber after 60 s."""
GATE_TIMEOUT = "5s"
"""How long another comparison's gate is waited for: one that died has its session ended within that time."""
ABANDONED_LOCKS_TIMEOUT = "1s"
"""When the server ends a transaction that holds writers off and that nobody goes on with."""
ABANDONED_GATE_TIMEOUT = "10s"
ABANDONED_READER_TIMEOUT = f"{PAIR_MAX_S:g}s"
"""A throttle may let a pair rest for so long, and a pair that old is not used any more."""
MAX_POLL_S = 0.02

# Both sides must show a row in the same words, and what is read is always a short range of a key.
_READER = {
    "datestyle": "ISO",
    "intervalstyle": "postgres",
    "extra_float_digits": "1",
    "bytea_output": "hex",
    "lc_monetary": "C",
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "max_parallel_workers_per_gather": "0",
    "idle_in_transaction_session_timeout": ABANDONED_READER_TIMEOUT,
}

faults.declare("reshard.verify.gate_closed", "reshard.verify.snapshot_taken")


class GateOpened(MoveError):
    """The stream went on where it was to wait, so there are no two snapshots of one moment."""

    code = "gate_opened"


@dataclass(frozen=True, slots=True)
class SnapshotPair:
    """Two open transactions that read the same moment of a stream."""

    owner: Connection
    follower: Connection
    pauses_ms: tuple[float, ...]
    """How long writers were held off: the last is the marker's; before it, each try that found no lock."""
    taken_at: float = field(default_factory=time.monotonic)

    @property
    def is_old(self) -> bool:
        """Whether it is time for another one."""
        return time.monotonic() - self.taken_at >= PAIR_MAX_S


@dataclass(frozen=True, slots=True)
class _Mark:
    """The marker that the stream is to stop at."""

    key: NsId
    writer: str
    gate: int


@contextmanager
def take_pair(owner: Site, follower: Site, units: Sequence[Unit], gate: int) -> Generator[SnapshotPair]:
    """Snapshots of both shards between which no write to the units lies; valid while open.

    Args:
        owner: whose writes the stream carries.
        follower: who applies them.
        units: of one stream; at least one.
        gate: a number that no other comparison at this follower uses.

    Raises:
        MarkerLate: the stream stands still, or is far behind.
        FenceHeld: a writer of the units did not end in time, several times over; it is named.
        MoveBusy: another comparison holds the gate.
        GateOpened: the stream went on before the follower's snapshot was taken.
    """
    mark = _Mark(units[0].key, owner.name, gate)
    with closing(owner.connect(**_READER)) as ours, closing(follower.connect(**_READER)) as theirs:
        with (
            closing(owner.connect()) as writer,
            closing(
                follower.connect(lock_timeout=GATE_TIMEOUT, idle_session_timeout=ABANDONED_GATE_TIMEOUT)
            ) as keeper,
        ):
            _catch_up(writer, keeper, mark)
            for reader in (ours, theirs):
                # Once outside: what is asked under the locks then finds all caches warm.
                read_marker(reader, mark.key, mark.writer)
                reader.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            with _closed_gate(keeper, follower.name, gate):
                seq, pauses_ms = _write_marker(writer, ours, mark, sorted({slot_of(u.key) for u in units}))
                _wait_until_stopped(keeper, mark)
                reached = read_marker(theirs, mark.key, mark.writer)
            if reached != seq:
                raise GateOpened(f"{follower.name} stopped at marker {reached} of {owner.name}, not {seq}")
        yield SnapshotPair(ours, theirs, pauses_ms)


def _catch_up(writer: Connection, follower: Connection, mark: _Mark) -> None:
    """Return when the follower has all markers so far, so that it cannot stop at one of a run that died.

    It also makes the wait at the gate short, and has both servers do once what they are to do fast.
    """
    with writer.transaction():
        writer.execute(_SET_LOCK_TIMEOUT)
        writer.execute(_LOCK_SHARED, [SLOT_LOCK_CLASS, slot_of(mark.key)])
        seq = bump_marker(writer, mark.key, mark.writer, mark.gate)
    wait_for_marker(follower, mark.key, mark.writer, seq, MARKER_TIMEOUT_S)


@contextmanager
def _closed_gate(keeper: Connection, follower: str, gate: int) -> Generator[None]:
    try:
        keeper.execute("SELECT pg_advisory_lock(%s, %s)", [GATE_LOCK_CLASS, gate])
    except psycopg.errors.LockNotAvailable:
        raise MoveBusy(
            f"another comparison holds gate {gate} on {follower}; try again when it is over"
        ) from None
    faults.fault_point("reshard.verify.gate_closed")
    yield
    # Only a lock that was held up to here has held the stream up to here.
    row = keeper.execute("SELECT pg_advisory_unlock(%s, %s)", [GATE_LOCK_CLASS, gate]).fetchone()
    if row is None or not row[0]:
        raise GateOpened(f"gate {gate} on {follower} was opened before its time")


def _write_marker(
    writer: Connection, reader: Connection, mark: _Mark, slots: Sequence[Slot]
) -> tuple[int, tuple[float, ...]]:
    """Write the marker and have the reader take its snapshot right before it.

    Returns:
        The number of the last marker in that snapshot, and for how long writers were held off, by attempt.
    """
    pauses_ms: list[float] = []
    for _ in range(FENCE_TRIES):
        writer.execute(_BEGIN)
        began = time.monotonic()
        is_locked = _try_to_mark(writer, mark, slots)
        if is_locked:
            seq = read_marker(reader, mark.key, mark.writer)
            faults.fault_point("reshard.verify.snapshot_taken")
            writer.execute("COMMIT")
            pauses_ms.append((time.monotonic() - began) * 1e3)
            writer.execute(_FLUSH)
            return seq, tuple(pauses_ms)
        pauses_ms.append((time.monotonic() - began) * 1e3)
        # Long enough for the queue that built up behind the locks to be worked off.
        time.sleep(random.uniform(0.05, 0.2))  # noqa: S311
    raise FenceHeld(_describe_blockers(writer, mark.writer, slots))


def _try_to_mark(writer: Connection, mark: _Mark, slots: Sequence[Slot]) -> bool:
    """Whether the locks were to be had in time; the marker is written then, and not committed."""
    try:
        # Not in a pipeline, which would save a round trip: after one the server was seen not to end an idle
        # transaction any more, and writers would wait for a runner that stands still.
        writer.execute(_LOCK, [SLOT_LOCK_CLASS, slots])
        bump_marker(writer, mark.key, mark.writer, mark.gate)
    except (psycopg.errors.LockNotAvailable, psycopg.errors.QueryCanceled):
        writer.execute("ROLLBACK")
        return False
    return True


def _describe_blockers(conn: Connection, shard: str, slots: Sequence[Slot]) -> str:
    held = "; ".join(f"slot {slot}: {describe_holders(conn, slot)}" for slot in slots)
    return f"writers on {shard} did not let go within {LOCK_TIMEOUT_MS} ms, {FENCE_TRIES} times: {held}"


def _wait_until_stopped(keeper: Connection, mark: _Mark) -> None:
    """Return when the stream waits at the gate.

    Raises:
        MarkerLate: it did not get there.
    """
    deadline = time.monotonic() + MARKER_TIMEOUT_S
    poll_s = POLL_S
    while keeper.execute(_WAITING, [GATE_LOCK_CLASS, mark.gate]).fetchone() is None:
        if time.monotonic() > deadline:
            raise MarkerLate(f"the stream from {mark.writer} did not stop within {MARKER_TIMEOUT_S:g} s")
        time.sleep(poll_s)
        poll_s = min(poll_s * 1.2, MAX_POLL_S)


_SET_LOCK_TIMEOUT = sql.SQL("SET LOCAL lock_timeout = {}").format(LOCK_TIMEOUT_MS)
# One lock's wait has its bound, and so have all of them together. The log need not reach the disk while
# writers wait, as the stream carries nothing before it has.
_BEGIN = sql.SQL(
    "BEGIN; SET LOCAL lock_timeout = {0}; SET LOCAL statement_timeout = {0};"
    " SET LOCAL synchronous_commit = off; SET LOCAL idle_in_transaction_session_timeout = {1}"
).format(LOCK_TIMEOUT_MS, ABANDONED_LOCKS_TIMEOUT)
_LOCK: LiteralString = "SELECT pg_advisory_xact_lock(%s, s) FROM (SELECT unnest(%s::int[]) AS s) slots"
_LOCK_SHARED: LiteralString = "SELECT pg_advisory_xact_lock_shared(%s, %s)"
_FLUSH: LiteralString = "SELECT pg_logical_emit_message(true, 'shardbox.verify', '')"
_WAITING: LiteralString = (
    "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND objsubid = 2"
    " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    " AND classid = %s AND objid = %s"
)
