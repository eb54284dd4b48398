"""Reading a namespace: metadata, listings and their continuation."""

from collections.abc import Sequence
from dataclasses import dataclass

from metaserver.model import delta
from metaserver.model.present import present_entry
from metaserver.model.rows import ROOT, Entry, Kind
from metaserver.model.tree import TreeView, walk_of
from metaserver.services.access import AccessService, Who, require_read
from metaserver.storage.listing import NamespaceReader, Page, PageRow
from sharding.tx import Transactions
from wire.api import (
    MAX_BLOCKS_PER_PAGE,
    BlockList,
    ListFolder,
    ListFolderResult,
    Metadata,
    Tag,
)
from wire.cursors import Cursor, Following, Position, Scanning, format_cursor, parse_cursor
from wire.errors import InvalidCursor, MalformedPath, NotAFolder, NotFound, UnsupportedCursor
from wire.hashes import split_blocklist
from wire.ids import ROOT_ENTRY, EntryId, Jid, NsId, format_file_id, parse_rev
from wire.internal import Caller
from wire.keys import KeyRing
from wire.names import NameKey, parse_target


@dataclass(frozen=True, slots=True)
class Found:
    """A live entry, its path, and its page row (None for the root)."""

    entry: Entry
    path: str
    row: PageRow | None


