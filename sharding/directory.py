"""Reading and writing the directory: cluster, shards, map."""

import secrets
from collections.abc import Sequence

import psycopg
from psycopg.rows import TupleRow

from sharding.locks import SETUP_LOCK_CLASS
from sharding.ring import place_slots
from sharding.shardmap import Placement, ShardInfo, ShardMap
from wire.ids import NsId

Connection = psycopg.Connection[TupleRow]
AsyncConnection = psycopg.AsyncConnection[TupleRow]

# One statement, so that version, slots and overrides are of one snapshot.
_LOAD = """
SELECT c.cluster_id, c.map_version,
       (SELECT array_agg(m.shard ORDER BY m.slot) FROM shard_map m),
       (SELECT array_agg(m.epoch ORDER BY m.slot) FROM shard_map m),
       (SELECT coalesce(jsonb_agg(jsonb_build_array(o.ns_id::text, o.shard, o.epoch)), '[]')
          FROM overrides o),
       (SELECT coalesce(jsonb_agg(jsonb_build_array(s.name, s.dsn, s.weight, s.labels)), '[]')
          FROM shards s)
  FROM cluster c
"""


class ClusterNotCreated(Exception):
    """The directory holds no cluster yet: `shardctl dev up` or `create_cluster` makes one."""


async def load_map(conn: AsyncConnection) -> ShardMap:
    """The current map.

    Raises:
        ClusterNotCreated: the directory is empty.
    """
    cursor = await conn.execute(_LOAD)
    return _to_map(await cursor.fetchone())


def load_map_sync(conn: Connection) -> ShardMap:
    """The same, for operators' commands that have no event loop."""
    return _to_map(conn.execute(_LOAD).fetchone())


def _to_map(row: TupleRow | None) -> ShardMap:
    if row is None or row[2] is None:
        raise ClusterNotCreated("the directory holds no cluster yet")
    cluster_id, version, shards, epochs, overrides, infos = row
    return ShardMap(
        cluster_id=cluster_id,
        version=version,
        slots=[Placement(shard, epoch) for shard, epoch in zip(shards, epochs, strict=True)],
        overrides={NsId(int(ns_id)): Placement(shard, epoch) for ns_id, shard, epoch in overrides},
        shards={
            name: ShardInfo(name=name, dsn=dsn, weight=weight, labels=labels)
            for name, dsn, weight, labels in infos
        },
    )


def list_shards(conn: Connection) -> list[ShardInfo]:
    """All shards of the directory, by name."""
    rows = conn.execute("SELECT name, dsn, weight, labels FROM shards ORDER BY name").fetchall()
    return [ShardInfo(name=r[0], dsn=r[1], weight=r[2], labels=r[3]) for r in rows]


def insert_cluster(conn: Connection, shards: Sequence[ShardInfo], slot_count: int) -> ShardMap:
    """Record the cluster, its shards and the first map, unless they are there; what is there.

    Tx: one transaction of its own, under the set-up lock.
    """
    with conn.transaction():
        conn.execute("SELECT pg_advisory_xact_lock(%s, 0)", (SETUP_LOCK_CLASS,))
        if conn.execute("SELECT 1 FROM cluster").fetchone() is None:
            conn.execute(
                "INSERT INTO cluster (id, cluster_id, slot_count, map_version) VALUES (1, %s, %s, 1)",
                (secrets.token_hex(8), slot_count),
            )
            placed = place_slots({s.name: s.weight for s in shards}, slot_count)
            with conn.cursor() as cursor:
                cursor.executemany(
                    "INSERT INTO shards (name, dsn, weight) VALUES (%s, %s, %s)",
                    [(s.name, s.dsn, s.weight) for s in shards],
                )
                cursor.executemany(
                    "INSERT INTO shard_map (slot, shard, epoch) VALUES (%s, %s, 1)", sorted(placed.items())
                )
        for shard in shards:
            # A server that came back on another port keeps its slots.
            conn.execute("UPDATE shards SET dsn = %s WHERE name = %s", (shard.dsn, shard.name))
    return load_map_sync(conn)
