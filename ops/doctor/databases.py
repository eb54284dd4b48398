"""Checks of one database, the directory or a shard, over a connection to it."""

import time
from collections.abc import Callable, Iterator
from typing import LiteralString

import psycopg

from metaserver.storage.accounts import RESERVATION_S
from migrations import Tree
from ops.doctor.backups import check_archiver, check_restores
from ops.doctor.finding import Finding, fail, ok, warn
from ops.doctor.ownership import OwnershipRow
from ops.migrate import find_revision
from ops.programs import MIN_MAJOR
from sharding.directory import Connection
from sharding.shardmap import OwnershipState
from wire.ids import NsId

CONNECT_TIMEOUT_S = 3
STATEMENT_TIMEOUT_MS = 10_000
"""A check that takes longer is a load of its own."""
OUTBOX_PATIENCE_S = 2.0
"""The sweep comes every half second, and a lease that was lost is taken over within two."""
OUTBOX_SAMPLE = 1_000
IN_DOUBT_S = 60
"""A transaction over several shards is decided within seconds."""


def connect(dsn: str) -> Connection:
    """A connection for checks, which gives up rather than hang."""
    return psycopg.connect(
        dsn,
        autocommit=True,
        connect_timeout=CONNECT_TIMEOUT_S,
        application_name="shardctl doctor",
        options=f"-c statement_timeout={STATEMENT_TIMEOUT_MS} -c default_transaction_read_only=on",
    )


def check_database(subject: str, tree: Tree, dsn: str) -> tuple[list[Finding], list[OwnershipRow] | None]:
    """Findings about a database, and a shard's ownership rows; None when they could not be read."""
    try:
        with connect(dsn) as conn:
            found = [
                ok("reachable", subject, "answers"),
                *_check_server(conn, subject),
                *_check_schema(conn, subject, tree),
                *check_archiver(conn, subject),
            ]
            if tree is Tree.DIRECTORY or any(f.check == "schema" and f.remedy for f in found):
                return found, None  # the checks below are written for the newest schema
            found += [*_check_outbox(conn, subject), *_check_reservations(conn, subject)]
            found += check_restores(conn, subject)
            return found, read_ownership(conn)
    except psycopg.Error as error:
        text = f"does not answer: {str(error).strip()}"
        remedy = "start it; while it is out, its namespaces get retryable errors"
        return [fail("reachable", subject, text, remedy)], None


def read_ownership(conn: Connection) -> list[OwnershipRow]:
    """All ownership rows of a shard."""
    rows = conn.execute("SELECT ns_id, epoch, state FROM local.ownership").fetchall()
    return [OwnershipRow(NsId(ns_id), epoch, OwnershipState(state)) for ns_id, epoch, state in rows]


def _scalar(conn: Connection, query: LiteralString, params: list[object] | None = None) -> object:
    row = conn.execute(query, params).fetchone()
    return None if row is None else row[0]


def _check_server(conn: Connection, subject: str) -> Iterator[Finding]:
    major = conn.info.server_version // 10_000
    if major < MIN_MAJOR:
        yield fail("version", subject, f"PostgreSQL {major}", f"upgrade it to {MIN_MAJOR} or later")
    else:
        yield ok("version", subject, f"PostgreSQL {major}")
    level = _scalar(conn, "SHOW wal_level")
    if level != "logical":
        yield fail("wal_level", subject, str(level), "set wal_level = logical and restart: moves need it")
    else:
        yield ok("wal_level", subject, "logical")
    if str(_scalar(conn, "SHOW fsync")) != "on" or str(_scalar(conn, "SHOW full_page_writes")) != "on":
        remedy = "set fsync and full_page_writes = on: acknowledged commits can be lost"
        yield warn("durability", subject, "not crash-safe", remedy)
    doubtful = _scalar(
        conn,
        "SELECT count(*) FROM pg_prepared_xacts WHERE prepared < now() - make_interval(secs => %s)",
        [IN_DOUBT_S],
    )
    if doubtful:
        remedy = "find out what became of them (pg_prepared_xacts): they hold their locks, and fences off"
        yield warn("in_doubt", subject, f"{doubtful} prepared transactions are older than a minute", remedy)
    # Those of moves are judged with the moves (`ops.doctor.moves`): in a copy nobody reads them.
    slots = _scalar(
        conn,
        "SELECT count(*) FROM pg_replication_slots WHERE NOT active"
        " AND slot_name !~ '^shardbox_[0-9a-f]{8}_[0-9]+(_back)?$'",
    )
    if slots:
        remedy = "drop those that nothing will read any more: they keep WAL (pg_replication_slots)"
        yield warn("replication_slots", subject, f"{slots} replication slots are idle", remedy)


def _check_schema(conn: Connection, subject: str, tree: Tree) -> Iterator[Finding]:
    from ops.migrate_worker import newest_revision  # alembic takes 0.2 s, which every command would pay

    head = newest_revision(tree)
    current = find_revision(conn, tree)
    if current != head:
        detail = f"at {current or 'nothing'}, the newest is {head}"
        yield fail("schema", subject, detail, "run `shardctl migrate`")
    else:
        yield ok("schema", subject, f"at {head}")


def _check_outbox(conn: Connection, subject: str) -> Iterator[Finding]:
    """Rows come and go all the time; those that stay are hints that nobody sends."""

    def read() -> set[tuple[object, ...]]:
        return {tuple(r) for r in conn.execute("SELECT ns_id, jid FROM ns.outbox LIMIT %s", [OUTBOX_SAMPLE])}

    waiting = read()
    if waiting:
        waiting = _wait_while(lambda: waiting & read())
    if waiting:
        detail = f"{len(waiting)} hints wait for longer than {OUTBOX_PATIENCE_S:.0f} s"
        remedy = (
            "is a metaserver up, and every notifserver that it is told of? Devices find out late until then"
        )
        yield warn("outbox", subject, detail, remedy)
    else:
        yield ok("outbox", subject, "no hint waits")


def _wait_while(remaining: Callable[[], set[tuple[object, ...]]]) -> set[tuple[object, ...]]:
    deadline = time.monotonic() + OUTBOX_PATIENCE_S
    while (left := remaining()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left


def _check_reservations(conn: Connection, subject: str) -> Iterator[Finding]:
    left = conn.execute(
        "SELECT email_key FROM ns.emails WHERE NOT is_confirmed AND since < now() - make_interval(secs => %s)"
        " ORDER BY since LIMIT 100",
        [RESERVATION_S],
    ).fetchall()
    if left:
        remedy = f"run `shardctl user add {left[0][0]}` again (one by one); it takes up what was begun"
        yield warn("accounts", subject, f"{len(left)} accounts were begun and not finished", remedy)
    else:
        yield ok("accounts", subject, "no account is half made")
