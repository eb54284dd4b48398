"""Rows from one shard to another, as of the snapshot of a replication slot, by COPY.

What is read from one server is written to the other in larger pieces, in one thread: both servers work at the
same time all the same, as there is room for some hundred kilobytes between them. Rows are taken from libpq
itself, one call each: psycopg's own loop took three times as much of a processor, which the servers want.
"""

import select
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import LiteralString

import msgspec
import psycopg
from psycopg import sql
from psycopg.errors import error_from_result
from psycopg.pq import ConnStatus, ExecStatus
from psycopg.pq.abc import PGresult

from sharding.directory import Connection
from sharding.reshard.catalog import Table
from sharding.reshard.errors import MoveError
from sharding.reshard.model import Unit
from sharding.reshard.pacing import Pacer
from sharding.reshard.scope import merge, rows_of
from sharding.reshard.sites import Site
from wire import faults

PIECE_BYTES = 256 * 1024
"""Of a write: larger ones were no faster."""
PIECE_ROWS = 2000
"""So that a low rate is kept in small steps."""
PROGRESS_INTERVAL_S = 0.5
_POLL_MS = 200

faults.declare("reshard.copy.table_done")


class NoRoom(MoveError):
    """The target's disk is full; what the copy wrote is deleted when it is begun anew, or cancelled."""

    code = "no_room"


class CopyFailed(MoveError):
    """The target did not take exactly what the source gave."""

    code = "copy_failed"


class TableCopy(msgspec.Struct, frozen=True, kw_only=True):
    """How far the copy of a table is."""

    rows: int = 0
    bytes: int = 0
    """As PostgreSQL's binary format has them."""
    rows_expected: int = 0
    """By the planner's statistics."""


class CopyProgress(msgspec.Struct, frozen=True, kw_only=True):
    """How far a copy is; its end when all of it is done."""

    tables: Mapping[str, TableCopy]
    rows: int
    bytes: int
    rows_expected: int
    """Never less than what is there already."""
    copy_s: float
    """Pauses included."""
    rows_per_s: float
    mb_per_s: float
    held_back_by: str = ""
    """Why it is slower than it could be."""


