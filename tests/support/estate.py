"""A user whose namespace can be moved by hand."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest

from sharding.shardmap import Placement
from tests.support.databases import FreshCluster
from tests.support.moving import copy_range, delete_range, publish_override, publish_slot, set_ownership
from tests.support.services import Services, User
from wire.api import CreateFolder
from wire.ids import MAX_COUNT, NsId, make_ns_id, slot_of, system_ns

Connection = psycopg.AsyncConnection


@dataclass
class Estate:
    """A user's namespace, both shards and the directory.

    `key` is what its ownership goes by in a test: the slot's row, or one of its own.
    """

    services: Services
    user: User
    cluster: FreshCluster
    conns: dict[str, Connection]
    directory: Connection
    home: str
    away: str
    key: NsId

    @property
    def ns_id(self) -> NsId:
        """The namespace."""
        return self.user.root_ns

    @property
    def range(self) -> tuple[NsId, NsId]:
        """What moves with the key."""
        slot = slot_of(self.ns_id)
        return (self.key, self.key) if self.key == self.ns_id else (self.key, make_ns_id(slot, MAX_COUNT))

    def placement(self) -> Placement:
        """Where the services believe it to be."""
        return self.services.router.placement(self.ns_id)

    async def own(self, shard: str, epoch: int, state: str, successor: tuple[str, int] | None = None) -> None:
        """Write the ownership row of the key."""
        await set_ownership(self.conns[shard], self.key, epoch, state, successor)

    async def publish(self, shard: str, epoch: int) -> None:
        """Put the key's placement into the map."""
        if self.key == self.ns_id:
            await publish_override(self.directory, self.key, shard, epoch)
        else:
            await publish_slot(self.directory, slot_of(self.key), shard, epoch)

    async def copy(self, source: str, target: str) -> None:
        """Copy the rows."""
        await delete_range(self.conns[target], *self.range)
        await copy_range(self.conns[source], self.conns[target], *self.range)

    async def move(self, source: str, target: str, epoch: int, *, names_successor: bool = True) -> None:
        """All of a move but the map."""
        following = (target, epoch) if names_successor else None
        await self.own(source, epoch, "f", following)
        await self.copy(source, target)
        await self.own(target, epoch, "a")
        await self.own(source, epoch, "g", following)

    async def heads(self) -> dict[str, int]:
        """The namespace's head by shard, where it has rows."""
        heads: dict[str, int] = {}
        for shard, conn in self.conns.items():
            cursor = await conn.execute("SELECT head FROM ns.namespaces WHERE ns_id = %s", [self.ns_id])
            row: Any = await cursor.fetchone()
            if row is not None:
                heads[shard] = row[0]
        return heads


@asynccontextmanager
async def open_estate(services: Services, cluster: FreshCluster, kind: str) -> AsyncIterator[Estate]:
    """A user with one folder; `kind` is slot or namespace."""
    user = await services.user()
    await user.ok(CreateFolder(path="/before"))
    conns = {
        name: await psycopg.AsyncConnection.connect(dsn, autocommit=True)
        for name, dsn in cluster.shard_dsns.items()
    }
    directory = await psycopg.AsyncConnection.connect(cluster.directory_dsn, autocommit=True)
    home = services.router.placement(user.root_ns).shard
    away = next(name for name in conns if name != home)
    key = user.root_ns if kind == "namespace" else system_ns(slot_of(user.root_ns))
    try:
        yield Estate(services, user, cluster, conns, directory, home, away, key)
    finally:
        for conn in (*conns.values(), directory):
            await conn.close()


@pytest.fixture(params=["slot", "namespace"])
async def estate(
    request: pytest.FixtureRequest, services: Services, fresh_cluster: FreshCluster
) -> AsyncIterator[Estate]:
    """An estate by its slot, and one by the namespace alone."""
    async with open_estate(services, fresh_cluster, request.param) as found:
        yield found


@pytest.fixture
async def slot_estate(services: Services, fresh_cluster: FreshCluster) -> AsyncIterator[Estate]:
    """An estate by its slot."""
    async with open_estate(services, fresh_cluster, "slot") as found:
        yield found
