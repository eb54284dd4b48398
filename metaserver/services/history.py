"""The revs of a file, live or deleted."""

from collections.abc import Sequence
from dataclasses import dataclass

from msgspec import UNSET

from metaserver.model.present import present_rev
from metaserver.model.rows import Entry, Kind
from metaserver.model.tree import walk_of
from metaserver.services.access import AccessService, Who, require_read
from metaserver.services.lookup import Lookup, view_of
from metaserver.storage.revs import read_chain, read_namesakes, read_time
from runtime.clock import format_us
from sharding.tx import Transactions
from wire.api import ListRevisions, ListRevisionsResult
from wire.errors import NotAFile, NotFound
from wire.ids import ROOT_ENTRY, EntryId, Jid, NsId, parse_rev
from wire.internal import Caller
from wire.names import parse_target


@dataclass(frozen=True, slots=True)
class _File:
    """A file, dead or alive; `path` is where it is, or was when it or a folder above it was deleted."""

    entry: Entry
    path: str
    is_live: bool


class HistoryService:
    """The past of single files."""

    def __init__(self, transactions: Transactions, access: AccessService):
        self._lookup = Lookup(transactions)
        self._access = access

    async def list_revisions(self, caller: Caller, request: ListRevisions) -> ListRevisionsResult:
        """The revs of a file from the newest one on, or before `before_rev`.

        Raises:
            NotFound: no file there, and none that was; or `before_rev` is no rev of it.
            NotAFile: a folder.
        """
        who = await self._access.identify(caller)
        ns_id, anchor, names = parse_target(request.path, who.root_ns)
        before = None if request.before_rev is None else parse_rev(request.before_rev)
        file = await self._find_file(who, ns_id, anchor, names)
        reader = self._lookup.reader(who, ns_id)
        skipped = 0 if before is None else 1
        if before is not None and before[0] != ns_id:
            raise NotFound("no such rev of this file")
        start = before[1] if before is not None else file.entry.rev_jid
        page = await read_chain(reader, Jid(start or 0), skipped + request.limit + 1)
        require_read(page.state.level)
        if before is not None and (not page.revs or page.revs[0].entry_id != file.entry.entry_id):
            raise NotFound("no such rev of this file")
        revs = page.revs[skipped : skipped + request.limit]
        deleted_us = await read_time(reader, file.entry.last_jid) if file.entry.is_deleted else None
        return ListRevisionsResult(
            is_deleted=not file.is_live,
            entries=[present_rev(ns_id, file.entry, file.path, rev) for rev in revs],
            has_more=len(page.revs) > skipped + request.limit,
            server_deleted=UNSET if deleted_us is None else format_us(deleted_us),
        )

    async def _find_file(self, who: Who, ns_id: NsId, anchor: EntryId, names: Sequence[str]) -> _File:
        """The file at a place, or the one that was there last.

        Raises:
            NotFound, NotAFile: there never was one, or the place is a folder's.
        """
        reader = self._lookup.reader(who, ns_id)
        ids = [anchor]
        if names:
            state, ids = await read_namesakes(reader, anchor, walk_of(anchor, names).keys)
            require_read(state.level)
        elif anchor == ROOT_ENTRY:
            raise NotAFile("the root folder is no file")
        page = await reader.resolve([], ids)
        require_read(page.state.level)
        view = view_of(page)
        view.load([], ids=ids)
        entries = [entry for entry in map(view.find_entry, ids) if entry is not None]
        files = [entry for entry in entries if entry.kind is Kind.FILE]
        if not files:
            raise NotAFile() if entries else NotFound()
        # The live one, else the one that was made last.
        entry = max(files, key=lambda file: (view.is_live(file), file.entry_id))
        places = view.list_places(entry)
        if places is None:
            raise NotFound()
        path = "".join("/" + place.name for place in places)
        return _File(entry, path, is_live=view.is_live(entry))
