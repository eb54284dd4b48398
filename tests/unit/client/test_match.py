"""Which entry is which after a scan of a real folder."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from client.match import Matcher
from client.model import Kind, LocalNode, SyncedNode
from client.reading import hash_file
from client.scan import Lister, Seen
from client.trees import Trees


class Disk:
    """A folder, and the local tree as scans see it."""

    def __init__(self, root: Path):
        self.root = root
        self.trees = Trees()

    def write(self, path: str, text: str = "x") -> Path:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        return target

    def scan(self, *folders: str, lister: Lister | None = None) -> Matcher:
        root = os.fsencode(self.root)
        some = [os.fsencode(f) for f in folders] if folders else None
        matcher = Matcher(self.trees, lister or Lister(root), some)
        for _ in (*matcher.look(), *matcher.take_new()):
            matcher.flush()
        matcher.finish({x.path: hash_file(root + b"/" + x.path).content for x in matcher.candidates()})
        return matcher

    def hash_all(self) -> None:
        """What uploads do: read what has not been read."""
        for node in list(self.trees.local.nodes()):
            if node.kind is Kind.FILE and node.content is None:
                path = os.fsencode(self.root) + b"/" + self.trees.local_path(node.id)
                hashed = hash_file(path)
                self.trees.put_local(replace(node, content=hashed.content, is_racy=hashed.is_racy))

    def node(self, node_id: int) -> LocalNode:
        node = self.trees.local.get(node_id)
        assert node is not None
        return node

    def ids(self) -> dict[str, int]:
        return {self.trees.local_path(x.id).decode(): x.id for x in self.trees.local.nodes()}


class Faked(Lister):
    """Lists some folders otherwise than they are."""

    def __init__(self, disk: Disk, folders: dict[bytes, list[Seen] | None]):
        super().__init__(os.fsencode(disk.root))
        self._folders = folders

    def list_folder(self, folder: bytes) -> list[Seen] | None:
        return self._folders[folder] if folder in self._folders else super().list_folder(folder)


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    return Disk(tmp_path)


def test_paths_that_stay_keep_their_ids_and_contents(disk: Disk) -> None:
    disk.write("d/f")
    disk.scan()
    disk.hash_all()
    before = disk.ids()
    os.utime(disk.root / "d/f", ns=(10**18, 10**18))
    disk.scan()
    assert disk.ids() == before
    assert disk.node(before["d/f"]).content is None, "its stat has changed: it wants to be read"


def test_a_moved_folder_keeps_all_ids(disk: Disk) -> None:
    disk.write("old/sub/f")
    os.utime(disk.write("old/g"), ns=(10**18, 10**18))
    disk.scan()
    disk.hash_all()
    before = disk.ids()
    (disk.root / "new home").mkdir()
    (disk.root / "old").rename(disk.root / "new home/new")
    disk.scan()
    after = disk.ids()
    assert after["new home/new"] == before["old"]
    assert after["new home/new/sub/f"] == before["old/sub/f"]
    assert disk.node(after["new home/new/g"]).content is not None, "a rename changes ctime, not the content"


def test_an_edit_in_a_moved_folder_is_seen(disk: Disk) -> None:
    disk.write("old/f", "one")
    disk.scan()
    disk.hash_all()
    before = disk.ids()
    (disk.root / "old").rename(disk.root / "new")
    disk.write("new/f", "longer")
    disk.write("new/g", "added")
    disk.scan()
    assert disk.ids()["new/f"] == before["old/f"]
    assert disk.node(before["old/f"]).content is None
    assert disk.ids()["new/g"] < 0


def test_the_same_content_under_another_inode_is_a_rename(disk: Disk) -> None:
    source = disk.write("a/f", "the very same")
    disk.scan()
    disk.hash_all()
    before = disk.ids()
    disk.write("b/copy", "the very same")
    source.unlink()
    disk.scan()
    assert disk.ids()["b/copy"] == before["a/f"]


def test_a_path_that_still_exists_keeps_its_entry(disk: Disk) -> None:
    disk.write("f", "old")
    disk.scan()
    before = disk.ids()
    (disk.root / "f").rename(disk.root / "f.bak")
    disk.write("f", "new")
    disk.scan()
    assert disk.ids()["f"] == before["f"]
    assert disk.ids()["f.bak"] != before["f"]


def test_a_file_in_a_folders_place_is_another_entry(disk: Disk) -> None:
    disk.write("thing/f")
    disk.scan()
    before = disk.ids()
    (disk.root / "thing/f").unlink()
    (disk.root / "thing").rmdir()
    disk.write("thing", "now a file")
    disk.scan()
    assert disk.ids()["thing"] != before["thing"]


def test_a_change_of_case_keeps_the_entry(disk: Disk) -> None:
    disk.write("Name")
    disk.scan()
    before = disk.ids()
    (disk.root / "Name").rename(disk.root / "NAME")
    disk.scan()
    assert disk.ids() == {"NAME": before["Name"]}


def test_of_names_that_differ_in_case_only_the_known_one_counts(disk: Disk) -> None:
    disk.write("name", "first")
    disk.scan()
    before = disk.ids()
    disk.write("NAME", "second")
    matcher = disk.scan()
    assert disk.ids() == before
    assert {path: reason for path, (reason, _) in matcher.clashes.items()} == {b"NAME": "name_clash"}


def test_a_symlink_in_a_files_place_blocks_the_entry(disk: Disk) -> None:
    disk.write("f")
    disk.scan()
    before = disk.ids()
    (disk.root / "f").unlink()
    (disk.root / "f").symlink_to("elsewhere")
    disk.scan()
    assert disk.ids() == before
    assert disk.node(before["f"]).is_blocked
    (disk.root / "f").unlink()
    disk.write("f", "back")
    disk.scan()
    assert not disk.node(before["f"]).is_blocked


def test_an_unreadable_folder_loses_nothing(disk: Disk) -> None:
    disk.write("d/f")
    disk.scan()
    before = disk.ids()
    disk.scan(lister=Faked(disk, {b"d": None}))
    assert disk.ids() == before
    assert disk.node(before["d"]).is_blocked


def test_a_scan_of_one_folder_doubts_what_may_come_from_another(disk: Disk) -> None:
    disk.write("from/f")
    disk.write("to/g")
    disk.scan()
    (disk.root / "from/f").rename(disk.root / "to/f")
    before = disk.ids()
    assert disk.scan("to").doubts == {b"from"}
    assert disk.ids() == before, "it waits for the look at the other folder"
    matcher = Matcher(disk.trees, Lister(os.fsencode(disk.root)), [b"from", b"to"])
    assert [*matcher.look()] == []
    assert matcher.has_vanished


def test_an_inode_used_again_for_another_folder_is_not_a_rename(disk: Disk) -> None:
    disk.write("old/f")
    disk.scan()
    before = disk.ids()
    old = disk.node(before["old"])
    seen = Seen(b"new", "new", Kind.FOLDER, old.fingerprint._replace(mtime_ns=1))
    disk.scan(lister=Faked(disk, {b"": [seen], b"new": []}))
    assert disk.ids()["new"] != before["old"]


def test_a_racy_file_is_read_again_at_the_next_whole_scan(disk: Disk) -> None:
    disk.write("f")
    disk.scan()
    disk.hash_all()
    node = disk.node(disk.ids()["f"])
    assert node.is_racy
    disk.scan("")
    assert disk.node(node.id).content is not None
    disk.scan()
    assert disk.node(node.id).content is None


def test_the_private_folder_is_never_seen(disk: Disk) -> None:
    disk.write(".shardbox/state.db")
    disk.write("sub/.shardbox/marker")
    lister = Lister(os.fsencode(disk.root))
    disk.scan(lister=lister)
    assert disk.ids() == {}
    assert {reason for reason, _ in lister.problems.values()} == {"linked_folder_inside"}


def test_synced_children_follow_a_renumbered_folder() -> None:
    trees = Trees()
    trees.put_local(LocalNode(-1, 0, "d", b"d", Kind.FOLDER))
    trees.put_local(LocalNode(-2, -1, "f", b"f", Kind.FILE))
    trees.put_synced(SyncedNode(7, -1, "g", Kind.FILE))
    trees.renumber(-1, 5)
    assert [trees.local.get(-2), trees.synced.get(7)] == [
        LocalNode(-2, 5, "f", b"f", Kind.FILE),
        SyncedNode(7, 5, "g", Kind.FILE),
    ]
