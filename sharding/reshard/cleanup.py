"""Rows that a shard does not own, deleted in small batches.

Each batch is a write like any other: it takes the slot's lock shared, and looks at ownership in a later
statement. So it cannot delete what a namespace wrote here that came back, or is pinned here.
"""

from collections.abc import Callable, Iterator, Sequence

import msgspec
import psycopg
from psycopg import sql
from psycopg.rows import TupleRow

from sharding.directory import Connection
from sharding.locks import SLOT_LOCK_CLASS
from sharding.reshard.catalog import Table
from sharding.reshard.errors import MoveBusy
from sharding.reshard.model import Unit
from sharding.reshard.pacing import Pacer
from sharding.reshard.scope import rows_of
from sharding.reshard.sites import Site
from wire import faults
from wire.ids import slot_of, system_ns

BATCH_ROWS = 1000
"""Some 10 ms: a fence of the slot waits for no longer."""
LOCK_TIMEOUT = "5s"
"""A fence holds the slot for milliseconds."""

faults.declare("reshard.cleanup.batch_done")


class DeleteProgress(msgspec.Struct, frozen=True, kw_only=True):
    """How far a deletion is."""

    table: str
    """Whose turn it is."""
    deleted_rows: int


def delete_rows(
    site: Site,
    tables: Sequence[Table],
    units: Sequence[Unit],
    pacer: Pacer,
    on_progress: Callable[[DeleteProgress], None],
    batch_rows: int = BATCH_ROWS,
) -> int:
    """Delete the rows of units that a shard does not own; how many.

    A namespace's rows go where its effective ownership row is `gone`, or there is none. What is active,
    fenced or importing here stays, and so do the namespaces that a unit excludes.

    Args:
        site: the shard.
        tables: referenced ones before those that refer to them; they are worked off from the end.
        units: whose rows.
        pacer: is asked before each batch.
        on_progress: is told after each batch that deleted something.
        batch_rows: of a transaction.

    Raises:
        MoveBusy: somebody holds the slot, or a row, for seconds.
        Interrupted: the operator stopped it.

    Tx: one for each batch: the slot's lock shared; then, in one statement, ownership and rows.
    """
    deleted = 0
    with site.connect(lock_timeout=LOCK_TIMEOUT) as conn:
        for table in reversed(tables):
            for unit in units:
                try:
                    for count in _delete_unit(conn, table, unit, pacer, batch_rows):
                        deleted += count
                        if count:
                            on_progress(DeleteProgress(table=table.name, deleted_rows=deleted))
                        faults.fault_point("reshard.cleanup.batch_done")
                except psycopg.errors.LockNotAvailable:
                    raise MoveBusy(
                        f"somebody holds {unit.name} on {site.name}: see pg_locks there, then resume"
                    ) from None
    return deleted


def count_rows(site: Site, tables: Sequence[Table], units: Sequence[Unit]) -> int:
    """How many rows of some units a shard has, whoever owns them."""
    count = sql.SQL("SELECT count(*) FROM {} WHERE {}")
    with site.connect() as conn:
        return sum(row[0] for row in _ask_each(conn, count, tables, units))


def has_rows(site: Site, tables: Sequence[Table], units: Sequence[Unit]) -> bool:
    """Whether a shard has any row of some units, whoever owns them."""
    exists = sql.SQL("SELECT EXISTS (SELECT 1 FROM {} WHERE {})")
    with site.connect() as conn:
        return any(row[0] for row in _ask_each(conn, exists, tables, units))


def _ask_each(
    conn: Connection, question: sql.SQL, tables: Sequence[Table], units: Sequence[Unit]
) -> Iterator[TupleRow]:
    for table in tables:
        statement = question.format(sql.Identifier("ns", table.name), rows_of(units))
        yield from conn.execute(statement).fetchall()


def _delete_unit(conn: Connection, table: Table, unit: Unit, pacer: Pacer, batch_rows: int) -> Iterator[int]:
    """Delete a table's rows of a unit; yields how many after each batch."""
    pacer.wait(0)
    # From key to key, so that no batch walks over the dead rows of those before it.
    after: TupleRow = ()
    while True:
        upto = _find_batch_end(conn, table, unit, after, batch_rows)
        count = _delete_batch(conn, table, unit, after, upto or ())
        yield count
        pacer.wait(count)
        if upto is None:
            return
        after = upto


def _find_batch_end(
    conn: Connection, table: Table, unit: Unit, after: TupleRow, batch_rows: int
) -> TupleRow | None:
    """The key of the last row of a batch; None when fewer rows are left. Nobody writes what is deleted."""
    statement = sql.SQL("SELECT {} FROM {} WHERE {} ORDER BY {} OFFSET {} LIMIT 1").format(
        _key(table), _name(table), _between(table, unit, after, ()), _key(table), batch_rows - 1
    )
    return conn.execute(statement, after).fetchone()


def _delete_batch(conn: Connection, table: Table, unit: Unit, after: TupleRow, upto: TupleRow) -> int:
    slot = slot_of(unit.key)
    statement = sql.SQL("DELETE FROM {} moved WHERE {} AND {}").format(
        _name(table), _between(table, unit, after, upto), _DISOWNED.format(system_ns(slot))
    )
    with conn.transaction():
        conn.execute("SELECT pg_advisory_xact_lock_shared(%s, %s)", [SLOT_LOCK_CLASS, slot])
        return conn.execute(statement, [*after, *upto]).rowcount


def _name(table: Table) -> sql.Identifier:
    return sql.Identifier("ns", table.name)


def _key(table: Table) -> sql.Composed:
    return sql.SQL(", ").join(map(sql.Identifier, table.key))


def _between(table: Table, unit: Unit, after: TupleRow, upto: TupleRow) -> sql.Composed:
    """A condition for a unit's rows after one key and up to another; () is no bound."""
    values = sql.SQL(", ").join([sql.Placeholder()] * len(table.key))
    conditions = [rows_of([unit])]
    if after:
        conditions.append(sql.SQL("({}) > ({})").format(_key(table), values))
    if upto:
        conditions.append(sql.SQL("({}) <= ({})").format(_key(table), values))
    return sql.SQL(" AND ").join(conditions)


# A namespace's own row has the higher key, so it comes before its slot's.
_DISOWNED = sql.SQL(
    "coalesce((SELECT o.state FROM local.ownership o WHERE o.ns_id IN (moved.ns_id, {})"
    " ORDER BY o.ns_id DESC LIMIT 1), 'g') = 'g'"
)
