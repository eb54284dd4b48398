"""Loading the part of the tree that a batch needs: what it names at once, and the rest when it asks."""

from collections.abc import Sequence

from metaserver.model.changes import MAX_CHANGES_LOOKED_AT
from metaserver.model.operations import DeleteRequest, Request, RestoreRequest, list_targets
from metaserver.model.tree import NeedRows, TreeView, Walk, walk_of
from metaserver.model.write import MAX_ROWS_PER_TX
from metaserver.storage.revs import list_revs
from metaserver.storage.tree import list_below, list_changed, list_rows
from metaserver.storage.usage import find_owing
from sharding.pool import Connection
from wire.ids import EntryId, Jid, NsId


class Loader:
    """Fills a batch's view, on the batch's transaction."""

    def __init__(self, conn: Connection, ns_id: NsId, head: Jid, requests: Sequence[Request]):
        self._conn = conn
        self._ns_id = ns_id
        self._requests = requests
        self._oldest_looked_at = Jid(head - MAX_CHANGES_LOOKED_AT)
        self.view = TreeView()

    async def load_view(self) -> TreeView:
        """What the requests name, in one round trip, or two where they restore."""
        ids: set[EntryId] = set()
        walks: set[Walk] = set()
        for request in self._requests:
            for target in list_targets(request):
                ids.add(target.anchor)
                if target.names:
                    walks.add(walk_of(target.anchor, target.names))
        if jids := {request.rev_jid for request in self._requests if isinstance(request, RestoreRequest)}:
            revs = await list_revs(self._conn, self._ns_id, jids)
            self.view.load_revs(jids, revs)
            ids |= {rev.entry_id for rev in revs.values()}
        await self._load_rows(sorted(ids), sorted(walks, key=lambda w: (w.anchor, w.keys)))
        return self.view

    async def load(self, need: NeedRows) -> None:
        """What the rules have turned out to need."""
        if need.changed_after is not None:
            # One reading for all guards of the batch: from the oldest that any of them may ask for.
            guards = [r.seen_jid for r in self._requests if isinstance(r, DeleteRequest)]
            asked = [seen for seen in guards if seen is not None and seen >= self._oldest_looked_at]
            after = min([need.changed_after, *asked])
            self.view.load_changed(after, await list_changed(self._conn, self._ns_id, after))
        elif need.below is not None:
            rows = await list_below(self._conn, self._ns_id, need.below, MAX_ROWS_PER_TX + 1)
            self.view.load_below(need.below, rows, is_all=len(rows) <= MAX_ROWS_PER_TX)
        elif need.owing is not None:
            owing = await find_owing(self._conn, self._ns_id, [need.owing])
            self.view.load_owing(need.owing, need.owing in owing)
        elif need.revs:
            self.view.load_revs(need.revs, await list_revs(self._conn, self._ns_id, need.revs))
        else:
            await self._load_rows(need.ids, need.walks)

    async def _load_rows(self, ids: Sequence[EntryId], walks: Sequence[Walk]) -> None:
        rows = await list_rows(self._conn, self._ns_id, ids, walks)
        self.view.load(rows, ids=ids, walks=walks)
