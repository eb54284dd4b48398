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


def check_ownership(shard_map: ShardMap, rows: Mapping[str, Sequence[OwnershipRow]]) -> list[Finding]:
    """Findings about every slot and single namespace of the map.

    Args:
        shard_map: the map in force.
        rows: by shard, of the shards that answered; about the others nothing is claimed.
    """
    placed = {system_ns(Slot(slot)): placement for slot, placement in enumerate(shard_map.slots)}
    placed |= shard_map.overrides
    by_key: dict[NsId, dict[str, OwnershipRow]] = {}
    for shard, shard_rows in rows.items():
        for row in shard_rows:
            by_key.setdefault(row.ns_id, {})[shard] = row
    unowned: list[str] = []
    doubled: list[str] = []
    differing: list[str] = []
    for key in sorted(placed.keys() | by_key.keys()):
        active = {s: r for s, r in by_key.get(key, {}).items() if r.state is OwnershipState.ACTIVE}
        placement = placed.get(key)
        if len(active) > 1:
            doubled.append(f"{key} on {', '.join(sorted(active))}")
        elif placement is not None and placement.shard in rows and not active:
            unowned.append(f"{key}, which the map has on {placement.shard}")
        elif active:
            shard, row = next(iter(active.items()))
            if placement != Placement(shard, row.epoch):
                differing.append(f"{key} on {shard} at epoch {row.epoch}, by the map {_text(placement)}")
    findings = [
        *_complain(
            "ownership.doubled",
            doubled,
            "active on two shards",
            "stop the shard that was restored or promoted last; its writes since then have to be reconciled",
        ),
        *_complain(
            "ownership.unowned",
            unowned,
            "active nowhere: reads and writes are refused",
            "if a move was cut off, resume it; else restore the shard's schema `local`",
        ),
    ]
    if differing:
        detail = f"{len(differing)} placed otherwise than the map says: {_some(differing)}"
        remedy = "a move that ends now explains it; look again in a minute"
        findings.append(warn("ownership.map", "shard map", detail, remedy))
    if not findings and len(rows) == len(shard_map.shards):
        text = f"{len(placed)} slots and namespaces are each owned where map version {shard_map.version} says"
        findings.append(ok("ownership", "shard map", text))
    return findings


def _complain(check: str, keys: list[str], what: str, remedy: str) -> list[Finding]:
    return [fail(check, "shard map", f"{len(keys)} {what}: {_some(keys)}", remedy)] if keys else []


def _some(texts: list[str]) -> str:
    more = f" and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
    return "; ".join(texts[:_SHOWN]) + more


def _text(placement: Placement | None) -> str:
    return f"on {placement.shard} at epoch {placement.epoch}" if placement else "nowhere by itself"
