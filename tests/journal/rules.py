"""The rules of the journal, each with a switch that exists only here: a run without it must be caught.

A switch replaces a function, a method or a statement of the code under test, or of the reader.
"""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
from msgspec import structs
from psycopg import sql
from psycopg.errors import UniqueViolation

from metaserver.model import delta, operations, places, tree, write
from metaserver.model.rows import Content, Entry, JournalOp, JournalRow, Kind, SameContent
from metaserver.services import reads, writes
from metaserver.storage import journal, listing, walk
from sharding import tx
from sharding.shardmap import ownership_keys
from tests.journal.reader import Reader, hanging, shown_of
from tests.journal.truth import Truth
from tests.journal.world import World
from wire.api import ListFolderResult, Metadata, Tag
from wire.cursors import Following, Scanning, Walking
from wire.errors import NotFound
from wire.hashes import content_hash
from wire.ids import Jid, parse_file_id

Patch = pytest.MonkeyPatch
Switch = Callable[[Patch, World], None]


@dataclass(frozen=True)
class Rule:
    """A rule and how to leave it out.

    `statements` are run on the shards of a cluster of the rule's own before anything else. `errors` are those
    in which a run without the rule may end: the database, or the domain, refuses what it led to. Any other
    error is the switch's own and no proof of anything.
    """

    name: str
    switch_off: Switch
    reader: type[Reader] = Reader
    statements: Sequence[str] = ()
    errors: Sequence[type[Exception]] = ()


RULES: list[Rule] = []


def rule(name: str, *statements: str, errors: Sequence[type[Exception]] = ()) -> Callable[[Switch], Switch]:
    """Add a rule with a switch in the server's code."""

    def add(switch: Switch) -> Switch:
        RULES.append(Rule(name, switch, statements=statements, errors=errors))
        return switch

    return add


def reader_rule(name: str) -> Callable[[type[Reader]], type[Reader]]:
    """Add a rule for readers, with a reader that does not know it."""

    def add(reader: type[Reader]) -> type[Reader]:
        RULES.append(Rule(name, lambda _patch, _world: None, reader))
        return reader

    return add


def _change_appends(patch: Patch, change: Callable[[write.Batch, dict[str, Any]], None]) -> None:
    """Have `change` alter the arguments of each journal row that is appended."""
    append = write.Batch._append

    def changed(
        self: write.Batch,
        op: JournalOp,
        entry: Entry,
        *,
        prev_jid: Jid | None,
        old_path: str | None = None,
        content: Content | SameContent | None = None,
    ) -> None:
        how = {"op": op, "entry": entry, "prev_jid": prev_jid, "old_path": old_path, "content": content}
        change(self, how)
        append(self, how.pop("op"), how.pop("entry"), **how)

    patch.setattr(write.Batch, "_append", changed)


def _change_rows(patch: Patch, change: Callable[[JournalRow], dict[str, Any]]) -> None:
    """Have the journal's rows, not the entries', say what `change` gives of their entry."""
    arrays = journal._journal_arrays

    def changed(rows: Sequence[JournalRow]) -> list[object]:
        return arrays([replace(row, entry=replace(row.entry, **change(row))) for row in rows])

    patch.setattr(journal, "_journal_arrays", changed)


# ---- Rows


@rule("jids have no gaps")
def _dense(patch: Patch, _: World) -> None:
    patch.setattr(write.Batch, "head", property(lambda self: Jid(self._start.head + 2 * len(self.rows))))


