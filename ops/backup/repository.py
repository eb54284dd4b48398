"""A folder of backups:

    DIR/SHARD/base/ID/data/…        a base backup, as pg_basebackup writes it, with its manifest
    DIR/SHARD/base/ID/backup.json   what it is; written last, so it says that the rest is whole
    DIR/SHARD/wal/…                 the archive that the server's archive_command writes to

Nothing in it needs a database to be understood.
"""

import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from ops.backup.wal import Reach, Segment, find_reach, parse_segment, segment_of
from ops.errors import OpsError
from ops.files import write_json

PRIVATE_FOLDER = 0o700
PASSABLE_FOLDER = 0o711


class BackupMissing(OpsError):
    """There is no such backup, or none that reaches the moment asked for."""

    code, exit_status = "no_backup", 3


class BackupDamaged(OpsError):
    """A backup or its archive is not whole."""

    code = "backup_damaged"


class BaseBackup(msgspec.Struct, frozen=True, kw_only=True):
    """A base backup's record. Times are UTC."""

    backup_id: str
    shard: str
    cluster_id: str
    database: str
    server_version: int
    timeline: int
    start_lsn: str
    end_lsn: str
    """Recovery must come at least this far; the backup itself holds the log up to here."""
    started_at: datetime
    finished_at: datetime
    total_bytes: int

    @property
    def first_segment(self) -> Segment:
        """Where recovery from it begins to read the log."""
        return segment_of(self.timeline, self.start_lsn)


@dataclass(frozen=True, slots=True)
class ShardBackups:
    """The backups of one server."""

    root: Path
    shard: str

    @property
    def base(self) -> Path:
        """The base backups."""
        return self.root / self.shard / "base"

    @property
    def wal(self) -> Path:
        """The archive."""
        return self.root / self.shard / "wal"

    def folder(self, backup_id: str) -> Path:
        """A base backup's folder."""
        return self.base / backup_id

    def data(self, backup_id: str) -> Path:
        """Its copy of the server's data."""
        return self.folder(backup_id) / "data"

    def make_folders(self) -> None:
        """Create what is missing; PostgreSQL's user may walk through to the archive."""
        self.base.mkdir(parents=True, exist_ok=True)
        self.base.chmod(PRIVATE_FOLDER)
        self.wal.mkdir(exist_ok=True)
        for folder in (self.root, self.root / self.shard):
            folder.chmod(PASSABLE_FOLDER)

    def list_backups(self) -> list[BaseBackup]:
        """The whole ones, the oldest first.

        Raises:
            BackupDamaged: the record of one cannot be read.
        """
        found = [_read_record(path) for path in self.base.glob("*/backup.json")]
        return sorted(found, key=lambda backup: (backup.finished_at, backup.backup_id))

    def get_backup(self, backup_id: str) -> BaseBackup:
        """One by its id.

        Raises:
            BackupMissing: there is none.
        """
        for backup in self.list_backups():
            if backup.backup_id == backup_id:
                return backup
        raise BackupMissing(f"{self.base} holds no whole backup {backup_id!r}")

    def newest_before(self, moment: datetime | None) -> BaseBackup:
        """The newest backup that was finished by some moment; None: the newest.

        Raises:
            BackupMissing: there is none that old.
        """
        fit = [b for b in self.list_backups() if moment is None or b.finished_at <= moment]
        if not fit:
            when = "" if moment is None else f" that was finished by {moment.isoformat()}"
            raise BackupMissing(f"{self.base} holds no whole backup{when}")
        return fit[-1]

    def clear_unfinished(self) -> None:
        """Delete what a backup that was killed has left; the caller holds the folder's lock."""
        for folder in self.base.iterdir():
            if folder.is_dir() and not (folder / "backup.json").exists():
                shutil.rmtree(folder)

    def record(self, backup: BaseBackup) -> None:
        """Say that a backup is whole."""
        write_json(self.folder(backup.backup_id) / "backup.json", backup)

    def list_archived(self) -> list[str]:
        """The names in the archive."""
        return [path.name for path in self.wal.iterdir()] if self.wal.is_dir() else []

    def reach(self, backup: BaseBackup) -> Reach:
        """How far recovery gets from a backup."""
        return find_reach(self.list_archived(), backup.first_segment)

    def archived_until(self) -> datetime | None:
        """When the newest segment came in."""
        times = (
            [p.stat().st_mtime for p in self.wal.iterdir() if parse_segment(p.name)]
            if self.wal.is_dir()
            else []
        )
        return datetime.fromtimestamp(max(times), UTC) if times else None

    def prune(self, keep: int, *, is_dry_run: bool) -> tuple[list[str], list[str]]:
        """Delete all but the newest base backups, and the segments that only those needed; their names."""
        backups = self.list_backups()
        old, kept = backups[:-keep], backups[-keep:]
        if not kept:
            return [], []
        needed = min(backup.first_segment.number for backup in kept)
        segments = {name: parse_segment(name) for name in self.list_archived()}
        names = sorted(name for name, s in segments.items() if s is not None and s.number < needed)
        if not is_dry_run:
            for backup in old:
                (self.folder(backup.backup_id) / "backup.json").unlink()
                shutil.rmtree(self.folder(backup.backup_id))
            for name in names:
                (self.wal / name).unlink()
        return [backup.backup_id for backup in old], names


def _read_record(path: Path) -> BaseBackup:
    try:
        return msgspec.json.decode(path.read_bytes(), type=BaseBackup)
    except msgspec.MsgspecError as error:
        raise BackupDamaged(f"{path} is no record of a backup: {error}") from error
