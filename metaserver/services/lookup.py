"""Finding entries in a namespace for a reader: by names from a folder on, or by id."""

from collections.abc import Sequence
from dataclasses import dataclass

from metaserver.model.rows import ROOT, Entry, Kind
from metaserver.model.tree import TreeView, walk_of
from metaserver.services.access import Who, require_read
from metaserver.storage.listing import NamespaceReader, Page, PageRow
from sharding.tx import Transactions
from wire.errors import NotAFolder, NotFound
from wire.ids import ROOT_ENTRY, EntryId, NsId
from wire.names import parse_target

Place = tuple[EntryId, Sequence[str]]
"""An entry to start from (0: the root), and displayed names below it."""


@dataclass(frozen=True, slots=True)
class Found:
    """A live entry, its path (None: too long to be shown), and its page row (None for the root)."""

    entry: Entry
    path: str | None
    row: PageRow | None


class Lookup:
    """What is where."""

    def __init__(self, transactions: Transactions):
        self._tx = transactions

    def reader(self, who: Who, ns_id: NsId) -> NamespaceReader:
        """The reads of a caller in a namespace."""
        return NamespaceReader(self._tx, ns_id, who.account_id)

    async def find(self, who: Who, ns_id: NsId, place: Place) -> Found:
        """The live entry at a place.

        Raises:
            NotFound: nothing there, or nothing that the caller may see.
        """
        (found,) = await self.find_all(who, ns_id, [place])
        if found is None:
            raise NotFound()
        return found

    async def find_folder(self, who: Who, path: str) -> tuple[NsId, EntryId]:
        """The folder that a request names.

        Raises:
            NotFound, NotAFolder: no folder there.
        """
        ns_id, anchor, names = parse_target(path, who.root_ns)
        if anchor == ROOT_ENTRY and not names:
            return ns_id, ROOT_ENTRY
        found = await self.find(who, ns_id, (anchor, names))
        if found.entry.kind is not Kind.FOLDER:
            raise NotAFolder()
        return ns_id, found.entry.entry_id

    async def find_all(self, who: Who, ns_id: NsId, places: Sequence[Place]) -> list[Found | None]:
        """The live entries at places, all as of one snapshot.

        Raises:
            NotFound: the caller may not see the namespace.
        """
        walks = [walk_of(anchor, names) for anchor, names in places]
        page = await self.reader(who, ns_id).resolve(walks)
        require_read(page.state.level)
        view = view_of(page)
        view.load([], ids=[walk.anchor for walk in walks], walks=walks)
        rows = {row.entry_id: row for row in page.rows}
        found: list[Found | None] = []
        for walk in walks:
            entry = view.find_live(walk.anchor)
            for key in walk.keys:
                entry = None if entry is None else view.find_child(entry.entry_id, key)
            row = None if entry is None or entry is ROOT else rows[entry.entry_id]
            found.append(None if entry is None else Found(entry, view.find_path(entry), row))
        return found


def view_of(page: Page, folder: EntryId | None = None) -> TreeView:
    """The tree as far as a page tells it; what it ought to have brought and did not is known absent."""
    view = TreeView()
    loaded = [*page.ancestors, *(row.entry for row in page.rows if row.entry is not None)]
    view.load(loaded)
    view.load([], ids={entry.parent_id for entry in loaded} | {folder or ROOT_ENTRY})
    return view
