"""One cutover of one unit: fence, drain, activate; or abort. Nothing else in a move makes an owner.

The owner holds the unit at epoch e. The fence makes its row `fenced` at e+1 under the slot's exclusive lock,
which waits for every writer under way and is seen by every later one. The drain waits for the marker that was
written with the fence: the heir then has all that was ever committed. The activation makes the heir's row
`active` at e+1, by compare-and-set: THE POINT from which the heir owns. An abort first raises the heir's row
to e+2, so that an activation that comes late matches nothing, and only then makes the owner active again.

Each function can be repeated, by whoever finds the unit; two runners at once do no harm to one another.
"""

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import LiteralString, TypeVar

import psycopg

from sharding.directory import Connection
from sharding.locks import SLOT_LOCK_CLASS
from sharding.reshard.errors import FenceHeld, MoveConflict
from sharding.reshard.marker import BUMP, MarkerLate, bump_marker, wait_for_marker
from sharding.reshard.model import Unit
from sharding.shardmap import OwnershipState, Placement
from wire import faults
from wire.ids import NsId, Slot, slot_of

T = TypeVar("T")

LOCK_TIMEOUT_MS = 200
"""How long writers may queue behind a fence that waits for a slower one; a commit takes some 5 ms."""
FENCE_TRIES = 5
GAP_WAIT_S = 1.0
"""How long a fence waits for a moment in which nobody writes, before it makes writers wait for it."""
GAP_POLL_S = 0.002
DRAIN_TIMEOUT_S = 1.0
"""Writers retry for 1.8 s (`sharding.tx.DEADLINE_S`): a drain that takes longer is called off before."""
REHEARSAL_GOOD_S = 0.05
"""A stream that brings a marker this soon will not keep writers waiting."""
REHEARSAL_TIMEOUT_S = 30.0

faults.declare(
    "reshard.cutover.begun",
    "reshard.cutover.fenced",
    "reshard.cutover.drained",
    "reshard.cutover.activated",
    "reshard.cutover.published",
    "reshard.abort.heir_raised",
    "reshard.abort.owner_active",
)


@dataclass(frozen=True, slots=True)
class OwnershipRow:
    """A row of `local.ownership`."""

    epoch: int
    state: OwnershipState
    successor: Placement | None


@dataclass(frozen=True, slots=True)
class CutoverTimes:
    """How long a unit's writers were held off; all in ms. `fence_ms` begins when they may first have had to
    wait: with the message that got the lock, or that queued for it."""

    key: NsId
    fence_ms: float
    drain_ms: float
    activate_ms: float

    @property
    def total_ms(self) -> float:
        """From the first moment that a writer may have had to wait, to the heir's first."""
        return self.fence_ms + self.drain_ms + self.activate_ms


def find_ownership(conn: Connection, key: NsId) -> OwnershipRow | None:
    """A shard's row of a key."""
    row = conn.execute(
        "SELECT epoch, state, successor, successor_epoch FROM local.ownership WHERE ns_id = %s", [key]
    ).fetchone()
    if row is None:
        return None
    return OwnershipRow(row[0], OwnershipState(row[1]), None if row[2] is None else Placement(row[2], row[3]))


def rehearse(owner: Connection, heir: Connection, unit: Unit, writer: str) -> float:
    """How long the stream takes for a marker, in s, once that is short: a cutover would drain as soon.

    A big transaction, of whatever slots, is decoded as a whole: behind one the drain would take seconds.

    Raises:
        FenceHeld: the stream stays slow.
    """
    deadline = time.monotonic() + REHEARSAL_TIMEOUT_S
    while True:
        with owner.transaction():
            owner.execute(_LOCK_SHARED, [SLOT_LOCK_CLASS, slot_of(unit.key)])
            seq = bump_marker(owner, unit.key, writer)
        began = time.monotonic()
        try:
            wait_for_marker(heir, unit.key, writer, seq, max(deadline - began, REHEARSAL_GOOD_S))
        except MarkerLate as error:
            raise FenceHeld(
                f"{error}: is there a big transaction on {writer}? Try again when it is over"
            ) from (error)
        took_s = time.monotonic() - began
        if took_s <= REHEARSAL_GOOD_S:
            return took_s