@rule("entry ids grow and are never given again")
def _fresh_ids(patch: Patch, _: World) -> None:
    patch.setattr(
        journal,
        "_OUTBOX",
        "WITH p AS (SELECT %s::bigint AS ns_id, %s::bigint AS jid), x AS ("
        "  UPDATE ns.namespaces n SET next_entry_id = (SELECT coalesce(max(e.entry_id), 0) + 1"
        "      FROM ns.entries e WHERE e.ns_id = n.ns_id AND NOT e.is_deleted)"
        "    FROM p WHERE n.ns_id = p.ns_id)"
        " INSERT INTO ns.outbox (ns_id, jid) SELECT ns_id, jid FROM p"
        " ON CONFLICT (ns_id) DO UPDATE SET jid = greatest(outbox.jid, excluded.jid)",
    )
    patch.setattr(
        journal,
        "_INSERT_ENTRIES",
        journal._INSERT_ENTRIES
        + " ON CONFLICT (ns_id, entry_id) DO UPDATE SET parent_id = excluded.parent_id,"
        " name = excluded.name, name_key = excluded.name_key, kind = excluded.kind,"
        " is_deleted = excluded.is_deleted, created_jid = excluded.created_jid,"
        " last_jid = excluded.last_jid, rev_jid = excluded.rev_jid, size = excluded.size,"
        " content_hash = excluded.content_hash",
    )


@rule("a name is unique among the live children of a folder", "DROP INDEX ns.entries_by_name")
def _unique_names(patch: Patch, _: World) -> None:
    patch.setattr(places.Places, "get_free", lambda _self, place, _autorename, mover: place)


@rule("rows of the journal never change")
def _append_only(patch: Patch, _: World) -> None:
    patch.setattr(
        journal,
        "_OUTBOX",
        "WITH p AS (SELECT %s::bigint AS ns_id, %s::bigint AS jid), x AS ("
        "  UPDATE ns.server_file_journal j SET name = e.name FROM ns.entries e, p"
        "   WHERE j.ns_id = p.ns_id AND e.ns_id = j.ns_id AND e.entry_id = j.entry_id)"
        " INSERT INTO ns.outbox (ns_id, jid) SELECT ns_id, jid FROM p"
        " ON CONFLICT (ns_id) DO UPDATE SET jid = greatest(outbox.jid, excluded.jid)",
    )


@rule("a row holds the entry's full new state: where it is")
def _full_place(patch: Patch, _: World) -> None:
    _change_rows(patch, lambda _row: {"parent_id": 0})


@rule("a row holds the entry's full new state: its name")
def _full_name(patch: Patch, _: World) -> None:
    _change_rows(patch, lambda row: {"name": row.entry.name.lower()})


@rule("a row holds the entry's full new state: whether it is deleted")
def _full_deleted(patch: Patch, _: World) -> None:
    _change_rows(patch, lambda _row: {"is_deleted": False})


@rule("prev_jid is the same entry's row before")
def _prev_jid(patch: Patch, _: World) -> None:
    def change(batch: write.Batch, how: dict[str, Any]) -> None:
        how["prev_jid"] = batch.head or None

    _change_appends(patch, change)


@rule("old_path stands on moves and deletes")
def _old_path(patch: Patch, _: World) -> None:
    _change_appends(patch, lambda _batch, how: how.update(old_path=None))


@rule("old_path is the path before")
def _old_path_before(patch: Patch, _: World) -> None:
    def change(batch: write.Batch, how: dict[str, Any]) -> None:
        if how["old_path"] is not None:
            how["old_path"] = "/" + how["entry"].name

    _change_appends(patch, change)


@rule("old_path stands on nothing but moves and deletes")
def _old_path_only(patch: Patch, _: World) -> None:
    _change_appends(
        patch, lambda _batch, how: how.update(old_path=how["old_path"] or "/" + how["entry"].name)
    )


@rule("rev_jid stands on every row of a file")
def _rev_everywhere(patch: Patch, _: World) -> None:
    _change_rows(patch, lambda row: {} if row.content else {"rev_jid": None})


@rule("a content stands in the row that made it alone")
def _content_once(patch: Patch, _: World) -> None:
    def change(_batch: write.Batch, how: dict[str, Any]) -> None:
        if how["op"] is JournalOp.MOVE and how["entry"].kind is Kind.FILE:
            how["content"] = Content(0, content_hash([]), 0, b"")

    _change_appends(patch, change)


