"""Reading and writing the directory: cluster, shards, map."""

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import LiteralString

import msgspec
import psycopg
from psycopg.rows import TupleRow
from psycopg.types.json import Jsonb

from sharding.locks import MAP_LOCK_CLASS, SETUP_LOCK_CLASS
from sharding.ring import place_slots
from sharding.shardmap import Pin, Placement, ShardInfo, ShardMap, ShardState
from wire.errors import NotFound
from wire.ids import NsId

Connection = psycopg.Connection[TupleRow]
AsyncConnection = psycopg.AsyncConnection[TupleRow]

# One statement, so that version, slots and overrides are of one snapshot. Shards are taken as they are: a
# column that the directory does not have yet has its default.
_LOAD = """
SELECT c.cluster_id, c.map_version,
       (SELECT array_agg(m.shard ORDER BY m.slot) FROM shard_map m),
       (SELECT array_agg(m.epoch ORDER BY m.slot) FROM shard_map m),
       (SELECT coalesce(jsonb_agg(jsonb_build_array(o.ns_id::text, o.shard, o.epoch)), '[]')
          FROM overrides o),
       (SELECT coalesce(jsonb_agg(to_jsonb(s)), '[]') FROM shards s)
  FROM cluster c
"""


class ClusterNotCreated(Exception):
    """The directory holds no cluster yet: `shardctl dev up` or `create_cluster` makes one."""


class ShardDiffers(Exception):
    """A shard of that name is recorded otherwise."""


class ShardInUse(Exception):
    """Something still refers to a shard; the message says what."""


@dataclass(frozen=True, slots=True)
class MapChange:
    """A placement that came with a version of the map. Versions without one brought or took shards."""

    map_version: int
    at: datetime
    key: NsId
    """A slot's system namespace, or a namespace."""
    shard: str | None
    """None: the namespace is no longer placed by itself."""
    epoch: int | None
    move_id: int | None


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
        shards={info.name: info for info in msgspec.convert(infos, list[ShardInfo])},
    )


def list_shards(conn: Connection) -> list[ShardInfo]:
    """All shards of the directory, by name."""
    rows = conn.execute("SELECT to_jsonb(s) FROM shards s ORDER BY name").fetchall()
    return [msgspec.convert(row[0], ShardInfo) for row in rows]


def list_pins(conn: Connection) -> dict[NsId, Pin]:
    """All pins, by namespace, ascending."""
    rows = conn.execute("SELECT ns_id, shard, label, value FROM pins ORDER BY ns_id").fetchall()
    return {NsId(row[0]): Pin(shard=row[1], label=row[2], value=row[3]) for row in rows}


def insert_shard(conn: Connection, info: ShardInfo) -> bool:
    """Record a shard that holds nothing yet; whether it is new, and if so the map has a new version.

    Raises:
        ShardDiffers: there is one of that name at another address, or with other properties.

    Tx: one of its own, under the map's lock.
    """
    with conn.transaction():
        lock_map(conn)
        former = next((s for s in list_shards(conn) if s.name == info.name), None)
        if former is not None:
            if former != info:
                raise ShardDiffers(f"there is a shard {info.name} already, with other properties")
            return False
        conn.execute(
            "INSERT INTO shards (name, dsn, weight, labels, state, replication_dsn)"
            " VALUES (%s, %s, %s, %s, %s, %s)",
            [info.name, info.dsn, info.weight, Jsonb(info.labels), info.state.value, info.replication_dsn],
        )
        _raise_version(conn)
    return True


def change_shard(conn: Connection, name: str, change: Callable[[ShardInfo], ShardInfo]) -> bool:
    """Record a shard otherwise; whether that changed anything, and if so the map has a new version.

    Raises:
        NotFound: there is no such shard.

    Tx: one of its own, under the map's lock.
    """
    with conn.transaction():
        lock_map(conn)
        former = next((s for s in list_shards(conn) if s.name == name), None)
        if former is None:
            raise NotFound(f"there is no shard {name!r}")
        info = change(former)
        if info == former:
            return False
        conn.execute(
            "UPDATE shards SET dsn = %s, weight = %s, labels = %s, state = %s, replication_dsn = %s"
            " WHERE name = %s",
            [info.dsn, info.weight, Jsonb(info.labels), info.state.value, info.replication_dsn, name],
        )
        _raise_version(conn)
    return True


def set_shard_state(conn: Connection, name: str, state: ShardState) -> bool:
    """Mark a shard; whether that changed anything, and if so the map has a new version.

    Raises:
        NotFound: there is no such shard.

    Tx: one of its own, under the map's lock.
    """
    return change_shard(conn, name, lambda info: msgspec.structs.replace(info, state=state))


def delete_shard(conn: Connection, name: str) -> bool:
    """Forget a shard that nothing refers to; whether there was one, and if so the map has a new version.

    Raises:
        ShardInUse: it owns something, is in a move that has not ended, or namespaces are pinned to it.

    Tx: one of its own, under the map's lock.
    """
    with conn.transaction():
        lock_map(conn)
        uses = list_shard_uses(conn, name)
        if uses:
            raise ShardInUse(f"{name} {'; it '.join(uses)}")
        if conn.execute("DELETE FROM shards WHERE name = %s", [name]).rowcount == 0:
            return False
        _raise_version(conn)
    return True


def list_map_changes(conn: Connection, limit: int) -> list[MapChange]:
    """The last changes of placements, newest first."""
    rows = conn.execute(
        "SELECT map_version, at, key, shard, epoch, move_id FROM map_history"
        " ORDER BY map_version DESC LIMIT %s",
        [limit],
    ).fetchall()
    return [MapChange(r[0], r[1], NsId(r[2]), r[3], r[4], r[5]) for r in rows]


_USES: LiteralString = """
SELECT (SELECT count(*) FROM shard_map WHERE shard = %(name)s),
       (SELECT count(*) FROM overrides WHERE shard = %(name)s),
       (SELECT count(*) FROM pins WHERE shard = %(name)s),
       (SELECT array_agg(move_id ORDER BY move_id) FROM moves
         WHERE %(name)s IN (source, target) AND ended_at IS NULL)
"""


def list_shard_uses(conn: Connection, name: str) -> list[str]:
    """What keeps a shard from being forgotten, in words; empty: nothing."""
    row = conn.execute(_USES, {"name": name}).fetchone()
    assert row is not None
    slots, namespaces, pins, moves = row
    uses: list[str] = []
    if slots:
        uses.append(f"holds {slots} slots")
    if namespaces:
        uses.append(f"holds {namespaces} namespaces by themselves")
    if pins:
        uses.append(f"has {pins} namespaces pinned to it")
    if moves:
        uses.append(f"is in the moves {', '.join(map(str, moves))}")
    return uses


def lock_map(conn: Connection) -> None:
    """Let nobody else record a shard, a move or a pin until the transaction ends."""
    conn.execute("SELECT pg_advisory_xact_lock(%s, 0)", [MAP_LOCK_CLASS])


def _raise_version(conn: Connection) -> None:
    """Let servers learn of a change: they take only what is newer."""
    conn.execute("UPDATE cluster SET map_version = map_version + 1")


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