def lock_slot(conn: Connection, slot: Slot) -> None:
    """Hold a slot's writers off until the transaction ends; they queue behind a slower one only shortly.

    Raises:
        FenceHeld: a writer did not end in time, several times over; it is named.

    Tx: the caller's; what is to see all that was committed before has to be a later statement.
    """

    def lock() -> None:
        with conn.transaction():
            conn.execute(_SET_TIMEOUTS, [f"{LOCK_TIMEOUT_MS}ms", f"{DRAIN_TIMEOUT_S:g}s"])
            conn.execute(_LOCK, [SLOT_LOCK_CLASS, slot])

    _retry_locking(lock, conn, slot)


def _retry_locking(lock: Callable[[], T], conn: Connection, slot: Slot) -> T:
    for attempt in range(1, FENCE_TRIES + 1):
        try:
            return lock()
        except psycopg.errors.LockNotAvailable:
            if attempt == FENCE_TRIES:
                raise FenceHeld(
                    f"writers of slot {slot} in {conn.info.dbname} at {conn.info.host}:{conn.info.port} did"
                    f" not let go within {LOCK_TIMEOUT_MS} ms, {FENCE_TRIES} times:"
                    f" {describe_holders(conn, slot)}"
                ) from None
            # Long enough for the queue that built up behind the lock to be worked off.
            time.sleep(random.uniform(0.05, 0.2))  # noqa: S311
    raise AssertionError("the last try returns or raises")


@dataclass(frozen=True, slots=True)
class Fenced:
    """A unit was taken from its owner."""

    seq: int
    """Of the marker behind its last write."""
    began_s: float
    """Since when writers may have had to wait, on the monotonic clock."""


def fence(
    owner: Connection, unit: Unit, epoch: int, writer: str, successor: str, apart: Sequence[NsId] = ()
) -> Fenced:
    """Take a unit from its owner, in a moment without writers if there is one soon.

    Args:
        owner: connection to the shard that holds it at `epoch`.
        unit: what is cut over.
        epoch: e; the row becomes fenced at e+1.
        writer: the owner's name, as the stream's markers have it.
        successor: the heir's name, which writers that were too late are told.
        apart: the unit's namespaces that this shard owns by rows of their own, ascending.

    Raises:
        FenceHeld: a writer did not end in time, several times over; it is named.
        MoveConflict: the shard does not hold it at this epoch; or it has other rows of single namespaces,
            which would keep what goes, or go with what stays.

    Tx: one of its own, in one message: writers never wait for our next one, whatever becomes of us.
    """
    order = {
        "timeout": f"{LOCK_TIMEOUT_MS}ms",
        "class": SLOT_LOCK_CLASS,
        "slot": slot_of(unit.key),
        "key": unit.key,
        "first": unit.first,
        "last": unit.last,
        "apart": list(apart),
        "epoch": epoch,
        "writer": writer,
        "successor": successor,
    }
    began_s = time.monotonic()
    deadline_s = began_s + GAP_WAIT_S
    has_lock, seq = _send_fence(owner, _TRY_FENCE, order)
    while not has_lock and time.monotonic() < deadline_s:
        time.sleep(GAP_POLL_S)
        began_s = time.monotonic()
        has_lock, seq = _send_fence(owner, _TRY_FENCE, order)
    if not has_lock:
        began_s = time.monotonic()
        _, seq = _retry_locking(lambda: _send_fence(owner, _FENCE, order), owner, slot_of(unit.key))
    if seq is None:
        check_apart(owner, unit, apart, writer)
        raise MoveConflict(f"{writer} does not hold {unit.name} at epoch {epoch}")
    return Fenced(seq, began_s)


def _send_fence(
    owner: Connection, query: LiteralString, order: Mapping[str, object]
) -> tuple[bool, int | None]:
    """Whether the lock was had, and the marker's number; None: nothing was as expected, or written."""
    with psycopg.ClientCursor(owner) as cursor:
        cursor.execute(query, order)
        cursor.nextset()
        locked = cursor.fetchone()
        cursor.nextset()
        marked = cursor.fetchone()
    return locked is not None and locked[0] == "true", None if marked is None else int(marked[0])


def check_apart(owner: Connection, unit: Unit, apart: Sequence[NsId], name: str) -> None:
    """Pass when the namespaces that a slot's owner owns by themselves are those that the map knows.

    Another one has been taken out of its slot, or has come home, by somebody who died before the map was
    told: it would be owned twice once its slot is elsewhere, or by nobody.

    Raises:
        MoveConflict: they are not.
    """
    if not unit.is_slot:
        return
    rows = owner.execute(_APART, [unit.first, unit.last]).fetchall()
    odd = sorted({row[0] for row in rows} ^ set(apart))
    if odd:
        raise MoveConflict(
            f"{name} and the map differ in whether namespace {odd[0]} is placed by itself, as a command died"
            " amid it: cancel the move, run `shardctl doctor --fix`, and start again"
        )


