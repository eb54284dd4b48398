"""Whether the shards' ownership rows and the map tell the same story. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ops.doctor.finding import Finding, fail, ok, warn
from sharding.shardmap import OwnershipState, Placement, ShardMap
from wire.ids import NsId, Slot, system_ns

_SHOWN = 5


@dataclass(frozen=True, slots=True)
class OwnershipRow:
    """A row of a shard's `local.ownership`."""

    ns_id: NsId
    epoch: int
    state: OwnershipState


@dataclass(frozen=True, slots=True)
class OwnershipFaults:
    """Slots and single namespaces of which shards and map tell different stories, each in words.

    With the epochs: a key that is amid a cutover is active nowhere, and in the next look told by another one.
    """

    doubled: frozenset[str]
    unowned: frozenset[str]
    differing: frozenset[str]

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self.doubled or self.unowned or self.differing)

    def __and__(self, other: "OwnershipFaults") -> "OwnershipFaults":
        """Those that two looks found."""
        return OwnershipFaults(
            self.doubled & other.doubled, self.unowned & other.unowned, self.differing & other.differing
        )


def find_faults(shard_map: ShardMap, rows: Mapping[str, Sequence[OwnershipRow]]) -> OwnershipFaults:
    """What one look finds.

    Args:
        shard_map: the map in force.
        rows: by shard, of the shards that answered; about the others nothing is claimed.
    """
    placed = _all_placements(shard_map)
    by_key: dict[NsId, dict[str, OwnershipRow]] = {}
    for shard, shard_rows in rows.items():
        for row in shard_rows:
            by_key.setdefault(row.ns_id, {})[shard] = row
    unowned: set[str] = set()
    doubled: set[str] = set()
    differing: set[str] = set()
    for key in placed.keys() | by_key.keys():
        active = {s: r for s, r in by_key.get(key, {}).items() if r.state is OwnershipState.ACTIVE}
        placement = placed.get(key)
        if len(active) > 1:
            doubled.add(f"{key} on {', '.join(f'{s} at epoch {r.epoch}' for s, r in sorted(active.items()))}")
        elif placement is not None and placement.shard in rows and not active:
            unowned.add(f"{key}, which the map has on {placement.shard} at epoch {placement.epoch}")
        elif active:
            shard, row = next(iter(active.items()))
            if placement != Placement(shard, row.epoch):
                differing.add(f"{key} on {shard} at epoch {row.epoch}, by the map {_text(placement)}")
    return OwnershipFaults(frozenset(doubled), frozenset(unowned), frozenset(differing))


def _all_placements(shard_map: ShardMap) -> dict[NsId, Placement]:
    placed = {system_ns(Slot(slot)): placement for slot, placement in enumerate(shard_map.slots)}
    return placed | shard_map.overrides


def check_ownership(shard_map: ShardMap, rows: Mapping[str, Sequence[OwnershipRow]]) -> list[Finding]:
    """Findings about every slot and single namespace of the map, by one look; as `find_faults`."""
    return describe_faults(
        find_faults(shard_map, rows), shard_map, is_whole=len(rows) == len(shard_map.shards)
    )


def describe_faults(faults: OwnershipFaults, shard_map: ShardMap, *, is_whole: bool) -> list[Finding]:
    """Findings about what all looks found; `is_whole`: every shard was asked."""
    findings = [
        *_complain(
            "ownership.doubled",
            faults.doubled,
            "active on two shards",
            "stop the shard that was restored or promoted last; its writes since then have to be reconciled",
        ),
        *_complain(
            "ownership.unowned",
            faults.unowned,
            "active nowhere: reads and writes are refused",
            "if a move was cut off, resume it; else `shardctl doctor --fix`, or restore the shard's schema"
            " `local`",
        ),
    ]
    if faults.differing:
        detail = f"{len(faults.differing)} placed otherwise than the map says: {_some(faults.differing)}"
        remedy = "if a move was cut off, resume it; else `shardctl doctor --fix`"
        findings.append(warn("ownership.map", "shard map", detail, remedy))
    if not findings and is_whole:
        count = len(_all_placements(shard_map))
        text = f"{count} slots and namespaces are each owned where map version {shard_map.version} says"
        findings.append(ok("ownership", "shard map", text))
    return findings


def _complain(check: str, keys: frozenset[str], what: str, remedy: str) -> list[Finding]:
    return [fail(check, "shard map", f"{len(keys)} {what}: {_some(keys)}", remedy)] if keys else []


def _some(texts: frozenset[str]) -> str:
    more = f" and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
    return "; ".join(sorted(texts)[:_SHOWN]) + more


def _text(placement: Placement | None) -> str:
    return f"on {placement.shard} at epoch {placement.epoch}" if placement else "nowhere by itself"
