"""Batches over a tree in memory: what the rules ask to be loaded is loaded from a table of entries."""

import contextlib
import random
from collections.abc import Iterable, Mapping

import pytest

from metaserver.model import tree as tree_module
from metaserver.model import write
from metaserver.model.names import MAX_RENAME_TRIES, conflict_label, iter_renames
from metaserver.model.operations import (
    CommitRequest,
    CopyRequest,
    CreateFolderRequest,
    DeleteRequest,
    MoveRequest,
    Outcome,
    Request,
    RestoreRequest,
    Start,
    Target,
)
from metaserver.model.rows import Content, Entry, JournalOp, Kind, Rev, RevTimes, SameContent
from metaserver.model.tree import NeedRows, TreeView, Walk, walk_of
from metaserver.model.write import MAX_ROWS_PER_TX, Batch
from wire.api import WriteMode
from wire.errors import (
    ConflictChanged,
    ConflictFileAncestor,
    ConflictFolder,
    ConflictRev,
    MalformedPath,
    MoveIntoItself,
    NotFound,
    QuotaExceeded,
    ShardboxError,
    TooManyEntries,
)
from wire.hashes import BlockHash, block_hash, content_hash
from wire.ids import EntryId, Jid, NsId
from wire.names import MAX_NAME_CHARS, check_name, name_key

EMPTY = Content(0, content_hash([]), 0, b"")
BLOCK, OTHER = block_hash(b"1"), block_hash(b"2")
ONE = Content(1, content_hash([BLOCK]), 0, BLOCK)
TWO = Content(1, content_hash([OTHER]), 0, OTHER)


class Table:
    """A namespace's entries, and batches on it, one after another."""

    def __init__(self) -> None:
        self.entries: dict[EntryId, Entry] = {}
        self.head = Jid(0)
        self.next_entry_id = EntryId(1)
        self.revs: dict[Jid, Rev] = {}
        self.owing: set[EntryId] = set()
        self.live_bytes = 0
        self.quota_bytes: int | None = None

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

    def fill(self, name: str, count: int) -> None:
        """A folder with many in it, made without asking the rules."""
        self.run(mkdir(f"/{name}"))
        parent = EntryId(self.next_entry_id - 1)
        for number in range(count):
            self.head, entry_id = Jid(self.head + 1), self.next_entry_id
            text = f"{name} {number}"
            self.entries[entry_id] = Entry(
                entry_id, parent, text, name_key(text), Kind.FOLDER, False, self.head, self.head
            )
            self.next_entry_id = EntryId(entry_id + 1)

    def below(self, folder: EntryId) -> Iterable[Entry]:
        """The entries that live below a live folder."""
        inside = {folder}
        for entry in sorted(self.entries.values(), key=lambda entry: len(list(self.up(entry.entry_id)))):
            if entry.parent_id in inside and not entry.is_deleted:
                inside.add(entry.entry_id)
                yield entry

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
        self.asked_owing: list[EntryId] = []
        self.view = TreeView()
        ready = {BLOCK: 1, OTHER: 1}
        bytes_, quota = table.live_bytes, table.quota_bytes
        start = Start(NsId(1), table.head, table.next_entry_id, "Ada", bytes_, quota)
        self.batch = Batch(start, self.view, ready)

    def apply(self, request: Request) -> Outcome:
        """Do it, loading what it asks for and nothing else."""
        for _ in range(50):
            try:
                return self.batch.apply(request)
            except NeedRows as need:
                self.load(need)
        pytest.fail("the rules ask again and again")

    def load(self, need: NeedRows) -> None:
        self.loads += 1
        if need.changed_after is not None:
            changed = [e for e in self.table.entries.values() if e.last_jid > need.changed_after]
            self.view.load_changed(
                need.changed_after, [a for e in changed for a in self.table.up(e.entry_id)]
            )
            return
        if need.below is not None:
            rows = list(self.table.below(need.below))
            limit = write.MAX_ROWS_PER_TX
            self.view.load_below(need.below, rows[: limit + 1], is_all=len(rows) <= limit)
            return
        if need.owing is not None:
            self.asked_owing.append(need.owing)
            self.view.load_owing(need.owing, need.owing in self.table.owing)
            return
        if need.revs:
            self.view.load_revs(need.revs, self.table.revs)
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
        for row in self.batch.rows:
            if row.content is not None:
                self.table.revs[row.jid] = Rev(
                    row.jid, row.entry.entry_id, row.content.size, row.content.content_hash, RevTimes(0, 0)
                )
        self.table.live_bytes += self.batch.grown_bytes
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


# ---- Copies


def put(path: str, content: Content = ONE) -> CommitRequest:
    mode = WriteMode.OVERWRITE
    return CommitRequest(at(path), content, [BlockHash(content.blocklist)], mode, None, False, False)