def activate(heir: Connection, unit: Unit, epoch: int, name: str) -> None:
    """Make the heir the owner at `epoch`, one above the fenced row's former one.

    Raises:
        MoveConflict: the cutover was called off, or another one has overtaken it.
    """
    if heir.execute(_ACTIVATE, [epoch, unit.key, epoch]).rowcount == 1:
        return
    found = find_ownership(heir, unit.key)
    if found is None or found.state is not OwnershipState.ACTIVE or found.epoch != epoch:
        raise MoveConflict(f"{name} cannot take {unit.name} at epoch {epoch}: the cutover was called off")


def abort(owner: Connection, heir: Connection, unit: Unit, epoch: int) -> int | None:
    """Call off a cutover from an owner at epoch e; the epoch at which it owns from now on.

    None when the heir is active already: then it is too late, and the cutover is to be ended forwards.
    """
    heir.execute(_RAISE_HEIR, [epoch + 2, unit.key, epoch + 2])
    found = find_ownership(heir, unit.key)
    if found is not None and found.state is OwnershipState.ACTIVE and found.epoch > epoch:
        return None
    faults.fault_point("reshard.abort.heir_raised")
    # At epoch e as well: a fence at e+1 that is still on its way then matches nothing.
    owner.execute(_UNFENCE, [epoch + 2, unit.key, epoch, epoch + 1])
    faults.fault_point("reshard.abort.owner_active")
    mine = find_ownership(owner, unit.key)
    if mine is None or mine.state is not OwnershipState.ACTIVE:
        raise MoveConflict(f"{unit.name} is owned by neither side; `shardctl doctor` tells more")
    return mine.epoch


def unfence(owner: Connection, unit: Unit, fenced_at: int, epoch: int) -> None:
    """Make a shard the owner again, at a new epoch, of what it had been fenced from and nobody else can take.

    Raises:
        MoveConflict: it is not fenced at that epoch any more.
    """
    if owner.execute(_UNFENCE_AT, [epoch, unit.key, fenced_at]).rowcount != 1:
        found = find_ownership(owner, unit.key)
        if found is None or found.state is not OwnershipState.ACTIVE:
            raise MoveConflict(f"{unit.name} is not fenced at epoch {fenced_at} any more")


def cut_over(
    owner: Connection,
    heir: Connection,
    unit: Unit,
    epoch: int,
    *,
    writer: str,
    successor: str,
    apart: Sequence[NsId] = (),
) -> CutoverTimes:
    """Hand a unit over from its owner at epoch e to the heir at e+1; how long that took.

    Raises:
        MoveConflict: as `fence`.
        FenceHeld: writers, or the stream, were too slow: the unit is where it was, at epoch e+2 if it had
            been fenced.
    """
    fenced = fence(owner, unit, epoch, writer, successor, apart)
    fence_ms = (time.monotonic() - fenced.began_s) * 1e3
    faults.fault_point("reshard.cutover.fenced")
    return finish_cut(
        owner, heir, unit, epoch, fenced.seq, writer=writer, successor=successor, fence_ms=fence_ms
    )


def finish_cut(
    owner: Connection,
    heir: Connection,
    unit: Unit,
    epoch: int,
    seq: int,
    *,
    writer: str,
    successor: str,
    fence_ms: float = 0.0,
) -> CutoverTimes:
    """The second half of a cutover, for a unit that is fenced at e+1; as `cut_over`."""
    began = time.monotonic()
    try:
        wait_for_marker(heir, unit.key, writer, seq, DRAIN_TIMEOUT_S)
    except MarkerLate as error:
        if abort(owner, heir, unit, epoch) is not None:
            raise FenceHeld(f"{unit.name}: {error}; it stays on {writer}. Try again") from error
    drained = time.monotonic()
    faults.fault_point("reshard.cutover.drained")
    # --- The point from which the heir owns. ---
    activate(heir, unit, epoch + 1, successor)
    activated = time.monotonic()
    faults.fault_point("reshard.cutover.activated")
    return CutoverTimes(unit.key, fence_ms, (drained - began) * 1e3, (activated - drained) * 1e3)


