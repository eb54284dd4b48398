"""Letting go of rows that have had their time, a bounded piece at each sweep of the relay."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from metaserver.storage.expiry import (
    CANCELLED_ACCOUNTS,
    IDEMPOTENCY,
    LINK_CODES,
    UPLOAD_SESSIONS,
    UPLOAD_TARGETS,
    USED_TOKENS,
    ExpiringTable,
    Key,
    delete_due,
    list_due,
    ns_of,
)
from sharding.tx import Transactions, Tx, TxKind
from wire import faults

_DAY_S = 24 * 3_600.0
LIVES: tuple[tuple[ExpiringTable, float], ...] = (
    (IDEMPOTENCY, _DAY_S),
    # Targets before sessions: a session then takes no long tail of them along. A target is refused after an
    # hour, as its generation is.
    (UPLOAD_TARGETS, _DAY_S),
    (UPLOAD_SESSIONS, 0.0),
    # A used code answers a repeat of its request; who has not heard in a week asks for a new one.
    (LINK_CODES, 7 * _DAY_S),
    # Whoever shows a used token loses the device to it; later the token is merely unknown, and as useless.
    (USED_TOKENS, 30 * _DAY_S),
    # The row bars a creator that hung from going on; none hangs for a month.
    (CANCELLED_ACCOUNTS, 30 * _DAY_S),
)
"""What is let go of, and how long after it is due, in the order of the sweep."""
INTERVAL_S = 600.0
"""Between the end of one reading of a shard's tables and the next one's beginning."""
LOOKED_AT_ONCE = 2_000
"""Rows of one statement: milliseconds, wherever they lie."""
DELETED_AT_ONCE = 200
"""Rows of one transaction; each may lie in a slot of its own, whose lock a fence would wait for."""

faults.declare("metaserver.expiry.listed", "metaserver.expiry.deleted")


@dataclass(slots=True)
class _Place:
    """How far a shard has been read."""

    index: int
    after: Key
    rest_until_s: float = 0.0


class Expiry:
    """A chore of the relay: it holds the shard's lease."""

    def __init__(self, transactions: Transactions):
        self._tx = transactions
        self._places: dict[str, _Place] = {}

    async def step(self, shard: str) -> bool:
        """Look at the next rows of a shard and delete what is due; whether there is more to look at."""
        place = self._places.get(shard)
        if place is None:
            place = self._places[shard] = _Place(0, LIVES[0][0].first)
        if time.monotonic() < place.rest_until_s:
            return False
        table, life_s = LIVES[place.index]
        async with self._tx.router.pool(shard).connection() as conn:
            due, last = await list_due(conn, table, life_s, place.after, LOOKED_AT_ONCE)
        faults.fault_point("metaserver.expiry.listed")
        # Where our map is behind, the rows wait for the next reading.
        here = [key for key in due if self._tx.router.placement(ns_of(key)).shard == shard]
        for start in range(0, len(here), DELETED_AT_ONCE):
            await self._delete(table, life_s, here[start : start + DELETED_AT_ONCE])
            faults.fault_point("metaserver.expiry.deleted")
        is_over = last is None and place.index == len(LIVES) - 1
        if last is not None:
            place.after = last
        else:
            place.index = (place.index + 1) % len(LIVES)
            place.after = LIVES[place.index][0].first
            place.rest_until_s = time.monotonic() + INTERVAL_S if is_over else 0.0
        return not is_over

    async def run(self, shard: str) -> None:
        """Read all of a shard's tables now."""
        self._places.pop(shard, None)
        while await self.step(shard):
            pass

    async def _delete(self, table: ExpiringTable, life_s: float, keys: Sequence[Key]) -> None:
        async def delete(tx: Tx) -> None:
            await delete_due(tx.conn, table, life_s, keys)

        ns_ids = [ns_of(key) for key in keys]
        await self._tx.run_tx(ns_ids, f"expire_{table.name}", delete, kind=TxKind.FENCE_ONLY)
