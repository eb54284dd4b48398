"""What a drill does to a cluster, and how it tells what must have come back."""

import asyncio
import math
import shutil
import signal
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import psycopg

from ops.backup.repository import ShardBackups
from ops.backup.wal import SEGMENT_BYTES, parse_segment
from tests.kill.api import ApiDevice, Failed, empty_file
from tests.support.commands import OPERATOR, run_command
from tests.support.dev import DevCluster
from tests.support.waiting import wait_for
from wire.api import ListFolder, ListFolderContinue, ListFolderResult

COMMIT_INTERVAL_S = 0.02
COMMAND_TIMEOUT_S = 300


@dataclass(slots=True)
class Report:
    """What build/test/restore.json holds."""

    acked: int = 0
    """Commits that were acknowledged on the shard before it was lost."""
    archived_acked_missing: int = 0
    """Of those that the archive held: none may be missing."""
    lost_after_archive: int = 0
    """Acknowledged, and in no archived segment yet."""
    came_back_from_disk: int = 0
    """Files of a sync client among what the server had lost."""
    trees_equal: bool = True
    other_shards_errors: int = 0
    other_shards_acked: int = 0
    reused_revs: int = 0
    fault_points_cut: list[str] = field(default_factory=list)
    restored_seconds: float = 0.0
    restored_to_time_seconds: float = 0.0
    directory_seconds: float = 0.0
    backup_bytes: int = 0
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @property
    def is_clean(self) -> bool:
        """Whether everything held."""
        bad = self.archived_acked_missing + self.other_shards_errors + self.reused_revs
        return self.trees_equal and not bad and self.acked > 0


def ctl(cluster: DevCluster, *args: str, fault: str = "", error: str = "") -> Any:
    """What a shardctl command answers; with a fault, or an error's code that is due, nothing.

    Raises:
        AssertionError: it failed otherwise, or was not killed where it should be.
    """
    done = run_command(
        OPERATOR,
        *args,
        "--output",
        "json",
        env={"SHARDBOX_DEV_DIR": str(cluster.layout.root), "SHARDBOX_FAULT": fault},
        timeout_s=COMMAND_TIMEOUT_S,
    )
    if fault:
        assert done.returncode == -signal.SIGKILL, (fault, done.returncode, done.stderr)
        return None
    if error:
        assert done.stderr.splitlines()[-1].split(": ")[1] == error, done.stderr
        return None
    assert done.returncode == 0, done.stderr
    return msgspec.json.decode(done.stdout)


def lose(cluster: DevCluster, name: str) -> None:
    """A server dies, and its disk with it."""
    data = cluster.layout.postgres / name / "data"
    gone = data.with_name("gone")
    # Out of the way first: the supervisor must not find it again between the two.
    data.rename(gone)
    with suppress(KeyError, ProcessLookupError):
        cluster.kill(name)
    with suppress(FileNotFoundError):
        pid = int((gone / "postmaster.pid").read_text().split("\n", 1)[0])
        wait_for(lambda: not Path(f"/proc/{pid}").exists(), f"{name} being dead")
    shutil.rmtree(gone, ignore_errors=True)
    shutil.rmtree(gone, ignore_errors=True)  # its last backends may have written meanwhile


def archive_now(cluster: DevCluster, name: str) -> None:
    """Return when all that has been committed is archived."""
    with cluster.connect(name) as conn:
        row = conn.execute("SELECT pg_walfile_name(pg_switch_wal())").fetchone()
    assert row is not None
    segment = ShardBackups(cluster.layout.backups, name).wal / row[0]
    wait_for(segment.exists, f"{segment} being archived")


def archived_bytes(cluster: DevCluster, name: str) -> int:
    """The position in the log up to which it is archived."""
    names = ShardBackups(cluster.layout.backups, name).list_archived()
    return (max(s.number for n in names if (s := parse_segment(n)) is not None) + 1) * SEGMENT_BYTES


@dataclass(slots=True)
class Writer:
    """Commits without a pause; knows by which position of the log each was certainly written."""

    device: ApiDevice
    dsn: str
    written_by: dict[str, float] = field(default_factory=dict)
    """Path → position; infinite where the server was gone before it could be asked."""
    errors: list[str] = field(default_factory=list)
    count: int = 0

    async def run(self) -> None:
        """Commit for ever."""
        asker = LogAsker(self.dsn)
        try:
            while True:
                await self._commit(asker)
        finally:
            await asker.close()

    async def _commit(self, asker: "LogAsker") -> None:
        self.count += 1
        path = f"/load/{self.count}.txt"
        try:
            await self.device.commit(empty_file(path), surely=False)
        except Failed as error:
            self.errors.append(str(error))
            await asyncio.sleep(0.1)
            return
        self.written_by[path] = math.inf
        self.written_by[path] = await asker.position()
        await asyncio.sleep(COMMIT_INTERVAL_S)


class LogAsker:
    """Asks a server how far its log is, while there is a server."""

    def __init__(self, dsn: str):
        self._dsn = dsn
        self._conn: psycopg.AsyncConnection | None = None

    async def position(self) -> float:
        """Bytes since the log's beginning; infinite when nobody answers."""
        try:
            if self._conn is None:
                self._conn = await psycopg.AsyncConnection.connect(self._dsn, autocommit=True)
            cursor = await self._conn.execute("SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn")
            row = await cursor.fetchone()
        except (psycopg.Error, OSError):
            await self.close()
            return math.inf
        assert row is not None
        return float(row[0])

    async def close(self) -> None:
        """Let go of the server."""
        conn, self._conn = self._conn, None
        if conn is not None:
            await conn.close()


async def list_paths(device: ApiDevice) -> set[str]:
    """The files that the server lists now, as paths in /load."""
    page: ListFolderResult = await device.post_surely(
        "/v1/files/list_folder", ListFolder(recursive=True, limit=2000), ListFolderResult
    )
    names = {str(entry.name) for entry in page.entries}
    while page.has_more:
        page = await device.post_surely(
            "/v1/files/list_folder/continue", ListFolderContinue(page.cursor), ListFolderResult
        )
        names |= {str(entry.name) for entry in page.entries}
    return {f"/load/{name}" for name in names}


def judge(report: Report, acked: dict[str, float], there: set[str], archived: int) -> None:
    """Compare what was acknowledged with what has come back."""
    missing = [path for path in acked if path not in there]
    report.acked += len(acked)
    held = [path for path in missing if acked[path] <= archived]
    report.archived_acked_missing += len(held)
    report.lost_after_archive += len(missing) - len(held)
    report.notes += [f"missing although archived: {path}" for path in held[:5]]


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        """Rounded."""
        return round(time.monotonic() - self._began, 2)
