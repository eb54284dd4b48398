"""Searching a namespace for names, by a bounded range of its entries (ADR 0014: no index)."""

from dataclasses import dataclass
from typing import LiteralString

from metaserver.storage.listing import UP, NamespaceReader, Page
from metaserver.storage.rows import ENTRY_COLUMNS
from wire.ids import EntryId
from wire.names import NameKey

MAX_SEARCH_ROWS = 50_000
"""Entries that one page looks at: some 50 ms of one connection (ADR 0014)."""
MAX_CANDIDATES = 2_000
"""Names found of which a page tells whether they live and lie below the folder: a listing's largest page."""


@dataclass(frozen=True, slots=True)
class Candidates:
    """Entries whose names fit, in the order of their ids, and their ancestors.

    `after` is the last entry that was looked at; None: there are no more.
    """

    page: Page
    after: EntryId | None


_SEARCH: LiteralString = f"""
WITH RECURSIVE looked AS MATERIALIZED (
    SELECT (SELECT b.entry_id FROM ns.entries b WHERE b.ns_id = %s AND b.entry_id > %s
             ORDER BY b.entry_id OFFSET %s LIMIT 1) AS up_to
  ), page AS MATERIALIZED (
    SELECT l.up_to AS row_jid, e.entry_id AS row_entry_id, {ENTRY_COLUMNS}
      FROM looked l
      LEFT JOIN LATERAL (
        SELECT * FROM ns.entries c
         WHERE c.ns_id = %s AND c.entry_id > %s AND c.entry_id <= coalesce(l.up_to, 9223372036854775807)
           AND NOT c.is_deleted AND strpos(c.name_key, %s) > 0
         ORDER BY c.entry_id LIMIT %s) e ON true
  ), {UP}
"""


async def list_candidates(
    reader: NamespaceReader, key: NameKey, after: EntryId, folder: EntryId
) -> Candidates:
    """The entries behind `after` whose name keys hold `key`, as far as one page looks; dead ones too."""
    ns_id = reader.ns_id
    params = [ns_id, after, MAX_SEARCH_ROWS - 1, ns_id, after, key, MAX_CANDIDATES]
    page = await reader.read_page(
        "search", _SEARCH, params, lambda row: row.entry_id or 0, include_blocks=False, folder=folder
    )
    found = [row for row in page.rows if row.entry is not None]
    # The first column says it in each row, also in the only one where nothing was found; null: the end.
    up_to: list[int] = [row.jid for row in page.rows[:1] if row.jid]
    if len(found) == MAX_CANDIDATES:
        up_to = [found[-1].entry_id]
    last = EntryId(up_to[0]) if up_to else None
    return Candidates(Page(page.state, found, page.ancestors), last)
