"""What a user does to files on two devices, and what becomes of it. Real servers, real folders."""

import os
import shutil
from pathlib import Path

import pytest

from tests.acceptance.client.conftest import Pair
from tests.acceptance.client.devices import Device, settle
from tests.support.waiting import wait_for
from wire.hashes import BLOCK_BYTES

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]


def assert_same(pair: Pair) -> None:
    assert pair.a.tree() == pair.b.tree(), (pair.a.skipped(), pair.b.skipped())
    for device in pair:
        assert device.status().pending.total == 0


def test_files_folders_and_unusual_names_arrive(pair: Pair) -> None:
    pair.a.write("d/e/x.txt", "hello")
    pair.a.write("日本語 🎉/ünï.txt", "names")
    pair.a.write("zero", "")
    (pair.a.folder / "empty").mkdir()
    (pair.a.folder / "big.bin").write_bytes(os.urandom(BLOCK_BYTES * 2 + 17))
    pair.a.sync()
    pair.b.sync()
    assert_same(pair)
    assert pair.b.status().blocks_sent == 0
    assert (pair.b.folder / "d/e/x.txt").stat().st_mtime == int((pair.a.folder / "d/e/x.txt").stat().st_mtime)


def test_an_edit_of_one_block_moves_one_block(pair: Pair) -> None:
    big = pair.a.folder / "big.bin"
    big.write_bytes(os.urandom(BLOCK_BYTES * 4))
    settle(*pair)
    sent, fetched = pair.a.status().blocks_sent, pair.b.status().blocks_fetched
    with big.open("r+b") as file:
        file.seek(BLOCK_BYTES + 5)
        file.write(b"!")
    settle(*pair)
    assert_same(pair)
    assert pair.a.status().blocks_sent == sent + 1
    assert pair.b.status().blocks_fetched == fetched + 1


def test_a_folders_rename_is_one_row_and_no_block(pair: Pair) -> None:
    for n in range(30):
        pair.a.write(f"old/{n % 3}/{n}", f"file {n}")
    settle(*pair)
    before_a, before_b = pair.a.status(), pair.b.status()
    (pair.a.folder / "old").rename(pair.a.folder / "new")
    settle(*pair)
    assert_same(pair)
    assert pair.a.status().jid == before_a.jid + 1
    assert pair.a.status().blocks_sent == before_a.blocks_sent
    assert pair.b.status().blocks_fetched == before_b.blocks_fetched


def test_moves_between_folders_and_into_new_ones(pair: Pair) -> None:
    pair.a.write("one/f", "f")
    pair.a.write("two/g", "g")
    settle(*pair)
    fetched = pair.b.status().blocks_fetched
    (pair.a.folder / "three").mkdir()
    (pair.a.folder / "one/f").rename(pair.a.folder / "three/f2")
    (pair.a.folder / "two").rename(pair.a.folder / "one/two")
    settle(*pair)
    assert_same(pair)
    assert pair.b.status().blocks_fetched == fetched


def test_names_swapped_between_two_looks(pair: Pair) -> None:
    pair.a.write("x/1", "x")
    pair.a.write("y/2", "y")
    settle(*pair)
    (pair.a.folder / "x").rename(pair.a.folder / "t")
    pair.a.sync()
    (pair.a.folder / "y").rename(pair.a.folder / "x")
    pair.a.sync()
    (pair.a.folder / "t").rename(pair.a.folder / "y")
    settle(*pair)
    assert_same(pair)
    assert pair.b.tree() == {"x": None, "x/2": b"y", "y": None, "y/1": b"x"}


def test_case_only_renames_in_both_directions(pair: Pair) -> None:
    pair.a.write("Folder/File.txt", "1")
    settle(*pair)
    (pair.a.folder / "Folder/File.txt").rename(pair.a.folder / "Folder/FILE.txt")
    settle(*pair)
    assert_same(pair)
    (pair.b.folder / "Folder").rename(pair.b.folder / "folder")
    settle(*pair)
    assert_same(pair)
    assert set(pair.a.tree()) == {"folder", "folder/FILE.txt"}


def test_edits_on_both_sides_leave_a_conflicted_copy(pair: Pair) -> None:
    pair.a.write("f.txt", "as it was")
    settle(*pair)
    pair.a.write("f.txt", "edited on a")
    pair.b.write("f.txt", "edited on b, longer")
    settle(*pair)
    assert_same(pair)
    assert pair.a.tree() == {
        "f.txt": b"edited on a",
        "f (Ada's conflicted copy).txt": b"edited on b, longer",
    }


def test_the_same_edit_on_both_sides_is_no_conflict(pair: Pair) -> None:
    for device in pair:
        device.write("same/f.txt", "alike")
    settle(*pair)
    assert_same(pair)
    for device in pair:
        device.write("same/f.txt", "alike again")
    settle(*pair)
    assert_same(pair)
    assert set(pair.a.tree()) == {"same", "same/f.txt"}


