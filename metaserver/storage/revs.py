"""Reading revs: the journal rows that hold contents."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import LiteralString

from psycopg.rows import TupleRow

from metaserver.model.rows import Rev, RevTimes
from metaserver.storage.listing import NamespaceReader, NamespaceState
from sharding.pool import Connection
from wire.ids import EntryId, Jid, NsId
from wire.names import NameKey

REV_COLUMNS: LiteralString = "r.jid, r.entry_id, r.size, r.content_hash, r.client_modified_us, r.at_us"
_REVS: LiteralString = f"""
SELECT {REV_COLUMNS} FROM ns.server_file_journal r
 WHERE r.ns_id = %s AND r.jid = ANY(%s) AND r.content_hash IS NOT NULL
"""
# From a rev to the same entry's row before it, and from that to the rev which it names: two look-ups by key
# for each rev, however often the file was moved or deleted between.
_CHAIN: LiteralString = f"""
WITH RECURSIVE chain AS (
    SELECT 1 AS number, r.prev_jid, {REV_COLUMNS} FROM ns.server_file_journal r
     WHERE r.ns_id = %s AND r.jid = %s AND r.content_hash IS NOT NULL
    UNION ALL
    SELECT c.number + 1, r.prev_jid, {REV_COLUMNS} FROM chain c
     CROSS JOIN LATERAL (
        SELECT j.rev_jid FROM ns.server_file_journal j WHERE j.ns_id = %s AND j.jid = c.prev_jid LIMIT 1) p
     CROSS JOIN LATERAL (
        SELECT * FROM ns.server_file_journal j
         WHERE j.ns_id = %s AND j.jid = p.rev_jid AND j.content_hash IS NOT NULL LIMIT 1) r
     WHERE c.number < %s
  )
SELECT {REV_COLUMNS}, r.number FROM chain r
"""
MAX_NAMESAKES = 10
"""Entries of one path that are looked at on the way to a deleted file: the live one and those made last."""
# Level by level down the names: at each, whatever has the name in one of the folders found so far.
_NAMESAKES: LiteralString = """
WITH RECURSIVE down AS (
    SELECT 0 AS depth, ARRAY[%s]::bigint[] AS ids, string_to_array(%s, '/') AS keys
    UNION ALL
    SELECT d.depth + 1, found.ids, d.keys FROM down d
     CROSS JOIN LATERAL (
        SELECT array_agg(f.entry_id) AS ids FROM (
            SELECT c.entry_id FROM unnest(d.ids) AS p(folder)
             CROSS JOIN LATERAL (
                (SELECT e.entry_id, e.is_deleted FROM ns.entries e
                  WHERE e.ns_id = %s AND e.parent_id = p.folder AND e.name_key = d.keys[d.depth + 1]
                    AND NOT e.is_deleted LIMIT 1)
                UNION ALL
                (SELECT e.entry_id, e.is_deleted FROM ns.entries e
                  WHERE e.ns_id = %s AND e.parent_id = p.folder AND e.name_key = d.keys[d.depth + 1]
                    AND e.is_deleted ORDER BY e.entry_id DESC LIMIT %s)) c
             ORDER BY c.is_deleted, c.entry_id DESC LIMIT %s) f) found
     WHERE d.depth < cardinality(d.keys) AND found.ids IS NOT NULL
  )
SELECT unnest(d.ids) FROM down d WHERE d.depth = cardinality(d.keys)
"""


@dataclass(frozen=True, slots=True)
class RevPage:
    """Revs of one file, the newest first."""

    state: NamespaceState
    revs: list[Rev]


async def list_times(conn: Connection, ns_id: NsId, revs: Collection[Jid]) -> dict[Jid, RevTimes]:
    """When the contents of these revs were made."""
    found = await list_revs(conn, ns_id, revs)
    return {jid: rev.times for jid, rev in found.items()}


async def list_revs(conn: Connection, ns_id: NsId, revs: Collection[Jid]) -> dict[Jid, Rev]:
    """Those of the jids that are revs."""
    cursor = await conn.execute(_REVS, [ns_id, sorted(revs)], binary=True)
    return {row[0]: _to_rev(row) for row in await cursor.fetchall()}


async def read_revs(reader: NamespaceReader, revs: Collection[Jid]) -> tuple[NamespaceState, dict[Jid, Rev]]:
    """As `list_revs`, by a reader."""
    state, rows = await reader.read_rows("revs", _REVS, [reader.ns_id, sorted(revs)])
    return state, {row[0]: _to_rev(row) for row in rows}


async def read_chain(reader: NamespaceReader, start: Jid, count: int) -> RevPage:
    """A rev and those of the same file before it, at most `count`; none if there is no such rev."""
    ns_id = reader.ns_id
    state, rows = await reader.read_rows("revisions", _CHAIN, [ns_id, start, ns_id, ns_id, count])
    return RevPage(state, [_to_rev(row) for row in sorted(rows, key=lambda row: -row[0])])


async def read_time(reader: NamespaceReader, jid: Jid) -> int | None:
    """When a journal row was written, in microseconds since 1970."""
    query: LiteralString = "SELECT j.at_us FROM ns.server_file_journal j WHERE j.ns_id = %s AND j.jid = %s"
    _, rows = await reader.read_rows("time", query, [reader.ns_id, jid])
    return rows[0][0] if rows else None


async def read_namesakes(
    reader: NamespaceReader, anchor: EntryId, keys: Sequence[NameKey]
) -> tuple[NamespaceState, list[EntryId]]:
    """Entries that have, or last had, the place that some names lead to, dead folders on the way too."""
    ns_id = reader.ns_id
    params = [anchor, "/".join(keys), ns_id, ns_id, MAX_NAMESAKES, MAX_NAMESAKES]
    state, rows = await reader.read_rows("namesakes", _NAMESAKES, params)
    return state, [EntryId(row[0]) for row in rows]


def _to_rev(row: TupleRow) -> Rev:
    return Rev(row[0], row[1], row[2], row[3], RevTimes(row[4], row[5]))
