"""How a comparison ends before its time, what it leaves behind, and how it goes on."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from sharding.locks import GATE_LOCK_CLASS, SLOT_LOCK_CLASS
from sharding.reshard import verify_chunks, verify_snapshots
from sharding.reshard.errors import FenceHeld, MoveBusy, MoveError
from sharding.reshard.marker import MarkerLate, bump_marker
from sharding.reshard.verify import ComparisonCut, GateOpened, Verified, VerifyReport
from tests.support.streams import MOVE_ID, UNITS, StreamPair, streams, write_namespace, writers
from tests.support.waiting import wait_for
from wire import faults
from wire.ids import NsId, slot_of

pytestmark = pytest.mark.usefixtures("slots_in_turn")

__all__ = ["streams"]

POINTS = ("reshard.verify.gate_closed", "reshard.verify.snapshot_taken", "reshard.verify.chunk_done")
NAMESPACES = [NsId(unit.key + count) for unit in UNITS for count in (0, 1)]
SLOT = slot_of(UNITS[0].key)


@pytest.fixture
def filled(streams: StreamPair) -> StreamPair:
    """Streams with some rows, two of which differ; of few tables, so that there are few chunks."""
    for ns_id in NAMESPACES:
        write_namespace(streams.ours, ns_id, 10)
    streams.catch_up()
    streams.stop_way_back()
    streams.theirs.execute("UPDATE ns.members SET level = 'x' WHERE ns_id = %s", [NAMESPACES[0]])
    streams.theirs.execute("DELETE FROM ns.members WHERE ns_id = %s", [NAMESPACES[-1]])
    return replace(streams, tables=[t for t in streams.tables if t.name in ("members", "namespaces")])


def list_held(pair: StreamPair) -> list[tuple[object, ...]]:
    """Who holds, or waits for, a gate or slot in either database."""
    query = (
        "SELECT pid, classid, granted FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 2"
        " AND classid IN (%s, %s)"
        " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    )
    params = [GATE_LOCK_CLASS, SLOT_LOCK_CLASS]
    return [row for conn in (pair.ours, pair.theirs) for row in conn.execute(query, params).fetchall()]


def assert_harmless(pair: StreamPair) -> None:
    """Pass when nothing is locked any more, and the stream runs."""
    try:
        wait_for(lambda: not list_held(pair), "nothing locked")
    except AssertionError as error:
        raise AssertionError(f"still locked: {list_held(pair)}") from error
    pair.catch_up()


def at_point(monkeypatch: pytest.MonkeyPatch, point: str, act: Callable[[], object]) -> None:
    """Have something happen when this process passes a fault point."""

    def passed(name: str) -> None:
        if name == point:
            act()

    monkeypatch.setattr(faults, "fault_point", passed)


class Stopped(Exception):
    """A runner was told to end."""


def test_it_goes_on_after_any_chunk(filled: StreamPair, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(verify_chunks, "CHUNK_ROWS", 15)
    whole = filled.verify()
    assert whole.difference_count == 20
    assert whole.chunks > 6

    def stop(_: Verified) -> None:
        raise Stopped

    progress: Verified | None = None
    while progress is None or progress.table is not None:
        with pytest.raises(Stopped):
            filled.verify(progress, stop)
        # As the directory keeps it.
        progress = msgspec.json.decode(msgspec.json.encode(filled.saved[-1]), type=Verified)
    assert msgspec.structs.replace(progress.report, pauses_ms=()) == msgspec.structs.replace(
        whole, pauses_ms=()
    )
    assert len(progress.report.pauses_ms) >= progress.report.chunks
    assert_harmless(filled)


def test_what_ended_or_is_of_another_owner_is_begun_anew(filled: StreamPair):
    report = filled.verify()
    ended, begun = filled.saved[-1], filled.saved[0]
    assert ended.table is None
    for progress in (ended, msgspec.structs.replace(begun, owner="another")):
        again = filled.verify(progress)
        assert (again.rows, again.chunks, again.difference_count) == (report.rows, report.chunks, 20)


def test_a_writer_that_does_not_end_is_named(filled: StreamPair):
    with filled.owner.connect() as conn:
        conn.execute("BEGIN")
        conn.execute("SELECT pg_advisory_xact_lock_shared(%s, %s)", [SLOT_LOCK_CLASS, SLOT])
        conn.execute("SELECT 'a long one'")
        with pytest.raises(FenceHeld) as raised:
            filled.verify()
        assert f"pid {conn.info.backend_pid} (idle in transaction" in str(raised.value)
        assert "a long one" in str(raised.value)
    assert_harmless(filled)


def test_a_prepared_transaction_is_named(filled: StreamPair):
    gid = f"t{os.getpid()}_{filled.name}"
    with filled.owner.connect() as conn:
        conn.execute("BEGIN")
        conn.execute("SELECT pg_advisory_xact_lock_shared(%s, %s)", [SLOT_LOCK_CLASS, SLOT])
        conn.execute(f"PREPARE TRANSACTION '{gid}'".encode())
        try:
            with pytest.raises(FenceHeld, match=gid):
                filled.verify()
        finally:
            conn.execute(f"ROLLBACK PREPARED '{gid}'".encode())
    assert_harmless(filled)


def test_writers_do_not_wait_for_a_comparison_that_waits(filled: StreamPair):
    """While one slow writer holds a comparison off, the others' commits go on between its tries."""
    with filled.owner.connect() as conn:
        conn.execute("BEGIN")
        conn.execute("SELECT pg_advisory_xact_lock_shared(%s, %s)", [SLOT_LOCK_CLASS, SLOT])
        with writers(filled, NAMESPACES) as commits:
            with pytest.raises(FenceHeld):
                filled.verify()
            assert sum(commits) > 0
            before = sum(commits)
            wait_for(lambda: sum(commits) > before, "commits after it")


