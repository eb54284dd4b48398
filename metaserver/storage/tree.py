"""Loading the part of the tree that a write needs, on its open transaction."""

from collections.abc import Iterable, Sequence
from typing import LiteralString

from metaserver.model.rows import Entry
from metaserver.model.tree import Walk
from metaserver.storage.rows import ENTRY_COLUMNS, to_entry
from sharding.pool import Connection
from wire.ids import EntryId, Jid, NsId

# Down along the names of each walk, then up from everything found and everything asked for by id, so that
# liveness and paths can be told. Names hold no slash, so a walk travels as one string. Each step is a look-up
# by key: the LIMIT keeps the planner, which knows nothing of a table that has just grown, from joining all
# children of a folder with all walks (1,000 names in a folder of 5,000: 7 s, and 0.02 s like this).
WALK_DOWN: LiteralString = f"""
  down AS (
    SELECT w.keys, 1 AS depth, {ENTRY_COLUMNS}
      FROM (SELECT anchor, string_to_array(names, '/') AS keys
              FROM unnest(%s::bigint[], %s::text[]) AS t(anchor, names)) w
     CROSS JOIN LATERAL (
        SELECT * FROM ns.entries c
         WHERE c.ns_id = %s AND c.parent_id = w.anchor AND c.name_key = w.keys[1] AND NOT c.is_deleted
         LIMIT 1) e
    UNION ALL
    SELECT d.keys, d.depth + 1, {ENTRY_COLUMNS}
      FROM down d
     CROSS JOIN LATERAL (
        SELECT * FROM ns.entries c
         WHERE c.ns_id = %s AND c.parent_id = d.entry_id AND c.name_key = d.keys[d.depth + 1]
           AND NOT c.is_deleted
         LIMIT 1) e
  )"""
STEP_UP: LiteralString = f"""
    SELECT {ENTRY_COLUMNS} FROM up CROSS JOIN LATERAL (
        SELECT * FROM ns.entries p WHERE p.ns_id = %s AND p.entry_id = up.parent_id LIMIT 1) e
"""
_LOAD: LiteralString = f"""
WITH RECURSIVE {WALK_DOWN}, up AS (
    SELECT {ENTRY_COLUMNS} FROM ns.entries e WHERE e.ns_id = %s AND e.entry_id = ANY(%s)
    UNION
    {STEP_UP}
  )
SELECT {ENTRY_COLUMNS} FROM down e
UNION
SELECT {ENTRY_COLUMNS} FROM up e
"""
# The cost is that of what has changed since, not of the tree: a range of the journal by its primary key.
_CHANGED: LiteralString = f"""
WITH RECURSIVE up AS (
    SELECT {ENTRY_COLUMNS} FROM ns.server_file_journal j CROSS JOIN LATERAL (
        SELECT * FROM ns.entries c
         WHERE c.ns_id = j.ns_id AND c.entry_id = j.entry_id AND c.last_jid = j.jid LIMIT 1) e
     WHERE j.ns_id = %s AND j.jid > %s
    UNION
    {STEP_UP}
  )
SELECT {ENTRY_COLUMNS} FROM up e
"""
# Level by level; each folder's children are looked up by key, for the reason that WALK_DOWN gives.
_BELOW: LiteralString = f"""
WITH RECURSIVE below AS (
    SELECT {ENTRY_COLUMNS} FROM ns.entries e WHERE e.ns_id = %s AND e.parent_id = %s AND NOT e.is_deleted
    UNION ALL
    SELECT {ENTRY_COLUMNS} FROM below b CROSS JOIN LATERAL (
        SELECT * FROM ns.entries c WHERE c.ns_id = %s AND c.parent_id = b.entry_id AND NOT c.is_deleted
         LIMIT %s) e
  )
SELECT {ENTRY_COLUMNS} FROM below e LIMIT %s
"""


def walk_params(walks: Iterable[Walk], ns_id: NsId) -> list[object]:
    """The parameters of WALK_DOWN."""
    walks = list(walks)
    return [[w.anchor for w in walks], ["/".join(w.keys) for w in walks], ns_id, ns_id]


async def list_rows(
    conn: Connection, ns_id: NsId, ids: Sequence[EntryId], walks: Sequence[Walk]
) -> list[Entry]:
    """The entries asked for, those along the walks, and the ancestors of all `ids`."""
    anchors = {walk.anchor for walk in walks} - {EntryId(0)}
    params = [*walk_params(walks, ns_id), ns_id, sorted(anchors | set(ids)), ns_id]
    cursor = await conn.execute(_LOAD, params, binary=True)
    return [to_entry(row) for row in await cursor.fetchall()]


async def list_changed(conn: Connection, ns_id: NsId, after: Jid) -> list[Entry]:
    """The entries that changed after a jid, and their ancestors."""
    cursor = await conn.execute(_CHANGED, [ns_id, after, ns_id], binary=True)
    return [to_entry(row) for row in await cursor.fetchall()]


async def list_below(conn: Connection, ns_id: NsId, folder: EntryId, limit: int) -> list[Entry]:
    """Up to `limit` of the entries that live below a live folder."""
    cursor = await conn.execute(_BELOW, [ns_id, folder, ns_id, limit, limit], binary=True)
    return [to_entry(row) for row in await cursor.fetchall()]