def copy(source: Target, path: str, *, autorename: bool = False) -> CopyRequest:
    return CopyRequest(source, at(path), autorename)


def paths_of(table: Table) -> dict[str, EntryId]:
    """The live entries by path."""
    paths: dict[str, EntryId] = {}
    for each in table.entries.values():
        lineage = list(table.up(each.entry_id))
        if not any(step.is_deleted for step in lineage):
            paths["".join("/" + step.name for step in reversed(lineage))] = each.entry_id
    return paths


@pytest.fixture
def tree() -> Table:
    made = Table()
    made.run(put("/a/f"), put("/a/b/g", TWO), mkdir("/a/b/c"), put("/a/dead"), mkdir("/d"))
    made.run(delete(at("/a/dead")))
    return made


def test_a_copy_is_of_all_that_lives(tree: Table):
    running = tree.batch()
    outcome = running.apply(copy(at("/a"), "/x/y/A"))
    assert (outcome.path, outcome.is_changed) == ("/x/y/A", True)
    rows = running.batch.rows
    assert [row.entry.name for row in rows[:3]] == ["x", "y", "A"]
    assert len(rows) == 3 + 4
    assert all(row.prev_jid is None and row.old_path is None for row in rows)
    contents = {row.entry.name: row.content for row in rows if row.content is not None}
    assert contents == {
        "f": SameContent(1, ONE.content_hash, Jid(2)),
        "g": SameContent(1, TWO.content_hash, Jid(4)),
    }
    assert all(row.entry.rev_jid == row.jid for row in rows if row.content is not None)
    assert running.batch.grown_bytes == 2
    running.keep()
    assert {p for p in paths_of(tree) if p.startswith("/x")} == {
        "/x", "/x/y", "/x/y/A", "/x/y/A/f", "/x/y/A/b", "/x/y/A/b/g", "/x/y/A/b/c",
    }  # fmt: skip


def test_a_copy_sees_what_its_own_batch_did_before(tree: Table):
    running = tree.batch()
    running.apply(put("/a/f", TWO))
    running.apply(put("/a/new"))
    running.apply(move(at("/a/b/c"), "/elsewhere"))
    running.apply(mkdir("/d/deep/er"))
    running.apply(move(at("/d"), "/a/b/d"))
    running.apply(delete(at("/a/b/g")))
    begun = len(running.batch.rows)
    running.apply(copy(at("/a"), "/copy"))
    contents = {r.entry.name: r.content for r in running.batch.rows[begun:] if r.content is not None}
    assert contents == {"f": TWO, "new": ONE}  # of revs that no database has yet
    running.apply(copy(at("/copy/b"), "/copy/b2"))
    running.keep()
    assert {p for p in paths_of(tree) if p.startswith("/copy")} == {
        "/copy", "/copy/f", "/copy/new", "/copy/b", "/copy/b/d", "/copy/b/d/deep", "/copy/b/d/deep/er",
        "/copy/b2", "/copy/b2/d", "/copy/b2/d/deep", "/copy/b2/d/deep/er",
    }  # fmt: skip


def test_where_a_copy_goes(tree: Table):
    running = tree.batch()
    for path in ("/a/x", "/a/b/x", "/a/b/c/x/y"):
        assert running.refused(copy(at("/a"), path)) is MoveIntoItself
    assert running.refused(copy(at("/a"), "/d")) is ConflictFolder
    assert running.refused(copy(at("/a"), "/a")) is ConflictFolder
    assert running.refused(copy(at("/a/f"), "/a/b/g")) is ConflictRev
    assert running.refused(copy(at("/a/f"), "/a/b/g/x")) is ConflictFileAncestor
    assert running.refused(copy(at("/a/dead"), "/x")) is NotFound
    assert running.refused(copy(Target(EntryId(0), ()), "/x")) is MalformedPath
    assert running.apply(copy(at("/a"), "/D", autorename=True)).path == "/D (1)"
    assert running.apply(copy(at("/a"), "/a", autorename=True)).path == "/a (1)"
    assert running.apply(copy(at("/a/f"), "/a/f")).is_changed is False
    assert running.apply(copy(at("/a/f"), "/a/F", autorename=True)).path == "/a/F (1)"
    same = running.apply(copy(at("/a/f"), "/a/F (1)", autorename=True))
    assert (same.path, same.is_changed) == ("/a/F (1)", False)


