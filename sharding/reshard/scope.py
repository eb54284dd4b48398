"""The rows of a move, as conditions in SQL: the same for copy, stream, comparison and deletion."""

from collections.abc import Iterable, Sequence

from psycopg import sql

from sharding.reshard.model import Unit


def rows_of(units: Iterable[Unit]) -> sql.Composed:
    """A condition on `ns_id` that holds for exactly the rows of some units.

    Literals rather than parameters: a publication's row filter takes none.
    """
    return sql.SQL("({})").format(sql.SQL(" OR ").join(map(_rows_of_one, merge(units))))


def merge(units: Iterable[Unit]) -> Sequence[Unit]:
    """The same rows in as few ranges as they take, ascending: neighbouring slots are one."""
    merged: list[Unit] = []
    for unit in sorted(units, key=lambda u: u.first):
        if merged and merged[-1].last + 1 == unit.first:
            before = merged.pop()
            unit = Unit(before.key, before.first, unit.last, before.excluded + unit.excluded)
        merged.append(unit)
    return merged


def _rows_of_one(unit: Unit) -> sql.Composed:
    within = sql.SQL("(ns_id >= {} AND ns_id <= {})").format(sql.Literal(unit.first), sql.Literal(unit.last))
    if not unit.excluded:
        return within
    others = sql.SQL(", ").join(map(sql.Literal, unit.excluded))
    return sql.SQL("({} AND ns_id <> ALL (ARRAY[{}]::bigint[]))").format(within, others)