@rule("a rev stays the same when its file moves")
def _rev_stays(patch: Patch, _: World) -> None:
    def change(row: JournalRow) -> dict[str, Any]:
        is_moved_file = row.op is JournalOp.MOVE and row.entry.kind is Kind.FILE
        return {"rev_jid": row.jid} if is_moved_file else {}

    _change_rows(patch, change)


@rule("server_modified never goes back")
def _modified_rises(patch: Patch, _: World) -> None:
    patch.setattr(writes, "max", lambda now, _last: now, raising=False)


@rule("who wrote a row stands in it")
def _who(patch: Patch, _: World) -> None:
    patch.setattr(writes, "pack_device_id", lambda device_id: bytes(24))


@rule("created_jid is that of the first row")
def _created_jid(patch: Patch, _: World) -> None:
    patch.setattr(
        journal,
        "_PLACE_ENTRIES",
        journal._PLACE_ENTRIES.replace("SET last_jid", "SET created_jid = t.last_jid, last_jid"),
    )


@rule("last_jid is that of the last row")
def _last_jid(patch: Patch, _: World) -> None:
    patch.setattr(journal, "_PLACE_ENTRIES", journal._PLACE_ENTRIES.replace("last_jid = t.last_jid,", ""))


@rule("the outbox holds the head")
def _outbox(patch: Patch, _: World) -> None:
    patch.setattr(
        journal, "_OUTBOX", "INSERT INTO ns.outbox (ns_id, jid) VALUES (%s, %s) ON CONFLICT DO NOTHING"
    )


# ---- Costs and the tree


@rule("a move writes one row")
def _one_row(patch: Patch, _: World) -> None:
    move = write.Batch._move

    def twice(self: write.Batch, request: operations.MoveRequest) -> operations.Outcome:
        outcome = move(self, request)
        if outcome.is_changed and outcome.entry.kind is Kind.FOLDER:
            again = replace(outcome.entry, last_jid=Jid(self.head + 1))
            self._append(JournalOp.MOVE, again, prev_jid=outcome.entry.last_jid, old_path=outcome.path)
        return outcome

    patch.setattr(write.Batch, "_move", twice)


@rule("what lies below a deleted folder is not touched")
def _untouched(patch: Patch, _: World) -> None:
    patch.setattr(
        journal,
        "_OUTBOX",
        "WITH p AS (SELECT %s::bigint AS ns_id, %s::bigint AS jid), x AS ("
        "  UPDATE ns.entries e SET is_deleted = true FROM ns.entries f, p"
        "   WHERE f.ns_id = p.ns_id AND e.ns_id = p.ns_id AND e.parent_id = f.entry_id AND f.is_deleted)"
        " INSERT INTO ns.outbox (ns_id, jid) SELECT ns_id, jid FROM p"
        " ON CONFLICT (ns_id) DO UPDATE SET jid = greatest(outbox.jid, excluded.jid)",
    )


_FAR = 50


def _lineage(view: tree.TreeView, entry: Entry) -> list[Entry]:
    """Entry and ancestors, dead or not; it ends even if they go round."""
    lineage: list[Entry] = []
    at: Entry | None = entry
    while at is not None and at.entry_id and len(lineage) < _FAR:
        lineage.append(at)
        at = view.find_entry(at.parent_id)
    return lineage[::-1]


def _is_lost(lineage: list[Entry]) -> bool:
    return any(entry.is_deleted for entry in lineage) or len(lineage) >= _FAR


def _show_any_path(patch: Patch) -> None:
    for name in ("path_of", "find_path"):
        patch.setattr(
            tree.TreeView, name, lambda view, entry: "".join("/" + e.name for e in _lineage(view, entry))
        )


@rule("nothing is put below a dead folder, and nothing dead is changed")
def _no_dead_parents(patch: Patch, _: World) -> None:
    patch.setattr(tree.TreeView, "find_live", tree.TreeView.find_entry)
    _show_any_path(patch)


