"""`run_tx` and `run_read`: the only ways to the rows of a namespace, each proving ownership.

A write takes its locks in one statement and looks at ownership in a later one, whose snapshot is therefore
newer than the locks: a cutover, which needs the slot's lock exclusively, either waits for this transaction
or is seen by it. A read takes ownership and data from one snapshot, in one statement.
"""

import asyncio
import contextlib
import random
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import LiteralString, TypeVar

import psycopg
from prometheus_client import CollectorRegistry, Counter
from psycopg import sql
from psycopg.pq import TransactionStatus
from psycopg.rows import TupleRow

from runtime.logs import bind_place, get_log
from sharding.activity import ActivityCounter
from sharding.locks import SLOT_LOCK_CLASS
from sharding.pool import GET_TIMEOUT_S, Connection, ShardPool
from sharding.router import Router
from sharding.shardmap import OwnershipState, Placement, ownership_keys
from wire import faults
from wire.errors import Overloaded, ShardUnavailable, SpansShards, TooManyWriteOperations
from wire.ids import NsId, slot_of

_log = get_log(__name__)
T = TypeVar("T")
Hook = Callable[[], Awaitable[None]]

DEADLINE_S = 1.8
"""How long a request follows a moving namespace, or retries a serialisation failure, before its caller is
told to come again: a cutover takes milliseconds, and a caller is to hear within 2 s."""
FIRST_BACKOFF_S = 0.001
"""A cutover takes some 3 ms: who comes first to its target asks again after about 1, 2 and 4 ms."""
MAX_BACKOFF_S = 0.2
DOUBT_BACKOFF_S = 0.016
"""From here on a successor that does not own yet is doubted: the cutover may have been called off."""

MAX_WAITING_WRITERS = 100
"""Of one namespace, in one process: a commit takes some 5 ms, so the last one's turn comes after half a
second. Beyond it, whoever waits would mostly be told at the end of his time what he can be told at once."""
RETRY_AFTER_S = 1

faults.declare("sharding.tx.before_locks", "sharding.tx.before_commit", "sharding.tx.after_commit")


class TxKind(Enum):
    """What a write takes: journalled writes the slots' and the namespaces' locks, fence-only writes (system
    rows, claims, outbox, idempotency) the slots' alone."""

    JOURNALLED = "journalled"
    FENCE_ONLY = "fence_only"


@dataclass(slots=True)
class Tx:
    """An open transaction that has its locks and has proved ownership.

    `before_commit` hooks run in order when all is written, while the locks are held (cache deletes); if one
    raises, the transaction is rolled back.
    """

    conn: Connection
    shard: str
    before_commit: list[Hook] = field(default_factory=list[Hook])
    content_bytes: dict[NsId, int] = field(default_factory=dict[NsId, int])
    """Sizes of the files whose new contents it brings to a namespace; counted when it is committed."""


class NotOwned(Exception):
    """This shard is not, or no longer, what the map says for a namespace.

    `key` is the ownership row that told, or the namespace where there is no row; `successor` is where it
    says to go on.
    """

    def __init__(self, ns_id: NsId, key: NsId, successor: Placement | None):
        super().__init__(ns_id, key, successor)
        self.ns_id = ns_id
        self.key = key
        self.successor = successor


class WriterQueues:
    """The writers of one namespace wait for one another here, and not inside the database.

    They take turns there anyway; but there each holds a connection while it waits, and one busy namespace
    would take the shard from all the others.
    """

    def __init__(self) -> None:
        self._queues: weakref.WeakValueDictionary[NsId, _WriterQueue] = weakref.WeakValueDictionary()

    @contextlib.asynccontextmanager
    async def turn(self, keys: Sequence[NsId]) -> AsyncGenerator[None]:
        """The turn of a writer to all these namespaces, which are in ascending order.

        Raises:
            TooManyWriteOperations: so many wait already that it would not come in time, or it did not.
        """
        async with contextlib.AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(GET_TIMEOUT_S):
                    for key in keys:
                        queue = self._queues.get(key)
                        if queue is None:
                            queue = self._queues[key] = _WriterQueue()
                        await queue.wait()
                        stack.callback(queue.leave)
            except TimeoutError as error:
                raise TooManyWriteOperations(retry_after_s=RETRY_AFTER_S) from error
            yield