def describe_holders(conn: Connection, slot: Slot) -> str:
    """Who holds a slot's lock, or has prepared a transaction that does, in words."""
    rows = conn.execute(_HOLDERS, [SLOT_LOCK_CLASS, slot]).fetchall()
    texts = [
        f"prepared transaction {gid!r}" if gid is not None else f"pid {pid} ({state}, {age:.1f} s): {query}"
        for pid, state, age, query, gid in rows
    ]
    return "; ".join(texts) or "nobody holds the lock any more"


# The second is for a runner that stands still, or whose machine is gone: the server ends the transaction.
_SET_TIMEOUTS: LiteralString = (
    "SELECT set_config('lock_timeout', %s, true), set_config('idle_in_transaction_session_timeout', %s, true)"
)
_LOCK: LiteralString = "SELECT pg_advisory_xact_lock(%s, %s)"
_LOCK_SHARED: LiteralString = "SELECT pg_advisory_xact_lock_shared(%s, %s)"
# Each statement sees all that was committed before the one ahead of it got the lock. Without the lock, or
# where the row or what is owned apart is not as expected, nothing is written, and nothing returned.
_WRITE_FENCE: LiteralString = (
    "WITH fenced AS ("
    " UPDATE local.ownership SET state = 'f', epoch = %(epoch)s + 1,"
    " successor = %(successor)s, successor_epoch = %(epoch)s + 1"
    " WHERE ns_id = %(key)s AND state = 'a' AND epoch = %(epoch)s"
    " AND current_setting('shardbox.has_lock') = 'true'"
    " AND %(apart)s::bigint[] = ARRAY(SELECT ns_id FROM local.ownership"
    "  WHERE ns_id > %(first)s AND ns_id <= %(last)s AND state IN ('a', 'f') ORDER BY ns_id)"
    " RETURNING ns_id)"
    " INSERT INTO ns.move_markers (ns_id, writer, seq) SELECT ns_id, %(writer)s, 1 FROM fenced"
) + BUMP
_BOUND: LiteralString = "SELECT set_config('lock_timeout', %(timeout)s, true);"
# What is sent in one message is one transaction.
_TRY_FENCE: LiteralString = (
    _BOUND
    + "SELECT set_config('shardbox.has_lock', pg_try_advisory_xact_lock(%(class)s, %(slot)s)::text, true);"
    + _WRITE_FENCE
)
# A void is an empty word.
_FENCE: LiteralString = (
    _BOUND + "SELECT set_config('shardbox.has_lock',"
    " (pg_advisory_xact_lock(%(class)s, %(slot)s)::text = '')::text, true);" + _WRITE_FENCE
)
_APART: LiteralString = (
    "SELECT ns_id FROM local.ownership WHERE ns_id > %s AND ns_id <= %s AND state IN ('a', 'f')"
)
_ACTIVATE: LiteralString = (
    "UPDATE local.ownership SET state = 'a', epoch = %s, successor = NULL, successor_epoch = NULL"
    " WHERE ns_id = %s AND state IN ('i', 'f') AND epoch < %s"
)
_RAISE_HEIR: LiteralString = (
    "UPDATE local.ownership SET epoch = %s WHERE ns_id = %s AND state IN ('i', 'f') AND epoch < %s"
)
_UNFENCE: LiteralString = (
    "UPDATE local.ownership SET state = 'a', epoch = %s, successor = NULL, successor_epoch = NULL"
    " WHERE ns_id = %s AND (state = 'a' AND epoch = %s OR state = 'f' AND epoch = %s)"
)
_UNFENCE_AT: LiteralString = (
    "UPDATE local.ownership SET state = 'a', epoch = %s, successor = NULL, successor_epoch = NULL"
    " WHERE ns_id = %s AND state = 'f' AND epoch = %s"
)
# A prepared transaction holds its locks under no pid; among them one on its own number. Until the server is
# started anew its virtual number is that of the session that prepared it, and does not tell.
_HOLDERS: LiteralString = (
    "SELECT l.pid, a.state, coalesce(extract(epoch FROM now() - a.xact_start), 0)::float8,"
    " left(a.query, 80), p.gid"
    " FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid"
    " LEFT JOIN pg_locks x ON l.pid IS NULL AND x.pid IS NULL AND x.locktype = 'transactionid'"
    "  AND x.virtualtransaction = l.virtualtransaction"
    " LEFT JOIN pg_prepared_xacts p ON p.transaction = x.transactionid"
    " WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 2"
    " AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    " AND l.classid = %s AND l.objid = %s AND l.pid IS DISTINCT FROM pg_backend_pid()"
)
