"""A bounded range of a table's rows on both shards: hashed as a whole, and where that differs row by row.

A chunk begins after a key and ends with the owner's 20,000th key after it; the last chunk of a range has no
end, so that rows beyond the owner's last one are seen as well. Rows that only the follower has could be any
number: where it has more than a chunk's, the chunk ends with the follower's 20,000th instead.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum

import msgspec
from psycopg import sql
from psycopg.rows import TupleRow

from sharding.directory import Connection
from sharding.reshard.catalog import Table
from sharding.reshard.model import Unit
from sharding.reshard.scope import rows_of
from sharding.reshard.verify_snapshots import SnapshotPair

CHUNK_ROWS = 20_000
"""Some 30 ms of each server, and 10 MB here where all of its rows differ."""

MARKERS = "move_markers"

Key = tuple[str, ...]
"""The values of a primary key, as PostgreSQL writes them."""


class DifferenceKind(StrEnum):
    """How a row of the owner and of the follower differ."""

    MISSING = "missing"
    """The follower does not have it."""
    EXTRA = "extra"
    """Only the follower has it."""
    DIFFERING = "differing"


class Difference(msgspec.Struct, frozen=True):
    """A row that is not the same on both shards."""

    table: str
    key: Key
    kind: DifferenceKind


@dataclass(frozen=True, slots=True)
class Chunk:
    """What a comparison found in a range."""

    end: Key | None
    """The last key that it took in; None: there is nothing beyond."""
    rows: int
    """Of the owner."""
    differences: Sequence[Difference]


class ChunkReader:
    """Compares one chunk after another; both shards are at work at the same time."""

    def __init__(self, pair: SnapshotPair, follower: str, pool: ThreadPoolExecutor):
        self._pair = pair
        self._follower = follower
        self._pool = pool

    def compare(self, table: Table, unit: Unit, after: Key | None) -> Chunk:
        """The chunk of a unit's rows that begins after a key; None: with the first one."""
        rows = _Rows(table, unit, self._follower)
        end = rows.find_end(self._pair.owner, after)
        ours, theirs = self._ask_both(rows.hashes(after, end))
        if ours == theirs:
            return Chunk(end, ours[0][0], ())
        if theirs[0][0] > CHUNK_ROWS:
            end = rows.find_end(self._pair.follower, after)
        ours, theirs = self._ask_both(rows.digests(after, end))
        return Chunk(end, len(ours), list(_compare(table.name, _by_key(ours), _by_key(theirs))))

    def _ask_both(self, query: sql.Composed) -> tuple[list[TupleRow], list[TupleRow]]:
        theirs = self._pool.submit(_fetch, self._pair.follower, query)
        try:
            return _fetch(self._pair.owner, query), theirs.result()
        finally:
            theirs.exception()  # whatever happened here: its connection is in use until then


def _fetch(conn: Connection, query: sql.Composed) -> list[TupleRow]:
    return conn.execute(query).fetchall()


def _by_key(rows: Sequence[TupleRow]) -> dict[Key, bytes]:
    return {row[:-1]: row[-1] for row in rows}


def _compare(table: str, ours: Mapping[Key, bytes], theirs: Mapping[Key, bytes]) -> Iterator[Difference]:
    for key, digest in ours.items():
        if key not in theirs:
            yield Difference(table, key, DifferenceKind.MISSING)
        elif theirs[key] != digest:
            yield Difference(table, key, DifferenceKind.DIFFERING)
    for key in theirs:
        if key not in ours:
            yield Difference(table, key, DifferenceKind.EXTRA)


class _Rows:
    """Queries for ranges of a unit's rows.

    Keys are passed, and come, in PostgreSQL's own words. All names are qualified: ORDER BY would take a bare
    one for the text that is selected under it.
    """

    def __init__(self, table: Table, unit: Unit, follower: str):
        self._table = sql.Identifier("ns", table.name)
        self._within = rows_of([unit])
        if table.name == MARKERS:
            # The follower's own markers are on their way to the owner, and not from it.
            self._within += sql.SQL(" AND t.writer <> {}").format(sql.Literal(follower))
        # Two servers may sort words differently; the bytes they sort alike.
        self._key = _list(
            sql.SQL('{} COLLATE "C"' if name in table.localised else "{}").format(sql.Identifier("t", name))
            for name in table.key
        )
        self._key_texts = _list(sql.SQL("{}::text").format(sql.Identifier("t", name)) for name in table.key)
        self._row = sql.SQL("ROW({})").format(_list(sql.Identifier("t", name) for name in table.columns))

    def find_end(self, conn: Connection, after: Key | None) -> Key | None:
        """The key of the last row of a full chunk; None if there are fewer."""
        query = sql.SQL("SELECT {} FROM {} t WHERE {} ORDER BY {} LIMIT 1 OFFSET {}").format(
            self._key_texts, self._table, self._range(after, None), self._key, CHUNK_ROWS - 1
        )
        found = _fetch(conn, query)
        return found[0] if found else None

    def hashes(self, after: Key | None, end: Key | None) -> sql.Composed:
        """The number of a range's rows, and a hash of 128 bits; of a chunk's rows and one more at most.

        Of the rows' binary form, which costs two thirds of their text and knows no settings; by the hash of
        an array, as that of bytes alone came with PostgreSQL 18. The hash of a row as such would not do: it
        folds numbers of 64 bits into 32, so that 1 and 2^32 are the same to it, and it only adds up its
        columns', so that two rows may exchange values unseen.
        """
        return sql.SQL(
            "SELECT count(*), sum(hash_array_extended(r, 1))::text, sum(hash_array_extended(r, 2))::text"
            " FROM (SELECT ARRAY[record_send({})] AS r FROM {} t WHERE {} LIMIT {}) chunk"
        ).format(self._row, self._table, self._range(after, end), CHUNK_ROWS + 1)

    def digests(self, after: Key | None, end: Key | None) -> sql.Composed:
        """Key and SHA-256 of each row of a range: of its text, in which a type's number does not appear."""
        return sql.SQL(
            "SELECT {}, sha256(convert_to({}::text, 'UTF8')) FROM {} t WHERE {} ORDER BY {}"
        ).format(self._key_texts, self._row, self._table, self._range(after, end), self._key)

    def _range(self, after: Key | None, end: Key | None) -> sql.Composed:
        condition = self._within
        if after is not None:
            condition += sql.SQL(" AND ROW({}) > ROW({})").format(self._key, _list(map(sql.Literal, after)))
        if end is not None:
            condition += sql.SQL(" AND ROW({}) <= ROW({})").format(self._key, _list(map(sql.Literal, end)))
        return condition


def _list(parts: Iterable[sql.Composable]) -> sql.Composed:
    return sql.SQL(", ").join(parts)
