"""The directory made again from the shards: which slot lives where is what their own ownership rows say.

What only the directory knows (weights, labels) comes from a map that a metaserver has kept on its disk, where
there is one.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec
import psycopg
from psycopg import sql
from psycopg.types.json import Jsonb

from ops.errors import OpsError, UsageError
from ops.restore.ownership import Rebuilt, rebuild
from ops.restore.private import Tell
from ops.restore.steps import read_ownership
from ops.session import CONNECT_TIMEOUT_S
from sharding.directory import load_map_sync
from sharding.locks import SETUP_LOCK_CLASS
from sharding.shardmap import ShardInfo, ShardMap
from wire import faults
from wire.errors import ShardUnavailable

faults.declare("ops.restore.directory_written", "ops.restore.directory_committed")


class MapIncomplete(OpsError):
    """The shards that answered do not own all slots."""

    code, exit_status = "map_incomplete", 4


class DirectoryThere(OpsError):
    """The directory already holds a cluster."""

    code, exit_status = "directory_there", 4


@dataclass(frozen=True, slots=True)
class Found:
    """What the shards have told."""

    cluster_id: str
    slot_count: int
    shards: dict[str, ShardInfo]
    rebuilt: Rebuilt


class DirectoryReport(msgspec.Struct, frozen=True, kw_only=True):
    """The directory that was, or would be, made."""

    cluster_id: str
    slot_count: int
    map_version: int
    slots_by_shard: dict[str, int]
    override_count: int
    is_written: bool


def newest_map(maps: Sequence[ShardMap]) -> ShardMap | None:
    """The newest of some kept maps."""
    return max(maps, key=lambda kept: kept.version, default=None)


def ask_shards(dsns: Mapping[str, str], known: ShardMap | None, without: Sequence[str]) -> Found:
    """What the shards say.

    Args:
        dsns: addresses by name.
        known: a kept map; it fills in what the shards cannot know.
        without: shards that are lost as well; their slots are taken from the kept map.

    Raises:
        ShardUnavailable: a shard does not answer.
        UsageError: they are not of one cluster, or one is not the shard that it was said to be.
        MapIncomplete: slots have no owner.
    """
    rows, clusters = {}, set()
    for name, dsn in dsns.items():
        if name in without:
            continue
        try:
            with psycopg.connect(dsn, autocommit=True, connect_timeout=CONNECT_TIMEOUT_S) as conn:
                rows[name] = read_ownership(conn)
                about = conn.execute("SELECT cluster_id, slot_count, shard FROM local.cluster").fetchone()
        except psycopg.OperationalError as error:
            raise ShardUnavailable(
                f"{name} does not answer: {str(error).strip()}; if it is lost as well, add --without {name}"
            ) from error
        if about is None or about[2] != name:
            raise UsageError(f"the server at {dsn} is {about[2] if about else 'no shard'}, not {name}")
        clusters.add((about[0], about[1]))
    if len(clusters) != 1:
        raise UsageError(f"these shards are of {len(clusters)} clusters")
    ((cluster_id, slot_count),) = clusters
    if known is not None and known.cluster_id != cluster_id:
        raise UsageError(f"the kept map is of cluster {known.cluster_id}, the shards are of {cluster_id}")
    rebuilt = rebuild(slot_count, rows, known)
    _check_whole(rebuilt, set(dsns))
    shards = {name: _info(name, dsn, known) for name, dsn in dsns.items()}
    return Found(cluster_id, slot_count, shards, rebuilt)


def _check_whole(rebuilt: Rebuilt, names: set[str]) -> None:
    if rebuilt.ownerless:
        some = ", ".join(map(str, rebuilt.ownerless[:8]))
        raise MapIncomplete(
            f"{len(rebuilt.ownerless)} slots have no owner among {', '.join(sorted(names))} (slots {some}):"
            " name every shard; for one that is lost, a map that a metaserver has kept"
        )
    strangers = {p.shard for p in (*rebuilt.slots.values(), *rebuilt.overrides.values())} - names
    if strangers:
        raise MapIncomplete(f"slots lie on {', '.join(sorted(strangers))}: name its address")


def _info(name: str, dsn: str, known: ShardMap | None) -> ShardInfo:
    former = known.shards.get(name) if known is not None else None
    if former is None:
        return ShardInfo(name=name, dsn=dsn, weight=1)
    return msgspec.structs.replace(former, dsn=dsn)


def write_directory(directory_dsn: str, found: Found, tell: Tell, *, is_dry_run: bool) -> DirectoryReport:
    """Write an empty directory, in one transaction.

    Raises:
        DirectoryThere: it is not empty.
    """
    # Higher than any version there was, whoever remembers it: no cluster changes its map a million times a
    # second. Metaservers take a map only if its version is not below that of the one they have.
    version = time.time_ns() // 1_000
    placed = found.rebuilt.slots
    report = DirectoryReport(
        cluster_id=found.cluster_id,
        slot_count=found.slot_count,
        map_version=version,
        slots_by_shard={name: sum(p.shard == name for p in placed.values()) for name in sorted(found.shards)},
        override_count=len(found.rebuilt.overrides),
        is_written=not is_dry_run,
    )
    with psycopg.connect(directory_dsn, autocommit=True, connect_timeout=CONNECT_TIMEOUT_S) as conn:
        with conn.transaction(), conn.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(%s, 0)", [SETUP_LOCK_CLASS])
            if cursor.execute("SELECT 1 FROM cluster").fetchone() is not None:
                raise DirectoryThere("the directory holds a cluster; only an empty one is rebuilt")
            if is_dry_run:
                return report
            cursor.execute(
                "INSERT INTO cluster (id, cluster_id, slot_count, map_version) VALUES (1, %s, %s, %s)",
                [found.cluster_id, found.slot_count, version],
            )
            cursor.executemany(
                "INSERT INTO shards (name, dsn, weight, labels, state, replication_dsn)"
                " VALUES (%s, %s, %s, %s, %s, %s)",
                [
                    (s.name, s.dsn, s.weight, Jsonb(s.labels), s.state.value, s.replication_dsn)
                    for s in found.shards.values()
                ],
            )
            cursor.executemany(
                "INSERT INTO shard_map (slot, shard, epoch) VALUES (%s, %s, %s)",
                [(slot, p.shard, p.epoch) for slot, p in sorted(placed.items())],
            )
            cursor.executemany(
                "INSERT INTO overrides (ns_id, shard, epoch) VALUES (%s, %s, %s)",
                [(key, p.shard, p.epoch) for key, p in sorted(found.rebuilt.overrides.items())],
            )
            # Why a namespace is placed by itself, only the directory knew. It stays where it is until told
            # otherwise: somebody may have said that its data must not be elsewhere.
            cursor.executemany(
                "INSERT INTO pins (ns_id, shard) VALUES (%s, %s)",
                [(key, p.shard) for key, p in sorted(found.rebuilt.overrides.items())],
            )
            # No number of a move is given out again: the lost ones' streams may still bear theirs.
            cursor.execute(
                sql.SQL("ALTER TABLE moves ALTER COLUMN move_id RESTART WITH {}").format(
                    sql.Literal(int(time.time()) // 60)
                )
            )
            faults.fault_point("ops.restore.directory_written")
        faults.fault_point("ops.restore.directory_committed")
        tell(f"wrote map version {load_map_sync(conn).version}")
        if report.override_count:
            tell(f"{report.override_count} namespaces that lay by themselves are pinned to where they are")
    return report
