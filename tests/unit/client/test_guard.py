"""Which deletions have to be answered for, on a real state; a batch takes part of a plan."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from client.folder import Folder
from client.guard import GUARD_ENTRIES, DeletionGuard
from client.model import ROOT, Kind, RemoteNode, SendDelete, SyncedNode
from client.settle import note_deleted
from client.state import State
from wire.api import MAX_BATCH_ENTRIES

ENTRIES = 5_000


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    with contextlib.closing(Folder(tmp_path).create()) as opened:
        yield opened


class Answers:
    """Says what it was told to, and notes what was asked."""

    def __init__(self, *answers: bool):
        self.answers = list(answers)
        self.asked: list[int] = []

    async def ask(self, count: int, total: int) -> bool:
        assert count <= total
        self.asked.append(count)
        return self.answers.pop(0)


def fill(state: State, ids: range, *, gone: int) -> None:
    """Files that both sides had; the disk has lost the first of them."""
    with state.tx("test"):
        for node_id in ids:
            name = f"f{node_id}"
            state.trees.put_remote(RemoteNode(node_id, ROOT, name, Kind.FILE))
            state.trees.put_synced(SyncedNode(node_id, ROOT, name, Kind.FILE))
        # What the disk still has is taken for clean.
        for node_id in ids[gone:]:
            state.trees.dirty.discard(node_id)


async def delete(guard: DeletionGuard, state: State, ids: range) -> int:
    """Plan, filter and send batches as a sync does; how many were sent."""
    sent = 0
    while left := [x for x in ids if x in state.trees.synced]:
        batch = (await guard.filter([SendDelete(x) for x in left]))[:MAX_BATCH_ENTRIES]
        if not batch:
            break
        with state.tx("test"):
            for action in batch:
                note_deleted(state.trees, action.id)
                state.trees.drop_synced(action.id)
        sent += len(batch)
    await guard.filter([])
    return sent


async def test_a_plan_that_is_sent_in_batches_counts_once(state: State) -> None:
    fill(state, range(1, ENTRIES + 1), gone=2_200)
    guard = DeletionGuard(state.trees, is_allowed=False, ask=None)
    assert await delete(guard, state, range(1, 2_201)) == 2_200
    assert guard.held == 0


async def test_what_was_deleted_within_a_minute_counts_with_the_rest(state: State) -> None:
    fill(state, range(1, 101), gone=40)
    guard = DeletionGuard(state.trees, is_allowed=False, ask=None)
    assert await delete(guard, state, range(1, 41)) == 40
    fill(state, range(41, 101), gone=15)
    assert await delete(guard, state, range(41, 56)) == 0
    assert await guard.filter([SendDelete(x) for x in range(41, 56)]) == []
    assert guard.held == 15


async def test_an_answer_is_good_for_all_batches_of_what_was_asked_about(state: State) -> None:
    fill(state, range(1, ENTRIES + 1), gone=4_000)
    answers = Answers(True, False)
    guard = DeletionGuard(state.trees, is_allowed=False, ask=answers.ask)
    assert await delete(guard, state, range(1, 4_001)) == 4_000
    assert answers.asked == [4_000]
    guard._deleted.clear()
    # Weeks later, with the same watch.
    fill(state, range(4_001, ENTRIES + 1), gone=900)
    later = [SendDelete(x) for x in range(4_001, 4_901)]
    assert await guard.filter(later) == []
    assert await guard.filter(later) == [], "a no is not asked about again and again"
    assert answers.asked == [4_000, 900]
    assert guard.held == 900


async def test_what_goes_beyond_the_answer_is_asked_about(state: State) -> None:
    fill(state, range(1, 101), gone=60)
    answers = Answers(True, False)
    guard = DeletionGuard(state.trees, is_allowed=False, ask=answers.ask)
    assert await guard.filter([SendDelete(x) for x in range(1, 61)])
    fill(state, range(1, 101), gone=61 + GUARD_ENTRIES)
    assert await guard.filter([SendDelete(x) for x in range(1, 62 + GUARD_ENTRIES)]) == []
    assert answers.asked == [60, 61 + GUARD_ENTRIES]


async def test_what_was_allowed_from_the_start_is_not_asked_about(state: State) -> None:
    fill(state, range(1, 101), gone=100)
    guard = DeletionGuard(state.trees, is_allowed=True, ask=None)
    assert await delete(guard, state, range(1, 101)) == 100
