"""What a plan holds, for trees made by hand."""

import pytest

from client.model import Kind, LocalNode, RemoveFolder
from client.plan import make_plan
from client.trees import Trees


@pytest.fixture
def trees() -> Trees:
    return Trees()


def put_here(trees: Trees, node_id: int, parent: int, *, is_kept: bool = False) -> None:
    name = f"folder {node_id}"
    trees.put_local(LocalNode(node_id, parent, name, name.encode(), Kind.FOLDER, is_kept=is_kept))


def test_a_kept_folder_goes_when_it_is_empty_also_from_a_kept_one(trees: Trees) -> None:
    put_here(trees, -1, 0, is_kept=True)
    put_here(trees, -2, -1, is_kept=True)
    assert make_plan(trees).actions() == [RemoveFolder(-2)]
    trees.drop_local(-2)
    assert make_plan(trees).actions() == [RemoveFolder(-1)]
