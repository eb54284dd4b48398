"""Base backups of a running server, what a folder of them tells, and what the doctor says of it all."""

import os
import shutil
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest

from ops.backup.repository import BackupMissing, ShardBackups
from ops.backup.wal import Segment
from ops.doctor.backups import check_archiver, check_backups, check_restores, check_work
from ops.doctor.finding import Finding, Verdict
from ops.postgres import PgServer
from ops.restore.work import RestoreState, Target, WorkPaths
from sharding.bootstrap import create_cluster
from tests.support.commands import OPERATOR, run_command
from tests.support.databases import FreshCluster, PgServers

SHARD = "shard-1"


class Backups:
    """`shardctl backup` on a fresh cluster and a folder of its own."""

    def __init__(self, cluster: FreshCluster, folder: Path):
        create_cluster(cluster.directory_dsn, cluster.shards)
        self.env = {"SHARDBOX_DIRECTORY_DSN": cluster.directory_dsn}
        self.folder = folder
        self.shard = ShardBackups(folder, SHARD)

    def run(self, *args: str, fault: str = "") -> Any:
        options = [] if args[0] == "archiver" else ["--to", str(self.folder)]
        env = self.env | {"SHARDBOX_FAULT": fault}
        return run_command(OPERATOR, "backup", *args, *options, "--output", "json", env=env)

    def ok(self, *args: str) -> Any:
        done = self.run(*args)
        assert done.returncode == 0, done.stderr
        return msgspec.json.decode(done.stdout)

    def error(self, *args: str) -> tuple[int, str]:
        done = self.run(*args)
        return done.returncode, done.stderr.splitlines()[-1].split(": ")[1]


@pytest.fixture
def backups(fresh_cluster: FreshCluster, tmp_path: Path) -> Backups:
    return Backups(fresh_cluster, tmp_path / "backups")


def test_a_backup_is_listed_once_it_is_whole_and_damage_is_found(backups: Backups) -> None:
    assert backups.error("list") == (3, "not_found")
    assert backups.run("base", SHARD, fault="ops.backup.copied").returncode == -9
    assert backups.ok("list")["backups"] == []
    assert len(list(backups.shard.base.iterdir())) == 2  # the lock, and what the killed one has left

    made = backups.ok("base", SHARD)["backup"]

    listed = backups.ok("list")["backups"]
    assert [b["backup"]["backup_id"] for b in listed] == [made["backup_id"]]
    assert len(list(backups.shard.base.iterdir())) == 2  # what was left is gone
    assert backups.ok("verify", SHARD)["backup"] == made
    data = backups.shard.data(made["backup_id"])
    control = data / "global" / "pg_control"
    content = control.read_bytes()
    control.write_bytes(b"x" + content[1:])
    assert backups.error("verify", SHARD) == (1, "backup_damaged")
    control.write_bytes(content)
    (data / "global" / "pg_filenode.map").unlink()
    assert backups.error("verify", SHARD) == (1, "backup_damaged")
    assert backups.error("verify", SHARD, "--backup", "nothing") == (3, "no_backup")
    assert backups.error("base", "shard-9") == (3, "not_found")
    with pytest.raises(BackupMissing):
        backups.shard.newest_before(datetime(2020, 1, 1, tzinfo=UTC))


def test_old_backups_and_the_segments_that_only_they_needed_are_pruned(backups: Backups) -> None:
    first = backups.ok("base", SHARD)["backup"]
    copied = backups.shard.folder("20200101T000000Z-0000")
    shutil.copytree(backups.shard.folder(first["backup_id"]), copied)
    record = msgspec.json.decode((copied / "backup.json").read_bytes())
    record |= {"backup_id": copied.name, "finished_at": "2020-01-01T00:00:00Z", "start_lsn": "0/1000000"}
    (copied / "backup.json").write_bytes(msgspec.json.encode(record))
    needed = backups.shard.get_backup(first["backup_id"]).first_segment
    names = [Segment(needed.timeline, needed.number + step).name for step in (-1, 0, 1)]
    for name in (*names, "00000002.history"):
        (backups.shard.wal / name).touch()

    told = backups.ok("prune", SHARD, "--keep", "1", "--dry-run")
    assert backups.ok("prune", SHARD, "--keep", "1") == told | {"is_dry_run": False}

    assert told["deleted_backups"] == [copied.name]
    assert told["deleted_segments"] == names[:1]
    assert [b.backup_id for b in backups.shard.list_backups()] == [first["backup_id"]]
    assert sorted(backups.shard.list_archived()) == sorted([*names[1:], "00000002.history"])


def verdicts(findings: list[Finding]) -> list[tuple[str, Verdict]]:
    return [(finding.check, finding.verdict) for finding in findings]


def test_the_doctor_tells_of_backups_that_are_missing_old_or_cannot_be_followed(backups: Backups) -> None:
    def examined(max_age: timedelta) -> list[tuple[str, Verdict]]:
        return verdicts(list(check_backups(backups.folder, [SHARD], max_age)))

    assert examined(timedelta(days=1)) == [("backup", Verdict.WARN)]
    made = backups.ok("base", SHARD)["backup"]
    assert examined(timedelta(days=1)) == [("backup", Verdict.WARN)]  # nothing is archived
    needed = backups.shard.get_backup(made["backup_id"]).first_segment
    (backups.shard.wal / needed.name).touch()
    assert examined(timedelta(days=1)) == [("backup", Verdict.OK)]
    assert examined(timedelta(0)) == [("backup", Verdict.WARN)]
    (backups.shard.wal / Segment(needed.timeline, needed.number + 2).name).touch()
    assert examined(timedelta(days=1)) == [("backup", Verdict.FAIL)]
    assert backups.error("verify", SHARD) == (1, "backup_damaged")
    (backups.shard.folder(made["backup_id"]) / "backup.json").write_text("{}")
    assert backups.error("list") == (1, "backup_damaged")
    assert examined(timedelta(days=1)) == [("backup", Verdict.FAIL)]


def test_the_doctor_tells_of_unfinished_restores(fresh_cluster: FreshCluster, tmp_path: Path) -> None:
    with psycopg.connect(fresh_cluster.shard_dsns[SHARD], autocommit=True) as conn:
        assert list(check_restores(conn, SHARD)) == []
        conn.execute(
            "INSERT INTO local.restores (restore_id, step, restored_to, original, kept, counts)"
            " VALUES ('r1', 'jumped', 'then', '[]', '[]', '{}')"
        )
        assert verdicts(list(check_restores(conn, SHARD))) == [("restore", Verdict.FAIL)]
    work = WorkPaths(tmp_path / "data")
    assert list(check_work(SHARD, work.data)) == []
    work.write_state(RestoreState(restore_id="r1", shard=SHARD, source="x", backup_id="b", target=Target()))
    assert verdicts(list(check_work(SHARD, work.data))) == [("restore", Verdict.FAIL)]


def test_the_doctor_passes_over_a_server_that_does_not_archive(pg_servers: PgServers) -> None:
    server: PgServer = pg_servers.directory
    with server.connect() as conn:
        assert list(check_archiver(conn, "directory")) == []  # it does not archive


def test_the_age_of_the_archive_is_that_of_its_newest_segment(tmp_path: Path) -> None:
    backups = ShardBackups(tmp_path, SHARD)
    backups.make_folders()
    assert backups.archived_until() is None
    for name in (Segment(1, 1).name, "00000002.history"):
        (backups.wal / name).touch()
    then = time.time() - 1_000
    os.utime(backups.wal / Segment(1, 1).name, (then, then))
    until = backups.archived_until()
    assert until is not None
    assert abs(until.timestamp() - then) < 1
