"""Which PostgreSQL is run."""

import secrets
from pathlib import Path

import pytest

from ops.errors import ProgramsMissing
from ops.osuser import ensure_server_user
from ops.programs import MIN_MAJOR, PgPrograms, ProgramSource, find_programs, inspect_programs


def install(folder: Path, version: str) -> Path:
    """Programs that say a version and do nothing else."""
    folder.mkdir(parents=True)
    for name in ("postgres", "initdb"):
        (folder / name).write_text(f"#!/bin/sh\necho '{name} (PostgreSQL) {version}'\n")
        (folder / name).chmod(0o755)
    return folder


@pytest.fixture
def own_path(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that the servers' user may enter, alone in PATH with the system's tools."""
    folder = run_folder / f"path-{secrets.token_hex(4)}"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}/bin:/usr/bin:/bin")
    monkeypatch.delenv("SHARDBOX_PG_BIN", raising=False)
    return folder


def test_the_setting_goes_first(own_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(own_path / "bin", "17.2")
    chosen = install(own_path / "chosen", f"{MIN_MAJOR}.4")
    monkeypatch.setenv("SHARDBOX_PG_BIN", str(chosen))

    assert find_programs(ensure_server_user()) == PgPrograms(chosen, MIN_MAJOR, 4, ProgramSource.SETTING)


def test_a_setting_that_cannot_be_used_is_an_error_and_not_passed_over(
    own_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in (install(own_path / "old", "15.9"), own_path / "empty"):
        monkeypatch.setenv("SHARDBOX_PG_BIN", str(folder))
        with pytest.raises(ProgramsMissing, match="SHARDBOX_PG_BIN="):
            find_programs(ensure_server_user())


def test_a_new_enough_one_in_path_is_taken(own_path: Path) -> None:
    found = install(own_path / "bin", "99.1")

    assert find_programs(ensure_server_user()) == PgPrograms(found, 99, 1, ProgramSource.SYSTEM)


def test_an_old_one_in_path_is_passed_over(own_path: Path) -> None:
    install(own_path / "bin", f"{MIN_MAJOR - 1}.18 (Debian {MIN_MAJOR - 1}.18-0+deb12u1)")

    found = find_programs(ensure_server_user())

    assert found.major >= MIN_MAJOR
    assert found.bin_dir != own_path / "bin"


def test_programs_that_say_nothing_sensible_are_none(own_path: Path) -> None:
    folder = install(own_path / "odd", "x")

    assert inspect_programs(folder, ProgramSource.SYSTEM) is None
