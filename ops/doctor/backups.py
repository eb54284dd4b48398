"""Whether what was lost could be brought back: archiving, base backups, restores that were begun."""

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg

from ops.backup.repository import BackupDamaged, ShardBackups
from ops.doctor.finding import Finding, fail, ok, warn
from ops.restore.work import WorkPaths
from sharding.directory import Connection

MAX_BACKUP_AGE = timedelta(hours=36)
"""A daily backup that is half a day late. The older the backup, the longer the log that a restore replays."""
MAX_WAITING_SEGMENTS = 4
"""Of 16 MiB, complete and not archived: what is lost with the disk."""


def check_archiver(conn: Connection, subject: str) -> Iterator[Finding]:
    """Whether a server that archives its log gets it archived; nothing about one that does not."""
    mode = conn.execute("SHOW archive_mode").fetchone()
    if mode is None or mode[0] == "off":
        return
    try:
        row = _read_archiver(conn)
    except psycopg.errors.InsufficientPrivilege:
        remedy = f"GRANT pg_monitor TO {conn.info.user}"
        yield warn("archiving", subject, "this role may not see what waits to be archived", remedy)
        return
    is_failing, failed, count, last, waiting = row
    if is_failing:
        remedy = "the server's log has the archiver's words; is its folder there, writable and not full?"
        yield fail("archiving", subject, f"{failed} cannot be archived ({count} failures)", remedy)
    elif waiting > MAX_WAITING_SEGMENTS:
        remedy = "the archive is too slow for what is written: what waits is lost with the server's disk"
        yield warn("archiving", subject, f"{waiting} segments wait to be archived", remedy)
    else:
        yield ok("archiving", subject, f"archived up to {last}" if last else "nothing to archive yet")


def _read_archiver(conn: Connection) -> tuple[Any, ...]:
    """Whether it fails, at which segment and how often; the last one archived; how many wait."""
    row = conn.execute(
        "SELECT last_failed_time > coalesce(last_archived_time, '-infinity'), last_failed_wal, failed_count,"
        " last_archived_wal,"
        " (SELECT count(*) FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready') FROM pg_stat_archiver"
    ).fetchone()
    assert row is not None
    return row


def check_restores(conn: Connection, subject: str) -> Iterator[Finding]:
    """Restores that the shard itself says to be unfinished."""
    for restore_id, step in conn.execute(
        "SELECT restore_id, step FROM local.restores WHERE finished_at IS NULL ORDER BY began_at"
    ):
        yield _unfinished(subject, f"restore {restore_id} ended after step {step}")


def check_work(subject: str, data_dir: Path) -> Iterator[Finding]:
    """Restores that are unfinished by what lies beside a data folder."""
    state = WorkPaths(data_dir).read_state()
    if state is not None:
        yield _unfinished(
            subject, f"restore {state.restore_id} to {state.target.text} ended at: {state.phase}"
        )


def _unfinished(subject: str, detail: str) -> Finding:
    return fail("restore", subject, detail, "run the `shardctl restore` that was begun again")


def check_backups(folder: Path, shards: Iterable[str], max_age: timedelta) -> Iterator[Finding]:
    """Whether each shard has a base backup that is young enough, and an archive without a gap."""
    for shard in shards:
        backups = ShardBackups(folder, shard)
        try:
            found = backups.list_backups()
        except BackupDamaged as error:
            yield fail("backup", shard, str(error), "remove that base backup, and take another")
            continue
        remedy = f"run `shardctl backup base {shard}`, and once a day from now on"
        if not found:
            yield warn("backup", shard, f"there is no base backup in {backups.base}", remedy)
            continue
        newest = found[-1]
        age = datetime.now(UTC) - newest.finished_at
        reach = backups.reach(newest)
        if reach.missing is not None:
            detail = f"the archive lacks {reach.missing.name}: nothing after it can be restored"
            yield fail("backup", shard, detail, remedy)
        elif reach.last is None:
            detail = f"nothing since {newest.backup_id} is archived: what came after it cannot be restored"
            yield warn("backup", shard, detail, "have the server archive its log (docs/operations.md)")
        elif age > max_age:
            hours = age.total_seconds() / 3600
            yield warn("backup", shard, f"the newest base backup is {hours:.0f} hours old", remedy)
        else:
            yield ok("backup", shard, f"{newest.backup_id}, {newest.total_bytes:,} bytes")
