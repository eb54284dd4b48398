"""What a plan holds, for trees made by hand."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from client.model import (
    ROOT,
    Detach,
    Kind,
    LocalNode,
    MakeFolder,
    RemoteNode,
    RemoveFile,
    RemoveFolder,
    SendFile,
    SyncedNode,
)
from client.plan import WAITING_PER_ACTION, make_plan
from client.settle import note_file_added, note_folder_sent, settle
from client.trees import Trees


@pytest.fixture
def trees() -> Trees:
    return Trees()


def put_here(trees: Trees, node_id: int, parent: int, *, content: bytes = b"", is_kept: bool = False) -> None:
    name, kind = str(node_id), Kind.FILE if content else Kind.FOLDER
    trees.put_local(LocalNode(node_id, parent, name, name.encode(), kind, content=content, is_kept=is_kept))


def put_gone(trees: Trees, node_id: int, parent: int, *, content: bytes = b"") -> None:
    """Something that both sides had and the server has lost."""
    put_here(trees, node_id, parent, content=content)
    kind = Kind.FILE if content else Kind.FOLDER
    trees.put_synced(SyncedNode(node_id, parent, str(node_id), kind, rev="1", content=content))


def statements_of_a_small_plan(trees: Trees) -> int:
    trees.forget()
    seen: list[str] = []
    trees._conn.set_trace_callback(seen.append)
    plan = make_plan(trees, enough=10)
    trees._conn.set_trace_callback(None)
    assert [type(x) for x in plan.actions()] == [RemoveFile] * 10
    return len(seen)


def test_a_kept_folder_goes_when_it_is_empty_also_from_a_kept_one(trees: Trees) -> None:
    put_here(trees, -1, 0, is_kept=True)
    put_here(trees, -2, -1, is_kept=True)
    assert make_plan(trees).actions() == [RemoveFolder(-2)]
    trees.drop_local(-2)
    assert make_plan(trees).actions() == [RemoveFolder(-1)]


@pytest.mark.parametrize("is_kept", [False, True])
def test_a_plan_of_a_few_removals_looks_at_few_entries(trees: Trees, is_kept: bool) -> None:
    if is_kept:
        put_here(trees, -1, ROOT, is_kept=True)
    else:
        put_gone(trees, 1, ROOT)
    for node_id in range(100, 2_000):
        put_gone(trees, node_id, -1 if is_kept else 1, content=b"text")
    assert statements_of_a_small_plan(trees) < 500


def test_of_many_that_wait_for_a_new_folder_few_are_looked_at(trees: Trees) -> None:
    trees.put_remote(RemoteNode(1, ROOT, "1", Kind.FOLDER, jid=1))
    for node_id in range(2, 1_000):
        trees.put_remote(RemoteNode(node_id, 1, str(node_id), Kind.FILE, jid=node_id, rev="1", size=1))
    plan = make_plan(trees, enough=10)
    assert plan.actions() == [MakeFolder(1)]
    assert len(plan.waiting) == 10 * WAITING_PER_ACTION
    assert not plan.is_whole
    # With nothing to do but to wait, all is looked at: it may wait in a circle.
    waiting = make_plan(trees, range(2, 1_000), enough=10)
    assert (len(waiting.waiting), waiting.is_whole) == (998, True)


def test_what_is_new_in_a_lost_folder_keeps_all_lost_folders_above(trees: Trees) -> None:
    put_gone(trees, 1, ROOT)
    put_gone(trees, 2, 1)
    put_gone(trees, 3, 1)
    put_gone(trees, 4, 2, content=b"text")
    put_here(trees, -5, 2, content=b"new")
    plan = make_plan(trees)
    assert set(plan.settle) == {Detach(1, is_kept=True), Detach(2, is_kept=True)}
    assert set(plan.disk) == {RemoveFolder(3), RemoveFile(4)}


def files_after_all(trees: Trees, *, is_busy: Callable[[int], bool]) -> int:
    """How many files are left when small plans have been carried out to the end; what `is_busy` is left alone
    until nothing else is to do."""
    is_waiting, next_id = True, 10_000
    while True:
        plan = make_plan(trees, [x for x in trees.dirty if not (is_waiting and is_busy(x))], enough=10)
        for settlement in plan.settle:
            settle(trees, settlement)
        if plan.settle:
            continue
        for action in plan.disk:
            assert isinstance(action, RemoveFile | RemoveFolder)
            trees.drop_local(action.id)
            trees.drop_synced(action.id)
        ready = [x for x in plan.send if not isinstance(x, SendFile) or x.is_ready]
        for sent in ready:
            here = trees.local.get(sent.id)
            assert here is not None
            assert here.content is not None
            next_id += 1
            r = RemoteNode(next_id, here.parent, here.name, here.kind, content=here.content)
            if here.kind is Kind.FOLDER:
                note_folder_sent(trees, sent.id, here.place, r)
            else:
                note_file_added(trees, sent.id, here.place, here.content, r)
        if not (plan.disk or ready):
            if not is_waiting:
                assert not trees.dirty
                return sum(x.kind is Kind.FILE for x in trees.local.nodes())
            is_waiting = False


@pytest.mark.parametrize("is_busy", [lambda _: False, lambda x: x > 2, lambda x: x % 3 == 0])
def test_all_that_was_moved_here_stays_when_its_folder_is_gone(
    trees: Trees, is_busy: Callable[[int], bool]
) -> None:
    put_gone(trees, 1, ROOT)
    put_gone(trees, 2, 1)
    put_gone(trees, 3, 2)
    for node_id in range(100, 150):
        put_gone(trees, node_id, 2 if node_id % 2 else 3, content=b"text")
    moved = trees.local.get(2)
    assert moved is not None
    trees.put_local(replace(moved, parent=ROOT))
    assert files_after_all(trees, is_busy=is_busy) == 50


def test_what_was_not_moved_goes_from_around_what_was(trees: Trees) -> None:
    for folder in (1, 2, 3):
        put_gone(trees, folder, 1 if folder > 1 else ROOT)
    for node_id in range(100, 150):
        put_gone(trees, node_id, 2 if node_id % 2 else 3, content=b"text")
    moved = trees.local.get(2)
    assert moved is not None
    trees.put_local(replace(moved, parent=3))
    assert files_after_all(trees, is_busy=lambda x: x % 3 == 0) == 25