class _WriterQueue:
    """The queue of one namespace."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._waiting = 0

    async def wait(self) -> None:
        """Take the lock, or be refused at once."""
        if self._waiting >= MAX_WAITING_WRITERS:
            raise TooManyWriteOperations(retry_after_s=RETRY_AFTER_S)
        self._waiting += 1
        try:
            await self._lock.acquire()
        finally:
            self._waiting -= 1

    def leave(self) -> None:
        """Let the next one have it."""
        self._lock.release()


class Transactions:
    """Transactions on whichever shard owns the namespaces."""

    def __init__(self, router: Router, registry: CollectorRegistry | None = None):
        self.router = router
        self.activity = ActivityCounter()
        self._writers = WriterQueues()
        self._retries = Counter(
            "shardbox_tx_retries_total",
            "Transactions begun anew, by reason.",
            ["name", "reason"],
            registry=registry or CollectorRegistry(),
        )

    async def run_tx(
        self,
        ns_ids: Sequence[NsId],
        name: str,
        fn: Callable[[Tx], Awaitable[T]],
        *,
        kind: TxKind = TxKind.JOURNALLED,
    ) -> T:
        """What `fn` returns, its writes durable.

        `fn` may run several times; it must keep nothing from a run that failed.

        Args:
            ns_ids: One namespace or several, in any slots of one shard.
            name: Metric label and log field.
            fn: Writes on `tx.conn`; it neither commits nor rolls back.
            kind: Which locks are taken.

        Raises:
            SpansShards: the namespaces do not lie on one shard.
            ShardUnavailable: the shard does not answer or the namespace is being moved; also an unknown
                outcome of COMMIT, which only an idempotency key makes safe to retry.
            Overloaded: a lock or a connection was not to be had in time.
            TooManyWriteOperations: too many writers of one of the namespaces wait, in this process.

        Tx: READ COMMITTED; slot locks shared, ascending; then namespace locks, ascending; then ownership.
        """
        keys = sorted(set(ns_ids))

        async def attempt() -> T:
            pool, placements = self._on_one_shard(keys)
            bind_place(keys[0], pool.shard, placements[keys[0]].epoch)
            async with (
                self._writers.turn(keys if kind is TxKind.JOURNALLED else ()),
                pool.connection() as conn,
            ):
                faults.fault_point("sharding.tx.before_locks")
                try:
                    async with conn.pipeline():
                        await conn.execute("BEGIN")
                        await conn.execute(*_lock_statement(keys, kind))
                        owned = await conn.execute(_OWNERSHIP, [_all_ownership_keys(keys)])
                    if conn.info.transaction_status is not TransactionStatus.INTRANS:
                        # Outside a transaction each statement of `fn` would commit by itself.
                        await conn.close()
                        raise psycopg.OperationalError("the connection went as the transaction began")
                    _check_ownership(await owned.fetchall(), keys, placements)
                    tx = Tx(conn, pool.shard)
                    result = await fn(tx)
                    for hook in tx.before_commit:
                        await hook()
                    faults.fault_point("sharding.tx.before_commit")
                    ended = await conn.execute("COMMIT")
                    if ended.statusmessage != "COMMIT":
                        # PostgreSQL's answer to the COMMIT of a failed transaction, and no error.
                        raise psycopg.InternalError(f"COMMIT ended as {ended.statusmessage}")
                except BaseException:
                    await _roll_back(conn)
                    raise
            faults.fault_point("sharding.tx.after_commit")
            self._count(keys, tx)
            return result

        return await self._retry(name, attempt)

    async def run_read(
        self, ns_id: NsId, name: str, query: sql.SQL | sql.Composed, params: Sequence[object]
    ) -> list[TupleRow]:
        """The rows of one SELECT, as of one snapshot in which the namespace was owned.

        The order of rows is the query's own only if it says so: the caller sorts what must be sorted.

        Raises:
            ShardUnavailable, Overloaded: as `run_tx`.
        """
        statement = _OWNED_READ.format(query)
        own, slot = ownership_keys(ns_id)

        async def attempt() -> list[TupleRow]:
            placement = self.router.placement(ns_id)
            bind_place(ns_id, placement.shard, placement.epoch)
            async with self.router.pool(placement.shard).connection() as conn:
                cursor = await conn.execute(statement, [own, slot, *params], binary=True)
                rows = await cursor.fetchall()
            _check_row(ns_id, rows[0][:5], placement)
            self.activity.of(ns_id).reads += 1
            return [row[6:] for row in rows if row[5] is not None]

        return await self._retry(name, attempt)

    def _count(self, keys: Sequence[NsId], tx: Tx) -> None:
        for ns_id in keys:
            self.activity.of(ns_id).writes += 1
        for ns_id, byte_count in tx.content_bytes.items():
            self.activity.of(ns_id).content_bytes += byte_count

    def _on_one_shard(self, keys: Sequence[NsId]) -> tuple[ShardPool, dict[NsId, Placement]]:
        placements = {ns_id: self.router.placement(ns_id) for ns_id in keys}
        names = {placement.shard for placement in placements.values()}
        if len(names) != 1:
            raise SpansShards(f"one transaction has namespaces on {len(names)} shards")
        return self.router.pool(names.pop()), placements

    async def _retry(self, name: str, attempt: Callable[[], Awaitable[T]]) -> T:
        """The one place that retries SQL: ownership moved, serialisation failure, deadlock."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + DEADLINE_S
        backoff_s = FIRST_BACKOFF_S
        while True:
            is_led = False
            try:
                return await attempt()
            except NotOwned as error:
                failure: Exception = ShardUnavailable("this namespace is being moved; try again")
                reason = "not_owned"
                # Nobody waits for the directory: a successor is asked at once whether it owns by now, and
                # the map comes in a few milliseconds, if it has changed at all.
                is_led = error.successor is not None and self.router.learn(
                    error.key, error.successor, error.ns_id
                )
                if not is_led and backoff_s >= DOUBT_BACKOFF_S:
                    self.router.forget(error.ns_id)
                self.router.refresh_soon()
            except (psycopg.errors.SerializationFailure, psycopg.errors.DeadlockDetected) as error:
                failure, reason = Overloaded(f"too many writers at once: {error}"), "serialisation"
            except (psycopg.errors.LockNotAvailable, psycopg.errors.QueryCanceled) as error:
                raise Overloaded("another writer holds this namespace; try again") from error
            except psycopg.errors.DiskFull as error:
                raise ShardUnavailable("the database of this namespace has no room") from error
            except psycopg.errors.ReadOnlySqlTransaction as error:
                raise ShardUnavailable("the database of this namespace takes no writes") from error
            if loop.time() + backoff_s > deadline:
                raise failure
            self._retries.labels(name, reason).inc()
            if is_led:
                continue
            await asyncio.sleep(backoff_s * random.uniform(0.5, 1))  # noqa: S311
            backoff_s = min(backoff_s * 2, MAX_BACKOFF_S)


