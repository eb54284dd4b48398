"""Reading the server's tree: pages staged by entry id, in one transaction with the cursor.

A listing is *new* while it has not once come to its end: what it does not show is then not there any more,
but nothing is deleted for that, as a listing that began anew may be of a server that lost something.
"""

import sqlite3

import msgspec

from client.calls import Calls
from client.commit import parse_entry, parse_entry_id
from client.model import Kind
from client.selection import place
from client.settle import detach
from client.state import State
from client.tree import iter_ids
from wire.api import MAX_PAGE_ENTRIES, ListFolderResult, Metadata, Tag
from wire.errors import CursorReset, InvalidCursor, ShardboxError
from wire.ids import LOST_IDS, parse_rev
from wire.names import check_name

PAGE_ENTRIES = MAX_PAGE_ENTRIES
"""Few round trips: a page of 2,000 small files with their blocks is 1 MB."""


class Remote:
    """The stage of one namespace."""

    def __init__(self, state: State, calls: Calls, page_entries: int = PAGE_ENTRIES):
        self._state, self._calls, self._page_entries = state, calls, page_entries

    @property
    def is_complete(self) -> bool:
        """Whether the stage has been the server's tree at some moment: only then it may be looked at."""
        return self._state.find_fact("cursor") is not None and self._state.find_fact("has_more") is None

    @property
    def cursor(self) -> str | None:
        """Where the listing stands."""
        return self._state.find_fact("cursor")

    async def read(self) -> None:
        """Read on until there is no more."""
        while True:
            cursor = self.cursor
            try:
                if cursor is None:
                    page = await self._calls.list_whole(self._page_entries)
                else:
                    page = await self._calls.list_on(cursor)
            except (CursorReset, InvalidCursor):
                if cursor is None:
                    raise
                with self._state.tx("page"):
                    self._state.put_fact("cursor", None)
                continue
            if self._has_jumped(page):
                with self._state.tx("page"):
                    self._state.put_fact("cursor", None)
                continue
            self._stage(page, is_first=cursor is None or page.restarted)
            if not page.has_more:
                return

    def _has_jumped(self, page: ListFolderResult) -> bool:
        """Whether the server was restored since our place, which was old enough to simply go on from.

        What we have sent after that place may be among what the server has lost, and a follow does not tell
        of what is not there: only a new listing does. No device is that far behind by itself.
        """
        seen = self._state.find_fact("cursor_jid")
        if self.cursor is None or page.restarted or seen is None or page.jid == 0:
            return False
        return page.jid - int(seen) >= LOST_IDS and self._state.find_fact("is_new_listing") is None

    def _stage(self, page: ListFolderResult, *, is_first: bool) -> None:
        state = self._state
        has_exclusions = bool(state.list_exclusions())
        with state.tx("page" if page.has_more else "listed") as conn:
            if is_first:
                conn.execute("DELETE FROM relisted")
                state.put_fact("is_new_listing", "1")
            is_new = state.find_fact("is_new_listing") is not None
            for entry in page.entries:
                self._stage_entry(conn, entry, is_new=is_new)
                if has_exclusions:
                    # Which side it belongs to shows when the folders above are known.
                    conn.execute("INSERT OR IGNORE INTO touched VALUES (?)", (parse_entry_id(entry.id),))
                if is_new:
                    conn.execute("INSERT OR IGNORE INTO relisted VALUES (?)", (parse_entry_id(entry.id),))
            state.put_fact("cursor", page.cursor)
            state.put_fact("has_more", "1" if page.has_more else None)
            if not page.has_more:
                state.put_fact("cursor_jid", str(page.jid))
                if state.find_fact("is_new_listing") is not None:
                    self._end_new_listing(conn)
                    state.put_fact("is_new_listing", None)
                self._drop_unreachable(conn)
                for node_id in iter_ids(conn, "touched"):
                    place(state.trees, node_id)
                conn.execute("DELETE FROM touched")

    def _stage_entry(self, conn: sqlite3.Connection, entry: Metadata, *, is_new: bool) -> None:
        trees = self._state.trees
        entry_id = parse_entry_id(entry.id)
        known = trees.find_remote(entry_id)
        is_stale = known is not None and entry.jid is not msgspec.UNSET and entry.jid < known.jid
        if is_stale and not is_new:
            return
        if entry.tag is Tag.DELETED:
            # This entry alone: what lies below may yet be moved out by a later page.
            conn.execute("INSERT OR IGNORE INTO orphaned VALUES (?)", (entry_id,))
            trees.drop_remote(entry_id)
            return
        try:
            check_name("" if entry.name is msgspec.UNSET else entry.name)
        except ShardboxError:
            # A name that this client must not put on a disk: as if it were not there, but not deleted either.
            return
        node = parse_entry(entry, known)
        if node != known:
            # What this device has sent comes back like everything else.
            trees.put_remote(node)
        if node.kind is Kind.FILE and entry.blocks is not msgspec.UNSET:
            self._state.put_remote_blocks(entry_id, node.rev, bytes.fromhex("".join(entry.blocks)))
        elif node.kind is Kind.FILE and known is not None and known.rev != node.rev:
            self._state.delete_remote_blocks(entry_id)

    def _end_new_listing(self, conn: sqlite3.Connection) -> None:
        """What a listing that began anew does not show is a local addition now, whatever it was before."""
        trees = self._state.trees
        for tree in (trees.remote, trees.hidden):
            for node_id in tree:
                if conn.execute("SELECT 1 FROM relisted WHERE id = ?", (node_id,)).fetchone() is None:
                    trees.drop_remote(node_id)
        conn.execute("DELETE FROM relisted")
        for node_id in trees.synced:
            r, s = trees.find_remote(node_id), trees.synced.get(node_id)
            assert s is not None, "taken from the tree"
            is_older = r is not None and r.rev != s.rev and _rev_jid(r.rev) < _rev_jid(s.rev)
            if r is not None and not is_older:
                continue
            if node_id in trees.local:
                detach(trees, node_id)
            else:
                trees.drop_synced(node_id)

    def _drop_unreachable(self, conn: sqlite3.Connection) -> None:
        """A deleted folder stands for what was below it and has not been moved out by now."""
        trees = self._state.trees
        for gone in iter_ids(conn, "orphaned"):
            if trees.find_remote(gone) is None:
                for tree in (trees.remote, trees.hidden):
                    for node_id in [*tree.below(gone)]:
                        trees.drop_remote(node_id)
        conn.execute("DELETE FROM orphaned")


def _rev_jid(rev: str) -> int:
    return int(parse_rev(rev)[1]) if rev else 0
