"""The ring: bounded, deterministic, and nothing moves without a reason."""

from collections import Counter
from math import ceil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sharding.ring import LOAD_BOUND, fair_shares, place_slots

SHARDS = st.dictionaries(
    st.integers(1, 60).map(lambda n: f"shard-{n}"), st.integers(1, 5), min_size=1, max_size=8
)
SLOTS = st.sampled_from([1, 2, 16, 64, 256])
QUICK = settings(max_examples=40, deadline=None)


def bound(weights: dict[str, int], slots: int, name: str) -> int:
    share = slots * weights[name] / sum(weights.values())
    return max(ceil(share), int(LOAD_BOUND * share))


@QUICK
@given(SHARDS, SLOTS)
def test_every_slot_has_a_shard_within_its_bound(weights, slots):
    placed = place_slots(weights, slots)
    assert sorted(placed) == list(range(slots))
    for name, count in Counter(placed.values()).items():
        assert count <= bound(weights, slots, name)


@QUICK
@given(SHARDS, SLOTS, st.randoms())
def test_the_same_arguments_give_the_same_places(weights, slots, rng):
    names = list(weights)
    rng.shuffle(names)
    assert place_slots({name: weights[name] for name in names}, slots) == place_slots(weights, slots)


@QUICK
@given(SHARDS, SLOTS)
def test_what_is_placed_stays(weights, slots):
    placed = place_slots(weights, slots)
    assert place_slots(weights, slots, placed) == placed


@QUICK
@given(SHARDS, st.integers(1, 5))
def test_a_new_shard_takes_and_the_others_give_no_more_than_they_must(weights, weight):
    slots = 256
    placed = place_slots(weights, slots)
    grown = weights | {"new": weight}
    after = place_slots(grown, slots, placed)
    moved = [slot for slot in placed if after[slot] != placed[slot]]
    before = Counter(placed.values())
    for name in weights:
        over = max(0, before[name] - bound(grown, slots, name))
        gave = sum(placed[slot] == name for slot in moved)
        assert gave == over
    for name, count in Counter(after.values()).items():
        assert count <= bound(grown, slots, name)


@QUICK
@given(SHARDS, st.integers(1, 5))
def test_nobody_takes_beyond_its_fair_share(weights, weight):
    slots = 256
    placed = place_slots(weights, slots)
    grown = weights | {"new": weight}
    after = place_slots(grown, slots, placed)
    took = {after[slot] for slot in placed if after[slot] != placed[slot]}
    shares = fair_shares(grown, slots)
    counts = Counter(after.values())
    assert all(counts[name] <= ceil(shares[name]) for name in took)


@QUICK
@given(SHARDS.filter(lambda w: len(w) > 1))
def test_a_shard_that_goes_gives_its_own_slots_alone(weights):
    slots = 256
    placed = place_slots(weights, slots)
    gone = sorted(weights)[0]
    left = {name: weight for name, weight in weights.items() if name != gone}
    after = place_slots(left, slots, placed)
    assert gone not in after.values()
    assert all(after[slot] == name for slot, name in placed.items() if name != gone)


def test_weights_count():
    counts = Counter(place_slots({"small": 1, "big": 3}, 4_096).values())
    assert 4_096 * 3 / 4 * 0.8 < counts["big"] <= bound({"small": 1, "big": 3}, 4_096, "big")


def test_the_plain_ring_of_the_embedded_cluster():
    counts = Counter(place_slots({"shard-1": 1, "shard-2": 1}, 64).values())
    assert set(counts) == {"shard-1", "shard-2"}
    assert max(counts.values()) <= 36


def test_the_fullest_of_six_shards_is_within_the_bound():
    counts = Counter(place_slots({f"shard-{number}": 1 for number in range(1, 7)}, 64).values())
    assert max(counts.values()) <= LOAD_BOUND * 64 / 6


@pytest.mark.parametrize("weights", [{}, {"a": 0}, {"a": 1, "b": -1}])
def test_no_shard_no_places(weights):
    with pytest.raises(ValueError, match="positive"):
        place_slots(weights, 4)
