"""The outbox relay: one metaserver per shard, by a lease, tells what the hints after commit did not.

It reads without locks, publishes, then deletes under the slots' locks what all notification servers took. A
hint may so come twice, never not at all. The same holder lets idempotency rows go after their 24 hours.
"""

import asyncio
import contextlib
import secrets
import time
from collections.abc import Sequence

import psycopg

from metaserver.services.hints import Publisher
from metaserver.storage import outbox as rows
from runtime.logs import get_log
from sharding.tx import Transactions, Tx, TxKind
from wire import faults
from wire.errors import ShardboxError
from wire.ids import Jid, NsId
from wire.internal import MAX_HINTS

_log = get_log(__name__)

SWEEP_INTERVAL_S = 0.5
"""What was missed is sent within a second."""
LEASE_S = 2.0
"""A dead holder is succeeded within this time; a live one renews four times in it."""
IDEMPOTENCY_LIFE_S = 24 * 3_600.0
EXPIRY_INTERVAL_S = 600.0
"""The expired rows are found by a scan, as no index is kept for them."""
_EXPIRY_BATCH = 1_000

faults.declare("metaserver.relay.read", "metaserver.relay.published", "metaserver.relay.deleted")


class Relay:
    """Sweeps the outboxes of all shards that it gets the lease of."""

    def __init__(self, transactions: Transactions, publisher: Publisher):
        self._tx = transactions
        self._publisher = publisher
        self._holder = secrets.token_hex(8)
        self._task: asyncio.Task[None] | None = None
        self._sweeping: dict[str, asyncio.Task[None]] = {}
        self._expired_at: dict[str, float] = {}

    def start(self) -> None:
        """Begin sweeping."""
        self._task = asyncio.create_task(self._run(), name="relay")

    async def stop(self) -> None:
        """End."""
        for task in (self._task, *self._sweeping.values()):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task

    async def _run(self) -> None:
        """A sweep of each shard at a time, each on its own: a shard that hangs delays no other's."""
        while True:
            if self._tx.router.is_ready:
                for shard in self._tx.router.map.shards:
                    if shard not in self._sweeping or self._sweeping[shard].done():
                        self._sweeping[shard] = asyncio.create_task(self._sweep_guarded(shard))
            await asyncio.sleep(SWEEP_INTERVAL_S)

    async def _sweep_guarded(self, shard: str) -> None:
        try:
            await self.sweep(shard)
        except (ShardboxError, psycopg.Error) as error:
            _log.info("sweep_failed", shard=shard, error=f"{type(error).__name__}: {error}")
        except Exception:
            # The relay must outlive a surprise: without it, wake-ups would be lost.
            _log.exception("sweep_failed", shard=shard)

    async def sweep(self, shard: str) -> int:
        """Tell and forget what waits on one shard, if the lease is ours; how many namespaces that were."""
        pool = self._tx.router.pool(shard)
        async with pool.connection() as conn:
            if not await rows.take_lease(conn, "relay", self._holder, LEASE_S):
                return 0
        told, after = 0, NsId(-1)
        while True:
            async with pool.connection() as conn:
                pending = await rows.list_pending(conn, after, MAX_HINTS)
            if not pending:
                break
            faults.fault_point("metaserver.relay.read")
            if await self._publisher.publish(pending):
                faults.fault_point("metaserver.relay.published")
                await self._forget(pending)
                faults.fault_point("metaserver.relay.deleted")
            # What one server did not take stays, and does not keep the next page from the others.
            told, after = told + len(pending), pending[-1][0]
        if time.monotonic() > self._expired_at.get(shard, 0.0) + EXPIRY_INTERVAL_S:
            self._expired_at[shard] = time.monotonic()
            await self.expire(shard)
        return told

    async def _forget(self, taken: Sequence[tuple[NsId, Jid]]) -> None:
        async def delete(tx: Tx) -> None:
            await rows.delete_taken(tx.conn, taken)

        await self._tx.run_tx([ns_id for ns_id, _ in taken], "forget_outbox", delete, kind=TxKind.FENCE_ONLY)

    async def expire(self, shard: str) -> None:
        """Let go of the idempotency rows that are older than 24 hours."""
        while True:
            async with self._tx.router.pool(shard).connection() as conn:
                keys = await rows.list_expired_keys(conn, IDEMPOTENCY_LIFE_S, _EXPIRY_BATCH)
            # Rows of slots that live elsewhere are another shard's to expire, or are about to be deleted.
            here = [key for key in keys if self._tx.router.placement(key[0]).shard == shard]
            if not here:
                return

            async def delete(tx: Tx, here: Sequence[tuple[NsId, str, str]] = here) -> None:
                await rows.delete_expired_keys(tx.conn, here, IDEMPOTENCY_LIFE_S)

            await self._tx.run_tx([key[0] for key in here], "expire_keys", delete, kind=TxKind.FENCE_ONLY)
            if len(keys) < _EXPIRY_BATCH:
                return
