"""Who owns what after a server has come back with an older state, or the directory has been lost. Pure.

The highest epoch wins; on a tie active beats fenced beats the rest.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ops.doctor.ownership import OwnershipRow
from sharding.shardmap import OwnershipState, Placement, ShardMap
from wire.ids import NsId, Slot, slot_of, system_ns

_RANK = {OwnershipState.ACTIVE: 2, OwnershipState.FENCED: 1}


def find_owner(rows: Mapping[str, OwnershipRow]) -> str | None:
    """The shard whose row of a key wins; None where none is active or fenced."""
    claims = [
        (row.epoch, _RANK[row.state], shard) for shard, row in sorted(rows.items()) if row.state in _RANK
    ]
    return max(claims)[2] if claims else None


@dataclass(frozen=True, slots=True)
class Reconciled:
    """What becomes of a restored shard's keys."""

    kept: dict[NsId, int]
    """Owned by it, with the epoch that it begins anew at."""
    gone: dict[NsId, Placement]
    """Moved away since the moment that it was restored to: where they are."""
    missing: tuple[NsId, ...]
    """Said to be here by the others, and not known here at all: they came after that moment."""


def reconcile(
    name: str,
    own: Iterable[OwnershipRow],
    others: Mapping[str, Iterable[OwnershipRow]],
    shard_map: ShardMap,
) -> Reconciled:
    """Decide about every key that a restored shard has or ought to have.

    Args:
        name: the restored shard.
        own: its rows, as restored.
        others: the rows of the other shards.
        shard_map: the map in force; it speaks for shards that are not among `others`.
    """
    by_key: dict[NsId, dict[str, OwnershipRow]] = {}
    for shard, shard_rows in {**others, name: own}.items():
        for row in shard_rows:
            by_key.setdefault(row.ns_id, {})[shard] = row
    placed = {system_ns(Slot(slot)): placement for slot, placement in enumerate(shard_map.slots)}
    placed |= shard_map.overrides
    kept: dict[NsId, int] = {}
    gone: dict[NsId, Placement] = {}
    missing: list[NsId] = []
    for key in sorted(by_key.keys() | {k for k, p in placed.items() if p.shard == name}):
        rows = dict(by_key.get(key, {}))
        mapped = placed.get(key)
        if mapped is not None and mapped.shard not in rows and mapped.shard != name:
            rows[mapped.shard] = OwnershipRow(key, mapped.epoch, OwnershipState.ACTIVE)
        owner = find_owner(rows)
        if owner == name:
            slot_key = system_ns(slot_of(key))
            epochs = [row.epoch for k in (key, slot_key) for row in by_key.get(k, {}).values()]
            epochs += [placed[k].epoch for k in (key, slot_key) if k in placed]
            kept[key] = max(epochs) + 1
        elif owner is not None:
            if name in rows:
                gone[key] = Placement(owner, rows[owner].epoch)
        elif mapped is not None and mapped.shard == name:
            missing.append(key)
    return Reconciled(kept, gone, tuple(missing))


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """A map made of the shards' own rows."""

    slots: dict[Slot, Placement]
    overrides: dict[NsId, Placement]
    ownerless: tuple[Slot, ...]
    """Slots that no shard says to own: a shard has not been asked."""


def rebuild(slot_count: int, rows: Mapping[str, Iterable[OwnershipRow]], known: ShardMap | None) -> Rebuilt:
    """The map that the shards' rows tell.

    Args:
        slot_count: slots in use.
        rows: by shard.
        known: an older map; it speaks for its shards that are not among `rows`, and for nothing else.
    """
    by_key: dict[NsId, dict[str, OwnershipRow]] = {}
    for shard, shard_rows in rows.items():
        for row in shard_rows:
            by_key.setdefault(row.ns_id, {})[shard] = row
    if known is not None:
        placed = {system_ns(Slot(slot)): p for slot, p in enumerate(known.slots)} | known.overrides
        for key, p in placed.items():
            if p.shard not in rows:
                by_key.setdefault(key, {})[p.shard] = OwnershipRow(key, p.epoch, OwnershipState.ACTIVE)
    slots: dict[Slot, Placement] = {}
    overrides: dict[NsId, Placement] = {}
    for key, key_rows in by_key.items():
        owner = find_owner(key_rows)
        if owner is None:
            continue
        placement = Placement(owner, key_rows[owner].epoch)
        if key == system_ns(slot_of(key)):
            slots[slot_of(key)] = placement
        else:
            overrides[key] = placement
    return Rebuilt(slots, overrides, tuple(Slot(s) for s in range(slot_count) if s not in slots))
