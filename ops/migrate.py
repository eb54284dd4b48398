"""`shardctl migrate`: the directory first, then all shards side by side, each to the head of its tree.

A shard that fails leaves the others migrated; the next run takes up where each database stands.
"""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import msgspec
import psycopg
from psycopg import sql

from migrations import Tree
from ops.errors import MigrationBusy, MigrationFailed, NoCluster
from ops.migrate_messages import CONNECT_TIMEOUT_S, Applied, Failed, Message, MigrationJob, Planned
from sharding.directory import Connection, list_shards
from sharding.locks import MIGRATION_LOCK_CLASS
from sharding.reshard.model import STREAMED

DIRECTORY = "directory"
LOCK_TIMEOUT_MS = 5_000
"""While DDL waits for its lock, every later statement on the table queues behind it: after five seconds the
shard's clients are better served by a failed migration, which can be run again."""
STATEMENT_TIMEOUT_MS = 600_000
"""Ten minutes: a step that has to rewrite or index a table for longer belongs into a job of its own."""
PARALLEL = 8
"""Databases at a time. The work is theirs; a worker here costs half a second of CPU and 60 MB."""


class MigrationStatus(StrEnum):
    """How one database came out."""

    MIGRATED = "migrated"
    CURRENT = "current"
    PENDING = "pending"
    """A dry run found steps to do."""
    FAILED = "failed"
    BUSY = "busy"
    SKIPPED = "skipped"
    """Not looked at, as the directory failed."""


@dataclass(slots=True)
class DatabaseResult:
    """One database after a run."""

    name: str
    tree: Tree
    status: MigrationStatus = MigrationStatus.SKIPPED
    before: str | None = None
    head: str | None = None
    planned: list[str] | None = None
    applied: list[str] | None = None
    error: str | None = None
    elapsed_s: float = 0.0


@dataclass(frozen=True, slots=True)
class MigrationOptions:
    """The knobs of a run."""

    lock_timeout_ms: int = LOCK_TIMEOUT_MS
    statement_timeout_ms: int = STATEMENT_TIMEOUT_MS
    is_dry_run: bool = False
    parallel: int = PARALLEL


@dataclass(frozen=True, slots=True)
class MigrationReport:
    """All databases after a run, the directory first."""

    databases: list[DatabaseResult]

    @property
    def is_ok(self) -> bool:
        """Whether no database was left behind."""
        bad = (MigrationStatus.FAILED, MigrationStatus.BUSY, MigrationStatus.SKIPPED)
        return all(result.status not in bad for result in self.databases)

    def raise_for_failures(self) -> None:
        """Pass when every database is at its head.

        Raises:
            MigrationBusy: a database was being migrated by somebody else, and nothing worse happened.
            MigrationFailed: a database failed; the message names each and why.
        """
        if self.is_ok:
            return
        left = [
            r for r in self.databases if r.status not in (MigrationStatus.MIGRATED, MigrationStatus.CURRENT)
        ]
        text = "; ".join(f"{r.name}: {r.error or r.status}" for r in left)
        if all(r.status is MigrationStatus.BUSY for r in left):
            raise MigrationBusy(text)
        raise MigrationFailed(f"{text}. The rest is done; run it again when the cause is gone.")


Progress = Callable[[DatabaseResult, Message | None], None]
"""Told what a database has just reported, None when it is done; from several threads, one call at a time."""


def _silent(_result: DatabaseResult, _message: Message | None) -> None:
    return


def migrate_databases(
    directory_dsn: str,
    shards: Mapping[str, str] | None = None,
    options: MigrationOptions | None = None,
    progress: Progress = _silent,
) -> MigrationReport:
    """Bring the directory, then all shards, to their heads; what became of each.

    Args:
        directory_dsn: the directory database.
        shards: DSNs by name, for a cluster whose shards are not recorded yet; None reads the directory.
        options: time-outs, dry run, how many at a time.
        progress: told of each step.

    Raises:
        NoCluster: the directory cannot be reached.
        MigrationBusy: another migration, or a move of slots, is under way, if only at rest.
    """
    options = options or MigrationOptions()
    progress = _one_at_a_time(progress)
    with migration_lock(directory_dsn) as conn:
        if not options.is_dry_run:
            _check_nothing_streams(conn)
        directory = migrate_one(DIRECTORY, Tree.DIRECTORY, directory_dsn, options, progress)
        if shards is None:
            shards = _recorded_shards(directory_dsn)
        results = [DatabaseResult(name, Tree.SHARD) for name in shards]
        if directory.status not in (MigrationStatus.FAILED, MigrationStatus.BUSY):
            with ThreadPoolExecutor(max(1, options.parallel)) as pool:
                jobs = [
                    pool.submit(migrate_one, name, Tree.SHARD, dsn, options, progress)
                    for name, dsn in shards.items()
                ]
                results = [job.result() for job in jobs]
    return MigrationReport([directory, *results])


def _check_nothing_streams(conn: Connection) -> None:
    """Pass unless a move has streams, which a change of the tables would break; one at rest holds no lock."""
    if conn.execute("SELECT to_regclass('moves')").fetchone() == (None,):
        return
    rows = conn.execute(
        "SELECT move_id, state FROM moves WHERE state = ANY(%s) ORDER BY move_id", [sorted(STREAMED)]
    ).fetchall()
    if rows:
        moves = ", ".join(f"{move_id} ({state})" for move_id, state in rows)
        raise MigrationBusy(f"moves stream between shards: {moves}; complete or cancel each of them first")