def copy_rows(
    source: Site,
    snapshot: str,
    target: Site,
    tables: Sequence[Table],
    units: Sequence[Unit],
    pacer: Pacer,
    on_progress: Callable[[CopyProgress], None],
) -> CopyProgress:
    """Copy all rows of some units, and have the target count them for its planner; what was copied.

    Args:
        source: where the rows are.
        snapshot: its id, exported and still to be had on the source.
        target: which has no rows of the units.
        tables: referenced ones before those that refer to them.
        units: whose rows.
        pacer: is asked before each piece.
        on_progress: is told about twice a second, and at the end.

    Raises:
        NoRoom: the target's disk is full.
        CopyFailed: the target has not got all rows.
        Interrupted: the operator stopped it.

    Tx: on the source one REPEATABLE READ transaction for all; on the target one for each table and range.
    What other sessions have planned for a table's former size they plan anew.
    """
    # What is cut short amid a COPY takes no ROLLBACK: its end is the connection's.
    with closing(source.connect()) as reading, target.connect() as writing:
        reading.execute("BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        reading.execute(sql.SQL("SET TRANSACTION SNAPSHOT {}").format(snapshot))
        expected = {table.name: estimate_rows(reading, table, units) for table in tables}
        tally = _Tally(expected, pacer, on_progress)
        for table in tables:
            for part in merge(units):
                with _naming_a_full_disk(target):
                    _copy_part(reading, writing, table, part, tally)
            # Without statistics of so many new rows the first queries of an owner are planned for a few: they
            # took 300 ms instead of 5, until autovacuum came by a minute later.
            writing.execute(sql.SQL("ANALYZE {}").format(sql.Identifier("ns", table.name)))
            faults.fault_point("reshard.copy.table_done")
        return tally.tell()


def _copy_part(reading: Connection, writing: Connection, table: Table, part: Unit, tally: "_Tally") -> None:
    names = {
        "table": sql.Identifier("ns", table.name),
        "columns": sql.SQL(", ").join(map(sql.Identifier, table.columns)),
        "rows": rows_of([part]),
    }
    read = sql.SQL("COPY (SELECT {columns} FROM {table} WHERE {rows}) TO STDOUT (FORMAT binary)")
    write = sql.SQL("COPY {table} ({columns}) FROM STDIN (FORMAT binary)")
    outgoing = _CopyOut(reading, read.format(**names).as_bytes(reading))
    with writing.transaction(), writing.cursor() as cursor:
        with cursor.copy(write.format(**names)) as incoming:
            for rows, piece in outgoing.pieces(tally.wait):
                tally.add(table.name, rows, len(piece))
                incoming.write(piece)
        if cursor.rowcount != outgoing.rows:
            # Rolls back what was written.
            raise CopyFailed(f"of ns.{table.name} {outgoing.rows} rows were read, {cursor.rowcount} written")


class _CopyOut:
    """A COPY to here, read piece by piece."""

    def __init__(self, conn: Connection, statement: bytes):
        self.rows = 0
        """How many it was, by the server's own count, once all pieces are read."""
        self._pgconn = conn.pgconn
        self._readable = select.poll()
        self._readable.register(self._pgconn.socket, select.POLLIN)
        begun = self._pgconn.exec_(statement)
        if begun.status != ExecStatus.COPY_OUT:
            raise self._error(begun)

    def pieces(self, wait: Callable[[int], None]) -> Iterator[tuple[int, bytes]]:
        """Pieces of the stream, each with how many rows it is of.

        The server sends each row as a message of its own, and then one more that ends them.

        Args:
            wait: is called with the rows of each piece before it, and with 0 while there is nothing to read.
        """
        parts: list[memoryview] = []
        size = 0
        while (part := self._next(wait)) is not None:
            if size >= PIECE_BYTES or len(parts) >= PIECE_ROWS:
                wait(len(parts))
                yield len(parts), b"".join(parts)
                parts, size = [], 0
            parts.append(part)
            size += len(part)
        wait(len(parts) - 1)
        yield len(parts) - 1, b"".join(parts)

    def _next(self, wait: Callable[[int], None]) -> memoryview | None:
        """What the server sent next; None when it has sent all."""
        while True:
            size, data = self._pgconn.get_copy_data(1)
            if size > 0:
                return data
            if size < 0:
                self._end()
                return None
            if not self._readable.poll(_POLL_MS):
                wait(0)
            self._pgconn.consume_input()

    def _end(self) -> None:
        failed: PGresult | None = None
        while (result := self._pgconn.get_result()) is not None:
            if result.status == ExecStatus.COMMAND_OK:
                self.rows = result.command_tuples or 0
            else:
                failed = result
        if failed is not None:
            raise self._error(failed)

    def _error(self, result: PGresult) -> psycopg.Error:
        # What libpq says of a lost connection has no SQLSTATE: it would be an error of no kind.
        if self._pgconn.status == ConnStatus.BAD:
            return psycopg.OperationalError(result.error_message.decode(errors="replace").strip())
        return error_from_result(result)


class _Tally:
    """What is copied, and who is told of it."""

    def __init__(
        self, expected: Mapping[str, int], pacer: Pacer, on_progress: Callable[[CopyProgress], None]
    ):
        self.wait = pacer.wait
        self._tables = {name: TableCopy(rows_expected=rows) for name, rows in expected.items()}
        self._pacer = pacer
        self._on_progress = on_progress
        self._began_s = self._told_s = time.monotonic()

    def add(self, table: str, rows: int, size_bytes: int) -> None:
        """Count a piece that is on its way."""
        before = self._tables[table]
        self._tables[table] = msgspec.structs.replace(
            before, rows=before.rows + rows, bytes=before.bytes + size_bytes
        )
        if time.monotonic() >= self._told_s + PROGRESS_INTERVAL_S:
            self.tell()

    def tell(self) -> CopyProgress:
        """Say how far it is; what was said."""
        self._told_s = time.monotonic()
        copy_s = max(self._told_s - self._began_s, 1e-6)
        rows = sum(table.rows for table in self._tables.values())
        size = sum(table.bytes for table in self._tables.values())
        progress = CopyProgress(
            tables=dict(self._tables),
            rows=rows,
            bytes=size,
            rows_expected=sum(max(table.rows, table.rows_expected) for table in self._tables.values()),
            copy_s=round(copy_s, 3),
            rows_per_s=round(rows / copy_s, 1),
            mb_per_s=round(size / copy_s / 1e6, 2),
            held_back_by=self._pacer.reason,
        )
        self._on_progress(progress)
        return progress


@contextmanager
def _naming_a_full_disk(target: Site) -> Generator[None]:
    try:
        yield
    except psycopg.errors.DiskFull as error:
        raise NoRoom(
            f"{target.name} has no room: {error.diag.message_primary}. Make some and resume, or cancel"
        ) from error


def estimate_rows(conn: Connection, table: Table, units: Sequence[Unit]) -> int:
    """How many rows of a table are some units', by the planner: it takes a millisecond at any size."""
    statement = sql.SQL("EXPLAIN (FORMAT JSON) SELECT FROM {} WHERE {}")
    row = conn.execute(statement.format(sql.Identifier("ns", table.name), rows_of(units))).fetchone()
    assert row is not None
    return int(row[0][0]["Plan"]["Plan Rows"])


def estimate_bytes(source: Connection, tables: Sequence[Table], units: Sequence[Unit]) -> int:
    """About how much of a disk some units take, indexes included."""
    total = 0.0
    for table in tables:
        row = source.execute(_SIZE, [sql.Identifier("ns", table.name).as_string(source)] * 2).fetchone()
        assert row is not None
        size_bytes, rows = row
        # A table that was never analysed says -1.
        share = estimate_rows(source, table, units) / rows if rows > 0 else 1.0
        total += size_bytes * min(share, 1.0)
    return round(total)


_SIZE: LiteralString = (
    "SELECT pg_total_relation_size(%s::regclass), reltuples FROM pg_class WHERE oid = %s::regclass"
)