@rule("a folder is not put below itself")
def _not_below_itself(patch: Patch, _: World) -> None:
    patch.setattr(tree.TreeView, "is_below", lambda _view, _entry, _folder: False)
    _show_any_path(patch)
    patch.setattr(
        tree.TreeView,
        "list_lineage",
        lambda view, entry: None if _is_lost(lineage := _lineage(view, entry)) else lineage,
    )
    patch.setattr(tree.TreeView, "is_live", lambda view, entry: not _is_lost(_lineage(view, entry)))


@rule("the writers of a namespace take turns", errors=[UniqueViolation])
def _take_turns(patch: Patch, _: World) -> None:
    # Two that take the same jid: the journal's key refuses the second.
    lock = tx._lock_statement
    patch.setattr(tx, "_lock_statement", lambda keys, _kind: lock(keys, tx.TxKind.FENCE_ONLY))
    # Within one process the writers queue before they come to the database.
    patch.setattr(tx.WriterQueues, "turn", lambda _queues, _keys: contextlib.nullcontext())


# ---- Copies and restores


@rule("a copy is of all that lives below")
def _copies_all(patch: Patch, _: World) -> None:
    below = tree.TreeView.list_below
    patch.setattr(
        tree.TreeView,
        "list_below",
        lambda view, folder, limit: [e for e in below(view, folder, limit) if e.parent_id == folder],
    )


@rule("a copy takes over the blocks of its source")
def _copies_blocks(patch: Patch, _: World) -> None:
    patch.setattr(journal, "_JOURNAL", journal._JOURNAL.replace("r.jid = t.same_as", "r.jid < t.same_as"))


@rule("a revived entry lives again")
def _revives(patch: Patch, _: World) -> None:
    patch.setattr(journal, "_PLACING", (JournalOp.MOVE, JournalOp.DELETE))


@rule("only a row of its own kind revives")
def _revives_by_name(patch: Patch, _: World) -> None:
    def change(_batch: write.Batch, how: dict[str, Any]) -> None:
        if how["op"] is JournalOp.RESTORE:
            how["op"] = JournalOp.MOVE

    _change_appends(patch, change)


@rule("what is revived is counted once")
def _counted_once(patch: Patch, _: World) -> None:
    patch.setattr(write.Batch, "_counted_bytes", lambda _batch, _file: 0)


# ---- Walks


@rule("a walk goes into folders")
def _walks_down(patch: Patch, _: World) -> None:
    after = reads.after_walk

    def flat(state: Walking, steps: Any) -> Walking:
        return Walking(after(state, steps).levels[:1])

    patch.setattr(reads, "after_walk", flat)


@rule("a walk is of what lives")
def _walks_live(patch: Patch, _: World) -> None:
    patch.setattr(walk, "_WALK", walk._WALK.replace("AND NOT n.is_deleted", ""))
    _show_any_path(patch)


# ---- Scan


@rule("base is the head when the scan begins")
def _base_at_start(patch: Patch, _: World) -> None:
    after_scan = delta.after_scan

    def late(state: Scanning, rows: Any, is_full: bool, by_name: bool) -> Scanning | Following:
        after = after_scan(state, rows, is_full, by_name)
        return structs.replace(after, base=Jid(-1)) if isinstance(after, Scanning) else after

    patch.setattr(delta, "after_scan", late)


@rule("a scan leaves out what was created after base")
def _created_by_base(patch: Patch, _: World) -> None:
    patch.setattr(delta, "is_in_scan", lambda _entry, _base: True)


@rule("an entry below something deleted is dead")
def _live_by_ancestors(patch: Patch, _: World) -> None:
    patch.setattr(delta, "is_live", lambda _view, entry: not entry.is_deleted)


@rule("a full page of a scan is not the last one")
def _scan_goes_on(patch: Patch, _: World) -> None:
    patch.setattr(delta, "after_scan", lambda state, _rows, _is_full, by_name: Following(state.base))


