"""Heads, read with ownership in the same snapshot."""

from collections.abc import Mapping
from typing import LiteralString

from sharding.pool import Connection
from wire.ids import NsId

# The effective ownership row is the namespace's own, else its slot's. (An ns_id is slot << 51 | count.)
_HEADS: LiteralString = """
SELECT t.ns_id, coalesce(n.head, 0)
  FROM unnest(%s::bigint[], %s::bigint[]) AS t(ns_id, epoch)
  LEFT JOIN ns.namespaces n ON n.ns_id = t.ns_id
 WHERE (SELECT w.state = 'a' AND w.epoch = t.epoch FROM local.ownership w
         WHERE w.ns_id IN (t.ns_id, (t.ns_id >> 51) << 51)
         ORDER BY w.ns_id DESC LIMIT 1)
"""


async def list_heads(conn: Connection, epochs: Mapping[NsId, int]) -> dict[NsId, int]:
    """The heads of those namespaces that this shard owns at the given epochs; 0 where there is none."""
    cursor = await conn.execute(_HEADS, [list(epochs), list(epochs.values())], binary=True)
    return {NsId(row[0]): int(row[1]) for row in await cursor.fetchall()}
