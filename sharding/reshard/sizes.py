"""How much of each slot and namespace a shard has, at a bounded price."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from psycopg import sql

from sharding.directory import Connection
from sharding.reshard.catalog import Table, read_tables
from sharding.reshard.situation import Size
from wire.ids import COUNT_BITS, NsId, Slot

EXACT_BYTES = 32 * 1024**2
"""Of a table: as much is read in some ten milliseconds. Of a larger one that much is read here and there."""

ROW_HEADER_BYTES = 28
"""PostgreSQL's own of each row: 24 bytes of header, 4 of pointer."""


@dataclass(frozen=True, slots=True)
class ShardSizes:
    """What lies on a shard, whether or not it owns it."""

    slots: Mapping[Slot, Size]
    """Those that there is anything of, without the namespaces below."""
    namespaces: Mapping[NsId, Size]
    """Those that were asked for."""
    is_exact: bool
    """Whether every row was counted; else the large tables were sampled."""


@dataclass(frozen=True, slots=True)
class _TableSizes:
    slots: Mapping[Slot, Size]
    namespaces: Mapping[NsId, Size]
    is_exact: bool


def read_sizes(
    conn: Connection, namespaces: Collection[NsId] = (), exact_bytes: int = EXACT_BYTES
) -> ShardSizes:
    """How much of each slot, and of some namespaces, a shard has.

    Args:
        conn: to the shard.
        namespaces: told by themselves, and not with their slots.
        exact_bytes: tables up to this size are counted, of others about this much is sampled.
    """
    slots: dict[Slot, Size] = {}
    single = dict.fromkeys(namespaces, Size())
    is_exact = True
    for table in read_tables(conn):
        found = _read_table(conn, table, sorted(namespaces), exact_bytes)
        is_exact = is_exact and found.is_exact
        for slot, size in found.slots.items():
            slots[slot] = slots.get(slot, Size()) + size
        for ns_id, size in found.namespaces.items():
            single[ns_id] += size
    return ShardSizes(slots, single, is_exact)


def _read_table(conn: Connection, table: Table, namespaces: list[NsId], exact_bytes: int) -> _TableSizes:
    name = sql.Identifier("ns", table.name)
    row = conn.execute("SELECT pg_relation_size(to_regclass(%s))", [name.as_string(conn)]).fetchone()
    assert row is not None
    part = min(1.0, exact_bytes / row[0]) if row[0] else 1.0
    # The seed is fixed, so that a plan which is made twice is the same.
    sample = sql.SQL(" TABLESAMPLE SYSTEM ({}) REPEATABLE (1)").format(sql.Literal(part * 100))
    found = conn.execute(
        sql.SQL(
            "SELECT ns_id >> {bits}, CASE WHEN ns_id = ANY(%s) THEN ns_id END, count(*), sum({row_bytes})"
            " FROM {table}{sample} GROUP BY 1, 2"
        ).format(
            bits=sql.Literal(COUNT_BITS),
            row_bytes=_row_bytes(table),
            table=name,
            sample=sample if part < 1 else sql.SQL(""),
        ),
        [namespaces],
    ).fetchall()
    sizes = {(slot, ns_id): Size(round(n / part), round(int(b) / part)) for slot, ns_id, n, b in found}
    return _TableSizes(
        slots={Slot(slot): size for (slot, ns_id), size in sizes.items() if ns_id is None},
        namespaces={NsId(ns_id): size for (_, ns_id), size in sizes.items() if ns_id is not None},
        is_exact=part == 1,
    )


def _row_bytes(table: Table) -> sql.Composed:
    """What a row takes, as it is stored: a value that lies apart is not fetched to be measured.

    Not a part of the table's size: that is also the room of rows that have moved away.
    """
    columns = [
        sql.SQL("coalesce(pg_column_size({}), 0)").format(sql.Identifier(column)) for column in table.columns
    ]
    return sql.SQL(" + ").join([sql.Literal(ROW_HEADER_BYTES), *columns])
