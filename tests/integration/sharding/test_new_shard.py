"""A shard that came after a metaserver had read its map."""

import asyncio

import psycopg
import pytest

from ops.shards import add_shard
from sharding import router
from sharding.bootstrap import create_cluster
from sharding.shardmap import Placement, ShardInfo
from tests.support.databases import FreshCluster
from tests.support.moving import copy_range, set_ownership
from tests.support.services import run_services
from wire.api import CreateFolder, ListFolder
from wire.ids import MAX_COUNT, make_ns_id, slot_of, system_ns


@pytest.mark.parametrize("is_read", [True, False], ids=["read", "write"])
async def test_a_row_names_a_shard_that_nobody_has_told_of(
    fresh_cluster: FreshCluster, monkeypatch: pytest.MonkeyPatch, *, is_read: bool
):
    monkeypatch.setattr(router, "POLL_INTERVAL_S", 3600.0)
    (old, *_), (new, new_dsn) = fresh_cluster.shards[0], list(fresh_cluster.shard_dsns.items())[1]
    create_cluster(fresh_cluster.directory_dsn, fresh_cluster.shards[:1], 64)
    alone = FreshCluster(fresh_cluster.directory_dsn, {old: fresh_cluster.shard_dsns[old]})
    async with run_services(alone) as services:
        user = await services.user()
        await user.ok(CreateFolder(path="/before"))
        info = ShardInfo(name=new, dsn=new_dsn, weight=1)
        await asyncio.to_thread(add_shard, fresh_cluster.directory_dsn, info, print)
        slot = slot_of(user.root_ns)
        key = system_ns(slot)
        async with (
            await psycopg.AsyncConnection.connect(alone.shard_dsns[old], autocommit=True) as here,
            await psycopg.AsyncConnection.connect(new_dsn, autocommit=True) as there,
        ):
            await set_ownership(here, key, 2, "f", (new, 2))
            await copy_range(here, there, key, make_ns_id(slot, MAX_COUNT))
            await set_ownership(there, key, 2, "a")
        assert new not in services.router.map.shards

        if is_read:
            found = await services.reads.list_folder(user.caller, ListFolder())
            assert [entry.name for entry in found.entries] == ["before"]
        else:
            await user.ok(CreateFolder(path="/after"))

        assert services.router.placement(user.root_ns) == Placement(new, 2)
