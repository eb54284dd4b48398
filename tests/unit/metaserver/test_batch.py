"""Batches over a tree in memory: what the rules ask to be loaded is loaded from a table of entries."""

from collections.abc import Iterable

import pytest

from metaserver.model.names import MAX_RENAME_TRIES, conflict_label, iter_renames
from metaserver.model.rows import Content, Entry, JournalOp, Kind
from metaserver.model.tree import NeedRows, TreeView, Walk, walk_of
from metaserver.model.write import (
    MAX_ROWS_PER_TX,
    Batch,
    CommitRequest,
    CreateFolderRequest,
    DeleteRequest,
    MoveRequest,
    Outcome,
    Request,
    Start,
    Target,
)
from wire.api import WriteMode
from wire.errors import (
    ConflictChanged,
    ConflictFolder,
    MoveIntoItself,
    NotFound,
    ShardboxError,
    TooManyEntries,
)
from wire.hashes import content_hash
from wire.ids import EntryId, Jid, NsId
from wire.names import MAX_NAME_CHARS, check_name, name_key

EMPTY = Content(0, content_hash([]), 0, b"")


class Table:
    """A namespace's entries, and batches on it, one after another."""

    def __init__(self) -> None:
        self.entries: dict[EntryId, Entry] = {}
        self.head = Jid(0)
        self.next_entry_id = EntryId(1)

    def batch(self) -> "Running":
        """A batch on what is there."""
        return Running(self)

    def run(self, *requests: Request) -> list[Outcome]:
        """A batch that succeeds, and is kept."""
        running = self.batch()
        outcomes = [running.apply(request) for request in requests]
        running.keep()
        return outcomes

    def along(self, walk: Walk) -> Iterable[Entry]:
        """The entries along a walk."""
        at = walk.anchor
        for key in walk.keys:
            found = [
                e
                for e in self.entries.values()
                if (e.parent_id, e.name_key, e.is_deleted) == (at, key, False)
            ]
            if not found:
                return
            yield found[0]
            at = found[0].entry_id

    def up(self, entry_id: EntryId) -> Iterable[Entry]:
        """An entry and its ancestors."""
        while entry_id in self.entries:
            yield self.entries[entry_id]
            entry_id = self.entries[entry_id].parent_id


