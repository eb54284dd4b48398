"""What dead moves have left, put right: for `shardctl doctor --fix`.

Each takes the map's lock, under which no move can be recorded, or the lock of the move's runner; looks again;
and goes on only if nothing that lives needs what it changes. Repeating it is harmless.
"""

from collections.abc import Generator
from contextlib import contextmanager, suppress

from sharding.directory import Connection, load_map_sync, lock_map
from sharding.locks import MOVE_LOCK_CLASS, SLOT_LOCK_CLASS
from sharding.reshard import stream
from sharding.reshard.catalog import read_tables
from sharding.reshard.cleanup import delete_rows
from sharding.reshard.errors import MoveBusy, MoveConflict, MoveNotFound
from sharding.reshard.fence import find_ownership, unfence
from sharding.reshard.model import BEFORE_COPY, STREAMED, Throttle, Unit
from sharding.reshard.own_rows import disown_unit, forget_unit
from sharding.reshard.pacing import Control, Pacer
from sharding.reshard.records import check_is_free, get_move, list_moves, publish_placement
from sharding.reshard.sites import Site, site_of
from sharding.shardmap import OwnershipState, Placement, ShardMap
from wire.ids import NsId, slot_of, system_ns


@contextmanager
def standing_still(directory: Connection, key: NsId) -> Generator[ShardMap]:
    """The map, while no move may begin that a key would be part of.

    Raises:
        MoveConflict: one is under way.
    """
    with directory.transaction():
        lock_map(directory)
        check_is_free(directory, key)
        yield load_map_sync(directory)


@contextmanager
def without_streams(directory: Connection, move_id: int) -> Generator[None]:
    """Pass while a move has no streams, and gets none.

    Raises:
        MoveBusy: somebody runs it.
        MoveConflict: its streams are in use.
    """
    params = [MOVE_LOCK_CLASS, move_id]
    row = directory.execute("SELECT pg_try_advisory_lock(%s, %s)", params).fetchone()
    if row is None or not row[0]:
        raise MoveBusy(f"move {move_id} is being run")
    try:
        if _is_streaming(directory, move_id):
            raise MoveConflict(f"move {move_id} has its streams")
        yield
    finally:
        directory.execute("SELECT pg_advisory_unlock(%s, %s)", params)


def _is_streaming(directory: Connection, move_id: int) -> bool:
    try:
        return get_move(directory, move_id).state in STREAMED
    except MoveNotFound:
        return False


def drop_subscription(directory: Connection, shard: Connection, name: str, move_id: int) -> None:
    """Drop a subscription that no move has."""
    with without_streams(directory, move_id):
        stream.drop_subscription(shard, name)


def drop_slot(directory: Connection, shard: Connection, name: str, move_id: int) -> None:
    """Drop a replication slot that no move has."""
    with without_streams(directory, move_id):
        stream.drop_slot(shard, name)


def drop_publication(directory: Connection, shard: Connection, name: str, move_id: int) -> None:
    """Drop a publication that no move has."""
    with without_streams(directory, move_id):
        stream.drop_publication(shard, name)


def give_up_expecting(directory: Connection, site: Site, unit: Unit) -> int:
    """Let a shard expect a unit no more, and delete what it has got of it; how many rows.

    Raises:
        MoveConflict: a move brings it, or nobody else is named as its owner.
    """
    with standing_still(directory, unit.key) as shard_map, site.connect() as shard:
        disown_unit(shard, unit, 0, owner_elsewhere(shard_map, site, unit.key))
    return delete_foreign_rows(directory, site, unit)


def delete_foreign_rows(directory: Connection, site: Site, unit: Unit) -> int:
    """Delete rows of what another shard owns, and the row that says that it is elsewhere; how many rows.

    Raises:
        MoveConflict: a move may need them, or nobody else owns them.
    """
    _check_needless(directory, site, unit.key)
    owner_elsewhere(load_map_sync(directory), site, unit.key)
    # A move here that begins now meets the rows, and is refused; and what a shard expects is not deleted.
    with site.connect() as shard, Pacer(lambda: Control(Throttle()), site) as pacer:
        count = delete_rows(site, read_tables(shard), [unit], pacer, lambda _: None)
    with suppress(MoveConflict):  # one that is refused because of the rows will deal with the ownership row
        forget_disowned(directory, site, unit)
    return count


def _check_needless(directory: Connection, site: Site, key: NsId) -> None:
    for move in list_moves(directory, is_live_only=True):
        is_near = site.name in (move.source, move.target) and move.covers(key)
        if is_near and move.state not in BEFORE_COPY:
            raise MoveConflict(f"move {move.move_id} may need what {site.name} has of {key}")


