"""Taking a base backup of a running server, and looking whether one is whole."""

import io
import os
import re
import secrets
import shutil
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import psycopg

from ops.backup.repository import BackupDamaged, BaseBackup, ShardBackups
from ops.errors import OpsError, ProgramsMissing, UsageError
from ops.files import locked
from ops.programs import PgPrograms
from ops.session import CONNECT_TIMEOUT_S
from wire import faults

Progress = Callable[[int, int], None]
"""Told kilobytes done and in all."""

_PROGRESS = re.compile(r"(\d+)/(\d+) kB")

faults.declare("ops.backup.copied", "ops.backup.recorded")


class BackupFailed(OpsError):
    """pg_basebackup ended with an error; the message quotes it."""

    code = "backup_failed"


_RANGE_NAMES = {"timeline": "Timeline", "start": "Start-LSN", "end": "End-LSN"}


class _WalRange(msgspec.Struct, frozen=True, rename=_RANGE_NAMES):
    timeline: int
    start: str
    end: str


class _Manifest(msgspec.Struct, frozen=True, rename={"ranges": "WAL-Ranges"}):
    ranges: list[_WalRange]


def take_base(
    programs: PgPrograms, backups: ShardBackups, dsn: str, *, is_fast: bool, progress: Progress
) -> BaseBackup:
    """Copy a running server; the record of the copy, which has been verified and is on disk.

    The copy holds the log that makes it consistent, so it can be brought back without any archive; with one,
    to any later moment.

    Args:
        programs: of the server's major version.
        backups: where to.
        dsn: a database of the server, as a role that may replicate.
        is_fast: whether to write a checkpoint at once rather than to spread it out.
        progress: told how far it is.

    Raises:
        BackupFailed, BackupDamaged, UsageError.
    """
    cluster_id, database, version = _ask(dsn, backups.shard)
    if version // 10_000 != programs.major:
        raise UsageError(
            f"the server is PostgreSQL {version // 10_000}, the programs in {programs.bin_dir} are not"
        )
    backups.make_folders()
    with locked(backups.base / ".lock", wait=False, what="another backup of this server"):
        backups.clear_unfinished()
        return _take(programs, backups, dsn, (cluster_id, database, version), is_fast, progress)


def _take(
    programs: PgPrograms,
    backups: ShardBackups,
    dsn: str,
    about: tuple[str, str, int],
    is_fast: bool,
    progress: Progress,
) -> BaseBackup:
    cluster_id, database, version = about
    started_at = datetime.now(UTC)
    backup_id = f"{started_at:%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}"
    folder = backups.folder(backup_id)
    folder.mkdir(mode=0o700)
    try:
        _copy(programs, dsn, backups.data(backup_id), is_fast=is_fast, progress=progress)
        faults.fault_point("ops.backup.copied")
        verify_copy(programs, backups.data(backup_id))
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    manifest = msgspec.json.decode((backups.data(backup_id) / "backup_manifest").read_bytes(), type=_Manifest)
    os.sync()  # pg_basebackup has flushed its files; the folders above them are ours
    backup = BaseBackup(
        backup_id=backup_id,
        shard=backups.shard,
        cluster_id=cluster_id,
        database=database,
        server_version=version,
        timeline=manifest.ranges[-1].timeline,
        start_lsn=manifest.ranges[0].start,
        end_lsn=manifest.ranges[-1].end,
        started_at=started_at,
        finished_at=datetime.now(UTC),
        total_bytes=sum(p.stat().st_size for p in backups.data(backup_id).rglob("*") if p.is_file()),
    )
    backups.record(backup)
    faults.fault_point("ops.backup.recorded")
    return backup


def _ask(dsn: str, shard: str) -> tuple[str, str, int]:
    with psycopg.connect(dsn, autocommit=True, connect_timeout=CONNECT_TIMEOUT_S) as conn:
        found = conn.execute("SELECT to_regclass('local.cluster') IS NOT NULL").fetchone()
        row = None
        if found is not None and found[0]:
            row = conn.execute("SELECT cluster_id, shard FROM local.cluster").fetchone()
        if row is not None and row[1] != shard:
            raise UsageError(f"the server at this address is {row[1]}, not {shard}")
        return (row[0] if row else ""), conn.info.dbname, conn.info.server_version


def _copy(programs: PgPrograms, dsn: str, target: Path, *, is_fast: bool, progress: Progress) -> None:
    program = programs.path("pg_basebackup")
    if not os.access(program, os.X_OK):
        raise ProgramsMissing(
            f"{programs.bin_dir} has no pg_basebackup; install PostgreSQL's client programs"
        )
    command = [program, "--dbname", dsn, "--no-password", "--pgdata", str(target), "--format", "plain"]
    command += ["--wal-method", "stream", "--checkpoint", "fast" if is_fast else "spread"]
    command += ["--manifest-checksums", "SHA256", "--progress"]
    said: list[str] = []
    with subprocess.Popen(command, stderr=subprocess.PIPE) as copying:
        assert copying.stderr is not None
        # The progress is one line that is written over and over, so it is read by carriage returns.
        for line in io.TextIOWrapper(copying.stderr, newline="\r", errors="replace"):
            if (match := _PROGRESS.search(line)) is not None:
                progress(int(match[1]), max(int(match[1]), int(match[2])))
            else:
                said.append(line)
    if copying.returncode != 0:
        raise BackupFailed(f"pg_basebackup: {''.join(said).strip()[-2000:]}")


def verify_copy(programs: PgPrograms, data: Path) -> None:
    """Pass when each file is as the manifest says, and the log that it needs is there.

    Raises:
        BackupDamaged: the message quotes pg_verifybackup.
    """
    program = programs.path("pg_verifybackup")
    if not os.access(program, os.X_OK):
        raise ProgramsMissing(f"{programs.bin_dir} has no pg_verifybackup")
    done = subprocess.run([program, str(data)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BackupDamaged(f"pg_verifybackup: {(done.stderr or done.stdout).strip()[-2000:]}")


def verify(programs: PgPrograms, backups: ShardBackups, backup: BaseBackup) -> None:
    """Pass when a backup is whole, and its archive has no gap.

    Raises:
        BackupDamaged: something is missing or changed.
    """
    verify_copy(programs, backups.data(backup.backup_id))
    reach = backups.reach(backup)
    if reach.missing is not None:
        raise BackupDamaged(
            f"{backups.wal} lacks {reach.missing.name} and holds later ones: what comes after it is lost"
        )
