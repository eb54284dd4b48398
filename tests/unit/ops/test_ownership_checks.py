"""What `shardctl doctor` makes of maps and ownership rows."""

import pytest

from ops.doctor.finding import Verdict
from ops.doctor.ownership import OwnershipRow, check_ownership
from sharding.shardmap import OwnershipState, Placement, ShardInfo, ShardMap
from wire.ids import NsId, Slot, make_ns_id, system_ns

ACTIVE, FENCED, IMPORTING, GONE = (
    OwnershipState.ACTIVE,
    OwnershipState.FENCED,
    OwnershipState.IMPORTING,
    OwnershipState.GONE,
)
SLOT_0, SLOT_1 = system_ns(Slot(0)), system_ns(Slot(1))
PINNED = make_ns_id(Slot(0), 7)


def make_map(overrides: dict[NsId, Placement] | None = None) -> ShardMap:
    """Slot 0 on a, slot 1 on b."""
    return ShardMap(
        cluster_id="c",
        version=3,
        slots=[Placement("a", 1), Placement("b", 2)],
        overrides=overrides or {},
        shards={name: ShardInfo(name=name, dsn="", weight=1) for name in ("a", "b")},
    )


def row(ns_id: NsId, epoch: int, state: OwnershipState = ACTIVE) -> OwnershipRow:
    return OwnershipRow(ns_id, epoch, state)


HEALTHY = {"a": [row(SLOT_0, 1)], "b": [row(SLOT_1, 2)]}


def checks(rows: dict[str, list[OwnershipRow]], overrides: dict[NsId, Placement] | None = None) -> list[str]:
    return [finding.check for finding in check_ownership(make_map(overrides), rows)]


def test_a_map_that_the_shards_agree_with_is_well() -> None:
    assert [f.verdict for f in check_ownership(make_map(), HEALTHY)] == [Verdict.OK]


@pytest.mark.parametrize("left_behind", [FENCED, IMPORTING, GONE])
def test_what_a_move_leaves_on_the_other_shard_is_no_second_owner(left_behind: OwnershipState) -> None:
    assert checks({"a": [row(SLOT_0, 1)], "b": [row(SLOT_1, 2), row(SLOT_0, 1, left_behind)]}) == [
        "ownership"
    ]


def test_two_active_owners_are_found_whatever_their_epochs() -> None:
    assert checks({"a": [row(SLOT_0, 1)], "b": [row(SLOT_1, 2), row(SLOT_0, 9)]}) == ["ownership.doubled"]


@pytest.mark.parametrize("state", [FENCED, IMPORTING, GONE, None])
def test_a_slot_that_is_active_nowhere_is_found(state: OwnershipState | None) -> None:
    assert checks({"a": [row(SLOT_0, 1, state)] if state else [], "b": [row(SLOT_1, 2)]}) == [
        "ownership.unowned"
    ]


def test_nothing_is_claimed_about_a_shard_that_did_not_answer() -> None:
    assert checks({"b": [row(SLOT_1, 2)]}) == []


def test_an_owner_at_another_epoch_or_place_than_the_map_says_is_worth_a_look() -> None:
    moved = {"a": [row(SLOT_0, 1, GONE)], "b": [row(SLOT_1, 2), row(SLOT_0, 2)]}
    assert checks(moved) == ["ownership.map"]
    assert checks({"a": [row(SLOT_0, 5)], "b": [row(SLOT_1, 2)]}) == ["ownership.map"]


def test_a_namespace_of_its_own_is_looked_at_beside_its_slot() -> None:
    overrides = {PINNED: Placement("b", 4)}
    there = {"a": [row(SLOT_0, 1)], "b": [row(SLOT_1, 2), row(PINNED, 4)]}

    assert checks(there, overrides) == ["ownership"]
    assert checks(HEALTHY, overrides) == ["ownership.unowned"]
    assert checks(there) == ["ownership.map"]
