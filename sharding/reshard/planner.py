"""What should move where, and why: from the map, the shards, pins and sizes to a list of moves. Pure.

A shard in service keeps what it has up to its bound of slots (`sharding/ring.py`), so the plan moves as many
slots as must leave and no more. Which of them leave, and who takes which, evens out their bytes or load.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from sharding.reshard.situation import PinUnmet, Situation, Size
from sharding.ring import fair_shares, load_bounds, place_slots
from sharding.shardmap import Pin, ShardInfo, ShardState
from wire.ids import NsId, Slot, slot_of, system_ns

MAX_SLOTS_OF_MOVE = 16
MAX_BYTES_OF_MOVE = 64 * 1024**3
"""A copy whose runner or server dies begins anew: at `COPY_BYTES_PER_S` this much takes half an hour."""
COPY_BYTES_PER_S = 32 * 1024**2
"""Cautious: a quarter of a million rows a second were copied in design, of some 200 bytes each."""


@dataclass(frozen=True, slots=True)
class ProposedMove:
    """One move of a plan: of slots, or of one namespace."""

    source: str
    target: str
    slots: tuple[Slot, ...]
    """Ascending; none when it moves a namespace."""
    ns_id: NsId | None
    size: Size
    reason: str
    """In words, for people."""


@dataclass(frozen=True, slots=True)
class ShardOutlook:
    """A shard before and after a plan."""

    name: str
    weight: int
    state: ShardState
    slots_before: int
    slots_after: int
    fair_slots: float
    """Its share by weight; 0 for one that drains."""
    size_before: Size
    """Of its slots: without namespaces that are placed by themselves."""
    size_after: Size

    @property
    def over_fair(self) -> float | None:
        """What it ends with, as a multiple of its fair share; None for one that is to hold nothing."""
        return self.slots_after / self.fair_slots if self.fair_slots else None


@dataclass(frozen=True, slots=True)
class Plan:
    """What should move, in the order in which it should be begun."""

    moves: tuple[ProposedMove, ...]
    shards: tuple[ShardOutlook, ...]
    """By name."""
    total: Size
    """Of all slots, and of the namespaces that are placed by themselves."""
    unmet: tuple[NsId, ...]
    """Namespaces whose pin no shard in service meets; they stay where they are."""
    bytes_per_s: float
    """At which copies are expected to go."""

    @property
    def moved(self) -> Size:
        """What the moves carry."""
        return sum((move.size for move in self.moves), Size())

    @property
    def moved_share(self) -> float:
        """The part of the data that moves."""
        return self.share_of(self.moves)

    def share_of(self, moves: Sequence[ProposedMove]) -> float:
        """The part of the data that some of the moves carry; of the slots, as long as they are empty."""
        if self.total.bytes:
            return sum(move.size.bytes for move in moves) / self.total.bytes
        return sum(len(move.slots) for move in moves) / sum(shard.slots_before for shard in self.shards)

    def copy_s(self, size: Size) -> float:
        """How long copying that much is expected to take, were nothing else going on."""
        return size.bytes / self.bytes_per_s


def plan_moves(situation: Situation, bytes_per_s: float = COPY_BYTES_PER_S) -> Plan:
    """The moves that bring every shard within its bound and every pinned namespace to its place.

    Namespaces whose pin is broken go first. Then slots go, and last the namespaces that come home, for whom
    the slot has to be there before.

    Args:
        situation: how things are; nothing else decides, so the same one has the same plan.
        bytes_per_s: at which a copy goes, for the time that is expected.

    Raises:
        PlanRefused: no shard is in service.
        PinUnmet: a shard drains whose pinned namespaces nobody else may hold.
    """
    placed = _place(situation)
    namespaces, unmet = _plan_namespaces(situation, placed)
    moves = [
        *(move for move in namespaces if move.ns_id in situation.pins),
        *_plan_slots(situation, placed),
        *(move for move in namespaces if move.ns_id not in situation.pins),
    ]
    return Plan(
        moves=tuple(moves),
        shards=tuple(_outlooks(situation, placed)),
        total=sum([*situation.slot_sizes.values(), *situation.namespace_sizes.values()], Size()),
        unmet=tuple(unmet),
        bytes_per_s=bytes_per_s,
    )


# ---- Slots


def _place(situation: Situation) -> dict[Slot, str]:
    """The shard of every slot after the plan."""
    shard_map, weights = situation.shard_map, situation.weights
    settled = _settled_slots(situation)
    loads = _loads(situation)
    bounds = load_bounds(weights, shard_map.slot_count)
    kept: dict[Slot, str] = {}
    for name, bound in bounds.items():
        held = [slot for slot in situation.slots if situation.slot_holder(slot) == name]
        free = [slot for slot in held if slot not in settled]
        excess = sum(map(loads.__getitem__, held)) - sum(loads.values()) * bound / shard_map.slot_count
        leaving = _choose(free, min(len(held) - bound, len(free)), excess, loads)
        kept |= dict.fromkeys((slot for slot in held if slot not in leaving), name)
    wish = place_slots(weights, shard_map.slot_count, kept)
    counts = Counter(shard for slot, shard in wish.items() if slot not in kept and slot not in settled)
    placed = kept | {slot: situation.slot_holder(slot) for slot in settled}
    return placed | _deal(set(wish) - set(placed), counts, placed, loads, weights)


def _settled_slots(situation: Situation) -> set[Slot]:
    """Slots that no move can take now: part of a move already, or a home of namespaces that must not leave.

    A pinned namespace has a row of its own, and its slot moves without it; until it has one they are kept
    together.
    """
    settled = {slot_of(key) for key in situation.under_way}
    for ns_id, pin in situation.pins.items():
        holder = situation.slot_holder(slot_of(ns_id))
        if ns_id not in situation.shard_map.overrides and holder in situation.takers(pin):
            settled.add(slot_of(ns_id))
    return settled


def _loads(situation: Situation) -> dict[Slot, float]:
    """What is to be evened out, by slot."""
    if situation.activity is not None:
        return {slot: situation.activity.get(slot, 0.0) for slot in situation.slots}
    return {slot: float(situation.slot_sizes.get(slot, Size()).bytes) for slot in situation.slots}


def _choose(free: Sequence[Slot], count: int, excess: float, loads: Mapping[Slot, float]) -> set[Slot]:
    """Those of a shard's slots that leave: as many as must, together nearest to what it has too much.

    Neighbours in the order of load: all are of about the same size, and each next choice weighs more.
    """
    if count <= 0:
        return set()
    ranked = sorted(free, key=lambda slot: (loads[slot], slot))
    together = sum(loads[slot] for slot in ranked[:count])
    best, best_miss = 0, abs(together - excess)
    for start in range(1, len(ranked) - count + 1):
        together += loads[ranked[start + count - 1]] - loads[ranked[start - 1]]
        if abs(together - excess) < best_miss:
            best, best_miss = start, abs(together - excess)
    return set(ranked[best : best + count])


def _deal(
    leaving: Collection[Slot],
    counts: Mapping[str, int],
    placed: Mapping[Slot, str],
    loads: Mapping[Slot, float],
    weights: Mapping[str, int],
) -> dict[Slot, str]:
    """The new shards of slots: each takes as many as the ring gave it, the heaviest go to the lightest."""
    carried = dict.fromkeys(weights, 0.0)
    for slot, name in placed.items():
        if name in carried:
            carried[name] += loads[slot]
    left = dict(counts)
    dealt: dict[Slot, str] = {}
    for slot in sorted(leaving, key=lambda slot: (-loads[slot], slot)):
        takers = [name for name in sorted(left) if left[name]]
        target = min(takers, key=lambda name: (carried[name] + loads[slot]) / weights[name])
        dealt[slot] = target
        carried[target] += loads[slot]
        left[target] -= 1
    return dealt


def _plan_slots(situation: Situation, placed: Mapping[Slot, str]) -> Iterator[ProposedMove]:
    ways: dict[tuple[str, str], list[Slot]] = {}
    for slot in situation.slots:
        source, target = situation.slot_holder(slot), placed[slot]
        if source != target:
            ways.setdefault((source, target), []).append(slot)
    for (source, target), slots in sorted(ways.items()):
        reason = f"{source} is above its share, {target} below"
        if not situation.shard_map.shards[source].is_in_service:
            reason = f"{source} drains"
        for group in _group(slots, situation.slot_sizes):
            size = _sum_sizes(group, situation.slot_sizes)
            yield ProposedMove(source, target, tuple(group), None, size, reason)


def _group(slots: Sequence[Slot], sizes: Mapping[Slot, Size]) -> Iterator[list[Slot]]:
    """Ascending slots in groups that one move takes; neighbours are together unless a group is full."""
    group: list[Slot] = []
    for slot in slots:
        size = _sum_sizes([*group, slot], sizes)
        if group and (len(group) == MAX_SLOTS_OF_MOVE or size.bytes > MAX_BYTES_OF_MOVE):
            yield group
            group = []
        group.append(slot)
    if group:
        yield group


# ---- Namespaces


def _plan_namespaces(
    situation: Situation, placed: Mapping[Slot, str]
) -> tuple[list[ProposedMove], list[NsId]]:
    """The moves of single namespaces, and those that have no place to go to; both ascending."""
    moves: list[ProposedMove] = []
    unmet: list[NsId] = []
    stranded: list[NsId] = []
    for ns_id in sorted({*situation.shard_map.overrides, *situation.pins}):
        if ns_id in situation.under_way or system_ns(slot_of(ns_id)) in situation.under_way:
            continue
        holder, home = situation.shard_map.shards[situation.holder(ns_id)], placed[slot_of(ns_id)]
        pin = situation.pins.get(ns_id)
        takers = [home] if pin is None else situation.takers(pin)
        if holder.name in takers:
            continue
        if not takers:
            (unmet if holder.is_in_service else stranded).append(ns_id)
            continue
        target = home if home in takers else _emptiest(takers, situation, placed)
        size = situation.namespace_sizes.get(ns_id, Size())
        moves.append(ProposedMove(holder.name, target, (), ns_id, size, _reason(holder, pin)))
    if stranded:
        named = ", ".join(f"{ns_id} ({situation.pins[ns_id]})" for ns_id in stranded)
        raise PinUnmet(
            f"no other shard in service meets the pins of {named}: add one that does, or unpin them"
            " (`shardctl namespace unpin`)"
        )
    return moves, unmet


def _emptiest(names: Sequence[str], situation: Situation, placed: Mapping[Slot, str]) -> str:
    counts = Counter(placed.values())
    return min(names, key=lambda name: (counts[name] / situation.weights[name], name))


def _reason(holder: ShardInfo, pin: Pin | None) -> str:
    if pin is None:
        return "is not pinned any more: comes home"
    return f"{holder.name} drains" if pin.is_met_by(holder) else f"its pin {pin} is not met"


# ---- What it comes to


def _outlooks(situation: Situation, placed: Mapping[Slot, str]) -> Iterator[ShardOutlook]:
    fair = fair_shares(situation.weights, situation.shard_map.slot_count)
    for info in situation.shards:
        before = [slot for slot in situation.slots if situation.slot_holder(slot) == info.name]
        after = [slot for slot in situation.slots if placed[slot] == info.name]
        yield ShardOutlook(
            name=info.name,
            weight=info.weight,
            state=info.state,
            slots_before=len(before),
            slots_after=len(after),
            fair_slots=fair.get(info.name, 0.0),
            size_before=_sum_sizes(before, situation.slot_sizes),
            size_after=_sum_sizes(after, situation.slot_sizes),
        )


def _sum_sizes(slots: Iterable[Slot], sizes: Mapping[Slot, Size]) -> Size:
    return sum((sizes.get(slot, Size()) for slot in slots), Size())