@contextmanager
def migration_lock(directory_dsn: str) -> Iterator[psycopg.Connection]:
    """Hold the lock that keeps migrations and moves of slots apart; a connection to the directory.

    Tx: a session-level advisory lock, (MIGRATION_LOCK_CLASS, 0) in the directory. It goes with the session.

    Raises:
        NoCluster: the directory cannot be reached.
        MigrationBusy: somebody holds it.
    """
    try:
        conn = psycopg.connect(
            directory_dsn,
            autocommit=True,
            connect_timeout=CONNECT_TIMEOUT_S,
            application_name="shardctl migrate",
            # The connection idles for as long as the shards take; a firewall must not cut it.
            keepalives_idle=30,
        )
    except psycopg.OperationalError as error:
        raise NoCluster(f"the directory does not answer: {str(error).strip()}") from error
    with conn:
        row = conn.execute("SELECT pg_try_advisory_lock(%s, 0)", [MIGRATION_LOCK_CLASS]).fetchone()
        if row is None or not row[0]:
            raise MigrationBusy("another migration, or a move of slots, is under way; wait for it to end")
        yield conn


def find_revision(conn: Connection, tree: Tree) -> str | None:
    """The revision that a database stands at; None before its first migration."""
    table = sql.Identifier(tree.version_schema or "public", "alembic_version")
    # Asked first: a query of a table that is not there would be an error in the server's log.
    row = conn.execute("SELECT to_regclass(%s) IS NOT NULL", [table.as_string(conn)]).fetchone()
    if row is None or not row[0]:
        return None
    row = conn.execute(sql.SQL("SELECT version_num FROM {}").format(table)).fetchone()
    return None if row is None else str(row[0])


def is_current(dsn: str, tree: Tree) -> bool:
    """Whether a database stands at the head of its tree; cheaper than finding it out by migrating."""
    from ops.migrate_worker import newest_revision  # alembic takes 0.2 s, which every command would pay

    with psycopg.connect(dsn, autocommit=True, connect_timeout=CONNECT_TIMEOUT_S) as conn:
        return find_revision(conn, tree) == newest_revision(tree)


def _recorded_shards(directory_dsn: str) -> dict[str, str]:
    with psycopg.connect(directory_dsn, autocommit=True, connect_timeout=CONNECT_TIMEOUT_S) as conn:
        # Before the first migration, as a dry run sees it, there is no table of shards.
        row = conn.execute("SELECT to_regclass('shards')").fetchone()
        if row is None or row[0] is None:
            return {}
        return {shard.name: shard.dsn for shard in list_shards(conn)}


def _one_at_a_time(progress: Progress) -> Progress:
    lock = threading.Lock()

    def guarded(result: DatabaseResult, message: Message | None) -> None:
        with lock:
            progress(result, message)

    return guarded


def migrate_one(
    name: str, tree: Tree, dsn: str, options: MigrationOptions, progress: Progress = _silent
) -> DatabaseResult:
    """What became of one database.

    Tx: the caller holds the migration lock, if shared, or no server knows the database yet.
    """
    started = time.monotonic()
    result = DatabaseResult(name, tree, applied=[])
    job = MigrationJob(tree, dsn, options.lock_timeout_ms, options.statement_timeout_ms, options.is_dry_run)
    for message in _run_worker(job):
        _record(result, message)
        progress(result, message)
    _conclude(result, options)
    result.elapsed_s = round(time.monotonic() - started, 3)
    progress(result, None)
    return result


def _record(result: DatabaseResult, message: Message) -> None:
    match message:
        case Planned():
            result.before, result.head, result.planned = message.current, message.head, message.steps
        case Applied():
            result.applied = [*(result.applied or []), message.revision]
        case Failed():
            result.error = message.message
            result.status = MigrationStatus.BUSY if message.is_busy else MigrationStatus.FAILED


def _conclude(result: DatabaseResult, options: MigrationOptions) -> None:
    if result.error is not None:
        return
    if not result.planned:
        result.status = MigrationStatus.CURRENT
    else:
        result.status = MigrationStatus.PENDING if options.is_dry_run else MigrationStatus.MIGRATED


_MESSAGE = msgspec.json.Decoder(Message)


def _run_worker(job: MigrationJob) -> Iterator[Message]:
    with subprocess.Popen(
        [sys.executable, "-m", "ops.migrate_worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=Path(__file__).parents[1],
        env=os.environ,
    ) as worker:
        assert worker.stdin is not None
        assert worker.stdout is not None
        assert worker.stderr is not None
        worker.stdin.write(msgspec.json.encode(job))
        worker.stdin.close()
        for line in worker.stdout:
            yield _MESSAGE.decode(line)
        # Read only now: a worker says nothing there unless it breaks, and that fits the pipe.
        trouble = worker.stderr.read().decode(errors="replace")
    if worker.returncode != 0:
        yield Failed(f"the worker ended with status {worker.returncode}: {trouble[-2000:].strip()}")