class Running:
    """One batch."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self.loads = 0
        self.view = TreeView()
        self.batch = Batch(Start(NsId(1), table.head, table.next_entry_id, "Ada"), self.view, {})

    def apply(self, request: Request) -> Outcome:
        """Do it, loading what it asks for and nothing else."""
        for _ in range(50):
            try:
                return self.batch.apply(request)
            except NeedRows as need:
                self._load(need)
        pytest.fail("the rules ask again and again")

    def _load(self, need: NeedRows) -> None:
        self.loads += 1
        if need.changed_after is not None:
            changed = [e for e in self.table.entries.values() if e.last_jid > need.changed_after]
            self.view.load_changed(
                need.changed_after, [a for e in changed for a in self.table.up(e.entry_id)]
            )
            return
        rows = [e for walk in need.walks for e in self.table.along(walk)]
        rows += [a for entry_id in need.ids for a in self.table.up(entry_id)]
        rows += [a for walk in need.walks for a in self.table.up(walk.anchor)]
        self.view.load(rows, ids=need.ids, walks=need.walks)

    def refused(self, request: Request) -> type[ShardboxError]:
        """What it is refused with; nothing has changed."""
        before = (list(self.batch.rows), dict(self.batch.written), self.batch.next_entry_id)
        with pytest.raises(ShardboxError) as caught:
            self.apply(request)
        assert (self.batch.rows, self.batch.written, self.batch.next_entry_id) == before
        return type(caught.value)

    def keep(self) -> None:
        """Commit."""
        jids = [row.jid for row in self.batch.rows]
        assert jids == list(range(self.table.head + 1, self.batch.head + 1))
        self.table.entries |= self.batch.written
        self.table.head, self.table.next_entry_id = self.batch.head, self.batch.next_entry_id


def at(path: str) -> Target:
    return Target(EntryId(0), tuple(path.strip("/").split("/")))


def entry(number: int) -> Target:
    return Target(EntryId(number), ())


def mkdir(path: str, *, autorename: bool = False) -> CreateFolderRequest:
    return CreateFolderRequest(at(path), autorename)


def move(source: Target, path: str, *, autorename: bool = False) -> MoveRequest:
    return MoveRequest(source, at(path), autorename)


def commit(path: str) -> CommitRequest:
    return CommitRequest(at(path), EMPTY, [], WriteMode.ADD, None, False, False)


def delete(target: Target, seen: int | None = None) -> DeleteRequest:
    return DeleteRequest(target, None, None if seen is None else Jid(seen))


@pytest.fixture
def table() -> Table:
    made = Table()
    made.run(mkdir("/a/b"), commit("/a/b/f"), mkdir("/c"))  # entries 1 to 4, jids 1 to 4
    return made


def test_a_guarded_delete_sees_what_its_own_batch_did_before(table: Table):
    running = table.batch()
    running.apply(commit("/a/b/new"))
    assert running.refused(delete(at("/a"), seen=4)) is ConflictChanged
    running.apply(delete(at("/a"), seen=5))


def test_a_guarded_delete_sees_what_its_own_batch_did_between(table: Table):
    running = table.batch()
    running.apply(delete(at("/c"), seen=4))
    running.apply(move(at("/a/b"), "/a/bb"))
    assert running.refused(delete(at("/a"), seen=4)) is ConflictChanged


def test_a_guarded_delete_does_not_mind_what_left_the_folder(table: Table):
    running = table.batch()
    running.apply(move(at("/a/b"), "/c/b"))
    running.apply(delete(at("/a"), seen=4))
    assert running.refused(delete(at("/c"), seen=4)) is ConflictChanged


def test_a_guarded_delete_sees_what_others_did(table: Table):
    table.run(commit("/a/b/g"))
    running = table.batch()
    assert running.refused(delete(at("/a"), seen=4)) is ConflictChanged
    assert running.refused(delete(entry(2), seen=4)) is ConflictChanged
    running.apply(delete(at("/c"), seen=4))


def test_a_move_that_ends_where_it_began_writes_nothing(table: Table):
    table.run(mkdir("/x"), mkdir("/x (1)"))
    running = table.batch()
    outcome = running.apply(move(at("/x (1)"), "/x", autorename=True))
    assert (outcome.is_changed, outcome.path, running.batch.rows) == (False, "/x (1)", [])
    assert running.apply(move(at("/x"), "/X", autorename=True)).entry.name == "X"


def test_an_operation_that_is_refused_leaves_nothing(table: Table):
    running = table.batch()
    assert running.refused(mkdir("/a")) is ConflictFolder
    assert running.refused(move(at("/a"), "/a/b/c/d")) is MoveIntoItself
    assert running.refused(move(at("/nothing"), "/x")) is NotFound
    running.apply(delete(at("/a")))
    for target in (at("/a/b"), entry(2), entry(3)):
        assert running.refused(delete(target)) is NotFound
    assert running.refused(CreateFolderRequest(Target(EntryId(2), ("x",)), False)) is NotFound
    assert running.refused(move(at("/c"), "/c/c")) is MoveIntoItself


def test_parents_are_made_once(table: Table):
    outcomes = table.run(commit("/p/q/f"), commit("/P/Q/g"))
    assert outcomes[1].path == "/p/q/g"
    assert [e.name for e in table.entries.values() if e.entry_id > 4] == ["p", "q", "f", "g"]


def test_a_transaction_is_bounded(table: Table):
    running = table.batch()
    deep = "/".join(["d"] * 400)
    for i in range(MAX_ROWS_PER_TX // 402):
        running.apply(mkdir(f"/x{i}/{deep}/y"))
    assert running.refused(mkdir(f"/last/{deep}/y")) is TooManyEntries
    running.apply(mkdir("/still"))
    assert len(running.batch.rows) <= MAX_ROWS_PER_TX


def test_rows_say_what_was_done(table: Table):
    running = table.batch()
    running.apply(move(at("/a/b"), "/c/B"))
    running.apply(delete(at("/c")))
    assert [(r.op, r.entry.entry_id, r.prev_jid, r.old_path) for r in running.batch.rows] == [
        (JournalOp.MOVE, 2, 2, "/a/b"),
        (JournalOp.DELETE, 4, 4, "/c"),
    ]
    assert running.batch.rows[0].entry.kind is Kind.FOLDER


# ---- Names of renamed files


def test_names_are_tried_in_order():
    names = iter_renames("report.tar.gz", None)
    assert [next(names) for _ in range(3)] == ["report.tar (1).gz", "report.tar (2).gz", "report.tar (3).gz"]
    names = iter_renames("a.txt", "Ada's conflicted copy")
    assert [next(names) for _ in range(3)] == [
        "a (Ada's conflicted copy).txt",
        "a (Ada's conflicted copy 1).txt",
        "a (Ada's conflicted copy 2).txt",
    ]
    assert next(iter_renames(".bashrc", None)) == ".bashrc (1)"
    assert next(iter_renames("noext", None)) == "noext (1)"


@pytest.mark.parametrize(
    "name", ["a" * 255, "a" * 251 + ".txt", "é" * 255, "a." + "b" * 253, "." + "c" * 254]
)
@pytest.mark.parametrize("label", [None, conflict_label("x" * 100)])
def test_names_stay_names(name: str, label: str | None):
    tried = list(iter_renames(name, label))
    assert len(tried) >= MAX_RENAME_TRIES - 1
    assert len({name_key(each) for each in tried}) >= len(tried) - 1
    for each in tried:
        assert len(each) <= MAX_NAME_CHARS
        assert check_name(each) == each


@pytest.mark.parametrize(
    ("display", "label"),
    [
        ("Ada", "Ada's conflicted copy"),
        ("a/b\\c", "abc's conflicted copy"),
        ("  ", "Somebody's conflicted copy"),
        ("\x00\n", "Somebody's conflicted copy"),
        ("x" * 100, "x" * 80 + "'s conflicted copy"),
    ],
)
def test_labels(display: str, label: str):
    assert conflict_label(display) == label


def test_walks_fold_names():
    assert walk_of(EntryId(3), ["É", "ß"]) == Walk(EntryId(3), (name_key("é"), name_key("SS")))


def test_guarded_deletes_see_what_came_left_and_died_among_them():
    table = Table()
    table.run(*map(mkdir, ("/a", "/b", "/c", "/d", "/from", "/to", "/from/moved")))
    seen = table.head
    table.run(mkdir("/from/moved/new"))
    running = table.batch()
    running.apply(delete(at("/a"), seen))
    running.apply(mkdir("/b/new"))
    assert running.refused(delete(at("/b"), seen)) is ConflictChanged
    assert running.refused(delete(at("/from"), seen)) is ConflictChanged
    running.apply(move(at("/from/moved"), "/to/moved"))
    running.apply(delete(at("/from"), seen))
    assert running.refused(delete(at("/to"), seen)) is ConflictChanged
    running.apply(delete(at("/to/moved")))
    running.apply(delete(at("/to"), seen))
    running.apply(delete(at("/c"), seen))
    running.keep()


def test_a_batch_looks_at_what_others_changed_once(monkeypatch: pytest.MonkeyPatch):
    table = Table()
    table.run(*(mkdir(f"/old/{i}") for i in range(20)))
    seen = table.head
    table.run(*(mkdir(f"/new/{i}") for i in range(200)))
    looked: list[EntryId] = []
    walk_up = TreeView.list_lineage

    def counted(view: TreeView, entry: Entry) -> list[Entry] | None:
        looked.append(entry.entry_id)
        return walk_up(view, entry)

    monkeypatch.setattr(TreeView, "list_lineage", counted)
    running = table.batch()
    for i in range(20):
        running.apply(delete(at(f"/old/{i}"), seen))
    assert len(looked) < 2 * 200


def test_autorename_looks_many_names_up_at_once():
    table = Table()
    table.run(mkdir("/a"), *(mkdir("/a", autorename=True) for _ in range(300)))
    running = table.batch()
    assert running.apply(mkdir("/a", autorename=True)).entry.name == "a (301)"
    assert running.loads < 10
