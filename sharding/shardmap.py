"""The shard map as a value: slot → (shard, epoch), plus single namespaces placed by themselves."""

from enum import StrEnum
from pathlib import Path

import msgspec

from wire.ids import NsId, Slot, slot_of, system_ns


class OwnershipState(StrEnum):
    """What a shard is to a slot or namespace; one byte in `local.ownership`."""

    ACTIVE = "a"
    FENCED = "f"
    IMPORTING = "i"
    GONE = "g"


class Placement(msgspec.Struct, frozen=True, array_like=True):
    """A shard and the epoch at which it owns something."""

    shard: str
    epoch: int


class ShardState(StrEnum):
    """Whether a shard is to hold anything."""

    IN_SERVICE = "in_service"
    DRAINING = "draining"
    """It takes nothing, and what it has is to leave."""


class ShardInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A shard as the directory has it. No address holds a password."""

    name: str
    dsn: str
    weight: int
    labels: dict[str, str] = {}
    state: ShardState = ShardState.IN_SERVICE
    replication_dsn: str | None = None
    """As the other shards reach it; None: as `dsn`."""

    @property
    def is_in_service(self) -> bool:
        """Whether it may be given something."""
        return self.state is ShardState.IN_SERVICE


class Pin(msgspec.Struct, frozen=True, kw_only=True):
    """Where a namespace has to live: on one shard, or on any that has a label of that value."""

    shard: str | None = None
    label: str | None = None
    value: str | None = None

    def is_met_by(self, info: ShardInfo) -> bool:
        """Whether a shard is such a one."""
        if self.shard is not None:
            return info.name == self.shard
        return self.label is not None and info.labels.get(self.label) == self.value

    def __str__(self) -> str:
        """For people: the shard, or label=value."""
        return self.shard or f"{self.label}={self.value}"


class ShardMap(msgspec.Struct, frozen=True, kw_only=True):
    """One version of the map. `version` tells which of two maps is newer; epochs are what is compared."""

    cluster_id: str
    version: int
    slots: list[Placement]
    overrides: dict[NsId, Placement]
    shards: dict[str, ShardInfo]

    @property
    def slot_count(self) -> int:
        """Slots in use, fixed when the cluster is created."""
        return len(self.slots)

    def placement(self, ns_id: NsId) -> Placement | None:
        """Where a namespace lives: its own placement, else its slot's; None beyond the slots in use."""
        own = self.overrides.get(ns_id)
        if own is not None:
            return own
        slot = slot_of(ns_id)
        return self.slots[slot] if slot < len(self.slots) else None

    def slots_of(self, shard: str) -> list[Slot]:
        """The slots that a shard holds, ascending."""
        return [Slot(i) for i, placement in enumerate(self.slots) if placement.shard == shard]


def ownership_keys(ns_id: NsId) -> tuple[NsId, NsId]:
    """The keys of the rows that may own a namespace: its own, and its slot's."""
    return ns_id, system_ns(slot_of(ns_id))


def write_map_file(path: Path, shard_map: ShardMap) -> None:
    """Keep the map for a start without the directory. A stale map is safe behind the fence."""
    temporary = path.with_name(path.name + ".new")
    temporary.write_bytes(msgspec.json.encode(shard_map))
    temporary.replace(path)


def read_map_file(path: Path) -> ShardMap | None:
    """The map of a former run; None if there is none that can be read."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=ShardMap)
    except (OSError, msgspec.MsgspecError):
        return None