def test_a_stream_that_stands_still_is_late(filled: StreamPair, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(verify_snapshots, "MARKER_TIMEOUT_S", 0.2)
    filled.theirs.execute(f"ALTER SUBSCRIPTION {filled.name} DISABLE".encode())
    with pytest.raises(MarkerLate):
        filled.verify()
    filled.theirs.execute(f"ALTER SUBSCRIPTION {filled.name} ENABLE".encode())
    assert_harmless(filled)


def test_a_stream_that_stops_before_the_gate_is_late(filled: StreamPair, monkeypatch: pytest.MonkeyPatch):
    def disable() -> None:
        monkeypatch.setattr(verify_snapshots, "MARKER_TIMEOUT_S", 0.2)
        filled.theirs.execute(f"ALTER SUBSCRIPTION {filled.name} DISABLE".encode())
        wait_for(lambda: not workers(filled), "no worker")

    at_point(monkeypatch, "reshard.verify.gate_closed", disable)
    with pytest.raises(MarkerLate):
        filled.verify()
    filled.theirs.execute(f"ALTER SUBSCRIPTION {filled.name} ENABLE".encode())
    assert_harmless(filled)


def workers(pair: StreamPair) -> list[object]:
    """The processes that apply the stream."""
    query = "SELECT pid FROM pg_stat_subscription WHERE subname = %s AND pid IS NOT NULL"
    return [row[0] for row in pair.theirs.execute(query, [pair.name]).fetchall()]


def test_another_comparison_at_the_gate_is_told(filled: StreamPair, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(verify_snapshots, "GATE_TIMEOUT", "100ms")
    with filled.follower.connect() as conn:
        conn.execute("SELECT pg_advisory_lock(%s, %s)", [GATE_LOCK_CLASS, MOVE_ID])
        # The first marker is not waited for at a gate; it is only here that somebody holds it all the time.
        monkeypatch.setattr(verify_snapshots, "_catch_up", lambda *_: None)
        with pytest.raises(MoveBusy):
            filled.verify()
    assert_harmless(filled)


def test_a_marker_of_somebody_else_is_not_taken_for_ones_own(
    filled: StreamPair, monkeypatch: pytest.MonkeyPatch
):
    """A runner that was given up may still write: the stream then stops too early."""
    at_point(
        monkeypatch,
        "reshard.verify.gate_closed",
        lambda: bump_marker(filled.ours, UNITS[0].key, filled.owner.name, MOVE_ID),
    )
    with pytest.raises(GateOpened):
        filled.verify()
    assert_harmless(filled)


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("side", ["ours", "theirs"])
def test_lost_sessions_end_it(filled: StreamPair, monkeypatch: pytest.MonkeyPatch, point: str, side: str):
    conn = filled.ours if side == "ours" else filled.theirs
    kill = (
        "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = current_database()"
        " AND application_name = 'shardctl move' AND pid <> pg_backend_pid()"
    )
    at_point(monkeypatch, point, lambda: conn.execute(kill))
    with pytest.raises(ComparisonCut) as raised:
        filled.verify()
    assert isinstance(raised.value, MoveError)
    monkeypatch.undo()
    assert_harmless(filled)
    assert filled.verify().difference_count == 20


def start_runner(pair: StreamPair, folder: Path, fault: str = "") -> subprocess.Popen[bytes]:
    """A comparison in a process of its own."""
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "tests.support.streams"),
            *(pair.owner.name, pair.owner.dsn, pair.follower.name, pair.follower.dsn, str(folder)),
        ],
        env=os.environ | {"SHARDBOX_FAULT": fault},
    )


@pytest.mark.parametrize("point", POINTS)
def test_a_killed_runner_leaves_nothing_locked(filled: StreamPair, tmp_path: Path, point: str):
    assert start_runner(filled, tmp_path, point).wait(60) == -signal.SIGKILL
    assert_harmless(filled)
    assert (tmp_path / "progress").exists() == (point == "reshard.verify.chunk_done")
    assert start_runner(filled, tmp_path).wait(60) == 0
    report = msgspec.json.decode((tmp_path / "report").read_bytes(), type=VerifyReport)
    assert report.difference_count == 20


@pytest.mark.long
def test_a_runner_that_stands_still_holds_nobody_for_long(filled: StreamPair, tmp_path: Path):
    """Held as by SIGSTOP, with the locks taken and the gate closed: the servers end its sessions."""
    meeting = tmp_path / "meeting"
    runner = start_runner(filled, tmp_path, f"reshard.verify.snapshot_taken!{meeting}")
    try:
        wait_for(meeting.exists, "the runner at its point")
        assert_harmless(filled)
        meeting.unlink()
        assert runner.wait(60) == 1
    finally:
        runner.kill()
        runner.wait(10)
