"""The program that archives: whole or not at all, again without harm, never over another content."""

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from ops.backup.archive import archive_settings, install_archiver, restore_command
from ops.errors import EXIT_FAILURE, UsageError
from tests.support.commands import OPERATOR, run_command

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
    with pytest.raises(UsageError, match="percent"):
        archive_settings(place / "100%" / "archive-wal", place)


def test_what_the_command_prints_fits_into_postgresql_conf(place: Path):
    program, wal = place / "archive-wal", place / "wal"
    done = run_command(OPERATOR, "backup", "archiver", str(program), "--wal", str(wal))
    assert done.returncode == 0, done.stderr
    # There a quote ends a value, two are one.
    found = [re.fullmatch(r"(\w+) = '((?:[^']|'')*)'", line) for line in done.stdout.splitlines()]
    read = {match[1]: match[2].replace("''", "'") for match in found if match is not None}
    assert read == archive_settings(program, wal)


def test_a_folder_that_is_not_there_is_told_in_a_line(place: Path):
    args = ("backup", "archiver", str(place / "nowhere" / "archive-wal"), "--wal", str(place / "wal"))
    done = run_command(OPERATOR, *args)
    assert (done.returncode, done.stderr.count("\n")) == (EXIT_FAILURE, 1)
    assert done.stderr.startswith("shardctl: file_error: ")
