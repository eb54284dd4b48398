"""The placement ring: where each slot *should* live. Where it *does* is only in the shard map.

Source: consistent hashing with bounded loads (Mirrokni, Thorup, Zadimoghaddam 2016), over uhashring.
"""

from collections.abc import Iterable, Mapping
from math import ceil
from typing import cast

from uhashring import HashRing

from wire.ids import Slot

LOAD_BOUND = 1.15
"""How far a shard may exceed its fair share of slots, which is rounded up where it is only a few. The plain
ring gives up to 1.6 with 64 slots on six shards; a tighter bound moves more when a shard comes or goes."""


def fair_shares(weights: Mapping[str, int], slot_count: int) -> dict[str, float]:
    """What each shard would hold of the slots, were they divisible.

    Raises:
        ValueError: no shard is in service.
    """
    if not weights or any(weight <= 0 for weight in weights.values()):
        raise ValueError("placing slots needs shards with positive weights")
    total = sum(weights.values())
    return {name: slot_count * weight / total for name, weight in weights.items()}


def load_bounds(weights: Mapping[str, int], slot_count: int) -> dict[str, int]:
    """How many slots each shard may keep.

    No less than its fair share, so that the bounds always add up to at least all slots.
    """
    shares = fair_shares(weights, slot_count)
    return {name: max(ceil(share), int(LOAD_BOUND * share)) for name, share in shares.items()}


def place_slots(
    weights: Mapping[str, int], slot_count: int, current: Mapping[Slot, str] | None = None
) -> dict[Slot, str]:
    """The shard of every slot.

    A slot stays where `current` has it while that shard is in service and within its bound; the ring only
    picks targets for the others, which take up to their fair share and no more. Deterministic in its
    arguments.

    Args:
        weights: Shards in service with their weights (positive).
        slot_count: Slots 0..slot_count-1 are placed.
        current: Where slots are now; absent slots are new.

    Raises:
        ValueError: no shard is in service.
    """
    bound = load_bounds(weights, slot_count)
    # Those who keep no more than that have room for all that the others must give.
    room = {name: ceil(share) for name, share in fair_shares(weights, slot_count).items()}
    ring = HashRing(nodes={name: {"weight": weight} for name, weight in weights.items()})
    load = dict.fromkeys(weights, 0)
    placed: dict[Slot, str] = {}
    for slot, shard in sorted((current or {}).items()):
        if shard in load and load[shard] < bound[shard]:
            placed[slot] = shard
            load[shard] += 1
    for number in range(slot_count):
        slot = Slot(number)
        if slot in placed:
            continue
        walk = cast("Iterable[dict[str, str]]", ring.range(f"slot-{number}", size=len(weights), unique=True))  # pyright: ignore[reportUnknownMemberType]
        for node in walk:
            name = node["nodename"]
            if load[name] < room[name]:
                placed[slot] = name
                load[name] += 1
                break
    return placed
