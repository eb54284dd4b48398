"""The program that archives: whole or not at all, again without harm, never over another content."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from ops.backup.archive import archive_settings, install_archiver, restore_command

NAME = "000000010000000000000001"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a quote and a space in its name; holds the program, a segment and an archive."""
    folder = tmp_path / "it's a folder"
    (folder / "wal").mkdir(parents=True)
    install_archiver(folder / "archive-wal")
    (folder / "segment").write_bytes(b"x" * 100_000)
    return folder


def archive(place: Path, source: str = "segment") -> "subprocess.CompletedProcess[str]":
    """What PostgreSQL does with the setting: put %p and %f in, and give it to a shell."""
    command = archive_settings(place / "archive-wal", place / "wal")["archive_command"]
    line = command.replace("%p", str(place / source)).replace("%f", NAME)
    return subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=False)


def test_a_segment_is_archived_once_and_again_without_harm(place: Path):
    assert archive(place).returncode == 0
    before = (place / "wal" / NAME).stat()
    assert archive(place).returncode == 0

    after = (place / "wal" / NAME).stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert (place / "wal" / NAME).read_bytes() == (place / "segment").read_bytes()
    assert [path.name for path in (place / "wal").iterdir()] == [NAME]


def test_another_content_is_never_replaced(place: Path):
    (place / "wal" / NAME).write_bytes(b"another server's")
    done = archive(place)
    assert done.returncode == 1
    assert "another content" in done.stderr
    assert (place / "wal" / NAME).read_bytes() == b"another server's"


def test_what_cannot_be_read_or_written_fails_and_leaves_nothing(place: Path):
    assert archive(place, "no such file").returncode != 0
    assert list((place / "wal").iterdir()) == []
    (place / "wal").rmdir()
    assert archive(place).returncode != 0


def test_cut_short_it_leaves_no_segment_and_the_next_try_succeeds(place: Path):
    os.mkfifo(place / "slow")  # cp waits for a writer that never comes
    command = archive_settings(place / "archive-wal", place / "wal")["archive_command"]
    line = command.replace("%p", str(place / "slow")).replace("%f", NAME)
    with (
        subprocess.Popen(["sh", "-c", line], start_new_session=True) as child,
        (place / "slow").open("wb") as writer,
    ):
        writer.write(b"half")
        writer.flush()
        os.killpg(child.pid, signal.SIGKILL)
    assert not (place / "wal" / NAME).exists()
    assert archive(place).returncode == 0
    assert (place / "wal" / NAME).stat().st_size == 100_000


def test_the_restore_command_brings_it_back(place: Path):
    archive(place)
    line = restore_command(place / "wal").replace("%f", NAME).replace("%p", str(place / "back"))
    assert subprocess.run(["sh", "-c", line], check=False).returncode == 0
    assert (place / "back").read_bytes() == (place / "segment").read_bytes()


def test_a_percent_sign_is_refused(place: Path):
    with pytest.raises(ValueError, match="percent"):
        archive_settings(place / "100%" / "archive-wal", place)