@rule("a scan goes on after the last entry looked at")
def _scan_skips_nothing(patch: Patch, _: World) -> None:
    after_scan = delta.after_scan

    def skip(state: Scanning, rows: Any, is_full: bool, by_name: bool) -> Scanning | Following:
        after = after_scan(state, rows, is_full, by_name)
        if isinstance(after, Scanning) and not by_name:
            return structs.replace(after, after_entry=after.after_entry + 1)
        return after

    patch.setattr(delta, "after_scan", skip)


@rule("a scan of children goes by name key")
def _children_by_name(patch: Patch, _: World) -> None:
    after_scan = delta.after_scan
    patch.setattr(
        delta, "after_scan", lambda state, rows, is_full, by_name: after_scan(state, rows, is_full, False)
    )


# ---- Follow


@rule("a row counts only if it is its entry's last")
def _last_row_counts(patch: Patch, _: World) -> None:
    patch.setattr(delta, "is_last_row", lambda _seen: True)


@rule("a dead entry is told to a reader who may have seen it")
def _deleted_is_told(patch: Patch, _: World) -> None:
    patch.setattr(delta, "was_seen", lambda _entry, _after: False)


@rule("an entry created after the reader's place gets no `deleted`")
def _deleted_not_told(patch: Patch, _: World) -> None:
    patch.setattr(delta, "was_seen", lambda _entry, _after: True)


@rule("a full page of a follow goes on after the last row looked at")
def _follow_skips_nothing(patch: Patch, _: World) -> None:
    patch.setattr(delta, "after_follow", lambda _rows, _is_full, head: Following(head))


@rule("the rows that a page looks at are bounded")
def _bounded(patch: Patch, _: World) -> None:
    patch.setattr(listing, "_FOLLOW", listing._FOLLOW.replace("LIMIT %s", "LIMIT 2 * %s"))


@rule("a follow of children tells of entries that are in the folder now")
def _only_children(patch: Patch, _: World) -> None:
    emit = delta.emit_follow
    patch.setattr(delta, "emit_follow", lambda view, rows, after, _folder: emit(view, rows, after, None))


@rule("a follow of children tells a `deleted` for what moved away")
def _moved_away(patch: Patch, _: World) -> None:
    emit = delta.emit_follow

    def quiet(view: Any, rows: Any, after: Jid, folder: Any) -> list[delta.News]:
        rows = list(rows)
        live = {row.entry_id for row in rows if row.entry is not None and delta.is_live(view, row.entry)}
        return [n for n in emit(view, rows, after, folder) if n.entry is not None or n.entry_id not in live]

    patch.setattr(delta, "emit_follow", quiet)


@rule("a `deleted` has no name")
def _nameless(patch: Patch, _: World) -> None:
    present = reads.ReadService._present

    def named(ns_id: Any, news: delta.News, row: Any, parent_path: Any) -> Metadata:
        shown = present(ns_id, news, row, parent_path)
        return structs.replace(shown, name=row.entry.name) if news.entry is None and row.entry else shown

    patch.setattr(reads.ReadService, "_present", staticmethod(named))


# ---- Snapshots


async def _between(world: World, ns_id: int) -> None:
    happens = world.between.get(ns_id)
    if happens is not None:
        await happens()


@rule("has_more goes by the head of the page's own snapshot")
def _head_of_snapshot(patch: Patch, world: World) -> None:
    read = listing.NamespaceReader.read_rows

    async def twice(self: listing.NamespaceReader, name: str, query: Any, params: Any) -> Any:
        state, _ = await read(self, name, query, params)
        await _between(world, self.ns_id)
        _, rows = await read(self, name, query, params)
        return state, rows

    patch.setattr(listing.NamespaceReader, "read_rows", twice)


