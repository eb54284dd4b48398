"""Reading on in a walk down a folder: one statement, and so one snapshot, a page."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import LiteralString

from metaserver.storage.listing import UP, NamespaceReader, Page, PageRow
from metaserver.storage.rows import ENTRY_COLUMNS
from wire.cursors import WalkLevel


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a walk: what was found among `depth` folders; None: nothing more in the deepest."""

    depth: int
    row: PageRow | None


# Each step looks for the next name in the deepest folder: found, it goes on after it, and into it where it is
# a folder; else it leaves the folder. The folders that the cursor has brought are walked on in as far as
# each still is, alive, in the one before: what has been moved or deleted meanwhile is left.
_WALK: LiteralString = f"""
WITH RECURSIVE stack AS (SELECT %s::bigint[] AS ids, %s::text[] AS keys), held AS (
    SELECT s.ids, s.keys, coalesce((
        SELECT min(i) - 1 FROM generate_series(2, cardinality(s.ids)) i
         WHERE NOT EXISTS (SELECT FROM ns.entries e WHERE e.ns_id = %s AND e.entry_id = s.ids[i]
                              AND e.parent_id = s.ids[i - 1] AND NOT e.is_deleted)
      ), cardinality(s.ids)) AS depth
      FROM stack s
  ), walk AS (
    SELECT 0 AS step, 0 AS depth, NULL::bigint AS entry_id,
           h.ids[:h.depth] AS ids, (h.keys[:h.depth]) COLLATE "C" AS keys
      FROM held h
    UNION ALL
    SELECT w.step + 1, cardinality(w.ids), c.entry_id,
           CASE WHEN c.entry_id IS NULL THEN w.ids[:cardinality(w.ids) - 1]
                WHEN c.kind = 'd' THEN w.ids || c.entry_id ELSE w.ids END,
           (w.keys[:cardinality(w.keys) - 1]
            || CASE WHEN c.entry_id IS NULL THEN ARRAY[]::text[]
                    WHEN c.kind = 'd' THEN ARRAY[c.name_key, ''] ELSE ARRAY[c.name_key] END) COLLATE "C"
      FROM walk w
      LEFT JOIN LATERAL (
        SELECT n.entry_id, n.kind, n.name_key FROM ns.entries n
         WHERE n.ns_id = %s AND n.parent_id = w.ids[cardinality(w.ids)]
           AND n.name_key > w.keys[cardinality(w.keys)] AND NOT n.is_deleted
         ORDER BY n.name_key LIMIT 1) c ON true
     WHERE cardinality(w.ids) > 0 AND w.step < %s
  ), page AS MATERIALIZED (
    SELECT w.step::bigint AS row_jid, w.depth::bigint AS row_entry_id, {ENTRY_COLUMNS}
      FROM walk w
      LEFT JOIN LATERAL (
        SELECT * FROM ns.entries f WHERE f.ns_id = %s AND f.entry_id = w.entry_id LIMIT 1) e ON true
     WHERE w.step > 0
  ), {UP}
"""


async def list_walk(
    reader: NamespaceReader, levels: Sequence[WalkLevel], limit: int, *, include_blocks: bool
) -> tuple[Page, list[Step]]:
    """Up to `limit` steps from where `levels` stand; the page has the entries found and their ancestors."""
    ns_id = reader.ns_id
    ids, keys = [level.folder for level in levels], [level.after_key for level in levels]
    params = [ids, keys, ns_id, ns_id, limit, ns_id]
    page = await reader.read_page("walk", _WALK, params, lambda row: row.jid, include_blocks, ids[0])
    # A row's own columns say here which step it is, and how deep.
    steps = [Step(row.entry_id, None if row.entry is None else row) for row in page.rows]
    found = [row for row in page.rows if row.entry is not None]
    return Page(page.state, found, page.ancestors), steps
