"""Finding processes again, and never a stranger."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ops.errors import StartFailed
from ops.processes import (
    ProcessHandle,
    ProcessIdentity,
    base_environment,
    find_marked,
    processes_in,
    spawn,
    stop,
)
from tests.support.waiting import wait_for

WAIT = "import signal; signal.pause()"
FORK = "import os, signal; os.fork(); signal.pause()"
STUBBORN = "import signal; signal.signal(15, signal.SIG_IGN); print('up', flush=True); signal.pause()"


@pytest.fixture
def prefix(tmp_path: Path) -> Iterator[str]:
    """Marks of this test alone; what carries them is ended."""
    yield f"{tmp_path}:"
    for identity in find_marked(f"{tmp_path}:").values():
        os.killpg(identity.pid, signal.SIGKILL)


def start(prefix: str, name: str, code: str, tmp_path: Path) -> ProcessHandle:
    return spawn(
        [sys.executable, "-c", code],
        mark=f"{prefix}{name}",
        env=os.environ,
        log=tmp_path / f"{name}.log",
        cwd=tmp_path,
    )


def test_marked_processes_are_found_by_whoever_comes_later(prefix: str, tmp_path: Path) -> None:
    one, two = (start(prefix, name, WAIT, tmp_path) for name in ("one", "two"))

    assert find_marked(prefix) == {"one": one.identity, "two": two.identity}
    assert {p.pid for p in processes_in(tmp_path)} == {one.pid, two.pid}
    for handle in (one, two):
        assert stop(handle, signal.SIGTERM, grace_s=10)
        assert handle.exit_text() == "killed by SIGTERM"
        assert not handle.identity.is_alive()
        handle.close()
    assert find_marked(prefix) == {}


def test_a_fork_is_not_taken_for_its_parent(prefix: str, tmp_path: Path) -> None:
    parent = start(prefix, "forking", FORK, tmp_path)
    wait_for(lambda: len(processes_in(tmp_path)) == 2, "the fork")

    assert find_marked(prefix) == {"forking": parent.identity}
    os.killpg(parent.pid, signal.SIGKILL)
    assert parent.wait(10)
    parent.close()


def test_another_process_of_the_same_pid_is_not_taken_hold_of() -> None:
    with subprocess.Popen([sys.executable, "-c", WAIT]) as process:
        identity = ProcessIdentity.find(process.pid)
        assert identity is not None
        former = ProcessIdentity(identity.pid, identity.start_ticks - 1, identity.boot_id)
        before_boot = ProcessIdentity(identity.pid, identity.start_ticks, "another boot")
        for stranger in (former, before_boot):
            assert not stranger.is_alive()
            with pytest.raises(ProcessLookupError):
                ProcessHandle(stranger)
        process.kill()


def test_who_does_not_listen_is_killed(prefix: str, tmp_path: Path) -> None:
    handle = start(prefix, "stubborn", STUBBORN, tmp_path)
    wait_for(lambda: "up" in (tmp_path / "stubborn.log").read_text(), "its readiness")

    assert not stop(handle, signal.SIGTERM, grace_s=0.05)
    assert handle.exit_text() == "killed by SIGKILL"
    handle.close()


def test_a_program_that_is_not_there(prefix: str, tmp_path: Path) -> None:
    with pytest.raises(StartFailed, match="cannot run /no/such"):
        spawn(["/no/such"], mark=prefix, env={}, log=tmp_path / "log", cwd=tmp_path)


def test_what_the_caller_set_for_itself_stays_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHARDBOX_FAULT", "x")
    monkeypatch.setenv("PGHOST", "x")
    monkeypatch.setenv("LANG", "C.UTF-8")

    assert {"SHARDBOX_FAULT", "PGHOST"}.isdisjoint(base_environment())
    assert base_environment()["LANG"] == "C.UTF-8"