def test_new_files_of_one_name_both_stay(pair: Pair) -> None:
    pair.a.write("folder/f.txt", "a")
    pair.b.write("folder/f.txt", "b, not the same")
    settle(*pair)
    assert_same(pair)
    assert {content for content in pair.a.tree().values() if content} == {b"a", b"b, not the same"}
    assert sum(content is None for content in pair.a.tree().values()) == 1


def test_an_edit_wins_over_a_delete(pair: Pair) -> None:
    pair.a.write("d/edited", "1")
    pair.a.write("d/untouched", "1")
    settle(*pair)
    shutil.rmtree(pair.a.folder / "d")
    pair.b.write("d/edited", "two")
    settle(*pair)
    assert_same(pair)
    assert pair.a.tree() == {"d": None, "d/edited": b"two"}


def test_a_delete_meets_an_edit_that_was_not_seen(pair: Pair) -> None:
    pair.a.write("d/f", "1")
    pair.a.write("g", "1")
    settle(*pair)
    pair.b.write("d/f", "two")
    pair.b.write("g", "two")
    pair.b.sync()
    shutil.rmtree(pair.a.folder / "d")
    (pair.a.folder / "g").unlink()
    settle(*pair)
    assert_same(pair)
    assert pair.a.tree() == {"d": None, "d/f": b"two", "g": b"two"}


def test_of_two_renames_of_one_folder_the_later_commit_wins(pair: Pair) -> None:
    pair.a.write("was/f", "1")
    settle(*pair)
    (pair.a.folder / "was").rename(pair.a.folder / "by a")
    (pair.b.folder / "was").rename(pair.b.folder / "by b")
    pair.a.sync()
    settle(pair.b, pair.a)
    assert_same(pair)
    assert pair.a.tree() == {"by b": None, "by b/f": b"1"}


def test_folders_moved_into_one_another(pair: Pair) -> None:
    pair.a.write("p/1", "1")
    pair.a.write("q/2", "2")
    settle(*pair)
    (pair.a.folder / "p").rename(pair.a.folder / "q/p")
    (pair.b.folder / "q").rename(pair.b.folder / "p/q")
    pair.a.sync()
    settle(pair.b, pair.a)
    assert_same(pair)
    assert {content for content in pair.a.tree().values() if content} == {b"1", b"2"}


def test_file_and_folder_change_places(pair: Pair) -> None:
    pair.a.write("thing", "file")
    pair.a.write("other/inside", "x")
    settle(*pair)
    (pair.a.folder / "thing").unlink()
    pair.a.write("thing/now a folder", "y")
    shutil.rmtree(pair.a.folder / "other")
    pair.a.write("other", "now a file")
    settle(*pair)
    assert_same(pair)


def test_an_editors_way_of_saving_keeps_the_entry(pair: Pair) -> None:
    pair.a.write("doc.txt", "one")
    settle(*pair)
    jid = pair.a.status().jid
    pair.a.write("doc.txt.new", "two")
    (pair.a.folder / "doc.txt.new").rename(pair.a.folder / "doc.txt")
    settle(*pair)
    assert_same(pair)
    assert pair.a.status().jid == jid + 1


def test_a_new_device_with_the_same_files_sends_nothing(pair: Pair) -> None:
    for n in range(20):
        for device in pair:
            device.write(f"d/{n}", f"file {n}")
    pair.a.sync()
    pair.b.sync()
    assert_same(pair)
    assert pair.b.status().blocks_sent == 0
    assert pair.b.status().blocks_fetched == 0


def test_a_remote_delete_goes_through_the_trash(pair: Pair) -> None:
    pair.a.write("f", "precious")
    settle(*pair)
    (pair.a.folder / "f").unlink()
    settle(*pair)
    assert pair.b.tree() == {}
    trash = list((pair.b.folder / ".shardbox/trash").iterdir())
    assert [path.read_text() for path in trash] == ["precious"]


def test_watching_devices_pass_changes_on(pair: Pair) -> None:
    with pair.a.watching(), pair.b.watching():
        pair.a.write("live/f.txt", "one")
        wait_for(lambda: read(pair.b, "live/f.txt") == "one", "the new file on b")
        pair.b.write("live/f.txt", "two")
        wait_for(lambda: read(pair.a, "live/f.txt") == "two", "the edit on a")
        (pair.a.folder / "live").rename(pair.a.folder / "moved")
        wait_for(lambda: read(pair.b, "moved/f.txt") == "two", "the rename on b")
        (pair.b.folder / "moved/f.txt").unlink()
        wait_for(lambda: not (pair.a.folder / "moved/f.txt").exists(), "the delete on a")
    settle(*pair)
    assert_same(pair)


def read(device: Device, path: str) -> str | None:
    target: Path = device.folder / path
    return target.read_text() if target.exists() else None
