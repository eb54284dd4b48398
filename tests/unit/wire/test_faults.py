"""Processes that are cut short, held, or watched at a fault point."""

import signal
import subprocess
import sys
from pathlib import Path

from tests.support.waiting import wait_for

PROGRAM = """
from wire import faults
faults.declare("test.one", "test.two")
faults.arm_from_environment()
for name in ("test.one", "test.two", "test.one"):
    faults.fault_point(name)
    print(name, flush=True)
"""
ROOT = Path(__file__).parents[3]


def start(**env: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM], env=env, cwd=ROOT, stdout=subprocess.PIPE, text=True
    )


def run(**env: str) -> tuple[int, list[str]]:
    with start(**env) as process:
        out, _ = process.communicate(timeout=30)
    return process.returncode, out.split()


def test_a_process_dies_at_the_time_that_is_named():
    assert run(SHARDBOX_FAULT="test.two") == (-signal.SIGKILL, ["test.one"])
    assert run(SHARDBOX_FAULT="test.one:2") == (-signal.SIGKILL, ["test.one", "test.two"])
    assert run() == (0, ["test.one", "test.two", "test.one"])


def test_a_process_dies_only_for_a_token_that_is_there(tmp_path: Path):
    token = tmp_path / "token"
    token.touch()

    assert run(SHARDBOX_FAULT=f"test.two@{token}") == (-signal.SIGKILL, ["test.one"])
    assert run(SHARDBOX_FAULT=f"test.two@{token}")[0] == 0


def test_a_process_stands_still_until_it_is_let_go(tmp_path: Path):
    meeting = tmp_path / "meeting"
    with start(SHARDBOX_FAULT=f"test.one:2!{meeting}") as process:
        wait_for(meeting.exists, "the process at its point")
        assert process.stdout is not None
        before = [process.stdout.readline().strip() for _ in range(2)]
        assert process.poll() is None
        meeting.unlink()
        after, _ = process.communicate(timeout=30)

    assert (before, after.split(), process.returncode) == (["test.one", "test.two"], ["test.one"], 0)


def test_a_trace_names_what_is_passed_in_order_the_last_point_too(tmp_path: Path):
    trace = tmp_path / "trace"

    run(SHARDBOX_FAULT_TRACE=str(trace))
    assert trace.read_text().split() == ["test.one", "test.two", "test.one"]
    trace.unlink()
    run(SHARDBOX_FAULT_TRACE=str(trace), SHARDBOX_FAULT="test.two")
    assert trace.read_text().split() == ["test.one", "test.two"]
