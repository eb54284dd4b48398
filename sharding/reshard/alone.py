"""A namespace that is placed by itself, or no more, where it is already: no data moves."""

from sharding.directory import Connection, list_pins, load_map_sync, lock_map
from sharding.reshard.errors import MoveConflict
from sharding.reshard.own_rows import bring_home, take_out
from sharding.reshard.records import check_is_free, publish_placement, withdraw_override
from sharding.reshard.sites import site_of
from sharding.shardmap import Placement, ShardMap
from wire import faults
from wire.ids import NsId, slot_of, system_ns

faults.declare("reshard.alone.taken_out", "reshard.alone.brought_home")


def keep_here(directory: Connection, ns_id: NsId) -> bool:
    """Let a pinned namespace stay where it is when its slot moves; whether its pin is met there.

    Repeating it is harmless.

    Raises:
        MoveConflict: it is being moved, or its slot is.
    """
    with directory.transaction():
        # Until the end: its slot must not begin to move with a namespace that is to stay.
        lock_map(directory)
        check_is_free(directory, ns_id)
        shard_map, pin = load_map_sync(directory), list_pins(directory).get(ns_id)
        placed = _placed(shard_map, ns_id)
        if pin is None or not pin.is_met_by(shard_map.shards[placed.shard]):
            return False
        if ns_id not in shard_map.overrides:
            with site_of(shard_map, placed.shard).connect() as shard:
                epoch = take_out(shard, ns_id, 0)
            faults.fault_point("reshard.alone.taken_out")
            publish_placement(directory, ns_id, Placement(placed.shard, epoch), None)
        return True


def come_home(directory: Connection, ns_id: NsId) -> bool:
    """Let a namespace that is not pinned live with its slot again; false when that is on another shard.

    Repeating it is harmless.

    Raises:
        MoveConflict: it is pinned, or being moved, or its slot is.
    """
    with directory.transaction():
        lock_map(directory)
        check_is_free(directory, ns_id)
        if ns_id in list_pins(directory):
            raise MoveConflict(f"namespace {ns_id} is pinned")
        shard_map = load_map_sync(directory)
        placed, home = _placed(shard_map, ns_id), _placed(shard_map, system_ns(slot_of(ns_id)))
        if placed.shard != home.shard:
            return False
        if ns_id in shard_map.overrides:
            with site_of(shard_map, home.shard).connect() as shard:
                epoch = bring_home(shard, ns_id)
            faults.fault_point("reshard.alone.brought_home")
            withdraw_override(directory, ns_id, Placement(home.shard, epoch), None)
        return True


def _placed(shard_map: ShardMap, key: NsId) -> Placement:
    placed = shard_map.placement(key)
    if placed is None:
        raise MoveConflict(f"the map does not know {key}")
    return placed
