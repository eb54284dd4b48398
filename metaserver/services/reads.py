"""Reading a namespace: metadata, listings and their continuation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from metaserver.model import delta
from metaserver.model.present import present_entry, present_rev
from metaserver.model.rows import Entry, Rev
from metaserver.model.tree import TreeView
from metaserver.model.walk import after_walk, start_walk
from metaserver.services.access import AccessService, Who, require_read
from metaserver.services.lookup import Found, Lookup, Place, view_of
from metaserver.storage.listing import Page, PageRow
from metaserver.storage.revs import read_revs
from metaserver.storage.walk import list_walk
from sharding.tx import Transactions
from wire.api import (
    MAX_BLOCKS_PER_PAGE,
    MAX_METADATA_NAMESPACES,
    MAX_METADATA_PATHS,
    BlockList,
    ListFolder,
    ListFolderResult,
    Metadata,
    MetadataBatch,
    MetadataVerdict,
    Tag,
)
from wire.cursors import (
    MAX_CURSOR_CHARS,
    Cursor,
    Following,
    Position,
    Scanning,
    Walking,
    format_cursor,
    parse_cursor,
)
from wire.errors import (
    InvalidCursor,
    ListingEnded,
    MalformedPath,
    NotFound,
    ShardboxError,
    TooDeep,
    TooManyEntries,
)
from wire.hashes import split_blocklist
from wire.ids import ROOT_ENTRY, EntryId, Jid, NsId, format_file_id, parse_rev
from wire.internal import Caller
from wire.keys import KeyRing
from wire.names import NameKey, parse_rev_target, parse_target

_AT_START = Scanning(Jid(-1), ROOT_ENTRY)
"""Of a listing whose base is not known before its first page."""


class ReadService:
    """The read side of a namespace's tree."""

    def __init__(self, transactions: Transactions, access: AccessService, cursor_keys: KeyRing):
        self._lookup = Lookup(transactions)
        self._access = access
        self._keys = cursor_keys

    async def get_metadata(self, caller: Caller, path: str) -> Metadata:
        """The live entry at any form of path, or a version of one (`rev:…`).

        Raises:
            NotFound: nothing there, or nothing that the caller may see.
            MalformedPath: the root folder, which has no metadata.
        """
        who = await self._access.identify(caller)
        asked = _parse_asked(path, who)
        (found,) = await self._find_metadata(who, [asked])
        if isinstance(found, ShardboxError):
            raise found
        return found

    async def get_metadata_batch(self, caller: Caller, paths: Sequence[str]) -> MetadataBatch:
        """What is at each path; those of one namespace by one read.

        Raises:
            TooManyEntries: none or too many paths, or too many namespaces.
        """
        if not 1 <= len(paths) <= MAX_METADATA_PATHS:
            raise TooManyEntries(f"a request has 1 to {MAX_METADATA_PATHS} paths")
        who = await self._access.identify(caller)
        asked: list[_Asked | ShardboxError] = []
        for path in paths:
            try:
                asked.append(_parse_asked(path, who))
            except ShardboxError as error:
                asked.append(error)
        found: dict[int, Metadata | ShardboxError] = {
            i: a for i, a in enumerate(asked) if isinstance(a, ShardboxError)
        }
        by_ns: dict[NsId, list[tuple[int, _Asked]]] = {}
        for index, one in enumerate(asked):
            if isinstance(one, _Asked):
                by_ns.setdefault(one.ns_id, []).append((index, one))
        if len(by_ns) > MAX_METADATA_NAMESPACES:
            raise TooManyEntries(f"the paths lie in at most {MAX_METADATA_NAMESPACES} namespaces")
        for some in by_ns.values():
            told = await self._find_metadata(who, [one for _, one in some])
            found |= {index: what for (index, _), what in zip(some, told, strict=True)}
        return MetadataBatch(
            [
                MetadataVerdict(error=what.info())
                if isinstance(what, ShardboxError)
                else MetadataVerdict(metadata=what)
                for what in (found[index] for index in range(len(paths)))
            ]
        )

    async def _find_metadata(self, who: Who, asked: Sequence["_Asked"]) -> list[Metadata | ShardboxError]:
        """What is asked for in one namespace: metadata, or why there is none."""
        ns_id = asked[0].ns_id
        revs: dict[Jid, Rev] = {}
        try:
            if jids := {one.rev for one in asked if one.rev is not None}:
                # A rev never changes; where its file is now comes with all the others.
                state, revs = await read_revs(self._lookup.reader(who, ns_id), jids)
                require_read(state.level)
            places: list[Place] = []
            for one in asked:
                rev = None if one.rev is None else revs.get(one.rev)
                places.append((one.anchor if rev is None else rev.entry_id, one.names))
            found = await self._lookup.find_all(who, ns_id, places)
        except NotFound as error:
            return [error for _ in asked]
        return [_present_asked(one, revs, place) for one, place in zip(asked, found, strict=True)]

    async def get_block_list(self, caller: Caller, rev: str, start: int) -> BlockList:
        """The blocks of a rev from index `start` on, at most MAX_BLOCKS_PER_PAGE.

        Raises:
            NotFound: no such rev, or none that the caller may see.
        """
        who = await self._access.identify(caller)
        ns_id, jid = parse_rev(rev)
        found = await self._lookup.reader(who, ns_id).find_blocklist(jid, start, MAX_BLOCKS_PER_PAGE)
        if found is None:
            raise NotFound()
        state, packed, total = found
        require_read(state.level)
        return BlockList([block.hex() for block in split_blocklist(packed)], total)

    async def list_folder(self, caller: Caller, request: ListFolder) -> ListFolderResult:
        """The first page of a folder's children, or with `recursive` of all below it.

        Raises:
            NotFound, NotAFolder: no folder there.
        """
        who = await self._access.identify(caller)
        ns_id, folder = await self._lookup.find_folder(who, request.path)
        if request.recursive and folder != ROOT_ENTRY:
            position = Position(ns_id, start_walk(folder), folder)
        else:
            position = Position(ns_id, _AT_START, None if request.recursive else folder)
        cursor = Cursor(who.account_id, (position,), request.limit, request.include_blocks)
        return await self._read_on(who, cursor)

    async def list_folder_continue(self, caller: Caller, cursor_text: str) -> ListFolderResult:
        """The next page.

        Raises:
            InvalidCursor: forged, or another account's.
            CursorReset: list afresh.
            ListingEnded: a walk down a folder has told all.
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
                after = Cursor(cursor.account_id, tuple(positions), cursor.limit, cursor.include_blocks)
                return ListFolderResult(
                    entries=page.entries,
                    cursor=self._format(after),
                    has_more=page.has_more or not is_last,
                    restarted=page.is_restarted,
                    jid=page.position.state.jid if isinstance(page.position.state, Following) else 0,
                )
        raise InvalidCursor("the cursor names no namespace")

    def _format(self, cursor: Cursor) -> str:
        text = format_cursor(cursor, self._keys)
        if len(text) > MAX_CURSOR_CHARS:
            raise TooDeep()
        return text

    async def _read_position(self, who: Who, cursor: Cursor, position: Position) -> "_Read":
        state = position.state
        if isinstance(state, Walking):
            return await self._walk_on(who, cursor, position, state)
        page = await self._fetch(who, cursor, position, state)
        require_read(page.state.level)
        head = page.state.head
        if isinstance(state, Scanning) and state.base == -1:  # the listing begins with this very snapshot
            state = Scanning(head, state.after_entry, state.after_key)
        if delta.check_place(state, head, page.state.lost_ranges) is None:
            fresh = Position(position.ns_id, _AT_START, position.folder)
            again = await self._read_position(who, cursor, fresh)
            return _Read(again.position, again.entries, again.has_more, is_restarted=True)
        view = view_of(page, position.folder)
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

    async def _walk_on(self, who: Who, cursor: Cursor, position: Position, state: Walking) -> "_Read":
        if not state.levels:
            raise ListingEnded()
        reader = self._lookup.reader(who, position.ns_id)
        page, steps = await list_walk(
            reader, state.levels, cursor.limit, include_blocks=cursor.include_blocks
        )
        require_read(page.state.level)
        view = view_of(page, position.folder)
        self._check_folder(view, position)
        after = after_walk(state, [(step.depth, step.row.entry if step.row else None) for step in steps])
        entries = [
            _present_row(position.ns_id, row.entry, row, view.find_path(row.entry))
            for row in page.rows
            if row.entry is not None
        ]
        return _Read(Position(position.ns_id, after, position.folder), entries, bool(after.levels))

    async def _fetch(self, who: Who, cursor: Cursor, position: Position, state: Scanning | Following) -> Page:
        reader = self._lookup.reader(who, position.ns_id)
        blocks = cursor.include_blocks
        match state:
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
        """The path of the folder whose children are listed.

        None when a whole namespace is, or where the path is too long to be shown.

        Raises:
            NotFound: the folder has been deleted.
        """
        if position.folder is None:
            return None
        folder = view.find_live(position.folder)
        if folder is None:
            raise NotFound("the folder has been deleted")
        return view.find_path(folder)

    @staticmethod
    def _present(ns_id: NsId, news: delta.News, row: PageRow, parent_path: str | None) -> Metadata:
        if news.entry is None:
            return Metadata(tag=Tag.DELETED, id=format_file_id(ns_id, news.entry_id), jid=row.jid)
        path = None if parent_path is None else f"{parent_path}/{news.entry.name}"
        return _present_row(ns_id, news.entry, row, path)


@dataclass(frozen=True, slots=True)
class _Read:
    """One page of one namespace."""

    position: Position
    entries: list[Metadata]
    has_more: bool
    is_restarted: bool = False


@dataclass(frozen=True, slots=True)
class _Asked:
    """A path of get_metadata: names below an entry, or a rev."""

    ns_id: NsId
    anchor: EntryId
    names: Sequence[str]
    rev: Jid | None = None


def _parse_asked(path: str, who: Who) -> _Asked:
    rev = parse_rev_target(path)
    if rev is not None:
        return _Asked(rev[0], ROOT_ENTRY, (), rev[1])
    return _Asked(*parse_target(path, who.root_ns))


def _present_asked(asked: _Asked, revs: Mapping[Jid, Rev], found: Found | None) -> Metadata | ShardboxError:
    if found is None or (asked.rev is not None and asked.rev not in revs):
        return NotFound()
    if found.row is None:
        return MalformedPath("the root folder has no metadata")
    if asked.rev is not None:
        return present_rev(asked.ns_id, found.entry, found.path, revs[asked.rev])
    return present_entry(asked.ns_id, found.entry, path=found.path, times=found.row.times)


def _present_row(ns_id: NsId, entry: Entry, row: PageRow, path: str | None) -> Metadata:
    blocks = None if row.blocklist is None else split_blocklist(row.blocklist)
    return present_entry(ns_id, entry, path=path, times=row.times, blocks=blocks)
