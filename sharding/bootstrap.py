"""Create a cluster: the directory's records, then each shard's ownership rows. Repeating it is harmless."""

from collections.abc import Sequence

import psycopg

from sharding.directory import Connection, insert_cluster
from sharding.shardmap import OwnershipState, ShardInfo, ShardMap
from wire import faults
from wire.ids import MAX_SLOTS, system_ns

EMBEDDED_SLOTS = 64

faults.declare("sharding.bootstrap.directory_written", "sharding.bootstrap.shard_written")


class DirectoryLost(Exception):
    """The directory is empty, and a shard says that it belongs to a cluster: a new map could be wrong."""


def create_cluster(
    directory_dsn: str, shards: Sequence[tuple[str, str, int]], slot_count: int = EMBEDDED_SLOTS
) -> ShardMap:
    """Record a cluster of migrated databases; the map that is in force.

    Args:
        directory_dsn: The directory database.
        shards: (name, DSN without password, weight) of each shard.
        slot_count: Slots in use, for ever.

    Raises:
        DirectoryLost: there was a cluster, whose directory is to be rebuilt.
    """
    if not 1 <= slot_count <= MAX_SLOTS:
        raise ValueError(f"a cluster has 1 to {MAX_SLOTS} slots")
    infos = [ShardInfo(name=name, dsn=dsn, weight=weight) for name, dsn, weight in shards]
    with psycopg.connect(directory_dsn, autocommit=True, connect_timeout=5) as conn:
        if conn.execute("SELECT 1 FROM cluster").fetchone() is None:
            _check_are_new(infos)
        shard_map = insert_cluster(conn, infos, slot_count)
    faults.fault_point("sharding.bootstrap.directory_written")
    for info in shard_map.shards.values():
        with psycopg.connect(info.dsn, connect_timeout=5) as conn:
            _write_shard(conn, shard_map, info.name)
        faults.fault_point("sharding.bootstrap.shard_written")
    return shard_map


def _check_are_new(infos: Sequence[ShardInfo]) -> None:
    """Refuse shards of a cluster: the directory is written before them."""
    for info in infos:
        with psycopg.connect(info.dsn, autocommit=True, connect_timeout=5) as conn:
            row = conn.execute("SELECT cluster_id FROM local.cluster").fetchone()
        if row is not None:
            raise DirectoryLost(f"the directory is empty, and {info.name} belongs to cluster {row[0]}")


def sign_shard(conn: Connection, shard_map: ShardMap, name: str) -> None:
    """Write on a shard whose it is; what it says already stays.

    The shards by themselves can then tell what a lost directory held (`shardctl restore directory`).
    """
    conn.execute(
        "INSERT INTO local.cluster (id, cluster_id, slot_count, shard) VALUES (1, %s, %s, %s)"
        " ON CONFLICT DO NOTHING",
        [shard_map.cluster_id, shard_map.slot_count, name],
    )


def _write_shard(conn: Connection, shard_map: ShardMap, name: str) -> None:
    sign_shard(conn, shard_map, name)
    if shard_map.version > 1:  # made by moves and restores, which write ownership themselves
        return
    rows = [
        (system_ns(slot), shard_map.slots[slot].epoch, OwnershipState.ACTIVE.value)
        for slot in shard_map.slots_of(name)
    ]
    with conn.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO local.ownership (ns_id, epoch, state) VALUES (%s, %s, %s)"
            " ON CONFLICT (ns_id) DO NOTHING",
            rows,
        )
