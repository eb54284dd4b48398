"""The way of a move from any state to any goal."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sharding.reshard.model import (
    ENDED,
    RESTING,
    Goal,
    IllegalGoal,
    MoveState,
    namespace_unit,
    next_state,
    slot_unit,
)
from sharding.reshard.scope import merge
from wire.ids import MAX_SLOTS, NsId, Slot, make_ns_id, system_ns

S = MoveState
BEYOND = {S.RETIRING, S.DELETING, S.COMPLETED}
GIVEN_UP = {S.CANCELLING, S.CLEARING, S.CANCELLED}
LONGEST = len(MoveState)


def walk(state: MoveState, goal: Goal, *, is_done: bool) -> list[MoveState]:
    """The states whose work is done on the way."""
    way: list[MoveState] = []
    while (following := next_state(state, goal, is_done=is_done)) is not None:
        way.append(following)
        assert len(way) <= LONGEST, way
        state, is_done = following, True
    return way


def is_legal(state: MoveState, goal: Goal) -> bool:
    """Whether an operator may want this: what is behind the point of no return stays so."""
    if state in BEYOND:
        return goal is Goal.COMPLETED
    return goal is Goal.CANCELLED if state in GIVEN_UP else True


@pytest.mark.parametrize("goal", Goal)
@pytest.mark.parametrize("state", MoveState)
@pytest.mark.parametrize("is_done", [False, True])
def test_every_state_leads_to_every_goal_that_is_left(state: MoveState, goal: Goal, is_done: bool) -> None:
    if not is_legal(state, goal):
        with pytest.raises(IllegalGoal):
            walk(state, goal, is_done=is_done)
        return
    way = walk(state, goal, is_done=is_done)
    assert (way or [state])[-1].value == goal.value


@pytest.mark.parametrize("state", [s for s in MoveState if s not in RESTING])
def test_work_that_was_cut_short_is_done_again_unless_it_is_pointless(state: MoveState) -> None:
    repeats = {g for g in Goal if is_legal(state, g) and walk(state, g, is_done=False)[0] is state}
    turns = {
        S.PREPARING: {Goal.CANCELLED},
        S.COPYING: {Goal.CANCELLED},
        S.STREAMING: {Goal.CANCELLED},
        S.REVERSING: {Goal.CANCELLED},
        S.SWITCHING: {Goal.READY, Goal.CANCELLED},
        S.ROLLING_BACK: {Goal.SOAKING, Goal.COMPLETED},
    }
    assert repeats == {g for g in Goal if is_legal(state, g)} - turns.get(state, set())


@given(st.lists(st.sampled_from(list(Goal)), max_size=8), st.lists(st.integers(0, 12), max_size=8))
def test_the_source_owns_whenever_rows_are_deleted_on_the_target(goals: list[Goal], cuts: list[int]) -> None:
    """Whatever an operator wants one after another, and wherever each run is cut off."""
    state, holder, way = S.PLANNED, "source", list[MoveState]()
    for goal, cut in zip(goals, cuts, strict=False):
        is_done = state in RESTING
        for _ in range(cut):
            try:
                following = next_state(state, goal, is_done=is_done)
            except IllegalGoal:
                break
            if following is None:
                break
            way.append(following)
            if following is S.SOAKING:
                assert state is S.SWITCHING
                holder = "target"
            if following is S.READY:
                holder = "source"
            if following in (S.CANCELLING, S.CLEARING):
                assert holder == "source", way
                assert state not in (S.SWITCHING, S.SOAKING, S.ROLLING_BACK), way
            if following in (S.RETIRING, S.DELETING):
                assert holder == "target", way
            state, is_done = following, True
        if state in ENDED:
            break


def test_the_last_slot_ends_at_the_last_number() -> None:
    last = slot_unit(system_ns(Slot(MAX_SLOTS - 1)))
    assert last.last == (1 << 63) - 1
    assert last.is_slot


def test_a_namespace_is_no_slot() -> None:
    unit = namespace_unit(make_ns_id(Slot(3), 7))
    assert not unit.is_slot
    assert (unit.first, unit.last) == (unit.key, unit.key)


@given(st.sets(st.integers(0, 20)), st.sets(st.tuples(st.integers(0, 20), st.integers(1, 3))))
def test_merged_ranges_hold_the_same_namespaces(slots: set[int], away: set[tuple[int, int]]) -> None:
    own = {slot: tuple(make_ns_id(Slot(s), n) for s, n in away if s == slot) for slot in slots}
    units = [slot_unit(system_ns(Slot(slot)), own[slot]) for slot in slots]
    merged = merge(units)
    assert all(a.last + 1 < b.first for a, b in itertools.pairwise(merged))
    for slot in range(22):
        for count in range(5):
            ns_id = NsId(make_ns_id(Slot(slot), count))
            assert any(u.first <= ns_id <= u.last and ns_id not in u.excluded for u in merged) == (
                slot in slots and ns_id not in own[slot]
            )
