"""What a plan of moves is made from, read from the directory and the shards."""

from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum

from ops.session import connect_directory, read_map
from ops.shards import connect_shard
from sharding.activity import read_activity
from sharding.directory import list_pins
from sharding.reshard.model import Goal, Move, MoveState
from sharding.reshard.records import list_moves
from sharding.reshard.situation import Situation, Size
from sharding.reshard.sizes import ShardSizes, read_sizes
from sharding.shardmap import ShardInfo
from wire.ids import NsId, Slot


class Weighing(StrEnum):
    """What a plan evens out, beside the number of slots."""

    SLOTS = "slots"
    """Their bytes."""
    ACTIVITY = "activity"
    """Their reads and writes per second."""


@dataclass(frozen=True, slots=True)
class Surveyed:
    """What there is to plan from."""

    situation: Situation
    is_exact: bool
    """Whether all rows were counted; else those of large tables were estimated."""


@dataclass(frozen=True, slots=True)
class _Visited:
    sizes: ShardSizes
    load: dict[Slot, float]
    """Reads and writes per second."""


def survey(directory_dsn: str, by: Weighing = Weighing.SLOTS) -> Surveyed:
    """The cluster as it is now.

    Raises:
        NoCluster: the directory does not answer, or holds no cluster.
        ShardUnavailable: a shard does not.
    """
    with connect_directory(directory_dsn) as conn:
        moves = list_moves(conn, is_live_only=True)
        shard_map, pins = read_map(conn), list_pins(conn)
    apart = {*shard_map.overrides, *pins}
    infos = list(shard_map.shards.values())
    with ThreadPoolExecutor(max(1, len(infos))) as pool:
        visits = pool.map(lambda info: _visit(info, apart), infos)
        visited = {info.name: visit for info, visit in zip(infos, visits, strict=True)}
    load: dict[Slot, float] = {}
    for visit in visited.values():
        for slot, rate in visit.load.items():
            load[slot] = load.get(slot, 0.0) + rate
    situation = Situation(
        shard_map=shard_map,
        pins=pins,
        slot_sizes={
            slot: visited[placed.shard].sizes.slots.get(slot, Size())
            for slot, placed in ((Slot(n), placed) for n, placed in enumerate(shard_map.slots))
        },
        namespace_sizes={
            ns_id: visited[placed.shard].sizes.namespaces[ns_id]
            for ns_id in apart
            if (placed := shard_map.placement(ns_id)) is not None
        },
        activity=load if by is Weighing.ACTIVITY else None,
        under_way={unit.key: _destination(move) for move in moves for unit in move.units},
    )
    return Surveyed(situation, all(visit.sizes.is_exact for visit in visited.values()))


def _visit(info: ShardInfo, apart: Collection[NsId]) -> _Visited:
    with connect_shard(info) as conn:
        rates = read_activity(conn).slots
        load = {slot: rate.reads_per_s + rate.writes_per_s for slot, rate in rates.items()}
        return _Visited(read_sizes(conn, apart), load)


def _destination(move: Move) -> str:
    """Where a move is to leave what it moves."""
    is_given_up = move.goal is Goal.CANCELLED or move.state in (MoveState.CANCELLING, MoveState.CLEARING)
    return move.source if is_given_up else move.target
