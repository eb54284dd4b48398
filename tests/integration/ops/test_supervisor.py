"""The supervisor against real processes that are killed."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import psycopg
import pytest

from ops import dev
from ops.errors import StartFailed
from ops.processes import ProcessIdentity, processes_in
from ops.specs import ProcessKind, ProcessSpec, Stage
from ops.state import ProcessState, read_specs, read_state
from tests.support.commands import OPERATOR, run_command
from tests.support.dev import DevCluster
from tests.support.waiting import wait_for


@pytest.fixture
def databases(dev_databases: DevCluster) -> DevCluster:
    """The module's cluster, up."""
    dev_databases.ensure_up()
    return dev_databases


@pytest.fixture
def bystander() -> Iterator["subprocess.Popen[bytes]"]:
    """A process that has nothing to do with the cluster."""
    with subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"]) as process:
        yield process
        process.kill()


def state_of(cluster: DevCluster, name: str) -> ProcessState:
    """A process as the supervisor has written it down."""
    return next(state for state in read_state(cluster.layout).processes if state.name == name)


def test_a_killed_postgres_is_started_again(databases: DevCluster) -> None:
    before = databases.process("shard-1")
    with databases.connect("shard-1") as conn:
        conn.execute("CREATE TABLE kept AS SELECT 7 AS n")
        conn.execute("CHECKPOINT")

    pid = databases.kill("shard-1")
    after = databases.wait_restarted("shard-1", pid)

    assert after.restarts == before.restarts + 1
    assert after.last_exit == "killed by SIGKILL"
    assert after.port == before.port
    with databases.connect("shard-1") as conn:
        assert conn.execute("SELECT n FROM kept").fetchone() == (7,)
    assert f"shard-1 (pid {pid}) ended: killed by SIGKILL" in databases.layout.log("supervisor").read_text()


def test_backends_that_outlive_their_postmaster_are_put_away(databases: DevCluster) -> None:
    data_dir = Path(read_specs(databases.layout)["shard-2"].data_dir or "")
    with databases.connect("shard-2") as conn:
        backend = conn.info.backend_pid

        def spin() -> None:
            # A loop in a statement does not look whether its postmaster lives.
            with pytest.raises(psycopg.OperationalError):
                conn.execute("DO $$ BEGIN LOOP PERFORM 1; END LOOP; END $$")

        thread = threading.Thread(target=spin)
        thread.start()
        with databases.connect("shard-2") as onlooker:
            query = "SELECT state = 'active' FROM pg_stat_activity WHERE pid = %s"
            wait_for(lambda: onlooker.execute(query, [backend]).fetchone() == (True,), "a busy backend")
        pid = databases.kill("shard-2")
        databases.wait_restarted("shard-2", pid)
        thread.join()

    assert backend not in [process.pid for process in processes_in(data_dir)]


def test_a_new_supervisor_adopts_what_runs(databases: DevCluster) -> None:
    before = databases.pids()

    databases.kill_supervisor()
    assert databases.status().supervisor_pid is None
    assert not databases.status().is_up
    databases.up()

    after = databases.pids()
    assert after.pop("supervisor") != before.pop("supervisor")
    assert after == before
    assert state_of(databases, "shard-1").adopted
    pid = databases.kill("directory")
    assert databases.wait_restarted("directory", pid).last_exit == "ended"


def test_what_died_unwatched_is_started_by_the_next_supervisor(databases: DevCluster) -> None:
    databases.kill_supervisor()
    pid = databases.kill("shard-1")
    databases.up()

    assert databases.wait_restarted("shard-1", pid).last_exit == "ended while nobody watched"


def test_a_recycled_pid_is_neither_adopted_nor_killed(
    databases: DevCluster, bystander: "subprocess.Popen[bytes]"
) -> None:
    databases.kill_supervisor()
    databases.kill("shard-1")
    stranger = ProcessIdentity.find(bystander.pid)
    assert stranger is not None
    state = read_state(databases.layout)
    record = next(s for s in state.processes if s.name == "shard-1")
    record.pid, record.start_ticks = stranger.pid, stranger.start_ticks
    databases.layout.state_file.write_bytes(msgspec.json.encode(state))
    pid_file = Path(read_specs(databases.layout)["shard-1"].data_dir or "") / "postmaster.pid"
    lines = pid_file.read_text().splitlines()
    pid_file.write_text("\n".join([str(stranger.pid), *lines[1:]]) + "\n")

    databases.up()
    assert databases.process("shard-1").pid != stranger.pid
    databases.down()

    assert bystander.poll() is None