_LOCK_SLOTS: LiteralString = (
    "SELECT pg_advisory_xact_lock_shared(%s, s) FROM (SELECT unnest(%s::int[]) AS s) slots"
)
_LOCK_BOTH: LiteralString = (
    "SELECT pg_advisory_xact_lock_shared(%s, s) FROM (SELECT unnest(%s::int[]) AS s) slots"
    " UNION ALL SELECT pg_advisory_xact_lock(n) FROM (SELECT unnest(%s::bigint[]) AS n) namespaces"
)
_OWNERSHIP: LiteralString = (
    "SELECT ns_id, epoch, state, successor, successor_epoch FROM local.ownership WHERE ns_id = ANY(%s)"
)
# The namespace's own row has the higher key, so it comes first where there is one. The data's columns are
# null where the query found nothing; the marker tells that row from a real one.
_OWNED_READ = sql.SQL(
    "SELECT own.*, q.* FROM (SELECT 1) one LEFT JOIN"
    " (SELECT ns_id, epoch, state, successor, successor_epoch FROM local.ownership"
    "   WHERE ns_id IN (%s, %s) ORDER BY ns_id DESC LIMIT 1) own ON true"
    " LEFT JOIN (SELECT true AS is_row, data.* FROM ({}) data) q ON true"
)


def _lock_statement(keys: Sequence[NsId], kind: TxKind) -> tuple[LiteralString, list[object]]:
    slots = sorted({slot_of(ns_id) for ns_id in keys})
    if kind is TxKind.FENCE_ONLY:
        return _LOCK_SLOTS, [SLOT_LOCK_CLASS, slots]
    return _LOCK_BOTH, [SLOT_LOCK_CLASS, slots, list(keys)]


def _all_ownership_keys(keys: Sequence[NsId]) -> list[NsId]:
    return sorted({key for ns_id in keys for key in ownership_keys(ns_id)})


def _check_ownership(
    rows: Sequence[TupleRow], keys: Sequence[NsId], placements: dict[NsId, Placement]
) -> None:
    by_key = {row[0]: row for row in rows}
    for ns_id in keys:
        own, slot = ownership_keys(ns_id)
        _check_row(ns_id, by_key.get(own) or by_key.get(slot), placements[ns_id])


def _check_row(ns_id: NsId, row: Sequence[object] | None, placement: Placement) -> None:
    """Raise NotOwned unless the effective row is active at the epoch that we believe in."""
    if row is None or row[0] is None:
        raise NotOwned(ns_id, ns_id, None)
    key, epoch, state, successor, successor_epoch = row
    if state == OwnershipState.ACTIVE and epoch == placement.epoch:
        return
    following = None
    if isinstance(successor, str) and isinstance(successor_epoch, int) and state in ("f", "g"):
        following = Placement(successor, successor_epoch)
    elif state == OwnershipState.ACTIVE and isinstance(epoch, int) and epoch > placement.epoch:
        following = Placement(placement.shard, epoch)
    raise NotOwned(ns_id, NsId(int(str(key))), following)


async def _roll_back(conn: Connection) -> None:
    """Leave the connection clean, or closed: a closed one is replaced by the pool."""
    if conn.closed or conn.broken:
        return
    try:
        await conn.execute("ROLLBACK")
    except psycopg.Error:
        await conn.close()
