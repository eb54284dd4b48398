"""Reading a namespace: each query is one statement, and so one snapshot, with ownership and rights in it.

A query yields *page* rows, in which a reader is interested, and the ancestors by which their liveness and
paths are told. Source of the rules: the design of journal and delta; docs/walkthrough.md follows one delta.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import LiteralString

from psycopg import sql
from psycopg.rows import TupleRow

from metaserver.model.rows import Entry, Level, RevTimes
from metaserver.model.tree import Walk
from metaserver.storage.rows import ENTRY_COLUMN_COUNT, ENTRY_COLUMNS, to_entry
from metaserver.storage.tree import STEP_UP, WALK_DOWN, walk_params
from sharding.tx import Transactions
from wire.api import MAX_INLINE_BLOCKS
from wire.errors import NotFound
from wire.hashes import DIGEST_BYTES, BlockHash
from wire.ids import AccountId, EntryId, Jid, NsId
from wire.names import NameKey


@dataclass(frozen=True, slots=True)
class NamespaceState:
    """A namespace as of a read; `lost_ranges` are pairs (old head, new start)."""

    head: Jid
    level: Level | None
    lost_ranges: tuple[tuple[Jid, Jid], ...]


@dataclass(frozen=True, slots=True)
class PageRow:
    """One row that was looked at.

    `jid` is the journal row's (follow) or the entry's last one; `entry` is None where a journal row has lost
    its entry, which then reads as deleted. `blocklist` is None where it was not asked for or is long.
    """

    jid: Jid
    entry_id: EntryId
    entry: Entry | None
    times: RevTimes | None
    blocklist: bytes | None


@dataclass(frozen=True, slots=True)
class Page:
    """The rows looked at, in their order, and the ancestors of their entries."""

    state: NamespaceState
    rows: list[PageRow]
    ancestors: list[Entry]


Order = Callable[[PageRow], int | str]

_NAMESPACE: LiteralString = """
SELECT st.head, st.level, st.lost_ranges, d.* FROM (
    SELECT n.head, m.level, n.lost_ranges FROM ns.namespaces n
      LEFT JOIN ns.members m ON m.ns_id = n.ns_id AND m.account_id = %s WHERE n.ns_id = %s) st
  LEFT JOIN ({}) d ON true
"""
# Every row is looked up by its key, as in WALK_DOWN and for its reason.
UP: LiteralString = f"""
  up AS (
    SELECT {ENTRY_COLUMNS}
      FROM (SELECT parent_id FROM page WHERE parent_id <> 0 UNION SELECT %s::bigint) asked
     CROSS JOIN LATERAL (
        SELECT * FROM ns.entries p WHERE p.ns_id = %s AND p.entry_id = asked.parent_id LIMIT 1) e
    UNION
    {STEP_UP}
  )
SELECT true AS is_page, e.*, r.client_modified_us, r.at_us,
       CASE WHEN length(r.blocklist) <= %s THEN r.blocklist END
  FROM page e
  LEFT JOIN LATERAL (
    SELECT * FROM ns.server_file_journal j WHERE j.ns_id = %s AND j.jid = e.rev_jid LIMIT 1) r ON true
UNION ALL
SELECT false, NULL, NULL, {ENTRY_COLUMNS}, NULL, NULL, NULL FROM up e
"""
_SCAN: LiteralString = f"""
WITH RECURSIVE page AS MATERIALIZED (
    SELECT e.last_jid AS row_jid, e.entry_id AS row_entry_id, {ENTRY_COLUMNS} FROM ns.entries e
     WHERE e.ns_id = %s AND e.entry_id > %s ORDER BY e.entry_id LIMIT %s
  ), {UP}
"""
_SCAN_CHILDREN: LiteralString = f"""
WITH RECURSIVE page AS MATERIALIZED (
    SELECT e.last_jid AS row_jid, e.entry_id AS row_entry_id, {ENTRY_COLUMNS} FROM ns.entries e
     WHERE e.ns_id = %s AND e.parent_id = %s AND e.name_key > %s AND NOT e.is_deleted
     ORDER BY e.name_key LIMIT %s
  ), {UP}
"""
_FOLLOW: LiteralString = f"""
WITH RECURSIVE page AS MATERIALIZED (
    SELECT j.jid AS row_jid, j.entry_id AS row_entry_id, {ENTRY_COLUMNS}
      FROM ns.server_file_journal j
      LEFT JOIN LATERAL (
        SELECT * FROM ns.entries c WHERE c.ns_id = j.ns_id AND c.entry_id = j.entry_id LIMIT 1) e ON true
     WHERE j.ns_id = %s AND j.jid > %s ORDER BY j.jid LIMIT %s
  ), {UP}
"""
_RESOLVE: LiteralString = f"""
WITH RECURSIVE {WALK_DOWN}, page AS MATERIALIZED (
    SELECT e.last_jid AS row_jid, e.entry_id AS row_entry_id, {ENTRY_COLUMNS} FROM down e
    UNION
    SELECT e.last_jid, e.entry_id, {ENTRY_COLUMNS} FROM ns.entries e
     WHERE e.ns_id = %s AND e.entry_id = ANY(%s)
  ), {UP}
