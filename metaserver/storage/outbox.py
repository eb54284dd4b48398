"""The outbox of a shard: namespaces whose newest jid has yet to be told to the notification servers."""

from collections.abc import Sequence
from typing import LiteralString

from sharding.pool import Connection
from wire.ids import Jid, NsId

# Rows of slots that are not active here are passed over: another shard's relay has them, or will. They are
# read without locks; what is deleted later is deleted under them. (An ns_id is slot << 51 | count.)
_PENDING: LiteralString = """
SELECT o.ns_id, o.jid FROM ns.outbox o
 WHERE (SELECT w.state FROM local.ownership w
         WHERE w.ns_id IN (o.ns_id, (o.ns_id >> 51) << 51)
         ORDER BY w.ns_id DESC LIMIT 1) = 'a'
   AND o.ns_id > %s
 ORDER BY o.ns_id LIMIT %s
"""
_DELETE: LiteralString = """
DELETE FROM ns.outbox WHERE ns_id IN (
  SELECT o.ns_id FROM unnest(%s::bigint[], %s::bigint[]) AS t(ns_id, jid)
    JOIN ns.outbox o ON o.ns_id = t.ns_id AND o.jid <= t.jid
   ORDER BY o.ns_id FOR UPDATE OF o SKIP LOCKED)
"""
_LEASE: LiteralString = """
INSERT INTO local.leases (name, holder, expires_at) VALUES (%s, %s, now() + make_interval(secs => %s))
ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, expires_at = excluded.expires_at
 WHERE leases.holder = excluded.holder OR leases.expires_at < now()
"""


async def take_lease(conn: Connection, name: str, holder: str, life_s: float) -> bool:
    """Take or renew a lease of this shard; False while another holds it."""
    cursor = await conn.execute(_LEASE, [name, holder, life_s])
    return cursor.rowcount == 1


async def list_pending(conn: Connection, after: NsId, limit: int) -> list[tuple[NsId, Jid]]:
    """A page of what has yet to be told, of the slots that are active here, by ns_id."""
    cursor = await conn.execute(_PENDING, [after, limit])
    return [(row[0], row[1]) for row in await cursor.fetchall()]


async def delete_taken(conn: Connection, taken: Sequence[tuple[NsId, Jid]]) -> None:
    """Forget what has been taken; rows that have grown since stay."""
    await conn.execute(_DELETE, [[ns_id for ns_id, _ in taken], [jid for _, jid in taken]])
