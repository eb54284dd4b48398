"""What the doctor takes for left behind, and what moves explain."""

import dataclasses
from collections.abc import Iterable, Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ops.doctor.look import Look, ShardLook, disowned_ranges
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
    Standing,
    StreamPart,
    Unpublished,
    find_remnants,
    find_standing,
)
from sharding.reshard.fence import OwnershipRow
from sharding.reshard.model import (
    BEFORE_COPY,
    ENDED,
    RESTING,
    STREAMED,
    Goal,
    Move,
    MoveOptions,
    MoveState,
    slot_unit,
)
from sharding.reshard.stream import Parts, stream_name
from sharding.shardmap import OwnershipState, Pin, Placement, ShardInfo, ShardMap
from wire.ids import MAX_COUNT, NsId, Slot, make_ns_id, slot_of, system_ns

ACTIVE, FENCED, IMPORTING, GONE = (
    OwnershipState.ACTIVE,
    OwnershipState.FENCED,
    OwnershipState.IMPORTING,
    OwnershipState.GONE,
)
CLUSTER = "c" * 16
SLOT = system_ns(Slot(0))
OTHER = system_ns(Slot(1))
NS = make_ns_id(Slot(0), 7)
MOVE = 5
NO_PARTS = Parts((), (), (), ())
LIVE = sorted(set(MoveState) - ENDED)


def make_map(overrides: Mapping[NsId, Placement] | None = None) -> ShardMap:
    """Slot 0 on a, slot 1 on b."""
    return ShardMap(
        cluster_id=CLUSTER,
        version=3,
        slots=[Placement("a", 4), Placement("b", 2)],
        overrides=dict(overrides or {}),
        shards={name: ShardInfo(name=name, dsn="", weight=1) for name in ("a", "b")},
    )


def row(state: OwnershipState, epoch: int, successor: Placement | None = None) -> OwnershipRow:
    return OwnershipRow(epoch, state, successor)


def shard(
    ownership: Mapping[NsId, OwnershipRow],
    *,
    parts: Parts = NO_PARTS,
    markers: Iterable[NsId] = (),
    foreign: Iterable[NsId] = (),
) -> ShardLook:
    return ShardLook(ownership, parts, frozenset(markers), frozenset(foreign))


OWNS_0 = {SLOT: row(ACTIVE, 4)}
OWNS_1 = {OTHER: row(ACTIVE, 2)}
HEALTHY = {"a": shard(OWNS_0), "b": shard(OWNS_1)}


def look(
    shards: Mapping[str, ShardLook],
    *,
    moves: Iterable[Move] = (),
    shard_map: ShardMap | None = None,
    pins: Mapping[NsId, Pin] | None = None,
    changed: Iterable[int] = (),
    running: Iterable[int] = (),
) -> Look:
    return Look(
        shard_map=shard_map or make_map(),
        pins=pins or {},
        moves={move.move_id: move for move in moves},
        changed=frozenset(changed),
        running=frozenset(running),
        broken={},
        shards=shards,
        now_s=1000.0,
    )


def make_move(state: MoveState, source: str = "a", target: str = "b") -> Move:
    options = MoveOptions(quarantine_s=100)
    return Move(MOVE, source, target, state, Goal.COMPLETED, options, (slot_unit(SLOT),), retired_at_s=950.0)


def test_a_healthy_cluster_has_none() -> None:
    assert find_remnants(look(HEALTHY)) == set()


@pytest.mark.parametrize("state", LIVE)
def test_a_move_explains_its_streams_while_it_has_them(state: MoveState) -> None:
    name = stream_name(CLUSTER, MOVE, is_back=False)
    shards = HEALTHY | {"a": shard(OWNS_0, parts=Parts((name,), (), (name,), ()))}
    found = find_remnants(look(shards, moves=[make_move(state)]))

    parts = {StreamPart("a", kind, name, MOVE) for kind in (PartKind.PUBLICATION, PartKind.SLOT)}
    assert found == (set() if state in STREAMED else parts)
    # One that went on during the look may have had them at its beginning.
    assert find_remnants(look(shards, moves=[make_move(state)], changed=[MOVE])) == set()