@rule("rows and their ancestors are of one snapshot")
def _rows_of_snapshot(patch: Patch, world: World) -> None:
    page = listing.NamespaceReader.read_page

    async def twice(self: listing.NamespaceReader, *how: Any, **more: Any) -> listing.Page:
        first = await page(self, *how, **more)
        await _between(world, self.ns_id)
        second = await page(self, *how, **more)
        return replace(first, ancestors=second.ancestors)

    patch.setattr(listing.NamespaceReader, "read_page", twice)


@rule("ownership is of the snapshot that is read")
def _ownership_of_snapshot(patch: Patch, world: World) -> None:
    async def run_read(self: tx.Transactions, ns_id: Any, name: str, query: Any, params: Any) -> Any:
        statement = tx._OWNED_READ.format(query)

        async def attempt() -> Any:
            placement = self.router.placement(ns_id)
            pool = self.router.pool(placement.shard)
            async with pool.connection() as conn:
                looked = await conn.execute(tx._OWNED_READ.format(sql.SQL("SELECT 1")), ownership_keys(ns_id))
                tx._check_row(ns_id, (await looked.fetchall())[0][:5], placement)
            await _between(world, ns_id)
            async with pool.connection() as conn:
                cursor = await conn.execute(statement, [*ownership_keys(ns_id), *params], binary=True)
                rows = await cursor.fetchall()
            return [row[6:] for row in rows if row[5] is not None]

        return await self._retry(name, attempt)

    patch.setattr(tx.Transactions, "run_read", run_read)


@rule("reads and writes prove ownership", errors=[NotFound])
def _ownership(patch: Patch, _: World) -> None:
    # The shard that was left may have the namespace's old rows still, or none.
    patch.setattr(tx, "_check_row", lambda *_how: None)


# ---- What is asked of a reader


@reader_rule("the stage is kept with the cursor, orphans included")
class _DropsOrphans(Reader):
    def keep(self, stage: dict[int, Any]) -> dict[int, Any]:
        return hanging(stage) if self.folder is None else stage


def _drop_below(stage: dict[int, Any], gone: list[int]) -> None:
    while gone:
        parent = gone.pop()
        below = [i for i, shown in stage.items() if shown[0] == parent]
        gone += below
        for entry_id in below:
            del stage[entry_id]


@reader_rule("what was deleted may come back")
class _NeverAgain(Reader):
    def take(self, entry: Metadata) -> None:
        entry_id = parse_file_id(entry.id)[1]
        if entry.tag is Tag.DELETED:
            self.gone = {*getattr(self, "gone", set()), entry_id}
        elif entry_id in getattr(self, "gone", set()):
            return
        super().take(entry)


@reader_rule("a `deleted` removes that entry alone")
class _DeletesBelow(Reader):
    def take(self, entry: Metadata) -> None:
        super().take(entry)
        if entry.tag is Tag.DELETED:
            _drop_below(self.stage, [parse_file_id(entry.id)[1]])


@reader_rule("pages are staged by entry id, not by name")
class _StagesByName(Reader):
    def take(self, entry: Metadata) -> None:
        if entry.tag is not Tag.DELETED:
            place, entry_id = shown_of(entry)[:2], parse_file_id(entry.id)[1]
            replaced = [i for i, shown in self.stage.items() if shown[:2] == place and i != entry_id]
            for other in replaced:
                del self.stage[other]
            _drop_below(self.stage, replaced)
        super().take(entry)


@reader_rule("a child may come before its parent")
class _WantsParents(Reader):
    def take(self, entry: Metadata) -> None:
        if entry.tag is Tag.DELETED or self.folder is not None:
            known = True
        else:
            known = shown_of(entry)[0] in {0, *self.stage}
        if known:
            super().take(entry)


@reader_rule("the tree is looked at when has_more is false, not before")
class _LooksEarly(Reader):
    def digest(self, page: "ListFolderResult | NotFound", asked: Any, truth: Truth) -> bool:
        compared = super().digest(page, asked, truth)
        if self.has_more and self.is_following:
            have, self.stage = dict(self.stage), dict(self.stage)
            self.compare(truth)
            self.stage = have
        return compared
