"""A namespace's own row, its members and its idempotency keys."""

from dataclasses import dataclass
from typing import LiteralString

from metaserver.model.rows import Level
from sharding.pool import Connection
from wire.ids import AccountId, EntryId, Jid, NsId


@dataclass(frozen=True, slots=True)
class NamespaceRow:
    """A namespace's counters and the caller's right in it; `level` is None for a stranger.

    `quota_bytes` is None where there is no quota.
    """

    head: Jid
    next_entry_id: EntryId
    modified_us: int
    level: Level | None
    live_bytes: int
    quota_bytes: int | None


@dataclass(frozen=True, slots=True)
class KeptAnswer:
    """What an idempotency key was first used for, and answered with."""

    digest: bytes
    answer: bytes


_GET: LiteralString = """
SELECT n.head, n.next_entry_id, n.modified_us, m.level, i.digest, i.answer, n.live_bytes,
       CASE WHEN a.ns_id IS NOT NULL THEN coalesce(a.quota_bytes, %s) END
  FROM ns.namespaces n
  LEFT JOIN ns.accounts a ON a.ns_id = n.ns_id
  LEFT JOIN ns.members m ON m.ns_id = n.ns_id AND m.account_id = %s
  LEFT JOIN ns.idempotency i ON i.ns_id = n.ns_id AND i.account_id = %s AND i.key = %s
 WHERE n.ns_id = %s
"""


async def find_for_write(
    conn: Connection,
    ns_id: NsId,
    account_id: AccountId,
    key: str | None,
    default_quota_bytes: int | None,
) -> tuple[NamespaceRow, KeptAnswer | None] | None:
    """What a write must know first, read after its locks; None where there is no such namespace."""
    cursor = await conn.execute(_GET, [default_quota_bytes, account_id, account_id, key, ns_id])
    row = await cursor.fetchone()
    if row is None:
        return None
    kept = KeptAnswer(row[4], row[5]) if row[4] is not None else None
    level = Level(row[3]) if row[3] else None
    return NamespaceRow(row[0], row[1], row[2], level, row[6], row[7]), kept


async def insert_namespace(conn: Connection, ns_id: NsId, owner: AccountId) -> None:
    """A new, empty namespace and its owner; nothing if it is there."""
    await conn.execute(
        "INSERT INTO ns.namespaces (ns_id, head, next_entry_id, modified_us, lost_ranges)"
        " VALUES (%s, 0, 1, 0, '{}') ON CONFLICT DO NOTHING",
        [ns_id],
    )
    await conn.execute(
        "INSERT INTO ns.members (ns_id, account_id, level) VALUES (%s, %s, %s) ON CONFLICT DO NOTHING",
        [ns_id, owner, Level.OWNER.value],
    )


async def find_level(conn: Connection, ns_id: NsId, account_id: AccountId) -> Level | None:
    """An account's right in a namespace, read after the locks."""
    cursor = await conn.execute(
        "SELECT level FROM ns.members WHERE ns_id = %s AND account_id = %s", [ns_id, account_id]
    )
    row = await cursor.fetchone()
    return None if row is None else Level(row[0])
