"""Plans: within the bounds, moving no more than must move, and never against a pin."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from math import ceil

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sharding.reshard.planner import (
    MAX_BYTES_OF_MOVE,
    MAX_SLOTS_OF_MOVE,
    Plan,
    ProposedMove,
    plan_moves,
)
from sharding.reshard.situation import PinUnmet, PlanRefused, Situation, Size
from sharding.ring import LOAD_BOUND, place_slots
from sharding.shardmap import Pin, Placement, ShardInfo, ShardMap, ShardState
from wire.ids import NsId, Slot, make_ns_id, slot_of, system_ns

SLOT_COUNTS = st.sampled_from([64, 256, 1024, 4096])
WEIGHTS = st.lists(st.integers(1, 5), min_size=6, max_size=6)
QUICK = settings(max_examples=30, deadline=None)
QUICKER = settings(max_examples=12, deadline=None)
"""For thousands of slots, planned several times each."""


def shard(name: str, weight: int = 1, *, drains: bool = False, **labels: str) -> ShardInfo:
    state = ShardState.DRAINING if drains else ShardState.IN_SERVICE
    return ShardInfo(name=name, dsn=f"dbname={name}", weight=weight, labels=labels, state=state)


def cluster(
    shards: list[ShardInfo], placed: Mapping[Slot, str], overrides: Mapping[NsId, str] | None = None
) -> ShardMap:
    return ShardMap(
        cluster_id="c",
        version=1,
        slots=[Placement(name, 1) for _, name in sorted(placed.items())],
        overrides={ns_id: Placement(name, 2) for ns_id, name in (overrides or {}).items()},
        shards={info.name: info for info in shards},
    )


def fresh(shards: list[ShardInfo], slot_count: int) -> Situation:
    return Situation(cluster(shards, place_slots({s.name: s.weight for s in shards}, slot_count)))


def change(situation: Situation, shards: list[ShardInfo]) -> Situation:
    """The same placements with other shards."""
    shard_map = msgspec.structs.replace(situation.shard_map, shards={s.name: s for s in shards})
    return replace(situation, shard_map=shard_map)


def carry_out(situation: Situation, plan: Plan) -> Situation:
    """What is there after the plan."""
    slots, overrides = list(situation.shard_map.slots), dict(situation.shard_map.overrides)
    for move in plan.moves:
        for slot in move.slots:
            assert slots[slot].shard == move.source
            slots[slot] = Placement(move.target, slots[slot].epoch + 1)
        if move.ns_id is not None and move.ns_id in situation.pins:
            overrides[move.ns_id] = Placement(move.target, 9)
        elif move.ns_id is not None:
            assert slots[slot_of(move.ns_id)].shard == move.target
            del overrides[move.ns_id]
    return replace(
        situation, shard_map=msgspec.structs.replace(situation.shard_map, slots=slots, overrides=overrides)
    )


def least_that_must_move(situation: Situation) -> int:
    """Slots on shards that drain, and what the others have beyond their bounds; from the map alone."""
    weights = {s.name: s.weight for s in situation.shard_map.shards.values() if s.is_in_service}
    counts = Counter(placed.shard for placed in situation.shard_map.slots)
    least = 0
    for name, count in counts.items():
        fair = situation.shard_map.slot_count * weights.get(name, 0) / sum(weights.values())
        least += max(0, count - max(ceil(fair), int(LOAD_BOUND * fair)))
    return least


def check(situation: Situation, plan: Plan) -> Situation:
    """What holds for every plan; the situation after it."""
    after = carry_out(situation, plan)
    slot_count = situation.shard_map.slot_count
    weights = situation.weights
    counts = Counter(placed.shard for placed in after.shard_map.slots)
    assert set(counts) <= set(weights)
    for name, count in counts.items():
        fair = slot_count * weights[name] / sum(weights.values())
        assert count <= max(LOAD_BOUND * fair, ceil(fair))
    moved = sum(len(move.slots) for move in plan.moves)
    assert moved <= 1.2 * least_that_must_move(situation)
    assert moved == sum(s.slots_before - s.slots_after for s in plan.shards if s.slots_after < s.slots_before)
    assert {s.name: s.slots_after for s in plan.shards if s.slots_after} == counts
    assert plan_moves(situation) == plan
    assert plan_moves(after).moves == ()
    return after


@QUICKER
@given(SLOT_COUNTS, WEIGHTS)
def test_growing_from_one_to_four_to_six(slot_count, weights):
    shards = [shard(f"shard-{number}", weight) for number, weight in enumerate(weights, start=1)]
    situation = fresh(shards[:1], slot_count)

    for count in (4, 6):
        situation = change(situation, shards[:count])
        situation = check(situation, plan_moves(situation))

    assert all(situation.shard_map.slots_of(info.name) for info in shards)


@QUICKER
@given(SLOT_COUNTS, WEIGHTS, st.permutations(range(6)))
def test_shrinking_from_six_to_three(slot_count, weights, order):
    shards = [shard(f"shard-{number}", weight) for number, weight in enumerate(weights, start=1)]
    situation = fresh(shards, slot_count)
    drained = [msgspec.structs.replace(shards[i], state=ShardState.DRAINING) for i in order[:3]]
    situation = change(situation, [*drained, *(shards[i] for i in order[3:])])
    plan = plan_moves(situation)

    after = check(situation, plan)

    assert not any(after.shard_map.slots_of(info.name) for info in drained)
    assert {move.reason for move in plan.moves if move.source in {d.name for d in drained}} <= {
        f"{info.name} drains" for info in drained
    }


@QUICK
@given(
    st.sampled_from([64, 256]),
    st.integers(2, 5),
    st.integers(1, 3),
    st.lists(st.integers(0, 10**9), min_size=256, max_size=256),
    st.randoms(use_true_random=False),
)
def test_any_placement_with_any_sizes_comes_within_the_bounds(slot_count, shards, drains, sizes, rng):
    infos = [shard(f"s{number}", drains=number < min(drains, shards - 1)) for number in range(shards)]
    placed = {Slot(number): rng.choice(infos).name for number in range(slot_count)}
    slot_sizes = {slot: Size(1, sizes[slot]) for slot in placed}
    situation = Situation(cluster(infos, placed), slot_sizes=slot_sizes)
    plan = plan_moves(situation)

    check(situation, plan)

    assert plan.total.bytes == sum(size.bytes for size in slot_sizes.values())
    assert plan.moved.rows == sum(len(move.slots) for move in plan.moves)
    assert 0 <= plan.moved_share <= 1


def grown(slot_count: int, weight_of: Mapping[Slot, int], *, by_activity: bool) -> Situation:
    """One shard with everything, and three that came."""
    shards = [shard(f"shard-{number}") for number in range(1, 5)]
    situation = change(fresh(shards[:1], slot_count), shards)
    if by_activity:
        return replace(situation, activity={slot: float(weight) for slot, weight in weight_of.items()})
    return replace(situation, slot_sizes={slot: Size(1, weight) for slot, weight in weight_of.items()})


@pytest.mark.parametrize("by_activity", [False, True])
@QUICK
@given(weights=st.lists(st.integers(50, 1000), min_size=256, max_size=256))
def test_what_is_heavy_is_spread_as_well(weights, by_activity):
    weight_of = {Slot(number): weight for number, weight in enumerate(weights)}
    situation = grown(256, weight_of, by_activity=by_activity)

    after = check(situation, plan_moves(situation))

    loads = Counter[str]()
    for slot, weight in weight_of.items():
        loads[after.shard_map.slots[slot].shard] += weight
    assert max(loads.values()) <= 1.2 * sum(weights) / 4
    assert min(loads.values()) >= 0.8 * sum(weights) / 4


def test_the_hottest_slots_are_parted():
    hot = [Slot(number) for number in range(4)]
    situation = grown(64, {Slot(n): 1000 if Slot(n) in hot else 1 for n in range(64)}, by_activity=True)

    after = check(situation, plan_moves(situation))

    assert max(Counter(after.shard_map.slots[slot].shard for slot in hot).values()) <= 2


def test_a_plan_for_what_is_well_is_empty_whether_or_not_there_is_anything():
    plan = plan_moves(fresh([shard("a"), shard("b", 2)], 64))

    assert (plan.moves, plan.moved_share, plan.copy_s(plan.moved)) == ((), 0.0, 0.0)
    assert [round(info.over_fair or 0, 1) for info in plan.shards] == [1.0, 1.0]


def test_as_long_as_slots_are_empty_their_number_is_the_share():
    situation = change(fresh([shard("a")], 64), [shard("a"), shard("b")])

    plan = plan_moves(situation)

    assert plan.moved_share == sum(len(move.slots) for move in plan.moves) / 64 == 28 / 64
    assert {(move.source, move.target, move.reason) for move in plan.moves} == {
        ("a", "b", "a is above its share, b below")
    }


# ---- Groups


@QUICK
@given(st.lists(st.integers(0, MAX_BYTES_OF_MOVE), min_size=64, max_size=64))
def test_groups_are_bounded_and_neighbours_together(sizes):
    slot_sizes = {Slot(number): Size(1, size) for number, size in enumerate(sizes)}
    shards = [shard("a", drains=True), shard("b"), shard("c")]
    situation = Situation(cluster(shards, dict.fromkeys(slot_sizes, "a")), slot_sizes=slot_sizes)

    moves = plan_moves(situation).moves

    for move in moves:
        assert len(move.slots) <= MAX_SLOTS_OF_MOVE
        assert move.size.bytes <= MAX_BYTES_OF_MOVE or len(move.slots) == 1
        assert move.size == sum((slot_sizes[slot] for slot in move.slots), Size())
    for first, second in pairwise(moves):
        if first.target == second.target:
            assert first.slots[-1] < second.slots[0]
            is_full = len(first.slots) == MAX_SLOTS_OF_MOVE
            assert is_full or first.size.bytes + slot_sizes[second.slots[0]].bytes > MAX_BYTES_OF_MOVE


# ---- Pins


EU, US = {"region": "eu"}, {"region": "us"}
ANN, BOB = make_ns_id(Slot(0), 7), make_ns_id(Slot(1), 8)
IN_EU = Pin(label="region", value="eu")


def pinned(
    shards: list[ShardInfo], overrides: Mapping[NsId, str], pins: Mapping[NsId, Pin], home: str = "a"
) -> Situation:
    """Two slots at `home`."""
    return Situation(cluster(shards, {Slot(0): home, Slot(1): home}, overrides), pins=pins)


def of_namespaces(plan: Plan) -> list[ProposedMove]:
    return [move for move in plan.moves if move.ns_id is not None]


def test_a_pin_that_is_not_met_is_put_right_before_anything_else():
    shards = [shard("a", **US), shard("b", **EU)]
    situation = pinned(shards, {ANN: "a"}, {ANN: IN_EU, BOB: Pin(shard="b")})

    plan = plan_moves(situation)

    assert [(m.ns_id, m.source, m.target, m.reason) for m in plan.moves[:2]] == [
        (ANN, "a", "b", "its pin region=eu is not met"),
        (BOB, "a", "b", "its pin b is not met"),
    ]
    check(situation, plan)


def test_a_namespace_that_is_not_pinned_comes_home_after_its_slot():
    shards = [shard("a", drains=True), shard("b"), shard("c")]
    situation = pinned(shards, {ANN: "c", BOB: "b"}, {})

    plan = plan_moves(situation)

    homes = {slot: move.target for move in plan.moves for slot in move.slots}
    away = {ANN: "c", BOB: "b"}
    assert [(m.ns_id, m.target) for m in of_namespaces(plan)] == [
        (ns_id, homes[slot_of(ns_id)]) for ns_id in (ANN, BOB) if homes[slot_of(ns_id)] != away[ns_id]
    ]
    assert [move.ns_id for move in plan.moves][: len(homes)] == [None] * len(plan.moves[: len(homes)])


def test_it_comes_home_where_home_does_not_move():
    plan = plan_moves(pinned([shard("a"), shard("b", drains=True)], {ANN: "b"}, {}))

    assert [(m.ns_id, m.source, m.target, m.reason) for m in plan.moves] == [
        (ANN, "b", "a", "is not pinned any more: comes home")
    ]


def test_what_is_pinned_leaves_a_shard_that_drains_for_one_that_meets_the_pin():
    shards = [shard("a", drains=True, **EU), shard("b", **US), shard("c", **EU)]
    situation = pinned(shards, {ANN: "a"}, {ANN: IN_EU}, home="b")

    plan = plan_moves(situation)

    assert [(m.ns_id, m.target, m.reason) for m in of_namespaces(plan)] == [(ANN, "c", "a drains")]


@pytest.mark.parametrize("pin", [IN_EU, Pin(shard="a")])
def test_a_drain_that_would_break_a_pin_is_refused_with_the_names(pin):
    shards = [shard("a", drains=True, **EU), shard("b", **US)]

    with pytest.raises(PinUnmet, match=f"{ANN} \\({pin}\\)"):
        plan_moves(pinned(shards, {ANN: "a"}, {ANN: pin}))


def test_a_pin_that_nobody_meets_is_told_and_moves_nothing():
    plan = plan_moves(pinned([shard("a", **US), shard("b", **US)], {ANN: "a"}, {ANN: IN_EU}))

    assert plan.unmet == (ANN,)
    assert of_namespaces(plan) == []


@QUICK
@given(
    st.lists(st.sampled_from(["eu", "us", "ap"]), min_size=3, max_size=6),
    st.dictionaries(st.integers(0, 255), st.tuples(st.sampled_from(["eu", "us", "ap"]), st.booleans())),
    st.integers(0, 5),
    st.randoms(use_true_random=False),
)
def test_no_plan_takes_a_pinned_namespace_where_it_must_not_be(regions, wanted, drains, rng):
    shards = [
        shard(f"s{number}", drains=number == drains, region=region) for number, region in enumerate(regions)
    ]
    placed = {Slot(number): rng.choice(shards).name for number in range(256)}
    pins = {
        make_ns_id(Slot(number), 5): Pin(label="region", value=region)
        for number, (region, _) in wanted.items()
    }
    overrides = {
        make_ns_id(Slot(number), 5): rng.choice(shards).name for number, (_, own) in wanted.items() if own
    }
    situation = Situation(cluster(shards, placed, overrides), pins=pins)
    try:
        plan = plan_moves(situation)
    except PinUnmet:
        left = {region for number, region in enumerate(regions) if number != drains}
        holders = {ns_id: situation.shard_map.shards[situation.holder(ns_id)] for ns_id in pins}
        assert any(not holders[n].is_in_service and pin.value not in left for n, pin in pins.items())
        return

    after = carry_out(situation, plan)

    for ns_id, pin in pins.items():
        holder = after.shard_map.shards[after.holder(ns_id)]
        assert pin.is_met_by(holder) != (ns_id in plan.unmet)
        assert holder.is_in_service


# ---- What cannot be planned, or is not to be


def test_slots_that_are_in_a_move_are_left_to_it():
    shards = [shard("a"), shard("b")]
    placed = dict.fromkeys(map(Slot, range(64)), "a")
    under_way = {system_ns(Slot(number)): "b" for number in range(20)}
    whole = plan_moves(Situation(cluster(shards, placed)))

    rest = plan_moves(Situation(cluster(shards, placed), under_way=under_way))

    moved = [slot for move in rest.moves for slot in move.slots]
    assert len(moved) == sum(len(move.slots) for move in whole.moves) - 20
    assert not {system_ns(slot) for slot in moved} & set(under_way)


def test_a_slot_stays_while_one_of_its_namespaces_moves():
    situation = pinned([shard("a", drains=True), shard("b")], {}, {ANN: Pin(shard="b")})

    plan = plan_moves(replace(situation, under_way={ANN: "b"}))

    assert [move.slots for move in plan.moves] == [(1,)]


def test_where_everything_drains_there_is_no_plan():
    shard_map = cluster([shard("a", drains=True)], {Slot(0): "a"})

    with pytest.raises(PlanRefused, match="every shard drains"):
        Situation(shard_map)
