"""The tables of schema `ns`, from PostgreSQL's own catalog: a new table moves without a change here."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import LiteralString

from psycopg.rows import TupleRow

from sharding.directory import Connection
from sharding.reshard.errors import MoveError


class TablesDiffer(MoveError):
    """The two shards do not have the same tables."""

    code = "tables_differ"


class NoPrimaryKey(MoveError):
    """A table has no primary key that begins with ns_id: its rows cannot be told apart, or not by slot."""

    code = "no_primary_key"


class TableNotMovable(MoveError):
    """A table is of a kind that a stream does not carry, or not wholly."""

    code = "table_not_movable"


@dataclass(frozen=True, slots=True)
class Table:
    """What a move has to know of a table."""

    name: str
    columns: tuple[str, ...]
    """All but the generated ones: those are neither copied nor streamed, but made anew."""
    key: tuple[str, ...]
    """The primary key's columns, in its order."""
    localised: frozenset[str] = frozenset()
    """Columns of the key that sort by a locale, which on another server may be another one, or newer."""


@dataclass(frozen=True, slots=True)
class _Found:
    """A table as a catalog describes it."""

    table: Table
    columns: Mapping[str, str]
    """Type, collation, nullability and generation of each column, in words."""
    obstacles: tuple[str, ...]
    """Why it cannot be moved, whatever its key."""


def read_tables(conn: Connection) -> list[Table]:
    """The tables of schema `ns`, referenced ones before those that refer to them.

    Raises:
        NoPrimaryKey: a table has none that begins with ns_id.
        TableNotMovable: a table is of a kind that a stream does not carry, or tables refer to one another
            in a circle.
    """
    found = _read(conn)
    _check(found.values())
    return _parents_first(conn, found)


def check_tables(source: Connection, target: Connection) -> list[Table]:
    """The tables of two shards, in the order of `read_tables`, if they are the same and can be moved.

    The order of columns may differ, and so may indexes and defaults: they change nothing in what is carried.

    Raises:
        TablesDiffer: in tables, columns or primary keys; names every difference.
        NoPrimaryKey, TableNotMovable: as `read_tables`, for either.
    """
    ours, theirs = _read(source), _read(target)
    differences = list(_compare(ours, theirs))
    if differences:
        raise TablesDiffer(
            f"the tables of the shards differ: {'; '.join(differences)}. Bring both to one version with"
            " `shardctl migrate`"
        )
    _check((*ours.values(), *theirs.values()))
    return _parents_first(source, ours)


def _check(tables: Iterable[_Found]) -> None:
    for found in tables:
        name = found.table.name
        if found.obstacles:
            raise TableNotMovable(f"ns.{name} cannot be moved: {'; '.join(found.obstacles)}")
        if found.table.key[:1] != ("ns_id",):
            raise NoPrimaryKey(f"ns.{name} needs a primary key that begins with ns_id, to be moved")


def _compare(ours: Mapping[str, _Found], theirs: Mapping[str, _Found]) -> Iterator[str]:
    for name in sorted(ours.keys() | theirs.keys()):
        mine, other = ours.get(name), theirs.get(name)
        if mine is None or other is None:
            yield f"ns.{name} is on the {'target' if mine is None else 'source'} only"
            continue
        for column in sorted(mine.columns.keys() | other.columns.keys()):
            here, there = (found.columns.get(column, "absent") for found in (mine, other))
            if here != there:
                yield f"ns.{name}.{column} is {here} on the source, {there} on the target"
        here, there = (", ".join(found.table.key) or "none" for found in (mine, other))
        if here != there:
            yield f"the primary key of ns.{name} is ({here}) on the source, ({there}) on the target"


def _parents_first(conn: Connection, tables: Mapping[str, _Found]) -> list[Table]:
    parents: dict[str, set[str]] = {name: set() for name in tables}
    for child, parent in conn.execute(_REFERENCES).fetchall():
        parents[child].add(parent)
    try:
        return [tables[name].table for name in TopologicalSorter(parents).static_order()]
    except CycleError as error:
        circle = " → ".join(f"ns.{name}" for name in error.args[1])
        raise TableNotMovable(f"tables refer to one another in a circle: {circle}") from None


