"""Selective sync: what leaves this device and what never does, whatever else happens meanwhile."""

import shutil

import pytest

from client.cli import Exit
from client.selection import Verb
from tests.acceptance.client.conftest import Pair
from tests.acceptance.client.devices import choose, settle
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]


def without(tree: dict[str, bytes | None], *tops: str) -> dict[str, bytes | None]:
    return {path: content for path, content in tree.items() if path.partition("/")[0] not in tops}


def fill(pair: Pair) -> dict[str, bytes | None]:
    pair.a.write("out/sub/f", "f")
    pair.a.write("out/g", "g")
    pair.a.write("in/h", "h")
    settle(*pair)
    return pair.a.tree()


def test_an_excluded_folder_leaves_this_device_only_and_comes_back(pair: Pair) -> None:
    a, b = pair
    whole = fill(pair)
    choose(b, Verb.ADD, "out")
    settle(*pair)
    assert b.tree() == {"in": None, "in/h": b"h"}
    assert a.tree() == whole
    assert b.status().excluded == ["out"]
    trash = {path.read_text() for path in (b.folder / ".shardbox/trash").iterdir()}
    assert trash == {"f", "g"}
    a.write("out/g", "g edited")
    a.write("out/sub/new", "new")
    settle(*pair)
    assert b.tree() == {"in": None, "in/h": b"h"}
    choose(b, Verb.REMOVE, "out")
    settle(*pair)
    assert b.tree() == a.tree()
    assert b.tree()["out/g"] == b"g edited"
    assert b.status().excluded == []


def test_an_excluded_folder_stays_so_when_it_is_renamed_or_moved(pair: Pair) -> None:
    a, b = pair
    fill(pair)
    choose(b, Verb.ADD, "out")
    b.sync()
    (a.folder / "out").rename(a.folder / "in/renamed")
    settle(*pair)
    assert b.tree() == {"in": None, "in/h": b"h"}
    assert b.status().excluded == ["in/renamed"]
    (a.folder / "in").rename(a.folder / "moved")
    settle(*pair)
    assert b.tree() == {"moved": None, "moved/h": b"h"}
    assert b.status().excluded == ["moved/renamed"]


def test_what_moves_across_the_border_comes_and_goes(pair: Pair) -> None:
    a, b = pair
    fill(pair)
    choose(b, Verb.ADD, "out")
    b.sync()
    (a.folder / "in/h").rename(a.folder / "out/h")
    (a.folder / "out/sub").rename(a.folder / "in/sub")
    settle(*pair)
    assert b.tree() == {"in": None, "in/sub": None, "in/sub/f": b"f"}
    b.write("in/sub/f", "edited on b, unsent")
    (a.folder / "in/sub").rename(a.folder / "out/sub")
    a.sync()
    settle(*pair)
    # The edit was sent to the entry itself, wherever it is by now, or stayed: lost it is not.
    assert b"edited on b, unsent" in {*a.tree().values(), *b.tree().values()}
    assert b"edited on b, unsent" in a.tree().values()


def test_what_is_not_sent_yet_is_sent_before_the_folder_leaves(pair: Pair) -> None:
    a, b = pair
    fill(pair)
    b.write("out/g", "edited before it was left out")
    b.write("out/sub/fresh", "fresh")
    (b.folder / "out/sub/f").unlink()
    choose(b, Verb.ADD, "out")
    settle(*pair)
    assert b.tree() == {"in": None, "in/h": b"h"}
    assert without(a.tree(), "in") == {
        "out": None,
        "out/sub": None,
        "out/sub/fresh": b"fresh",
        "out/g": b"edited before it was left out",
    }


def test_what_cannot_be_sent_keeps_the_folder_here_and_is_reported(pair: Pair) -> None:
    a, b = pair
    whole = fill(pair)
    (b.folder / "out/link").symlink_to("nowhere")
    choose(b, Verb.ADD, "out")
    settle(*pair)
    assert (b.folder / "out/link").is_symlink()
    assert [path.name for path in (b.folder / "out").iterdir()] == ["link"]
    assert b.skipped()["out"] == "not_empty"
    assert a.tree() == whole
    (b.folder / "out/link").unlink()
    choose(b, Verb.REMOVE, "out")
    settle(*pair)
    assert b.tree() == a.tree() == whole


def test_a_local_folder_or_file_of_a_hidden_name_gets_another(pair: Pair) -> None:
    a, b = pair
    pair.a.write("doc/notes.txt/inside", "x")
    fill(pair)
    choose(b, Verb.ADD, "out", "doc")
    b.sync()
    b.write("out/mine", "made on b")
    b.write("doc", "a file of the name")
    b.write("in/moves here", "moved")
    settle(*pair)
    (b.folder / "in/moves here").rename(b.folder / "OUT")
    settle(*pair)
    conflict = "out (Selective Sync Conflict)"
    assert b.tree()[f"{conflict}/mine"] == b"made on b"
    assert b.tree()["doc (Selective Sync Conflict)"] == b"a file of the name"
    assert b.tree()["OUT (Selective Sync Conflict) (1)"] == b"moved"
    assert without(a.tree(), "out", "doc") == b.tree()
    assert a.tree()["out/g"] == b"g"
    choose(b, Verb.REMOVE, "out", "doc")
    settle(*pair)
    assert b.tree() == a.tree()


def test_deleting_around_a_hidden_folder_does_not_delete_it(pair: Pair) -> None:
    a, b = pair
    a.write("top/hidden/precious", "precious")
    a.write("top/seen", "seen")
    settle(*pair)
    assert b.command("exclude", "add", str(b.folder / "top/hidden")).returncode == Exit.OK
    b.sync()
    assert b.tree() == {"top": None, "top/seen": b"seen"}
    shutil.rmtree(b.folder / "top")
    settle(*pair)
    assert a.tree() == {"top": None, "top/hidden": None, "top/hidden/precious": b"precious"}
    assert b.tree() == {"top": None}


def test_a_folder_is_left_out_before_the_first_sync_and_under_a_watch(pair: Pair) -> None:
    a, b = pair
    a.write("out/sub/f", "f")
    a.write("in/h", "h")
    a.sync()
    done = b.command("exclude", "add", "out", "--folder", str(b.folder), "--output", "json")
    assert done.returncode == Exit.OK, done.stderr
    with b.watching():
        assert b.tree() == {"in": None, "in/h": b"h"}
        choose(b, Verb.REMOVE, "out")
        wait_for(lambda: b.tree() == a.tree(), "the folder on b")
        b.write("out/sub/f", "edited")
        choose(b, Verb.ADD, "out")
        wait_for(lambda: b.tree() == {"in": None, "in/h": b"h"}, "its leaving")
    a.sync()
    assert a.tree()["out/sub/f"] == b"edited"


def test_a_folder_whose_leaving_is_cut_short_is_not_deleted_elsewhere(pair: Pair) -> None:
    a, b = pair
    whole = fill(pair)
    choose(b, Verb.ADD, "out")
    assert b.run("sync", fault="client.steps.trash_after").returncode == -9
    settle(*pair)
    assert a.tree() == whole
    assert b.tree() == without(whole, "out")