"""
_BLOCKLIST: LiteralString = (
    "SELECT substring(j.blocklist FROM %s FOR %s), length(j.blocklist)"
    " FROM ns.server_file_journal j WHERE j.ns_id = %s AND j.jid = %s AND j.blocklist IS NOT NULL"
)
_READY_BLOCKS: LiteralString = (
    "SELECT b.hash, b.generation, b.size FROM ns.namespace_blocks b"
    " WHERE b.ns_id = %s AND b.hash = ANY(%s) AND b.state = 'r'"
)
_INLINE_BYTES = MAX_INLINE_BLOCKS * DIGEST_BYTES


class NamespaceReader:
    """The reads of one caller in one namespace; those of other nouns (revs, walks) go through it too."""

    def __init__(self, transactions: Transactions, ns_id: NsId, account_id: AccountId):
        self._tx = transactions
        self.ns_id = ns_id
        self._account_id = account_id

    async def list_scan(self, after: EntryId, limit: int, *, include_blocks: bool) -> Page:
        """Up to `limit` entries by primary key, deleted ones too: what is bounded is the rows looked at."""
        params = [self.ns_id, after, limit]
        return await self.read_page("scan", _SCAN, params, lambda row: row.entry_id, include_blocks)

    async def list_scan_children(
        self, folder: EntryId, after: NameKey, limit: int, *, include_blocks: bool
    ) -> Page:
        """Up to `limit` children of a folder by name key."""
        params = [self.ns_id, folder, after, limit]
        return await self.read_page(
            "scan_children",
            _SCAN_CHILDREN,
            params,
            lambda row: row.entry.name_key if row.entry else "",
            include_blocks,
            folder,
        )

    async def list_follow(
        self, after: Jid, limit: int, *, include_blocks: bool, folder: EntryId | None
    ) -> Page:
        """Up to `limit` journal rows above a jid, each with its entry as it is now."""
        params = [self.ns_id, after, limit]
        return await self.read_page("follow", _FOLLOW, params, lambda row: row.jid, include_blocks, folder)

    async def resolve(self, walks: Sequence[Walk], ids: Sequence[EntryId] = ()) -> Page:
        """The entries along walks, their anchors and those asked for by id, with their ancestors."""
        wanted = sorted({*ids, *(walk.anchor for walk in walks)})
        params = [*walk_params(walks, self.ns_id), self.ns_id, wanted]
        return await self.read_page(
            "resolve", _RESOLVE, params, lambda row: row.entry_id, include_blocks=False
        )

    async def find_blocklist(
        self, rev: Jid, start: int, count: int
    ) -> tuple[NamespaceState, bytes, int] | None:
        """`count` blocks of a rev from index `start` on, and how many it has; None: no such rev."""
        params = [start * DIGEST_BYTES + 1, count * DIGEST_BYTES, self.ns_id, rev]
        state, rows = await self.read_rows("blocklist", _BLOCKLIST, params)
        return (state, rows[0][0], rows[0][1] // DIGEST_BYTES) if rows else None

    async def list_ready_blocks(
        self, hashes: Sequence[BlockHash]
    ) -> tuple[NamespaceState, list[tuple[BlockHash, bytes, int]]]:
        """(hash, generation, size) of those blocks that the namespace holds ready."""
        state, rows = await self.read_rows("ready_blocks", _READY_BLOCKS, [self.ns_id, sorted(hashes)])
        return state, [(BlockHash(row[0]), row[1], row[2]) for row in rows]

    async def read_page(
        self,
        name: str,
        query: LiteralString,
        params: Sequence[object],
        order: Order,
        include_blocks: bool,
        folder: EntryId | None = None,
    ) -> Page:
        """One page of a query that ends with UP.

        A listed folder and its ancestors come with it, so that its liveness can be told.
        """
        inline = _INLINE_BYTES if include_blocks else -1
        params = [*params, folder, self.ns_id, self.ns_id, inline, self.ns_id]
        state, rows = await self.read_rows(name, query, params)
        page = sorted((_to_page_row(row[1:]) for row in rows if row[0]), key=order)
        return Page(state, page, [to_entry(row[3:]) for row in rows if not row[0]])

    async def read_rows(
        self, name: str, query: LiteralString, params: Sequence[object]
    ) -> tuple[NamespaceState, list[TupleRow]]:
        """The namespace and the rows of a query, but for those that begin with a null."""
        rows = await self._tx.run_read(
            self.ns_id,
            name,
            sql.SQL(_NAMESPACE).format(sql.SQL(query)),
            [self._account_id, self.ns_id, *params],
        )
        if not rows:
            raise NotFound()
        head, level, lost = rows[0][:3]
        ranges = tuple(zip(lost[::2], lost[1::2], strict=True))
        state = NamespaceState(head, Level(level) if level else None, ranges)
        return state, [row[3:] for row in rows if row[3] is not None]


def _to_page_row(row: TupleRow) -> PageRow:
    jid, entry_id, *columns = row
    client_modified_us, at_us, blocklist = columns[ENTRY_COLUMN_COUNT:]
    return PageRow(
        jid,
        entry_id,
        to_entry(tuple(columns)) if columns[0] is not None else None,
        RevTimes(client_modified_us, at_us) if client_modified_us is not None else None,
        blocklist,
    )