class ReadService:
    """The read side of a namespace's tree."""

    def __init__(self, transactions: Transactions, access: AccessService, cursor_keys: KeyRing):
        self._tx = transactions
        self._access = access
        self._keys = cursor_keys

    async def get_metadata(self, caller: Caller, path: str) -> Metadata:
        """The live entry at any form of path.

        Raises:
            NotFound: nothing there, or nothing that the caller may see.
            MalformedPath: the root folder, which has no metadata.
        """
        who = await self._access.identify(caller)
        ns_id, anchor, names = parse_target(path, who.root_ns)
        found = await self._find(who, ns_id, anchor, names)
        if found.row is None:
            raise MalformedPath("the root folder has no metadata")
        return present_entry(ns_id, found.entry, path=found.path, times=found.row.times)

    async def get_block_list(self, caller: Caller, rev: str, start: int) -> BlockList:
        """The blocks of a rev from index `start` on, at most MAX_BLOCKS_PER_PAGE.

        Raises:
            NotFound: no such rev, or none that the caller may see.
        """
        who = await self._access.identify(caller)
        ns_id, jid = parse_rev(rev)
        found = await self._reader(who, ns_id).find_blocklist(jid, start, MAX_BLOCKS_PER_PAGE)
        if found is None:
            raise NotFound()
        state, packed, total = found
        require_read(state.level)
        return BlockList([block.hex() for block in split_blocklist(packed)], total)

    async def list_folder(self, caller: Caller, request: ListFolder) -> ListFolderResult:
        """The first page of a folder's children, or with `recursive` of a whole namespace.

        Raises:
            NotFound, NotAFolder: no folder there.
            UnsupportedCursor: recursive, and not from a root.
        """
        who = await self._access.identify(caller)
        ns_id, anchor, names = parse_target(request.path, who.root_ns)
        folder: EntryId | None = ROOT_ENTRY
        if anchor != ROOT_ENTRY or names:
            found = await self._find(who, ns_id, anchor, names)
            if found.entry.kind is not Kind.FOLDER:
                raise NotAFolder()
            folder = found.entry.entry_id
        if request.recursive:
            if folder != ROOT_ENTRY:
                raise UnsupportedCursor()
            folder = None
        cursor = Cursor(
            who.account_id,
            (Position(ns_id, Scanning(Jid(-1), ROOT_ENTRY), folder),),
            request.limit,
            request.include_blocks,
        )
        return await self._read_on(who, cursor)

    async def list_folder_continue(self, caller: Caller, cursor_text: str) -> ListFolderResult:
        """The next page.

        Raises:
            InvalidCursor: forged, or another account's.
            CursorReset: list afresh.
            NotFound: the namespace or the listed folder is gone.
        """
        who = await self._access.identify(caller)
        cursor = parse_cursor(cursor_text, self._keys)
        if cursor.account_id != who.account_id:
            raise InvalidCursor("the cursor is another account's")
        return await self._read_on(who, cursor)

    async def _read_on(self, who: Who, cursor: Cursor) -> ListFolderResult:
        """A page of the first namespace that has one; positions are read in turn."""
        positions = list(cursor.positions)
        for index, position in enumerate(positions):
            is_last = index == len(positions) - 1
            page = await self._read_position(who, cursor, position)
            positions[index] = page.position
            if page.entries or page.has_more or page.is_restarted or is_last:
                # The namespaces after this one have not been looked at, so they may have more.
                return ListFolderResult(
                    entries=page.entries,
                    cursor=format_cursor(
                        Cursor(cursor.account_id, tuple(positions), cursor.limit, cursor.include_blocks),
                        self._keys,
                    ),
                    has_more=page.has_more or not is_last,
                    restarted=page.is_restarted,
                    jid=page.position.state.jid if isinstance(page.position.state, Following) else 0,
                )
        raise InvalidCursor("the cursor names no namespace")

    async def _read_position(self, who: Who, cursor: Cursor, position: Position) -> "_Read":
        page = await self._fetch(who, cursor, position)
        require_read(page.state.level)
        head = page.state.head
        state = position.state
        if isinstance(state, Scanning) and state.base == -1:  # the listing begins with this very snapshot
            state = Scanning(head, state.after_entry, state.after_key)
            position = Position(position.ns_id, state, position.folder)
        if delta.check_position(position, head, page.state.lost_ranges) is None:
            fresh = Position(position.ns_id, Scanning(Jid(-1), ROOT_ENTRY), position.folder)
            again = await self._read_position(who, cursor, fresh)
            return _Read(again.position, again.entries, again.has_more, is_restarted=True)
        view = TreeView()
        view.load(page.ancestors)
        view.load([row.entry for row in page.rows if row.entry is not None])
        view.load([], ids=_parents(page) | {position.folder or ROOT_ENTRY})
        parent_path = self._check_folder(view, position)
        seen = [delta.Seen(row.jid, row.entry_id, row.entry) for row in page.rows]
        is_full = len(seen) >= cursor.limit
        if isinstance(state, Scanning):
            news = delta.emit_scan(view, seen, state.base)
            after = delta.after_scan(state, seen, is_full, by_name=position.folder is not None)
        else:
            news = delta.emit_follow(view, seen, state.jid, position.folder)
            after = delta.after_follow(seen, is_full, head)
        has_more = isinstance(after, Scanning) or after.jid < head
        rows = {row.entry_id: row for row in page.rows}
        entries = [self._present(position.ns_id, item, rows[item.entry_id], parent_path) for item in news]
        return _Read(Position(position.ns_id, after, position.folder), entries, has_more)

    async def _fetch(self, who: Who, cursor: Cursor, position: Position) -> Page:
        reader = self._reader(who, position.ns_id)
        blocks = cursor.include_blocks
        match position.state:
            case Scanning(after_entry=after) if position.folder is None:
                return await reader.list_scan(after, cursor.limit, include_blocks=blocks)
            case Scanning(after_key=key):
                assert position.folder is not None
                return await reader.list_scan_children(
                    position.folder, NameKey(key), cursor.limit, include_blocks=blocks
                )
            case Following(jid=jid):
                return await reader.list_follow(
                    jid, cursor.limit, include_blocks=blocks, folder=position.folder
                )

    @staticmethod
    def _check_folder(view: TreeView, position: Position) -> str | None:
        """The path of the folder whose children are listed; None when a whole namespace is.

        Raises:
            NotFound: the folder has been deleted.
        """
        if position.folder is None:
            return None
        folder = view.find_live(position.folder)
        if folder is None:
            raise NotFound("the folder has been deleted")
        return view.path_of(folder)

    @staticmethod
    def _present(ns_id: NsId, news: delta.News, row: PageRow, parent_path: str | None) -> Metadata:
        if news.entry is None:
            return Metadata(tag=Tag.DELETED, id=format_file_id(ns_id, news.entry_id), jid=row.jid)
        path = None if parent_path is None else f"{parent_path}/{news.entry.name}"
        blocks = None if row.blocklist is None else split_blocklist(row.blocklist)
        return present_entry(ns_id, news.entry, path=path, times=row.times, blocks=blocks)

    async def _find(self, who: Who, ns_id: NsId, anchor: EntryId, names: Sequence[str]) -> Found:
        """The live entry at a place.

        Raises:
            NotFound: nothing there.
        """
        walk = walk_of(anchor, names)
        page = await self._reader(who, ns_id).resolve(walk)
        require_read(page.state.level)
        view = TreeView()
        view.load(page.ancestors)
        view.load([row.entry for row in page.rows if row.entry is not None], ids=[anchor], walks=[walk])
        view.load([], ids=_parents(page))
        entry = view.find_live(anchor)
        for key in walk.keys:
            entry = None if entry is None else view.find_child(entry.entry_id, key)
        if entry is None:
            raise NotFound()
        rows = {row.entry_id: row for row in page.rows}
        return Found(entry, view.path_of(entry), None if entry is ROOT else rows[entry.entry_id])

    def _reader(self, who: Who, ns_id: NsId) -> NamespaceReader:
        return NamespaceReader(self._tx, ns_id, who.account_id)


@dataclass(frozen=True, slots=True)
class _Read:
    """One page of one namespace."""

    position: Position
    entries: list[Metadata]
    has_more: bool
    is_restarted: bool = False


def _parents(page: Page) -> set[EntryId]:
    """The parents of everything loaded: those that did not come with it are missing, and so dead."""
    loaded = [*page.ancestors, *(row.entry for row in page.rows if row.entry is not None)]
    return {entry.parent_id for entry in loaded}
