"""`shardctl dev` with every process."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from ops.doctor.backups import check_archiver
from ops.errors import EXIT_FAILURE, EXIT_NOT_FOUND, EXIT_UNAVAILABLE, EXIT_USAGE
from ops.readiness import http_status
from tests.restore.course import SHORT, run_course
from tests.restore.drill import Report
from tests.support.commands import OPERATOR, run_command
from tests.support.databases import PgServers
from tests.support.dev import DevCluster, running_cluster
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

SERVERS = ("metaserver-1", "metaserver-2", "blockserver", "notifserver")


@pytest.fixture(scope="module")
def dev_cluster(pg_servers: PgServers, own_passfile: None) -> Iterator[DevCluster]:
    """Every process of a cluster, which archives its logs."""
    with running_cluster(is_archiving=True) as cluster:
        yield cluster


def shardctl(cluster: DevCluster, *args: str) -> "subprocess.CompletedProcess[str]":
    return run_command(OPERATOR, *args, env={"SHARDBOX_DEV_DIR": str(cluster.layout.root)})


def test_everything_answers_on_the_loopback_interface_alone(dev_cluster: DevCluster) -> None:
    status = msgspec.json.decode(shardctl(dev_cluster, "dev", "status", "--output", "json").stdout)

    assert status["is_up"]
    assert [p["name"] for p in status["processes"]] == ["directory", "shard-1", "shard-2", *SERVERS]
    assert all(p["is_ready"] and Path(p["log"]).exists() for p in status["processes"])
    for url in [*status["metaserver_urls"], status["blockserver_url"], status["notifserver_url"]]:
        assert url.startswith("http://127.0.0.1:")
        assert http_status(url, "/healthz") == http_status(url, "/metrics") == 200
    ours = {f":{p['port']:04X}" for p in status["processes"]}
    listening = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    assert all(row[1].startswith("0100007F") for row in listening if row[1][8:] in ours and row[3] == "0A")


def test_no_password_shows_in_arguments_or_logs_and_secrets_are_private(dev_cluster: DevCluster) -> None:
    layout = dev_cluster.layout
    passwords = [line.rpartition(":")[2] for line in layout.passfile.read_text().splitlines()]
    arguments = b"".join(Path(f"/proc/{pid}/cmdline").read_bytes() for pid in dev_cluster.pids().values())
    logs = "".join(path.read_text(errors="replace") for path in (layout.root / "logs").iterdir())

    assert len(set(passwords)) == 3
    assert not any(password.encode() in arguments or password in logs for password in passwords)
    for path in layout.secrets.iterdir():
        assert path.stat().st_mode & 0o077 == 0, path


def test_the_commands_find_the_embedded_cluster(dev_cluster: DevCluster) -> None:
    added = shardctl(dev_cluster, "user", "add", "ann@example.org", "--output", "json")
    examined = msgspec.json.decode(shardctl(dev_cluster, "doctor", "--output", "json").stdout)

    assert msgspec.json.decode(added.stdout)["email"] == "ann@example.org"
    assert examined["is_healthy"]
    assert sum(f["check"] == "ready" for f in examined["findings"]) == 4


@pytest.mark.parametrize("name", ["metaserver-1", "blockserver", "notifserver"])
def test_a_killed_server_comes_back_where_it_was(dev_cluster: DevCluster, name: str) -> None:
    before = dev_cluster.process(name)

    after = dev_cluster.wait_restarted(name, dev_cluster.kill(name))

    assert (after.restarts, after.url) == (before.restarts + 1, before.url)


def test_up_again_changes_nothing(dev_cluster: DevCluster) -> None:
    before = dev_cluster.pids()

    done = shardctl(dev_cluster, "dev", "up")

    assert done.returncode == 0, done.stderr
    assert dev_cluster.pids() == before
    assert dev_cluster.status().metaserver_urls[0] in done.stdout


@pytest.mark.long
def test_the_number_of_metaservers_can_be_changed(dev_cluster: DevCluster) -> None:
    before = dev_cluster.pids()

    assert shardctl(dev_cluster, "dev", "up", "--metaservers", "3").returncode == 0
    assert dev_cluster.process("metaserver-3").is_ready
    assert shardctl(dev_cluster, "dev", "up", "--metaservers", "2").returncode == 0
    assert dev_cluster.pids() == before


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (("--backup", "nothing"), "no_backup"),
        (("--to-time", "2001-01-01T00:00:00Z"), "no_backup"),
        (("--without", "nothing"), "not_found"),
    ],
)
def test_a_restore_that_cannot_begin_leaves_the_shard_running(
    dev_cluster: DevCluster, args: tuple[str, ...], code: str
) -> None:
    before = dev_cluster.pids()

    done = shardctl(dev_cluster, "restore", "shard", "shard-1", "--yes", *args)

    assert (done.returncode, done.stderr.splitlines()[-1].split(": ")[1]) == (EXIT_NOT_FOUND, code)
    assert dev_cluster.pids() == before


def test_a_restore_that_does_not_get_to_its_moment_is_abandoned(dev_cluster: DevCluster) -> None:
    restore = ("restore", "shard", "shard-2", "--yes", "--to-time", "2100-01-01T00:00:00Z")
    assert shardctl(dev_cluster, "backup", "base", "shard-2").returncode == 0
    assert "shardctl: recovery_failed: " in shardctl(dev_cluster, *restore).stderr
    assert "shardctl: data_lost: " in shardctl(dev_cluster, "dev", "up").stderr

    abandoned = shardctl(dev_cluster, "restore", "abandon", "shard-2")
    again = shardctl(dev_cluster, "restore", "abandon", "shard-2")

    assert (abandoned.returncode, again.returncode) == (0, EXIT_USAGE), abandoned.stderr
    assert shardctl(dev_cluster, "dev", "up").returncode == 0
    assert [path.name for path in (dev_cluster.layout.postgres / "shard-2").iterdir()] == ["data"]
    assert shardctl(dev_cluster, "doctor").returncode == 0


@pytest.mark.long
async def test_a_lost_shard_and_a_lost_directory_come_back(dev_cluster: DevCluster, tmp_path: Path) -> None:
    report = Report()

    await run_course(dev_cluster, tmp_path, report, SHORT)

    assert report.is_clean, report
    assert report.came_back_from_disk == 5, report
    assert report.other_shards_acked > 10
    assert shardctl(dev_cluster, "backup", "list").stdout.count("shard-1") == 1


def test_the_doctor_tells_when_archiving_fails_and_when_it_goes_on(dev_cluster: DevCluster) -> None:
    wal = dev_cluster.layout.backups / "shard-2" / "wal"
    with dev_cluster.connect("shard-2") as conn:

        def archiving() -> str:
            (finding,) = check_archiver(conn, "shard-2")
            return finding.verdict

        def fill_a_segment() -> None:
            conn.execute("SELECT pg_logical_emit_message(false, 'test', 'something to archive')")
            conn.execute("SELECT pg_switch_wal()")

        wal.rename(wal.with_name("away"))
        fill_a_segment()
        wait_for(lambda: archiving() == "fail", "the failure being told")
        wal.with_name("away").rename(wal)
        fill_a_segment()  # else it waits for a minute before it tries again
        wait_for(lambda: archiving() == "ok", "the archiver going on", timeout_s=90)


def test_the_doctor_tells_what_right_it_lacks_to_look_at_the_archive(dev_cluster: DevCluster) -> None:
    with dev_cluster.connect("shard-2") as conn:
        conn.execute("CREATE ROLE plain")
        conn.execute("SET ROLE plain")
        (refused,) = check_archiver(conn, "shard-2")
        conn.execute("RESET ROLE")
        conn.execute("GRANT pg_monitor TO plain")
        conn.execute("SET ROLE plain")
        (seen,) = check_archiver(conn, "shard-2")
        conn.execute("RESET ROLE")
        conn.execute("DROP ROLE plain")

    assert (refused.verdict, str(refused.remedy)[:16]) == ("warn", "GRANT pg_monitor")
    assert seen.verdict == "ok"


@pytest.mark.long
def test_down_ends_the_servers_before_their_databases_and_up_brings_the_data_back(
    dev_cluster: DevCluster,
) -> None:
    shardctl(dev_cluster, "user", "add", "kept@example.org")
    ports = {p.name: p.port for p in dev_cluster.status().processes}

    assert shardctl(dev_cluster, "dev", "down").returncode == 0

    log = dev_cluster.layout.log("supervisor").read_text()
    stopped = [line.split()[1] for line in log.splitlines() if "stopped:" in line][-7:]
    assert set(stopped[:2]) == {"blockserver", "notifserver"}
    assert set(stopped[2:4]) == {"metaserver-1", "metaserver-2"}
    assert "killed" not in "".join(line for line in log.splitlines()[-7:] if "stopped:" in line)
    assert shardctl(dev_cluster, "dev", "status").returncode == EXIT_FAILURE
    dev_cluster.up()
    assert {p.name: p.port for p in dev_cluster.status().processes} == ports
    assert "kept@example.org" in shardctl(dev_cluster, "user", "list").stdout


def test_reset_asks_first_and_then_leaves_nothing(dev_cluster: DevCluster) -> None:
    assert shardctl(dev_cluster, "dev", "reset").returncode != 0  # nobody answers
    assert dev_cluster.status().is_up

    assert shardctl(dev_cluster, "dev", "reset", "--yes").returncode == 0
    assert not dev_cluster.layout.root.exists()
    assert dev_cluster.pids() == {}
    assert shardctl(dev_cluster, "dev", "status").returncode == EXIT_UNAVAILABLE


def test_a_folder_with_something_else_in_it_is_neither_used_nor_deleted(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    for command in (["up"], ["reset", "--yes"]):
        done = run_command(OPERATOR, "dev", *command, "--data-dir", str(tmp_path))
        assert (done.returncode, done.stderr.split(": ")[1]) == (EXIT_USAGE, "usage")
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
