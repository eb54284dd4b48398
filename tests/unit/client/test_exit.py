"""With which code a `sync` ends that was broken off, or that leaves something out of step."""

import asyncio
import contextlib
import os
import signal
import sqlite3
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

import client.cli
from client.cli import Exit, app, is_work_left
from client.folder import Folder
from client.status import Pending, Skipped, read_status


@pytest.fixture
def place(tmp_path: Path) -> Folder:
    found = Folder(tmp_path / "synced")
    found.create().close()
    return found


@pytest.mark.parametrize(
    ("number", "args", "code"),
    [
        (signal.SIGINT, (), Exit.INTERRUPTED),
        (signal.SIGTERM, (), Exit.TERMINATED),
        (signal.SIGTERM, ("--watch",), Exit.OK),
    ],
)
def test_a_sync_that_is_broken_off_is_not_in_step(
    place: Folder,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
    args: tuple[str, ...],
    code: Exit,
) -> None:
    async def hang(*_: Any) -> None:
        os.kill(os.getpid(), number)
        await asyncio.sleep(20)

    monkeypatch.setattr(client.cli, "sync_folder", hang)
    done = CliRunner().invoke(app, ["sync", *args, str(place.path)])
    assert done.exit_code == code


@pytest.mark.parametrize(
    ("total", "reasons", "expected"),
    [
        (0, ["unreadable"], False),
        (2, ["symlink", "occupied"], False),
        (2, ["symlink", "io_error"], True),
        (1, ["unreadable"], True),
        (1, ["internal"], True),
        (1, ["stale_request"], True),
        (1, ["overloaded"], True),
        (1, [], True),
    ],
)
def test_what_is_out_of_step_but_not_for_good_is_left(
    place: Folder, total: int, reasons: list[str], expected: bool
) -> None:
    with contextlib.closing(place.open()) as state:
        found = read_status(place, state)
    skipped = [Skipped(f"f{n}", reason, "") for n, reason in enumerate(reasons)]
    pending = Pending(total, 0, total)
    assert is_work_left(msgspec.structs.replace(found, pending=pending, skipped=skipped)) is expected


@pytest.mark.parametrize("name", ["[/b]link", "a [b] link", ":smile:"])
def test_a_name_that_looks_like_markup_is_shown_as_it_is(
    place: Folder, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    with contextlib.closing(place.open()) as state:
        found = read_status(place, state)
    found = msgspec.structs.replace(found, skipped=[Skipped(name, "symlink", name)], excluded=[name])
    monkeypatch.setattr(client.cli, "read_status", lambda *_: found)
    done = CliRunner().invoke(app, ["status", str(place.path)])
    assert (done.exit_code, done.stdout.count(name)) == (0, 3)


@pytest.mark.parametrize("args", [["status"], ["sync"], ["pause"], ["unlink"], ["ls", "--folder"]])
def test_a_state_that_cannot_be_used_is_told_in_a_line(place: Folder, args: list[str]) -> None:
    with contextlib.closing(sqlite3.connect(place.state_path)) as conn:
        conn.execute("PRAGMA user_version = 999")
    other = CliRunner().invoke(app, [*args, str(place.path)])
    assert (other.exit_code, other.stderr.count("\n")) == (Exit.FOLDER, 1)
    for path in place.state_path.parent.glob(f"{place.state_path.name}*"):
        path.write_bytes(b"no database" * 1_000)
    damaged = CliRunner().invoke(app, [*args, str(place.path)])
    assert (damaged.exit_code, damaged.stderr.count("\n")) == (Exit.FOLDER, 1)
    assert "damaged" in damaged.stderr
