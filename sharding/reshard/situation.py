"""What a plan of moves is made from. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import msgspec

from sharding.reshard.errors import MoveError
from sharding.shardmap import Pin, ShardInfo, ShardMap, ShardState
from wire.errors import NotFound
from wire.ids import NsId, Slot, slot_of, system_ns


class PlanRefused(MoveError):
    """There is no plan that keeps to the rules."""

    code = "plan_refused"


class PinUnmet(PlanRefused):
    """A shard that drains holds namespaces that no other shard may hold."""

    code = "pin_unmet"


@dataclass(frozen=True, slots=True)
class Size:
    """How much there is of something."""

    rows: int = 0
    bytes: int = 0
    """On disk, without indexes."""

    def __add__(self, other: "Size") -> "Size":
        """Of both together."""
        return Size(self.rows + other.rows, self.bytes + other.bytes)


@dataclass(frozen=True, slots=True)
class Situation:
    """What a plan is made from."""

    shard_map: ShardMap
    pins: Mapping[NsId, Pin] = field(default_factory=dict[NsId, Pin])
    slot_sizes: Mapping[Slot, Size] = field(default_factory=dict[Slot, Size])
    namespace_sizes: Mapping[NsId, Size] = field(default_factory=dict[NsId, Size])
    """Of those that are placed by themselves, or pinned; none of it counts for their slots."""
    activity: Mapping[Slot, float] | None = None
    """Load by slot, to be evened out in place of bytes."""
    under_way: Mapping[NsId, str] = field(default_factory=dict[NsId, str])
    """The keys of units in moves that have not ended, and the shards that those take them to."""

    def __post_init__(self) -> None:
        if not self.weights:
            raise PlanRefused(
                "every shard drains: add one (`shardctl shard add`) or take one back into service"
            )

    @property
    def weights(self) -> dict[str, int]:
        """Of the shards in service."""
        return {s.name: s.weight for s in self.shards if s.is_in_service}

    @property
    def shards(self) -> list[ShardInfo]:
        """All shards by name."""
        return [info for _, info in sorted(self.shard_map.shards.items())]

    @property
    def slots(self) -> list[Slot]:
        """All slots, ascending."""
        return [Slot(number) for number in range(self.shard_map.slot_count)]

    def slot_holder(self, slot: Slot) -> str:
        """The shard that has a slot, or is about to."""
        return self.under_way.get(system_ns(slot)) or self.shard_map.slots[slot].shard

    def takers(self, pin: Pin) -> list[str]:
        """The shards in service that meet a pin, by name."""
        return [s.name for s in self.shards if s.is_in_service and pin.is_met_by(s)]

    def holder(self, ns_id: NsId) -> str:
        """The shard that has a namespace."""
        own = self.shard_map.overrides.get(ns_id)
        return own.shard if own is not None else self.slot_holder(slot_of(ns_id))


def with_state(situation: Situation, name: str, state: ShardState) -> Situation:
    """The same with one shard in another state.

    Raises:
        NotFound: there is no such shard.
        PlanRefused: no shard is in service then.
    """
    infos = situation.shard_map.shards
    if name not in infos:
        raise NotFound(f"there is no shard {name!r}")
    changed = msgspec.structs.replace(infos[name], state=state)
    shard_map = msgspec.structs.replace(situation.shard_map, shards=infos | {name: changed})
    return replace(situation, shard_map=shard_map)