@pytest.mark.parametrize("state", LIVE)
def test_a_move_explains_rows_from_the_copy_until_its_end(state: MoveState) -> None:
    shards = HEALTHY | {"b": shard(OWNS_1, foreign=[SLOT], markers=[SLOT])}
    found = find_remnants(look(shards, moves=[make_move(state)]))

    left = {ForeignRows("b", SLOT, "a"), Marker("b", SLOT)}
    assert found == (left if state in BEFORE_COPY else set())


def test_a_quarantine_explains_the_rows_of_a_namespace_that_has_moved_on_by_itself() -> None:
    """It was part of the slot whose old rows are kept, and has a place of its own since."""
    shard_map = make_map({NS: Placement("a", 9)})
    shards = {
        "a": shard(OWNS_0 | {NS: row(ACTIVE, 9)}),
        "b": shard(OWNS_1 | {SLOT: row(GONE, 4)}, foreign=[SLOT, NS]),
    }
    quarantined = make_move(MoveState.DELETING, "b", "a")
    pins = {NS: Pin(shard="a")}
    assert find_remnants(look(shards, moves=[quarantined], shard_map=shard_map, pins=pins)) == set()
    # But not of one that the slot left where it was: of that one nothing was kept.
    apart = dataclasses.replace(quarantined, units=(slot_unit(SLOT, (NS,)),))
    assert find_remnants(look(shards, moves=[apart], shard_map=shard_map, pins=pins)) == {
        ForeignRows("b", NS, "a")
    }


@pytest.mark.parametrize("state", LIVE)
def test_a_move_explains_what_its_shards_expect_or_are_fenced_from(state: MoveState) -> None:
    shards = HEALTHY | {"b": shard(OWNS_1 | {SLOT: row(IMPORTING, 3)})}
    found = find_remnants(look(shards, moves=[make_move(state)]))
    assert found == (set() if state in STREAMED else {Expectation("b", SLOT, 3)})

    shards = HEALTHY | {"b": shard(OWNS_1 | {SLOT: row(FENCED, 4, Placement("a", 4))})}
    found = find_remnants(look(shards, moves=[make_move(state)]))
    assert found == (set() if state in STREAMED else {Fence("b", SLOT, 4, Placement("a", 4))})


@pytest.mark.parametrize(
    ("other", "is_sure"),
    [
        (None, True),
        (row(IMPORTING, 4), True),
        # Raised by a call-off.
        (row(IMPORTING, 6), True),
        (row(FENCED, 6, Placement("a", 4)), True),
        (row(FENCED, 4, Placement("a", 4)), True),
        (row(GONE, 4, Placement("a", 4)), True),
        # It owned after this fence.
        (row(FENCED, 6, Placement("a", 6)), False),
        (row(GONE, 6), False),
    ],
    ids=str,
)
def test_what_is_owned_by_nobody_goes_back_to_who_had_it_last(
    other: OwnershipRow | None, is_sure: bool
) -> None:
    shards = {
        "a": shard({SLOT: row(FENCED, 5, Placement("b", 5))}),
        "b": shard(OWNS_1 | ({SLOT: other} if other else {})),
    }
    (found,) = (r for r in find_remnants(look(shards)) if isinstance(r, Ownerless))
    assert (found.shard, found.key, found.epoch) == ("a", SLOT, 5)
    assert (found.doubt == "") == is_sure


def test_a_shard_that_was_not_asked_is_a_doubt() -> None:
    (found,) = find_remnants(look({"a": shard({SLOT: row(FENCED, 5)})}))
    assert isinstance(found, Ownerless)
    assert found.doubt


def test_rows_are_nobodys_remnant_where_nobody_says_to_own_them() -> None:
    assert find_remnants(look({"a": shard({}), "b": shard(OWNS_1, foreign=[SLOT])})) == set()
    assert find_remnants(look({"b": shard(OWNS_1, foreign=[SLOT])})) == set()
    assert find_remnants(look({"a": shard({}, foreign=[SLOT]), "b": shard(OWNS_1)})) == set()


