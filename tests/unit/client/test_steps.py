"""Disk steps on a real folder: compared before, compared after, and judged after a crash."""

import contextlib
import errno
import os
from pathlib import Path

import msgspec
import pytest

from client import steps
from client.disk import exchange, look, rename_new
from client.folder import Folder
from client.model import Fingerprint
from client.steps import Outcome, Step, StepKind, do_step, flush_folders


def stat_of(path: Path) -> Fingerprint:
    found = look(os.fsencode(path))
    assert found is not None
    return found[1]


def replacement(tmp_path: Path) -> tuple[Step, Path, Path, Path]:
    target, temp, trash = tmp_path / "f", tmp_path / "temp", tmp_path / "trashed"
    target.write_text("old")
    temp.write_text("new")
    step = Step(
        kind=StepKind.PLACE,
        id=1,
        source=os.fsencode(temp),
        target=os.fsencode(target),
        trash=os.fsencode(trash),
        inode=stat_of(temp).inode,
        expected=stat_of(target),
        sealed=stat_of(temp),
    )
    return step, target, temp, trash


def test_what_is_replaced_lies_in_the_trash(tmp_path: Path) -> None:
    step, target, temp, trash = replacement(tmp_path)
    target.chmod(0o640)
    assert do_step(step) is Outcome.CHANGED, "ctime tells that something was done to it"
    assert target.read_text() == "old"
    step, target, temp, trash = replacement(tmp_path)
    assert do_step(step) is Outcome.DONE
    assert (target.read_text(), trash.read_text(), temp.exists()) == ("new", "old", False)


def test_a_write_just_before_the_exchange_is_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, target, temp, trash = replacement(tmp_path)

    def write_then_exchange(one: bytes, other: bytes) -> None:
        monkeypatch.undo()
        target.write_text("written meanwhile")
        exchange(one, other)

    monkeypatch.setattr(steps, "exchange", write_then_exchange)
    assert do_step(step) is Outcome.CHANGED
    assert (target.read_text(), temp.read_text(), trash.exists()) == ("written meanwhile", "new", False)


@pytest.fixture
def no_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that cannot exchange two paths."""

    def refuse(one: bytes, other: bytes) -> None:
        raise NotImplementedError

    monkeypatch.setattr(steps, "exchange", refuse)


@pytest.fixture(params=[True, False], ids=["exchange", "no exchange"])
def either_way(request: pytest.FixtureRequest) -> None:
    """A file system that can, and one that cannot."""
    if not request.param:
        request.getfixturevalue("no_exchange")


@pytest.mark.usefixtures("no_exchange")
def test_without_exchange_the_same_comes_out(tmp_path: Path) -> None:
    step, target, temp, trash = replacement(tmp_path)
    assert do_step(step) is Outcome.DONE
    assert (target.read_text(), trash.read_text(), temp.exists()) == ("new", "old", False)


@pytest.mark.usefixtures("either_way")
def test_a_trash_that_has_gone_is_made_again(tmp_path: Path) -> None:
    step, target, _, _ = replacement(tmp_path)
    trash = tmp_path / "trash"
    assert do_step(msgspec.structs.replace(step, trash=os.fsencode(trash / "a"))) is Outcome.DONE
    (trash / "a").unlink()
    trash.rmdir()
    removal = Step(
        kind=StepKind.TRASH,
        id=1,
        source=os.fsencode(target),
        trash=os.fsencode(trash / "b"),
        expected=stat_of(target),
    )
    assert do_step(removal) is Outcome.DONE
    assert [path.name for path in trash.iterdir()] == ["b"]
    flush_folders([removal])


@pytest.mark.usefixtures("either_way")
def test_without_room_for_the_old_file_nothing_has_happened(tmp_path: Path) -> None:
    step, target, temp, trash = replacement(tmp_path)
    trash.mkdir()
    (trash / "f").mkdir()
    step = msgspec.structs.replace(step, trash=os.fsencode(trash / "f"))
    with pytest.raises(OSError, match="directory"):
        do_step(step)
    assert (target.read_text(), temp.read_text()) == ("old", "new")


def test_a_lock_brings_back_the_folders_of_the_client(tmp_path: Path) -> None:
    place = Folder(tmp_path / "synced")
    with contextlib.closing(place.create()):
        folders = [Path(os.fsdecode(path)) for path in (place.tmp, place.trash)]
        for folder in folders:
            folder.rmdir()
        place.lock()
        place.unlock()
    assert all(folder.is_dir() for folder in folders)


def test_a_new_file_replaces_nothing(tmp_path: Path) -> None:
    step, target, temp, _ = replacement(tmp_path)
    free = Step(kind=StepKind.PLACE, id=1, source=step.source, target=step.target, inode=step.inode)
    assert do_step(free) is Outcome.OCCUPIED
    assert (target.read_text(), temp.read_text()) == ("old", "new")


def test_a_folder_goes_only_when_it_is_empty(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    (folder / "x").mkdir(parents=True)
    step = Step(kind=StepKind.RMDIR, id=1, source=os.fsencode(folder))
    assert do_step(step) is Outcome.OCCUPIED
    (folder / "x").rmdir()
    assert do_step(step) is Outcome.DONE


def test_a_move_takes_only_what_was_meant(tmp_path: Path) -> None:
    source, target = tmp_path / "a", tmp_path / "b"
    source.write_text("x")
    step = Step(
        kind=StepKind.MOVE,
        id=1,
        source=os.fsencode(source),
        target=os.fsencode(target),
        inode=stat_of(source).inode,
    )
    target.write_text("in the way")
    assert do_step(step) is Outcome.OCCUPIED
    target.unlink()
    assert do_step(step) is Outcome.DONE
    assert do_step(step) is Outcome.CHANGED


def test_nothing_is_at_a_name_that_the_disk_does_not_take(tmp_path: Path) -> None:
    assert look(os.fsencode(tmp_path) + b"/" + b"x" * 300) is None


def test_renaming_onto_something_fails(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    (tmp_path / "b").touch()
    with pytest.raises(OSError, match="exists") as caught:
        rename_new(os.fsencode(tmp_path / "a"), os.fsencode(tmp_path / "b"))
    assert caught.value.errno == errno.EEXIST
