"""Random histories: no reader's tree ever differs from the server's."""

import os

import pytest

from tests.journal.history import run_histories
from tests.journal.results import save_result
from tests.journal.truth import Difference
from tests.journal.world import open_world
from tests.support.databases import FreshCluster

SHORT_HISTORIES = 100
HISTORIES_PER_CHUNK = 150
HISTORIES = int(os.environ.get("SHARDBOX_JOURNAL_HISTORIES", SHORT_HISTORIES))
FIRST_SEED = int(os.environ.get("SHARDBOX_JOURNAL_SEED", "0"))


@pytest.mark.parametrize("first", range(0, HISTORIES, HISTORIES_PER_CHUNK))
async def test_histories(fresh_cluster: FreshCluster, first: int):
    count = min(HISTORIES_PER_CHUNK, HISTORIES - first)
    seeds = range(FIRST_SEED + first, FIRST_SEED + first + count)
    try:
        async with open_world(fresh_cluster) as world:
            comparisons = await run_histories(world, seeds)
    except Difference:
        save_result("histories", str(first), {"differences": 1})
        raise
    assert comparisons > count
    save_result("histories", str(first), {"histories": count, "comparisons": comparisons})