def test_what_is_placed_otherwise_than_the_map_says() -> None:
    shards = HEALTHY | {"b": shard(OWNS_1 | {SLOT: row(ACTIVE, 5)}), "a": shard({SLOT: row(GONE, 4)})}
    assert find_remnants(look(shards)) == {Unpublished("b", SLOT, 5)}
    # Who is behind the map came back from a backup, which is not for the doctor to decide.
    shards = HEALTHY | {"a": shard({SLOT: row(ACTIVE, 3)})}
    assert find_remnants(look(shards)) == set()
    assert find_remnants(look(HEALTHY | {"b": shard(OWNS_1 | {SLOT: row(ACTIVE, 9)})})) == set()


def test_namespaces_by_themselves() -> None:
    kept = HEALTHY | {"a": shard(OWNS_0 | {NS: row(ACTIVE, 5)})}
    at_home, pinned = make_map({NS: Placement("a", 5)}), {NS: Pin(shard="a")}
    assert find_remnants(look(kept, shard_map=at_home, pins=pinned)) == set()
    assert find_remnants(look(kept, shard_map=at_home)) == {Homecoming("a", NS)}
    assert find_remnants(look(HEALTHY, pins=pinned)) == {LoosePin("a", NS)}
    assert find_remnants(look(HEALTHY, pins={NS: Pin(shard="b")})) == set()
    away = HEALTHY | {"b": shard(OWNS_1 | {NS: row(GONE, 5)})}
    assert find_remnants(look(away)) == {AwayRow("b", NS)}
    # A slot that has just left, or was not taken after all, says of its namespaces where they are.
    apart = dataclasses.replace(make_move(MoveState.DELETING, "b", "a"), units=(slot_unit(SLOT, (NS,)),))
    assert find_remnants(look(away, moves=[apart])) == set()
    for state in LIVE:
        if state is not MoveState.DELETING:
            assert find_remnants(look(HEALTHY, pins=pinned, moves=[make_move(state)])) == set()


@pytest.mark.parametrize("state", LIVE)
def test_a_move_that_nobody_runs_is_named_unless_it_rests(state: MoveState) -> None:
    moves = [make_move(state)]
    expected = state not in RESTING and state is not MoveState.DELETING
    assert {type(s) for s in find_standing(look(HEALTHY, moves=moves))} == ({Standing} if expected else set())
    assert find_standing(look(HEALTHY, moves=moves, running=[MOVE])) == set()
    assert find_standing(look(HEALTHY, moves=moves, changed=[MOVE])) == set()


COUNTS = st.integers(min_value=1, max_value=9)
STATES = st.sampled_from([None, *OwnershipState])


@given(slot_states=st.tuples(STATES, STATES), own=st.dictionaries(COUNTS, STATES), apart=st.sets(COUNTS))
def test_disowned_ranges_are_what_the_effective_rows_say(
    slot_states: tuple[OwnershipState | None, ...],
    own: Mapping[int, OwnershipState | None],
    apart: set[int],
) -> None:
    keys = {system_ns(Slot(slot)): state for slot, state in enumerate(slot_states)}
    keys |= {make_ns_id(Slot(1), count): state for count, state in own.items()}
    ownership = {key: row(state, 1) for key, state in keys.items() if state is not None}
    single = {make_ns_id(Slot(1), count) for count in apart}

    ranges = list(disowned_ranges(make_map(), ownership, single))

    for slot in (Slot(0), Slot(1)):
        for ns_id in (*(make_ns_id(slot, count) for count in range(11)), make_ns_id(slot, MAX_COUNT)):
            effective = ownership.get(ns_id) or ownership.get(system_ns(slot_of(ns_id)))
            is_disowned = effective is None or effective.state is GONE
            found = [key for key, first, last in ranges if first <= ns_id <= last]
            is_apart = ns_id in single or (ns_id in ownership and ns_id != system_ns(slot))
            assert found == ([ns_id if is_apart else system_ns(slot)] if is_disowned else [])
