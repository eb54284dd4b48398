"""Putting right what moves have left: `shardctl doctor --fix`."""

import psycopg

from ops.doctor.remnants import (
    AwayRow,
    Expectation,
    Fence,
    ForeignRows,
    Homecoming,
    LoosePin,
    Marker,
    Ownerless,
    PartKind,
    Remnant,
    StreamPart,
    Unpublished,
    name_of,
)
from sharding.directory import Connection, load_map_sync
from sharding.reshard import mend, stream
from sharding.reshard.alone import come_home, keep_here
from sharding.reshard.model import Unit, namespace_unit, slot_unit
from sharding.reshard.sites import Site, site_of
from wire.ids import NsId, slot_of, system_ns


def mend_remnant(directory: Connection, remnant: Remnant) -> str:
    """What was done about a remnant, in words.

    Raises:
        MoveError: something that lives needs it, or it has changed since it was found.
        psycopg.Error: a server does not answer, or does not let us.
    """
    site = site_of(load_map_sync(directory), remnant.shard)
    match remnant:
        case StreamPart():
            return _drop_part(directory, site, remnant)
        case Expectation():
            count = mend.give_up_expecting(directory, site, unit_of(directory, remnant.key))
            return f"{name_of(remnant.key)} is expected no more; {count:,} rows deleted"
        case Fence():
            mend.give_up_fenced(directory, site, unit_of(directory, remnant.key))
            return f"{name_of(remnant.key)} disowned; {remnant.owner.shard} has it"
        case Ownerless():
            placed = mend.make_active(directory, unit_of(directory, remnant.key), remnant.epoch)
            return f"{name_of(remnant.key)} made active again on {placed.shard} at epoch {placed.epoch}"
        case Unpublished():
            placed = mend.publish_owner(directory, site, unit_of(directory, remnant.key))
            return f"{name_of(remnant.key)} put into the map at epoch {placed.epoch}"
        case ForeignRows():
            count = _delete_rows(directory, site, remnant.key)
            return f"{count:,} rows of {name_of(remnant.key)} deleted"
        case _:
            return _mend_namespace(directory, site, remnant)


def _mend_namespace(
    directory: Connection, site: Site, remnant: AwayRow | Marker | Homecoming | LoosePin
) -> str:
    key = remnant.key
    match remnant:
        case AwayRow():
            mend.forget_disowned(directory, site, namespace_unit(key))
            return f"{name_of(key)} forgotten"
        case Marker():
            mend.delete_markers(directory, site, unit_of(directory, key))
            return f"markers of {name_of(key)} deleted"
        case Homecoming():
            come_home(directory, key)
            return f"{name_of(key)} lives with its slot again"
        case LoosePin():
            keep_here(directory, key)
            return f"{name_of(key)} stays when its slot moves"


def _drop_part(directory: Connection, site: Site, part: StreamPart) -> str:
    with site.connect() as shard:
        if part.move_id is None:
            stream.drop_origin(shard, part.name)
        elif part.kind is PartKind.SUBSCRIPTION:
            mend.drop_subscription(directory, shard, part.name, part.move_id)
        elif part.kind is PartKind.SLOT:
            mend.drop_slot(directory, shard, part.name, part.move_id)
        else:
            mend.drop_publication(directory, shard, part.name, part.move_id)
    return f"{part.kind} {part.name} dropped"


def _delete_rows(directory: Connection, site: Site, key: NsId) -> int:
    return mend.delete_foreign_rows(directory, site, unit_of(directory, key))


def unit_of(directory: Connection, key: NsId) -> Unit:
    """A slot without the namespaces that are placed by themselves, or a namespace."""
    if key != system_ns(slot_of(key)):
        return namespace_unit(key)
    overrides = load_map_sync(directory).overrides
    return slot_unit(key, tuple(ns_id for ns_id in overrides if slot_of(ns_id) == slot_of(key)))


def describe_failure(error: Exception) -> str:
    """Why a remnant could not be put right, in one line."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0] if isinstance(error, psycopg.Error) else text