def forget_disowned(directory: Connection, site: Site, unit: Unit) -> None:
    """Delete what a shard knows about a unit that it does not own, unless a slot of its own needs it."""
    with standing_still(directory, unit.key), site.connect() as shard:
        forget_unit(shard, unit)


def owner_elsewhere(shard_map: ShardMap, site: Site, key: NsId) -> Placement:
    """Where a key is, by the map and by its owner's own word.

    Raises:
        MoveConflict: on this shard, or nobody says that he owns it.
    """
    placed = shard_map.placement(key)
    if placed is None or placed.shard == site.name:
        raise MoveConflict(f"the map does not have {key} on another shard than {site.name}")
    with site_of(shard_map, placed.shard).connect() as owner:
        row = find_ownership(owner, key) or find_ownership(owner, system_ns(slot_of(key)))
    if row is None or row.state is not OwnershipState.ACTIVE:
        raise MoveConflict(f"{placed.shard} does not own {key}, as the map says")
    return placed


def give_up_fenced(directory: Connection, site: Site, unit: Unit) -> None:
    """Let a shard disown for good what it had been fenced from.

    Raises:
        MoveConflict: a move is at work on it, or nobody else owns it.
    """
    with standing_still(directory, unit.key) as shard_map, site.connect() as shard:
        disown_unit(shard, unit, 0, owner_elsewhere(shard_map, site, unit.key))


def make_active(directory: Connection, unit: Unit, epoch: int) -> Placement:
    """The shard that owns a unit again, which it had been fenced from at an epoch, and that nobody took over.

    As a call-off does it: first nobody else can become active, then the one that the map names does.

    Raises:
        MoveConflict: a move is at work on it, or it is not the map's shard alone that can have it.
        psycopg.OperationalError: a shard does not answer, and might have it.
    """
    with standing_still(directory, unit.key) as shard_map:
        placed = shard_map.placement(unit.key)
        if placed is None:
            raise MoveConflict(f"the map does not know {unit.key}")
        following = Placement(placed.shard, _highest_epoch(shard_map, unit.key) + 1)
        for name in shard_map.shards.keys() - {placed.shard}:
            with site_of(shard_map, name).connect() as other:
                disown_unit(other, unit, 0, following)
                row = find_ownership(other, unit.key)
            if row is not None and row.state is not OwnershipState.GONE:
                raise MoveConflict(f"{name} owns {unit.name}")
        with site_of(shard_map, placed.shard).connect() as owner:
            unfence(owner, unit, epoch, following.epoch)
        publish_placement(directory, unit.key, following, None)
        return following


def _highest_epoch(shard_map: ShardMap, key: NsId) -> int:
    """Above which a row of a key is newer than whatever anybody knows."""
    found: list[int] = [p.epoch for p in (shard_map.placement(key),) if p is not None]
    for name in shard_map.shards:
        with site_of(shard_map, name).connect() as shard:
            rows = (find_ownership(shard, k) for k in (key, system_ns(slot_of(key))))
            found += [row.epoch for row in rows if row is not None]
    return max(found)


def publish_owner(directory: Connection, site: Site, unit: Unit) -> Placement:
    """Where a unit is, now in the map as well: on a shard that took it over after all that the map knows.

    Raises:
        MoveConflict: a move is at work on it, or the shard does not own it at such an epoch.
    """
    with standing_still(directory, unit.key) as shard_map, site.connect() as shard:
        row = find_ownership(shard, unit.key)
        known = shard_map.overrides.get(unit.key) if not unit.is_slot else shard_map.placement(unit.key)
        if row is None or row.state is not OwnershipState.ACTIVE or (known and known.epoch >= row.epoch):
            raise MoveConflict(f"{site.name} does not own {unit.name} at an epoch above the map's")
        placed = Placement(site.name, row.epoch)
        publish_placement(directory, unit.key, placed, None)
        return placed


def delete_markers(directory: Connection, site: Site, unit: Unit) -> None:
    """Delete the markers of a unit that no move is at work on.

    Tx: one of its own, with the slot's lock shared, as every write.
    """
    with standing_still(directory, unit.key), site.connect(lock_timeout="5s") as shard, shard.transaction():
        shard.execute("SELECT pg_advisory_xact_lock_shared(%s, %s)", [SLOT_LOCK_CLASS, slot_of(unit.key)])
        shard.execute("DELETE FROM ns.move_markers WHERE ns_id = %s", [unit.key])
