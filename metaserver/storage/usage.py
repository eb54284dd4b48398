"""What accounts use and may use, and the debts that deleted folders leave."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import LiteralString

from sharding.pool import Connection
from wire.ids import EntryId, NsId
from wire.names import NameKey


@dataclass(frozen=True, slots=True)
class Debt:
    """A deleted folder whose files still count; `revived_count` tells whether a walk is out of date."""

    ns_id: NsId
    entry_id: EntryId
    revived_count: int


@dataclass(frozen=True, slots=True)
class WalkedRow:
    """A row below a dead folder; `size` is None for a folder, which is still to be walked."""

    parent_id: EntryId
    name_key: NameKey
    entry_id: EntryId
    size: int | None


USAGE: LiteralString = (
    "SELECT n.live_bytes, coalesce(a.quota_bytes, %s) FROM ns.namespaces n JOIN ns.accounts a USING (ns_id)"
    " WHERE n.ns_id = %s AND a.account_id = %s"
)
"""Live bytes and quota of an account: the default quota (or null), its root namespace, its id."""

# Rows of slots that are not active here are passed over, as the relay does: their owner pays them.
_DEBTS: LiteralString = """
SELECT d.ns_id, d.entry_id, d.revived_count FROM ns.usage_debts d
 WHERE (SELECT w.state FROM local.ownership w
         WHERE w.ns_id IN (d.ns_id, (d.ns_id >> 51) << 51)
         ORDER BY w.ns_id DESC LIMIT 1) = 'a'
   AND (d.ns_id, d.entry_id) > (%s, %s)
 ORDER BY d.ns_id, d.entry_id LIMIT %s
"""
WALK: LiteralString = """
SELECT e.parent_id, e.name_key, e.entry_id, CASE WHEN e.kind = 'f' THEN e.size END FROM ns.entries e
 WHERE e.ns_id = %s AND e.parent_id = ANY(%s) AND NOT e.is_deleted
   AND (e.parent_id, e.name_key) > (%s, %s)
 ORDER BY e.parent_id, e.name_key LIMIT %s
"""
"""A page of what lies in some folders, by (parent_id, name_key), after a place. Whoever was deleted by
himself is left out: he has been subtracted, or owes himself."""


async def list_debts(conn: Connection, after: tuple[NsId, EntryId], limit: int) -> list[Debt]:
    """A page of the debts of the slots that are active here, after a place."""
    cursor = await conn.execute(_DEBTS, [*after, limit])
    return [Debt(*row) for row in await cursor.fetchall()]


def to_walked(row: Sequence[object]) -> WalkedRow:
    """A row of WALK."""
    parent_id, key, entry_id, size = row
    assert isinstance(parent_id, int)
    assert isinstance(entry_id, int)
    assert size is None or isinstance(size, int)
    return WalkedRow(EntryId(parent_id), NameKey(str(key)), EntryId(entry_id), size)


async def pay_debt(conn: Connection, debt: Debt, size_bytes: int) -> bool:
    """Subtract what a debt came to and delete it; False if it was paid, or has changed since it was walked.

    Tx: journalled, so that nobody revives anything meanwhile.
    """
    cursor = await conn.execute(
        "DELETE FROM ns.usage_debts WHERE ns_id = %s AND entry_id = %s AND revived_count = %s",
        [debt.ns_id, debt.entry_id, debt.revived_count],
    )
    if cursor.rowcount != 1:
        return False
    await conn.execute(
        "UPDATE ns.namespaces SET live_bytes = live_bytes - %s WHERE ns_id = %s", [size_bytes, debt.ns_id]
    )
    return True


async def find_owing(conn: Connection, ns_id: NsId, folders: Sequence[EntryId]) -> set[EntryId]:
    """Which of these deleted folders owe, told that something is being revived from below them.

    What lies below one that owes (below it without another deleted folder between) is counted still: reviving
    it adds nothing. Below one that does not owe, it adds its size.

    Tx: journalled, the one that revives.
    """
    cursor = await conn.execute(
        "UPDATE ns.usage_debts SET revived_count = revived_count + 1"
        " WHERE ns_id = %s AND entry_id = ANY(%s) RETURNING entry_id",
        [ns_id, folders],
    )
    return {EntryId(row[0]) for row in await cursor.fetchall()}


async def update_quota(conn: Connection, root_ns: NsId, quota_bytes: int | None) -> None:
    """An account's own quota; None: the cluster's default."""
    await conn.execute("UPDATE ns.accounts SET quota_bytes = %s WHERE ns_id = %s", [quota_bytes, root_ns])
