"""Create a cluster: the directory's records, then each shard's ownership rows. Repeating it is harmless."""

from collections.abc import Sequence

import psycopg

from sharding.directory import insert_cluster
from sharding.shardmap import OwnershipState, ShardInfo, ShardMap
from wire import faults
from wire.ids import MAX_SLOTS, system_ns

EMBEDDED_SLOTS = 64

faults.declare("sharding.bootstrap.directory_written", "sharding.bootstrap.shard_written")


def create_cluster(
    directory_dsn: str, shards: Sequence[tuple[str, str, int]], slot_count: int = EMBEDDED_SLOTS
) -> ShardMap:
    """Record a cluster of migrated databases; the map that is in force.

    Args:
        directory_dsn: The directory database.
        shards: (name, DSN without password, weight) of each shard.
        slot_count: Slots in use, for ever.
    """
    if not 1 <= slot_count <= MAX_SLOTS:
        raise ValueError(f"a cluster has 1 to {MAX_SLOTS} slots")
    infos = [ShardInfo(name=name, dsn=dsn, weight=weight) for name, dsn, weight in shards]
    with psycopg.connect(directory_dsn, autocommit=True, connect_timeout=5) as conn:
        shard_map = insert_cluster(conn, infos, slot_count)
    faults.fault_point("sharding.bootstrap.directory_written")
    if shard_map.version == 1:  # later versions were made by moves, which write ownership themselves
        for info in shard_map.shards.values():
            rows = [
                (system_ns(slot), shard_map.slots[slot].epoch, OwnershipState.ACTIVE.value)
                for slot in shard_map.slots_of(info.name)
            ]
            with psycopg.connect(info.dsn, connect_timeout=5) as conn, conn.cursor() as cursor:
                cursor.executemany(
                    "INSERT INTO local.ownership (ns_id, epoch, state) VALUES (%s, %s, %s)"
                    " ON CONFLICT (ns_id) DO NOTHING",
                    rows,
                )
            faults.fault_point("sharding.bootstrap.shard_written")
    return shard_map