@pytest.mark.long
def test_two_ups_at_once_make_one_cluster(databases: DevCluster) -> None:
    databases.down()
    command = ["dev", "up", "--databases-only", "--output", "json"]
    command += ["--data-dir", str(databases.layout.root)]

    def run(_: int) -> "subprocess.CompletedProcess[str]":
        return run_command(OPERATOR, *command)

    with ThreadPoolExecutor(2) as pool:
        runs = list(pool.map(run, range(2)))

    assert [done.returncode for done in runs] == [0, 0], [done.stderr for done in runs]
    told = [msgspec.json.decode(done.stdout) for done in runs]
    assert told[0]["supervisor_pid"] == told[1]["supervisor_pid"] == databases.pids()["supervisor"]
    assert set(databases.pids()) == {"supervisor", "directory", "shard-1", "shard-2"}


def test_down_and_up_keep_data_and_ports(databases: DevCluster) -> None:
    ports = {p.name: p.port for p in databases.status().processes}
    with databases.connect("directory") as conn:
        conn.execute("CREATE TABLE kept_too AS SELECT 8 AS n")

    databases.down()
    assert databases.pids() == {}
    databases.down()  # once more is no error
    databases.up()

    assert {p.name: p.port for p in databases.status().processes} == ports
    with databases.connect("directory") as conn:
        assert conn.execute("SELECT n FROM kept_too").fetchone() == (8,)


def test_down_works_without_a_supervisor(databases: DevCluster) -> None:
    databases.kill_supervisor()
    databases.down()

    assert databases.pids() == {}
    for spec in ("directory", "shard-1", "shard-2"):
        assert processes_in(databases.layout.postgres / spec / "data") == []


def _web_spec(cluster: DevCluster, name: str, argv: list[str]) -> ProcessSpec:
    return ProcessSpec(
        name=name,
        kind=ProcessKind.CLIENT,
        stage=Stage.CLIENT,
        argv=[sys.executable, *argv],
        env={"OWN": "1"},
        cwd=str(cluster.layout.root),
        log=str(cluster.layout.log(name)),
    )


@pytest.mark.long
def test_a_process_that_cannot_start_is_retried_ever_more_slowly(databases: DevCluster) -> None:
    specs = list(read_specs(databases.layout).values())
    broken = _web_spec(databases, "broken", ["-c", "import sys; print('no luck'); sys.exit(3)"])
    dev.ask_for(databases.layout, [*specs, broken], print)

    with pytest.raises(StartFailed, match=r"broken keeps dying \(exit status 3\)[\s\S]*no luck"):
        dev.wait_until_ready(databases.layout, {"broken": lambda: False})

    # Five deaths with 0, 0.2, 0.4 and 0.8 s between them; without backing off they would be many more.
    assert state_of(databases, "broken").restarts < 10
    assert databases.process("shard-1").pid is not None
    dev.ask_for(databases.layout, specs, print)
    wait_for(lambda: "broken" not in databases.pids(), "nobody starting it again")


def test_owners_may_add_variables_to_a_process(
    databases: DevCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHARDBOX_FAULT", "meant.for.somebody.else")
    config = {"env": {"client": {"OWN": "2"}, "waiting": {"ADDED": "3"}}}
    databases.layout.config_file.write_bytes(msgspec.json.encode(config))
    specs = list(read_specs(databases.layout).values())
    waiting = _web_spec(databases, "waiting", ["-c", "import signal; signal.pause()"])
    dev.ask_for(databases.layout, [*specs, waiting], print)
    pid = wait_for(lambda: databases.pids().get("waiting"), "the process")

    environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    assert {b"OWN=2", b"ADDED=3"} <= set(environment)
    assert not any(variable.startswith(b"SHARDBOX_FAULT") for variable in environment)

    databases.layout.config_file.unlink()
    dev.ask_for(databases.layout, specs, print)
    wait_for(lambda: "waiting" not in databases.pids(), "its end")


def test_logs_are_cut_before_they_fill_the_disk(databases: DevCluster) -> None:
    log = databases.layout.log("shard-1")
    os.truncate(log, 17 * 1024 * 1024)

    wait_for(lambda: log.with_suffix(".log.1").exists() and log.stat().st_size < 1024 * 1024, "a short log")


@pytest.mark.long
def test_a_stopped_process_is_left_alone_and_can_be_stopped_for_good(databases: DevCluster) -> None:
    restarts = databases.process("shard-2").restarts
    pid = databases.kill("shard-2", signal.SIGSTOP)
    assert not databases.process("shard-2").is_ready

    databases.down()

    assert databases.pids() == {}
    databases.up()
    report = databases.process("shard-2")
    assert (report.restarts, report.pid != pid) == (restarts, True)
