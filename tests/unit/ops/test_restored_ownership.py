"""Who owns what after a restore, or after the directory was lost."""

import pytest

from ops.doctor.ownership import OwnershipRow
from ops.restore.ownership import find_owner, rebuild, reconcile
from sharding.shardmap import OwnershipState, Placement, ShardInfo, ShardMap
from wire.ids import NsId, Slot, make_ns_id, system_ns

A, B, C = "shard-a", "shard-b", "shard-c"
KEY = system_ns(Slot(0))
OWN = make_ns_id(Slot(0), 7)


def row(epoch: int, state: str, key: NsId = KEY) -> OwnershipRow:
    return OwnershipRow(key, epoch, OwnershipState(state))


def map_of(*slots: Placement, overrides: dict[NsId, Placement] | None = None) -> ShardMap:
    shards = {name: ShardInfo(name=name, dsn=name, weight=1) for name in (A, B, C)}
    return ShardMap(cluster_id="c", version=5, slots=list(slots), overrides=overrides or {}, shards=shards)


@pytest.mark.parametrize(
    ("rows", "owner"),
    [
        ({A: row(1, "a")}, A),
        ({A: row(1, "a"), B: row(2, "f")}, B),
        ({A: row(2, "f"), B: row(2, "a")}, B),
        ({A: row(3, "g"), B: row(2, "a")}, B),  # gone keeps no claim, whatever its epoch
        ({A: row(1, "g"), B: row(1, "i")}, None),
        ({}, None),
    ],
)
def test_the_highest_epoch_wins_and_active_beats_fenced(rows: dict[str, OwnershipRow], owner: str | None):
    assert find_owner(rows) == owner


def test_what_nobody_took_over_is_kept_above_every_epoch_there_was():
    decided = reconcile(A, [row(1, "a")], {B: [row(3, "g")]}, map_of(Placement(A, 4)))
    assert decided.kept == {KEY: 5}
    assert (decided.gone, decided.missing) == ({}, ())


def test_what_has_moved_away_since_is_gone():
    decided = reconcile(A, [row(1, "a")], {B: [row(2, "a")]}, map_of(Placement(B, 2)))
    assert decided.gone == {KEY: Placement(B, 2)}
    assert decided.kept == {}


def test_a_shard_that_is_lost_as_well_is_spoken_for_by_the_map():
    decided = reconcile(A, [row(1, "a")], {}, map_of(Placement(B, 2)))
    assert decided.gone == {KEY: Placement(B, 2)}


def test_a_move_that_was_cut_off_is_taken_back():
    decided = reconcile(A, [row(2, "f")], {B: [row(1, "i")]}, map_of(Placement(A, 1)))
    assert decided.kept == {KEY: 3}


def test_what_came_after_the_moment_is_missing():
    others = {B: [row(2, "g")]}
    assert reconcile(A, [], others, map_of(Placement(A, 2))).missing == (KEY,)
    assert reconcile(A, [row(1, "i")], others, map_of(Placement(A, 2))).missing == (KEY,)


def test_a_namespace_of_its_own_starts_above_its_slots_epochs():
    own = [row(6, "a"), row(2, "a", OWN)]
    decided = reconcile(A, own, {}, map_of(Placement(A, 6), overrides={OWN: Placement(A, 2)}))
    assert decided.kept == {KEY: 7, OWN: 7}


def test_a_map_is_rebuilt_of_slots_and_single_namespaces():
    rebuilt = rebuild(2, {A: [row(1, "a"), row(3, "g", OWN)], B: [row(4, "a", OWN)]}, None)
    assert rebuilt.slots == {Slot(0): Placement(A, 1)}
    assert rebuilt.overrides == {OWN: Placement(B, 4)}
    assert rebuilt.ownerless == (Slot(1),)


def test_a_kept_map_speaks_for_absent_shards_alone():
    known = map_of(Placement(B, 1), Placement(C, 9))
    rebuilt = rebuild(2, {A: [row(2, "a")], B: []}, known)
    assert rebuilt.slots == {Slot(0): Placement(A, 2), Slot(1): Placement(C, 9)}
    assert rebuild(2, {A: [row(2, "a")], B: [], C: []}, known).ownerless == (Slot(1),)
