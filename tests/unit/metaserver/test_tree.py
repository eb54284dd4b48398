"""Looking up from entries to the folders above them."""

from collections.abc import Callable

import pytest

from metaserver.model.rows import Entry, Kind
from metaserver.model.tree import TreeView
from wire.ids import ROOT_ENTRY, EntryId, Jid
from wire.names import MAX_SHOWN_PATH_CHARS, name_key

DEPTH = 3_000
FOLDERS = range(1, DEPTH + 1)
ENTRIES = range(DEPTH + 1, DEPTH + 501)


def entry_of(entry_id: int, parent_id: int, kind: Kind = Kind.FOLDER, name: str = "", **how: bool) -> Entry:
    jid, name = Jid(entry_id), name or f"e{entry_id}"
    is_deleted = how.get("is_deleted", False)
    return Entry(EntryId(entry_id), EntryId(parent_id), name, name_key(name), kind, is_deleted, jid, jid)


def deep_view(dead: int | None = None) -> TreeView:
    """A folder in a folder in a folder …, and files in the deepest."""
    view = TreeView()
    view.load(entry_of(i, i - 1, name="d", is_deleted=i == dead) for i in FOLDERS)
    view.load(entry_of(i, DEPTH, Kind.FILE) for i in ENTRIES)
    return view


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> list[EntryId]:
    """The entries that were looked at."""
    seen: list[EntryId] = []
    find_entry = TreeView.find_entry

    def counted(view: TreeView, entry_id: EntryId) -> Entry | None:
        seen.append(entry_id)
        return find_entry(view, entry_id)

    monkeypatch.setattr(TreeView, "find_entry", counted)
    return seen


@pytest.mark.parametrize("dead", [None, 1, DEPTH // 2, DEPTH])
def test_what_is_above_a_page_is_climbed_once(dead: int | None, looked: list[EntryId]):
    view = deep_view(dead)
    for entry_id in ENTRIES:
        assert (view.find_live(EntryId(entry_id)) is None) is (dead is not None)
    assert len(looked) <= DEPTH + len(ENTRIES) + 1


def test_the_folders_of_a_chain_are_climbed_once(looked: list[EntryId]):
    view = deep_view()
    assert all(view.find_live(EntryId(i)) for i in FOLDERS)
    assert len(looked) <= 3 * DEPTH


@pytest.mark.parametrize("depth", [1, 2, 100, DEPTH])
def test_an_entry_is_under_the_folders_above_it_alone(depth: int):
    view = deep_view()
    file, folder = view.find_entry(EntryId(ENTRIES[0])), view.find_entry(EntryId(depth))
    assert file is not None
    assert folder is not None
    assert view.is_under(file, folder.entry_id)
    assert view.is_under(file, ROOT_ENTRY)
    assert not view.is_under(folder, folder.entry_id)
    assert view.is_under(folder, EntryId(depth - 1))


def test_a_path_is_shown_up_to_its_limit(looked: list[EntryId]):
    deepest_shown = (MAX_SHOWN_PATH_CHARS - len("/e3001")) // len("/d")
    view = deep_view()
    shown = [entry_of(10_000, deepest_shown, name="e3001"), entry_of(10_001, deepest_shown)]
    view.load([*shown, entry_of(10_002, deepest_shown + 200)])
    path = view.find_path(shown[0])
    assert path is not None
    assert path == view.path_of(shown[0])
    assert len(path) == MAX_SHOWN_PATH_CHARS
    assert view.find_path(entry_of(10_002, deepest_shown + 200)) is None
    looked.clear()
    for entry_id in ENTRIES:
        file = view.find_entry(EntryId(entry_id))
        assert file is not None
        assert view.find_path(file) is None
    assert len(looked) <= MAX_SHOWN_PATH_CHARS + len(ENTRIES)


CHANGES: dict[str, Callable[[Entry], Entry]] = {
    "moved": lambda folder: entry_of(folder.entry_id, ROOT_ENTRY, name="moved"),
    "deleted": lambda folder: entry_of(folder.entry_id, folder.parent_id, name="d", is_deleted=True),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_of_a_folder_is_seen_below_it(change: Callable[[Entry], Entry]):
    view = TreeView()
    view.load([entry_of(1, 0), entry_of(2, 1), entry_of(3, 2), entry_of(4, 3, Kind.FILE)])
    file, folder = view.find_entry(EntryId(4)), view.find_entry(EntryId(2))
    assert file is not None
    assert folder is not None
    assert (view.is_live(file), view.is_under(file, EntryId(1))) == (True, True)
    assert view.find_path(file) == "/e1/e2/e3/e4"
    changed = change(folder)
    view.put(changed)
    assert view.is_live(file) is not changed.is_deleted
    assert not view.is_under(file, EntryId(1))
    if not changed.is_deleted:
        assert view.find_path(file) == view.path_of(file) == "/moved/e3/e4"


def test_changes_far_below_are_told_upwards_once(looked: list[EntryId]):
    view = deep_view()
    view.load_changed(Jid(DEPTH), [])
    assert len(looked) <= 4 * DEPTH
    assert view.has_changed_below(EntryId(1), Jid(ENTRIES[-1] - 1))
    assert not view.has_changed_below(EntryId(1), Jid(ENTRIES[-1]))


def test_what_was_told_stays_while_nothing_below_changes(looked: list[EntryId]):
    view = deep_view()
    view.load_changed(Jid(DEPTH), [])
    files = [entry for i in ENTRIES if (entry := view.find_live(EntryId(i))) is not None]
    looked.clear()
    for file in files:
        view.put(entry_of(file.entry_id, file.parent_id, Kind.FILE, is_deleted=True))
    assert not view.has_changed_below(EntryId(1), Jid(DEPTH))
    assert len(looked) <= 2 * DEPTH
