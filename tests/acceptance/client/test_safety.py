"""What must never cost anybody a file: lost folders, mass deletions, things that cannot be synced."""

import os
import shutil

import pytest

from client.cli import Exit
from client.folder import FolderProblem, NotLinked
from tests.acceptance.client.conftest import Pair
from tests.acceptance.client.devices import settle
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]


def fill(pair: Pair, count: int) -> None:
    for n in range(count):
        pair.a.write(f"d/{n}", f"file {n}")
    settle(*pair)


def test_a_mass_deletion_waits_for_an_answer(pair: Pair) -> None:
    fill(pair, 40)
    shutil.rmtree(pair.a.folder / "d")
    pair.a.write("beside", "still sent")
    done = pair.a.run("sync")
    assert done.returncode == Exit.LEFT, done.stderr
    assert pair.a.status().held_deletions == 41
    assert pair.a.skipped()[""] == "deletions_held"
    pair.b.sync()
    assert len(pair.b.tree()) == 42
    assert pair.a.run("sync", "--allow-mass-delete").returncode == Exit.OK
    pair.b.sync()
    assert pair.b.tree() == {"beside": b"still sent"}


def test_few_deletions_are_not_asked_about(pair: Pair) -> None:
    fill(pair, 10)
    shutil.rmtree(pair.a.folder / "d")
    assert pair.a.run("sync").returncode == Exit.OK
    pair.b.sync()
    assert pair.b.tree() == {}


def test_a_folder_without_its_marker_stops_the_sync(pair: Pair) -> None:
    fill(pair, 3)
    private = pair.a.folder / ".shardbox"
    elsewhere = pair.a.folder.parent / "elsewhere"
    private.rename(elsewhere)
    with pytest.raises(NotLinked):
        pair.a.sync()
    assert pair.a.run("sync").returncode == Exit.FOLDER
    shutil.rmtree(pair.a.folder / "d")
    elsewhere.rename(private)
    pair.b.sync()
    assert len(pair.b.tree()) == 4


def test_a_watch_ends_when_its_folder_goes(pair: Pair) -> None:
    fill(pair, 30)
    with pair.a.watch() as (child, errors):
        pair.a.folder.rename(pair.a.folder.parent / "gone")
        pair.a.folder.mkdir()
        assert child.wait(30) == Exit.FOLDER, errors.read_text()
    pair.b.sync()
    assert len(pair.b.tree()) == 31


def test_a_copy_of_a_linked_folder_is_refused(pair: Pair) -> None:
    fill(pair, 3)
    copy = pair.a.folder.parent / "copy"
    shutil.copytree(pair.a.folder, copy)
    with pytest.raises(FolderProblem, match="copy"):
        type(pair.a)(copy).sync()


def test_two_syncs_of_one_folder_do_not_run_at_once(pair: Pair) -> None:
    with pair.a.watching():
        assert pair.a.run("sync").returncode == Exit.RUNNING


def test_what_cannot_be_synced_is_reported_and_left_alone(pair: Pair) -> None:
    a = pair.a
    a.write("fine", "fine")
    (a.folder / "link").symlink_to("fine")
    os.mkfifo(a.folder / "pipe")
    (a.folder / os.fsdecode(b"inv\xff")).write_text("bytes")
    a.write("Clash", "1")
    a.write("clash", "2")
    a.write(".ds_store", "junk")
    a.write("ends with a space ", "x")
    settle(*pair)
    assert pair.b.tree() == {"fine": b"fine", "Clash": b"1", "clash (Case Conflict)": b"2"}
    assert a.skipped() == {
        "link": "symlink",
        "pipe": "special_file",
        "inv\\xff": "not_utf8",
        ".ds_store": "disallowed_name",
        "ends with a space ": "malformed_path",
    }
    assert len(list(a.folder.iterdir())) == 9


def test_a_folder_with_unsynced_things_outlives_its_deletion(pair: Pair) -> None:
    pair.a.write("d/synced", "x")
    pair.a.write("e/synced", "x")
    settle(*pair)
    (pair.b.folder / "d/link").symlink_to("nowhere")
    pair.b.write("e/new", "not synced yet")
    shutil.rmtree(pair.a.folder / "d")
    shutil.rmtree(pair.a.folder / "e")
    settle(*pair)
    assert (pair.b.folder / "d/link").is_symlink()
    assert not (pair.b.folder / "d/synced").exists()
    assert not (pair.a.folder / "d").exists()
    assert pair.a.tree() == {"e": None, "e/new": b"not synced yet"}


def test_a_symlink_in_a_files_place_is_neither_followed_nor_a_deletion(pair: Pair) -> None:
    pair.a.write("f", "content")
    settle(*pair)
    outside = pair.a.folder.parent / "outside"
    outside.write_text("secret")
    (pair.a.folder / "f").unlink()
    (pair.a.folder / "f").symlink_to(outside)
    pair.b.write("f", "changed on b")
    settle(*pair)
    assert (pair.b.folder / "f").read_text() == "changed on b"
    assert outside.read_text() == "secret"
    assert (pair.a.folder / "f").is_symlink()


def test_something_unsynced_in_the_way_is_not_replaced(pair: Pair) -> None:
    (pair.a.folder / "f").symlink_to("nowhere")
    pair.b.write("f", "from b")
    settle(*pair)
    assert (pair.a.folder / "f").is_symlink()
    assert pair.a.skipped()["f"] in ("symlink", "occupied")
    (pair.a.folder / "f").unlink()
    settle(*pair)
    assert (pair.a.folder / "f").read_text() == "from b"


def test_a_file_that_is_being_written_is_sent_when_it_rests(pair: Pair) -> None:
    with pair.a.watching(), (pair.a.folder / "log").open("wb") as file:
        for _ in range(4):
            file.write(b"x" * 100_000)
            file.flush()
            pair.b.sync()
        file.write(b"end")
        file.flush()
        wait_for(lambda: pair.b.sync().jid and (pair.b.folder / "log").exists(), "the file on b")
        wait_for(lambda: pair.b.sync() and (pair.b.folder / "log").read_bytes()[-3:] == b"end", "all of it")


def test_an_unlinked_folder_keeps_its_files_and_syncs_no_more(pair: Pair) -> None:
    pair.b.write("f", "stays")
    assert pair.b.run("unlink").returncode == Exit.OK
    assert not (pair.b.folder / ".shardbox").exists()
    assert (pair.b.folder / "f").read_text() == "stays"
    assert pair.b.run("sync").returncode == Exit.FOLDER