def test_copies_are_bounded(monkeypatch: pytest.MonkeyPatch):
    table = Table()
    table.fill("a", MAX_ROWS_PER_TX)
    assert table.batch().refused(copy(at("/a"), "/b")) is TooManyEntries
    table.run(delete(at("/a/a 0")))
    running = table.batch()
    running.apply(copy(at("/a"), "/fits"))
    assert len(running.batch.rows) == MAX_ROWS_PER_TX
    assert running.refused(copy(at("/a"), "/more")) is TooManyEntries
    assert running.refused(mkdir("/more")) is TooManyEntries
    monkeypatch.setattr(write, "MAX_COPIED_BLOCKS", 2)
    table = Table()
    table.run(put("/a/f"), put("/a/g", TWO), put("/h"))
    running = table.batch()
    running.apply(copy(at("/a"), "/b"))
    assert running.refused(copy(at("/h"), "/b/h")) is TooManyEntries
    running.apply(mkdir("/b/d"))


def test_folders_that_are_too_large_are_looked_at_some_times_only(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(write, "MAX_ROWS_PER_TX", 100)
    monkeypatch.setattr(tree_module, "MAX_ROWS_BELOW", 500)
    table = Table()
    for name in "abcdefg":
        table.fill(name, 101)
    running = table.batch()
    for name in "abcdefg" * 3:
        assert running.refused(copy(at(f"/{name}"), "/x")) is TooManyEntries
    assert running.view._below_count == 505


def test_a_copy_needs_room(tree: Table):
    tree.quota_bytes = tree.live_bytes + 1
    running = tree.batch()
    assert running.refused(copy(at("/a"), "/x")) is QuotaExceeded
    running.apply(copy(at("/a/b"), "/x"))
    assert running.refused(copy(at("/a/f"), "/y")) is QuotaExceeded


# ---- Restores


def restore(target: Target, rev: int) -> RestoreRequest:
    return RestoreRequest(target, Jid(rev))


def test_an_older_content_becomes_a_rev_of_its_own(tree: Table):
    tree.run(put("/a/f", TWO))
    head = tree.head
    for target in (at("/a/f"), entry(paths_of(tree)["/a/f"])):
        running = tree.batch()
        outcome = running.apply(restore(target, 2))
        (row,) = running.batch.rows
        assert (row.op, row.prev_jid, row.entry.rev_jid) == (JournalOp.CONTENT, head, head + 1)
        assert row.content == SameContent(1, ONE.content_hash, Jid(2))
        assert (outcome.path, running.batch.grown_bytes) == ("/a/f", 0)
        assert running.apply(restore(target, 2)).is_changed is False
        assert tree.batch().apply(restore(target, head)).is_changed is False


def test_a_file_that_lives_elsewhere_stays_there(tree: Table):
    number = paths_of(tree)["/a/f"]
    tree.run(move(at("/a/f"), "/d/moved"), put("/d/moved", TWO))
    running = tree.batch()
    assert running.apply(restore(entry(number), 2)).path == "/d/moved"
    again = tree.batch().apply(restore(at("/a/f"), 2))
    assert (again.path, again.entry.entry_id == number) == ("/a/f", False)
    running = tree.batch()
    assert running.refused(restore(at("/a/b/g"), 2)) is NotFound  # another file's place
    assert running.refused(restore(at("/a/b"), 2)) is ConflictFolder
    assert running.refused(restore(entry(paths_of(tree)["/a/b/g"]), 2)) is NotFound
    assert running.refused(restore(entry(paths_of(tree)["/a/b"]), 2)) is ConflictFolder


def test_a_deleted_file_comes_back_as_the_entry_that_it_was(tree: Table):
    number = paths_of(tree)["/a/f"]
    tree.run(delete(at("/a/f")))
    head = tree.head
    for target, path in (
        (entry(number), "/a/f"), (at("/A/F"), "/a/F"), (at("/new/place"), "/new/place"),
    ):  # fmt: skip
        running = tree.batch()
        outcome = running.apply(restore(target, 2))
        row = running.batch.rows[-1]
        assert (row.op, row.entry.entry_id, row.prev_jid) == (JournalOp.RESTORE, number, head)
        assert (row.entry.is_deleted, row.entry.created_jid, row.old_path) == (False, 2, None)
        assert (outcome.path, running.batch.grown_bytes) == (path, 1)
        assert running.apply(put(path, TWO)).entry.entry_id == number
        running.apply(delete(entry(number)))
        running.apply(restore(entry(number), 2))
    tree.run(put("/a/f", TWO))
    running = tree.batch()
    assert running.refused(restore(at("/a/f"), 2)) is ConflictRev
    assert running.refused(restore(entry(number), 2)) is ConflictRev
    assert running.refused(restore(at("/a/f/x"), 2)) is ConflictFileAncestor
    assert running.refused(restore(Target(EntryId(0), ()), 2)) is MalformedPath


@pytest.mark.parametrize("owes", [True, False])
def test_a_file_below_a_deleted_folder_leaves_it(tree: Table, owes: bool):
    paths = paths_of(tree)
    tree.run(delete(at("/a")))
    tree.owing = {paths["/a"]} if owes else set()
    running = tree.batch()
    outcome = running.apply(restore(entry(paths["/a/b/g"]), 4))
    assert outcome.path == "/a/b/g"
    assert [row.op for row in running.batch.rows] == [JournalOp.FOLDER, JournalOp.FOLDER, JournalOp.RESTORE]
    assert outcome.entry.parent_id not in paths.values()
    assert running.asked_owing == [paths["/a"]]
    assert running.batch.grown_bytes == (0 if owes else 1)
    # The folders that have been made take the next one in.
    assert running.apply(restore(entry(paths["/a/f"]), 2)).path == "/a/f"
    assert running.asked_owing == [paths["/a"]]
    assert running.refused(restore(Target(paths["/a/b"], ("x",)), 4)) is NotFound
    running.keep()
    assert set(paths_of(tree)) == {"/a", "/a/b", "/a/b/g", "/a/f", "/d"}


def test_a_file_whose_folder_this_batch_has_deleted_is_counted_still(tree: Table):
    running = tree.batch()
    number = paths_of(tree)["/a/f"]
    running.apply(delete(at("/a")))
    running.apply(restore(entry(number), 2))
    assert (running.asked_owing, running.batch.grown_bytes) == ([], 0)


def test_a_restore_needs_room_and_a_rev(tree: Table):
    tree.run(delete(at("/a/f")))
    running = tree.batch()
    for rev in (0, 1, 3, 99, tree.head):  # nobody's, folders', not yet, a delete's
        assert running.refused(restore(at("/x"), rev)) is NotFound
    tree.quota_bytes = tree.live_bytes
    assert tree.batch().refused(restore(at("/x"), 2)) is QuotaExceeded


# ---- Guards


def test_guards_of_many_ages_look_once():
    table = Table()
    table.run(*(mkdir(f"/d{i}/{j}") for i in range(30) for j in range(3)))
    made = {path: table.entries[number].created_jid for path, number in paths_of(table).items()}
    running = table.batch()
    for i in range(30):
        newest = made[f"/d{i}/2"]
        assert running.refused(delete(at(f"/d{i}"), newest - 1)) is ConflictChanged
        running.apply(delete(at(f"/d{i}"), newest))
    assert running.loads < 10 + 30 * 2


def test_a_guard_that_is_too_old_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(write, "MAX_CHANGES_LOOKED_AT", 3)
    table = Table()
    table.run(*(mkdir(f"/d{i}") for i in range(6)))
    running = table.batch()
    assert running.refused(delete(at("/d0"), 2)) is ConflictChanged
    running.apply(delete(at("/d0"), 3))
    assert running.refused(delete(at("/d4"), 3)) is ConflictChanged


def test_what_guards_know_is_what_a_look_at_everything_would_tell():
    rng = random.Random(7)
    for _ in range(25):
        table = Table()
        folders = ["/a", "/b", "/a/c", "/b/d", "/a/c/e"]
        table.run(*map(mkdir, folders))
        since = Jid(rng.randint(0, 5))
        running = table.batch()
        running.refused(delete(at("/nothing"), 0))
        for number in range(25):
            path = rng.choice(folders)
            step = rng.random()
            request: Request
            if step < 0.4:
                request = mkdir(f"{path}/{number}")
            elif step < 0.7:
                request = move(at(path), f"{rng.choice(folders)}/{rng.choice('xyz')}", autorename=True)
            else:
                request = delete(at(f"{path}/{rng.randint(0, number)}"))
            with contextlib.suppress(ShardboxError):
                running.apply(request)
            entries = {**table.entries, **running.batch.written}
            for each in entries.values():
                lineage = [each]
                while lineage[-1].parent_id:
                    lineage.append(entries[lineage[-1].parent_id])
                if any(step.is_deleted for step in lineage):
                    continue
                want = any(
                    other.last_jid > since and not dead and each in up
                    for other in entries.values()
                    for up in [_up(entries, other)]
                    for dead in [any(step.is_deleted for step in up)]
                )
                assert _has_changed(running, each.entry_id, since) == want


def _up(entries: Mapping[EntryId, Entry], entry: Entry) -> list[Entry]:
    up = [entry]
    while up[-1].parent_id:
        up.append(entries[up[-1].parent_id])
    return up


def _has_changed(running: "Running", entry_id: EntryId, since: Jid) -> bool:
    while True:
        try:
            return running.view.has_changed_below(entry_id, since)
        except NeedRows as need:
            running.load(need)


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
    is_live = TreeView.is_live

    def counted(view: TreeView, entry: Entry) -> bool:
        looked.append(entry.entry_id)
        return is_live(view, entry)

    monkeypatch.setattr(TreeView, "is_live", counted)
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