def _read(conn: Connection) -> dict[str, _Found]:
    """Every table of schema `ns` by name; also what only looks like one, with the reason why it is none."""
    columns: dict[str, list[TupleRow]] = {}
    for name, *column in conn.execute(_COLUMNS).fetchall():
        columns.setdefault(name, []).append(tuple(column))
    return {
        name: _describe(name, columns.get(name, []), obstacles)
        for name, obstacles in conn.execute(_TABLES).fetchall()
    }


def _describe(name: str, columns: Sequence[TupleRow], obstacles: Sequence[str]) -> _Found:
    key = sorted((position, column) for column, _, _, position, _ in columns if position is not None)
    return _Found(
        Table(
            name,
            columns=tuple(column for column, _, is_generated, _, _ in columns if not is_generated),
            key=tuple(column for _, column in key),
            localised=frozenset(column for column, _, _, _, is_localised in columns if is_localised),
        ),
        columns={column: description for column, description, _, _, _ in columns},
        obstacles=tuple(obstacles),
    )


# Whatever holds rows, or hands out numbers. A view holds nothing.
_TABLES: LiteralString = """
SELECT c.relname, array_remove(ARRAY[
    CASE c.relkind WHEN 'p' THEN 'it is partitioned' WHEN 'f' THEN 'it is a foreign table'
                   WHEN 'S' THEN 'a sequence does not move with the rows that it counts' END,
    CASE WHEN c.relpersistence <> 'p' THEN 'it is unlogged, and a stream is read from the log' END,
    CASE WHEN EXISTS (SELECT 1 FROM pg_inherits h WHERE c.oid IN (h.inhrelid, h.inhparent))
         THEN 'it inherits from another table, or is a partition' END,
    CASE WHEN c.relkind = 'r' AND c.relreplident <> 'd'
         THEN 'its replica identity is not its primary key' END,
    CASE WHEN c.relrowsecurity THEN 'a policy may hide rows of it' END,
    CASE WHEN NOT i.indimmediate
         THEN 'its primary key is deferrable, and so no replica identity' END], NULL)
  FROM pg_class c LEFT JOIN pg_index i ON i.indrelid = c.oid AND i.indisprimary
 WHERE c.relnamespace = 'ns'::regnamespace AND c.relkind IN ('r', 'p', 'f', 'S')
 ORDER BY c.relname
"""
# Positions in `indkey` count from 0, and what lies beyond `indnkeyatts` is only included.
_COLUMNS: LiteralString = """
SELECT c.relname, a.attname,
       format_type(a.atttypid, a.atttypmod)
         || CASE WHEN l.collname <> 'default' THEN ' COLLATE ' || l.collname ELSE '' END
         || CASE WHEN a.attnotnull THEN ' NOT NULL' ELSE '' END
         || CASE WHEN a.attgenerated <> ''
                 THEN ' GENERATED AS ' || pg_get_expr(d.adbin, d.adrelid) ELSE '' END,
       a.attgenerated <> '',
       CASE WHEN k.position < i.indnkeyatts THEN k.position END,
       k.position < i.indnkeyatts AND l.collname NOT IN ('C', 'POSIX')
  FROM pg_class c
  JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
  LEFT JOIN pg_collation l ON l.oid = a.attcollation
  LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
  LEFT JOIN pg_index i ON i.indrelid = c.oid AND i.indisprimary
  LEFT JOIN LATERAL (SELECT array_position(i.indkey::int2[], a.attnum) AS position) k ON true
 WHERE c.relnamespace = 'ns'::regnamespace AND c.relkind IN ('r', 'p', 'f')
 ORDER BY c.relname, a.attnum
"""
# A table may refer to itself.
_REFERENCES: LiteralString = """
SELECT DISTINCT child.relname, parent.relname
  FROM pg_constraint f
  JOIN pg_class child ON child.oid = f.conrelid
  JOIN pg_class parent ON parent.oid = f.confrelid
 WHERE f.contype = 'f' AND child.oid <> parent.oid
   AND child.relnamespace = 'ns'::regnamespace AND parent.relnamespace = 'ns'::regnamespace
"""
