"""Paying the debts of deleted folders: their files still count until somebody has walked them.

Deleting a folder is one row, whatever lies below it. Nothing below a dead folder changes any more, so that it
can be walked at leisure, some rows at a time and without a lock; what it came to is then subtracted and the
debt deleted in one transaction. Only reviving takes something out of a dead folder: it raises the debt's
`revived_count` (storage/usage.py), and a walk that this overtook begins anew.

    walking(folders, after, sum) ──the last page──► paid
"""

import time
from dataclasses import dataclass, field

from psycopg import sql

from metaserver.storage import usage as rows
from metaserver.storage.usage import Debt
from runtime.logs import get_log
from sharding.tx import Transactions, Tx
from wire import faults
from wire.errors import ShardboxError
from wire.ids import EntryId, NsId
from wire.names import NameKey

_log = get_log(__name__)

DEBTS_AT_ONCE = 100
WALK_ROWS = 2_000
"""Rows of a dead folder read at once: some milliseconds of a connection, and 200 KB."""
WALK_FOLDERS = 200
"""Folders that one page looks into: most are small, and a page for each would be a round trip for each."""
BUDGET_S = 0.2
"""How long one sweep of the relay pays: its wake-ups come first."""

faults.declare("metaserver.debts.walked", "metaserver.debts.subtracted", "metaserver.debts.paid")


@dataclass(slots=True)
class Walk:
    """How far a debt has been walked: folders still to look into, those under way, the sum so far."""

    debt: Debt
    todo: list[EntryId]
    under_way: list[EntryId] = field(default_factory=list[EntryId])
    after: tuple[EntryId, NameKey] = (EntryId(0), NameKey(""))
    size_bytes: int = 0


class DebtSweep:
    """A chore of the relay: it holds the shard's lease."""

    def __init__(self, transactions: Transactions):
        self._tx = transactions
        self._walks: dict[str, Walk] = {}
        self._after: dict[str, tuple[NsId, EntryId]] = {}

    async def step(self, shard: str) -> bool:
        """Pay debts of one shard for a while; whether there may be more of them."""
        until_s = time.monotonic() + BUDGET_S
        todo: list[Debt] = []
        while time.monotonic() < until_s:
            walk = self._walks.pop(shard, None)
            if walk is None:
                todo = todo or await self._list_next(shard)
                if not todo:
                    return False
                debt = todo.pop(0)
                self._after[shard] = (debt.ns_id, debt.entry_id)
                if self._tx.router.placement(debt.ns_id).shard != shard:
                    continue  # by now another shard's, where the row has gone along
                walk = Walk(debt, [debt.entry_id])
            try:
                if await self._walk_page(walk):
                    self._walks[shard] = walk
                else:
                    await self._pay(walk)
            except ShardboxError as error:
                # The next round comes back to it; the others do not wait for that.
                _log.info("debt_waits", ns_id=walk.debt.ns_id, error=str(error))
        return True

    async def settle(self, debt: Debt) -> bool:
        """Pay one debt, however long it takes; False if it was overtaken."""
        walk = Walk(debt, [debt.entry_id])
        while await self._walk_page(walk):
            pass
        return await self._pay(walk)

    async def _list_next(self, shard: str) -> list[Debt]:
        """The debts after the last one that was tried; none after the last of all, then the first again."""
        after = self._after.pop(shard, (NsId(-1), EntryId(0)))
        async with self._tx.router.pool(shard).connection() as conn:
            return await rows.list_debts(conn, after, DEBTS_AT_ONCE)

    async def _walk_page(self, walk: Walk) -> bool:
        """Look at one page; False once all has been seen."""
        if not walk.under_way:
            walk.under_way = walk.todo[-WALK_FOLDERS:]
            del walk.todo[-WALK_FOLDERS:]
            walk.after = (EntryId(0), NameKey(""))
        params = [walk.debt.ns_id, walk.under_way, *walk.after, WALK_ROWS]
        found = await self._tx.run_read(walk.debt.ns_id, "walk_debt", sql.SQL(rows.WALK), params)
        page = sorted(map(rows.to_walked, found), key=lambda row: (row.parent_id, row.name_key))
        walk.size_bytes += sum(row.size or 0 for row in page)
        walk.todo += [row.entry_id for row in page if row.size is None]
        if len(page) < WALK_ROWS:
            walk.under_way = []
        else:
            walk.after = (page[-1].parent_id, page[-1].name_key)
        return bool(walk.under_way or walk.todo)

    async def _pay(self, walk: Walk) -> bool:
        faults.fault_point("metaserver.debts.walked")

        async def pay(tx: Tx) -> bool:
            is_paid = await rows.pay_debt(tx.conn, walk.debt, walk.size_bytes)
            faults.fault_point("metaserver.debts.subtracted")
            return is_paid

        is_paid = await self._tx.run_tx([walk.debt.ns_id], "pay_debt", pay)
        faults.fault_point("metaserver.debts.paid")
        return is_paid
