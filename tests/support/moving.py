"""Moving one namespace to another shard by hand: what a later `shardctl namespace move` ends in."""

import psycopg
from psycopg import sql

from metaserver.storage.tables import metadata
from sharding.locks import SLOT_LOCK_CLASS
from wire.ids import NsId, slot_of

TABLES = [sql.Identifier("ns", table.name) for table in metadata.sorted_tables]
Connection = psycopg.AsyncConnection


async def copy_range(source: Connection, target: Connection, first: NsId, last: NsId) -> None:
    """Copy all rows of some namespaces from one shard to another."""
    for table in TABLES:
        out = sql.SQL("COPY (SELECT * FROM {} WHERE ns_id BETWEEN {} AND {}) TO STDOUT (FORMAT binary)")
        taken = sql.SQL("COPY {} FROM STDIN (FORMAT binary)").format(table)
        async with source.cursor() as reading, target.cursor() as writing:
            statement = out.format(table, sql.Literal(first), sql.Literal(last))
            async with reading.copy(statement) as rows, writing.copy(taken) as copied:
                async for chunk in rows:
                    await copied.write(chunk)


async def delete_range(conn: Connection, first: NsId, last: NsId) -> None:
    """Delete all rows of some namespaces from a shard."""
    for table in reversed(TABLES):
        await conn.execute(
            sql.SQL("DELETE FROM {} WHERE ns_id BETWEEN %s AND %s").format(table), [first, last]
        )


async def set_ownership(
    conn: Connection,
    key: NsId,
    epoch: int,
    state: str,
    successor: tuple[str, int] | None = None,
) -> None:
    """Write an ownership row; `successor` is (shard, epoch).

    Tx: takes the slot's lock exclusively, as a fence does.
    """
    async with conn.transaction():
        await conn.execute("SELECT pg_advisory_xact_lock(%s, %s)", [SLOT_LOCK_CLASS, slot_of(key)])
        await conn.execute(
            "INSERT INTO local.ownership (ns_id, epoch, state, successor, successor_epoch)"
            " VALUES (%s, %s, %s, %s, %s) ON CONFLICT (ns_id) DO UPDATE SET epoch = excluded.epoch,"
            " state = excluded.state, successor = excluded.successor,"
            " successor_epoch = excluded.successor_epoch",
            [key, epoch, state, *(successor or (None, None))],
        )


async def publish_override(directory: Connection, ns_id: NsId, shard: str, epoch: int) -> None:
    """Put a single namespace's placement into the map."""
    async with directory.transaction():
        await directory.execute(
            "INSERT INTO overrides (ns_id, shard, epoch) VALUES (%s, %s, %s)"
            " ON CONFLICT (ns_id) DO UPDATE SET shard = excluded.shard, epoch = excluded.epoch",
            [ns_id, shard, epoch],
        )
        await directory.execute("UPDATE cluster SET map_version = map_version + 1")


async def publish_slot(directory: Connection, slot: int, shard: str, epoch: int) -> None:
    """Put a slot's placement into the map."""
    async with directory.transaction():
        await directory.execute(
            "UPDATE shard_map SET shard = %s, epoch = %s WHERE slot = %s", [shard, epoch, slot]
        )
        await directory.execute("UPDATE cluster SET map_version = map_version + 1")
