"""One run of pytest, over all its xdist workers: its folder, and the servers that end with it."""

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from ops.processes import ProcessHandle, ProcessIdentity, stop
from tests.support.keeper import KEEPER_FILE

RUN_DIR_VARIABLE = "SHARDBOX_TEST_RUN_DIR"
OWNER_VARIABLE = "SHARDBOX_TEST_RUN_OWNER"
STOP_GRACE_S = 20.0
MEMORY = Path("/dev/shm")
"""Tests make some five hundred databases of 300 files each: on some disks a fifth of all their time,
in memory next to nothing."""
ROOM_BYTES = 6 * 2**30


def pytest_configure(config: pytest.Config) -> None:
    """Make the run's folder; the workers inherit the variables."""
    if not hasattr(config, "workerinput"):
        _begin(MEMORY if _has_room(MEMORY) else None)


def pytest_unconfigure(config: pytest.Config) -> None:
    """End what the run has started."""
    if not hasattr(config, "workerinput"):
        _end()


@contextmanager
def own_run() -> Iterator[None]:
    """A run without pytest, for the long suites: its servers lie on a disk, as everywhere else."""
    _begin(None)
    try:
        yield
    finally:
        _end()


def _has_room(folder: Path) -> bool:
    try:
        return shutil.disk_usage(folder).free >= ROOM_BYTES
    except OSError:
        return False


def _begin(parent: Path | None) -> None:
    folder = Path(tempfile.mkdtemp(prefix="shardbox-test-", dir=parent))
    folder.chmod(0o711)  # the servers' user walks through it
    os.environ[RUN_DIR_VARIABLE] = str(folder)
    os.environ[OWNER_VARIABLE] = str(os.getpid())


def _end() -> None:
    """Stop the keeper, if one was needed; it also ends by itself when this process is killed."""
    folder = run_dir()
    try:
        pid, start_ticks, boot_id = msgspec.json.decode((folder / KEEPER_FILE).read_bytes())
        keeper = ProcessHandle(ProcessIdentity(pid, start_ticks, boot_id))
    except (FileNotFoundError, ProcessLookupError):
        shutil.rmtree(folder, ignore_errors=True)
        return
    stop(keeper, signal.SIGTERM, grace_s=STOP_GRACE_S)
    keeper.close()


def run_dir() -> Path:
    """The folder of this run, the same in all its workers; other users may walk through it, not list it."""
    return Path(os.environ[RUN_DIR_VARIABLE])


def owner_pid() -> int:
    """The process whose end is the run's end."""
    return int(os.environ[OWNER_VARIABLE])


@pytest.fixture(scope="session")
def run_folder() -> Path:
    """The folder of this run; nothing in it outlives the run."""
    return run_dir()
