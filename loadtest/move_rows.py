"""What the shards hold of the slots under `make bench-move`: copied plainly, and compared at the end."""

import shlex
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import psycopg
from psycopg import sql

from loadtest.commands import Cluster
from loadtest.move_ledger import Differences
from loadtest.move_members import Member
from wire.ids import MAX_COUNT, Slot, make_ns_id, system_ns

COPY_SCHEMA = sql.Identifier("bench_copy")
MIN_SHARE = 0.01
"""A table with fewer of the rows is left out of a plain copy: starting psql for it would take longer."""
FETCH_ROWS = 10_000


@dataclass(frozen=True, slots=True)
class Shards:
    """How the shards' databases are reached, beside all servers."""

    dsns: dict[str, str]
    """By name; the password is in the file that PGPASSFILE names."""
    psql: Path
    """Of the servers' own version."""


def find_shards(cluster: Cluster) -> Shards:
    """The shards of a running cluster."""
    dsns = {shard["name"]: shard["dsn"] for shard in cluster.ctl("shard", "list")["shards"]}
    return Shards(dsns, Path(psutil.Process(cluster.pid(min(dsns))).exe()).with_name("psql"))


def copy_plainly(shards: Shards, holder: str, heir: str, slots: Sequence[Slot]) -> float:
    """Rows per second of psql's COPY of the slots' rows to tables just like theirs, which are dropped then.

    Raises:
        RuntimeError: psql failed.
    """
    dsns, psql = shards.dsns, shards.psql
    ranges = [f"ns_id BETWEEN {system_ns(slot)} AND {make_ns_id(slot, MAX_COUNT)}" for slot in slots]
    condition = " OR ".join(ranges)
    counts = _count_rows(dsns[holder], condition)
    total = sum(counts.values())
    counts = {table: count for table, count in counts.items() if count >= total * MIN_SHARE}
    taken_s = 0.0
    with psycopg.connect(dsns[heir], autocommit=True) as conn:
        _drop_copy(conn)
        conn.execute(sql.SQL("CREATE SCHEMA {}").format(COPY_SCHEMA))
        try:
            for table in counts:
                _make_alike(conn, table)
                out = f"COPY (SELECT * FROM ns.{table} WHERE {condition}) TO STDOUT (FORMAT binary)"
                taken = f"COPY bench_copy.{table} FROM STDIN (FORMAT binary)"
                began = time.perf_counter()
                _pipe([psql, "-Xqc", out, dsns[holder]], [psql, "-Xqc", taken, dsns[heir]])
                taken_s += time.perf_counter() - began
        finally:
            _drop_copy(conn)
    return sum(counts.values()) / taken_s


def _count_rows(dsn: str, condition: str) -> dict[str, int]:
    """Rows that a condition holds for, by table."""
    counts = {}
    with psycopg.connect(dsn) as conn:
        tables = conn.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'ns'").fetchall()
        for (table,) in tables:
            statement = f"SELECT count(*) FROM ns.{table} WHERE {condition}"
            row = conn.execute(statement.encode()).fetchone()
            assert row is not None
            counts[str(table)] = int(row[0])
    return counts


def _make_alike(conn: psycopg.Connection, table: str) -> None:
    """An empty table with the same columns and indexes."""
    statement = sql.SQL("CREATE TABLE {} (LIKE {} INCLUDING ALL)")
    conn.execute(statement.format(sql.Identifier("bench_copy", table), sql.Identifier("ns", table)))


def _drop_copy(conn: psycopg.Connection) -> None:
    conn.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(COPY_SCHEMA))


def _pipe(writer: Sequence[str | Path], reader: Sequence[str | Path]) -> None:
    """Run two programs, the one's output being the other's input.

    Raises:
        RuntimeError: one failed.
    """
    with subprocess.Popen(writer, stdout=subprocess.PIPE) as writing:
        done = subprocess.run(reader, stdin=writing.stdout, check=False)
    if writing.returncode != 0 or done.returncode != 0:
        raise RuntimeError(f"could not run {shlex.join(map(str, reader))}")


def compare_journals(cluster: Cluster, shards: Shards, members: Sequence[Member]) -> Differences:
    """What is wrong with the journals of members, where the map says that they are."""
    placed = cluster.ctl("map", "show")["slots"]
    found = Differences()
    for name, dsn in shards.dsns.items():
        with psycopg.connect(dsn) as conn:
            for member in members:
                if placed[member.slot][0] == name:
                    found += _compare_journal(conn, member)
    return found


def _compare_journal(conn: psycopg.Connection, member: Member) -> Differences:
    # On the server, a portion at a time: it may have a million rows.
    with conn.cursor("journal") as cursor:
        cursor.itersize = FETCH_ROWS
        cursor.execute(
            "SELECT jid, at_us, client_modified_us FROM ns.server_file_journal WHERE ns_id = %s ORDER BY jid",
            [member.ns_id],
        )
        return member.ledger.compare(cursor)
