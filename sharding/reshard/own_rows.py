"""Ownership rows around a move: what a shard is made to know before it can become an owner, and after.

None of this makes an owner of a slot; that is `fence.py`. A single namespace gets a row of its own at the
shard that owns it already, and loses it when it has come home.
"""

from collections.abc import Mapping
from typing import LiteralString

from sharding.directory import Connection
from sharding.reshard.errors import MoveConflict, MoveRefused
from sharding.reshard.fence import find_ownership, lock_slot
from sharding.reshard.model import Unit
from sharding.shardmap import OwnershipState, Placement
from wire.ids import NsId, slot_of, system_ns


def expect_unit(target: Connection, unit: Unit, epoch: int, away: Mapping[NsId, Placement]) -> None:
    """Make the target know that a unit is to come, and which of its namespaces are elsewhere.

    Args:
        target: the shard that is to take it over.
        unit: what moves.
        epoch: at which it is owned now; the row keeps it.
        away: the slot's namespaces that are placed by themselves. Without a row of its own such a one would
            count as the slot's here.

    Raises:
        MoveRefused: the target says that it owns the unit.
    """
    with target.transaction():
        lock_slot(target, slot_of(unit.key))
        found = find_ownership(target, unit.key)
        if found is not None and found.state in (OwnershipState.ACTIVE, OwnershipState.FENCED):
            raise MoveRefused(f"the target has {unit.name} as {found.state.name.lower()} already: run doctor")
        target.execute(_UPSERT, [unit.key, max(epoch, found.epoch if found else 0), "i", None, None])
        if unit.is_slot:
            # Of namespaces that have come home since.
            target.execute(_DELETE_GONE, [unit.first, unit.last, list(away)])
            for ns_id, placed in away.items():
                target.execute(_INSERT_GONE, [ns_id, placed.epoch, placed.shard, placed.epoch])


def disown_unit(conn: Connection, unit: Unit, epoch: int, owner: Placement) -> None:
    """Make a shard know that it neither owns nor awaits a unit any more.

    Args:
        conn: the shard that is not, or no longer, the owner.
        unit: of a move that ends.
        epoch: the row's new one; it never sinks.
        owner: where the unit is.
    """
    conn.execute(_DISOWN, [epoch, owner.shard, owner.epoch, unit.key])


def forget_unit(conn: Connection, unit: Unit) -> None:
    """Delete what a shard knows about a unit that is elsewhere, if its slot is elsewhere as well.

    Where the slot is here, a namespace without its row would count as the slot's.
    """
    _forget(conn, unit.key, unit.first, unit.last)


def forget_away(conn: Connection, unit: Unit) -> None:
    """Delete what says of a slot's namespaces that they are elsewhere, if the slot is elsewhere itself."""
    _forget(conn, unit.key, NsId(unit.first + 1), unit.last)


def _forget(conn: Connection, key: NsId, first: NsId, last: NsId) -> None:
    with conn.transaction():
        lock_slot(conn, slot_of(key))
        slot_row = find_ownership(conn, system_ns(slot_of(key)))
        # It may be back, or expected back, by a later move than the one that has ended so late.
        if slot_row is None or slot_row.state is OwnershipState.GONE:
            conn.execute(_FORGET, [first, last])


def take_out(owner: Connection, ns_id: NsId, at_least: int) -> int:
    """Give a namespace an ownership row of its own at its slot's shard; the row's epoch.

    Args:
        owner: the shard that owns the slot, and with it the namespace.
        ns_id: a namespace.
        at_least: above every epoch that the other shards have for it.

    Raises:
        MoveConflict: the shard does not own it.
    """
    with owner.transaction():
        lock_slot(owner, slot_of(ns_id))
        own = find_ownership(owner, ns_id)
        if own is not None and own.state is OwnershipState.ACTIVE:
            return own.epoch
        slot_row = find_ownership(owner, system_ns(slot_of(ns_id)))
        if own is not None and own.state is not OwnershipState.GONE:
            raise MoveConflict(f"namespace {ns_id} is {own.state.name.lower()} here: a move is at work on it")
        if slot_row is None or slot_row.state is not OwnershipState.ACTIVE:
            raise MoveConflict(f"the slot of namespace {ns_id} is not owned here")
        epoch = max(at_least, slot_row.epoch, own.epoch if own else 0) + 1
        owner.execute(_UPSERT, [ns_id, epoch, "a", None, None])
        return epoch


def bring_home(owner: Connection, ns_id: NsId) -> int:
    """Take a namespace's own row away at its slot's shard; the slot's epoch from now on.

    That one is above the row's, so that whoever had learned of the row forgets it.

    Raises:
        MoveConflict: it is not owned here, or its slot is not.
    """
    with owner.transaction():
        lock_slot(owner, slot_of(ns_id))
        slot_key = system_ns(slot_of(ns_id))
        own, slot_row = find_ownership(owner, ns_id), find_ownership(owner, slot_key)
        if slot_row is None or slot_row.state is not OwnershipState.ACTIVE:
            raise MoveConflict(f"the slot of namespace {ns_id} is not owned here")
        if own is None:
            return slot_row.epoch
        if own.state is not OwnershipState.ACTIVE:
            raise MoveConflict(f"namespace {ns_id} is not owned here")
        epoch = max(own.epoch, slot_row.epoch) + 1
        owner.execute(_UPSERT, [slot_key, epoch, "a", None, None])
        owner.execute("DELETE FROM local.ownership WHERE ns_id = %s", [ns_id])
        return epoch


_UPSERT: LiteralString = (
    "INSERT INTO local.ownership (ns_id, epoch, state, successor, successor_epoch)"
    " VALUES (%s, %s, %s, %s, %s)"
    " ON CONFLICT (ns_id) DO UPDATE SET epoch = excluded.epoch, state = excluded.state,"
    " successor = excluded.successor, successor_epoch = excluded.successor_epoch"
)
_INSERT_GONE: LiteralString = (
    "INSERT INTO local.ownership (ns_id, epoch, state, successor, successor_epoch)"
    " VALUES (%s, %s, 'g', %s, %s)"
    " ON CONFLICT (ns_id) DO UPDATE SET epoch = greatest(ownership.epoch, excluded.epoch),"
    " successor = excluded.successor, successor_epoch = excluded.successor_epoch WHERE ownership.state = 'g'"
)
_DELETE_GONE: LiteralString = (
    "DELETE FROM local.ownership WHERE ns_id > %s AND ns_id <= %s AND state = 'g' AND ns_id <> ALL (%s)"
)
_DISOWN: LiteralString = (
    "UPDATE local.ownership SET state = 'g', epoch = greatest(epoch, %s),"
    " successor = %s, successor_epoch = %s WHERE ns_id = %s AND state <> 'a'"
)
_FORGET: LiteralString = "DELETE FROM local.ownership WHERE ns_id BETWEEN %s AND %s AND state = 'g'"
