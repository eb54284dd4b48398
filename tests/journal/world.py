"""Many namespaces in one cluster, each with blocks to commit, made in bulk."""

import itertools
import random
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import psycopg

from metaserver.model.rows import Level
from metaserver.storage.usage import Debt
from tests.support.databases import FreshCluster
from tests.support.moving import copy_range, delete_range, publish_override, set_ownership
from tests.support.services import Services, User, commit_of, run_services
from wire.api import CommitFile
from wire.hashes import BLOCK_BYTES, BlockHash, block_hash
from wire.ids import NsId, Slot, make_ns_id, pack_device_id, slot_of

FIRST_COUNT = 1_000
"""Namespaces of histories have counts from here on, above those of the accounts."""
CONTENTS: list[tuple[int, list[BlockHash]]] = [
    (0, []),
    *((size, [block_hash(bytes(size))]) for size in range(1, 5)),
    (BLOCK_BYTES + 1, [block_hash(b"a whole block"), block_hash(b"\1")]),
]
"""(size, blocks): the rows say that they are ready, and no object is needed."""
_BLOCKS = sorted(
    {
        block: min(size, BLOCK_BYTES) if index == 0 else 1
        for size, blocks in CONTENTS
        for index, block in enumerate(blocks)
    }.items()
)


@dataclass
class World:
    """A cluster with one account, whose device writes all histories."""

    services: Services
    user: User
    shards: dict[str, psycopg.AsyncConnection]
    cluster: FreshCluster
    moved: dict[int, tuple[str, int]] = field(default_factory=dict)
    """Where namespaces are that have left their slot: shard and epoch."""
    between: dict[int, Callable[[], Awaitable[None]]] = field(default_factory=dict)
    """By namespace: what happens between two statements, should a test make two of one."""
    _counts: "itertools.count[int]" = field(default_factory=lambda: itertools.count(FIRST_COUNT))

    @property
    def device(self) -> bytes:
        """Who writes, as the journal keeps it."""
        return pack_device_id(self.user.caller.device_id)

    async def make_namespaces(self, count: int) -> list[NsId]:
        """Empty namespaces of the account, over all slots."""
        slots = self.services.router.map.slot_count
        made = [make_ns_id(Slot(i % slots), next(self._counts)) for i in range(count)]
        for shard, conn in self.shards.items():
            here = [n for n in made if self.shard_of(n) == shard]
            if not here:
                continue
            await conn.execute(
                "INSERT INTO ns.namespaces (ns_id, head, next_entry_id, modified_us, lost_ranges)"
                " SELECT n, 0, 1, 0, '{}' FROM unnest(%s::bigint[]) n",
                [here],
            )
            await conn.execute(
                "INSERT INTO ns.members (ns_id, account_id, level)"
                " SELECT n, %s, %s FROM unnest(%s::bigint[]) n",
                [self.user.caller.account_id, Level.OWNER.value, here],
            )
            await conn.execute(
                "INSERT INTO ns.namespace_blocks (ns_id, hash, state, size, claim_id, generation)"
                " SELECT n, b.hash, 'r', b.size, %s, %s FROM unnest(%s::bigint[]) n,"
                " unnest(%s::bytea[], %s::int[]) AS b(hash, size)",
                [bytes(16), bytes(16), here, [b for b, _ in _BLOCKS], [size for _, size in _BLOCKS]],
            )
        return made

    def shard_of(self, ns_id: NsId) -> str:
        """The shard that owns a namespace."""
        if ns_id in self.moved:
            return self.moved[ns_id][0]
        return self.services.router.map.slots[slot_of(ns_id)].shard

    def conn_of(self, ns_id: NsId) -> psycopg.AsyncConnection:
        """A connection of the test's own to the owner of a namespace."""
        return self.shards[self.shard_of(ns_id)]

    async def pay_debts(self, ns_id: NsId) -> None:
        """Have all debts of a namespace paid; nobody writes to it meanwhile."""
        cursor = await self.conn_of(ns_id).execute(
            "SELECT ns_id, entry_id, revived_count FROM ns.usage_debts WHERE ns_id = %s", [ns_id]
        )
        for row in await cursor.fetchall():
            assert await self.services.debts.settle(Debt(*row))

    async def move(self, ns_id: NsId, *, is_published: bool, is_deleted: bool) -> None:
        """Move a namespace to another shard.

        Args:
            ns_id: The namespace.
            is_published: Whether the map says so; else only the old owner's row tells the successor.
            is_deleted: Whether the rows that it leaves behind are deleted at once.
        """
        source = self.shard_of(ns_id)
        target = next(name for name in self.shards if name != source)
        epoch = self.moved[ns_id][1] + 1 if ns_id in self.moved else 2
        # Connections of its own: other histories use the shared ones meanwhile.
        async with (
            await psycopg.AsyncConnection.connect(self.cluster.shard_dsns[source], autocommit=True) as old,
            await psycopg.AsyncConnection.connect(self.cluster.shard_dsns[target], autocommit=True) as new,
            await psycopg.AsyncConnection.connect(self.cluster.directory_dsn, autocommit=True) as directory,
        ):
            await set_ownership(old, ns_id, epoch, "f", (target, epoch))
            await delete_range(new, ns_id, ns_id)
            await copy_range(old, new, ns_id, ns_id)
            await set_ownership(new, ns_id, epoch, "a")
            await set_ownership(old, ns_id, epoch, "g", (target, epoch))
            if is_published:
                await publish_override(directory, ns_id, target, epoch)
            if is_deleted:
                await delete_range(old, ns_id, ns_id)
        self.moved[ns_id] = target, epoch


def commit_operation(path: str, content: int, **how: object) -> CommitFile:
    """The operation that writes one of CONTENTS."""
    size, blocks = CONTENTS[content]
    operation = commit_of(path, b"", blocks, **how)
    return CommitFile(
        **{name: getattr(operation, name) for name in operation.__struct_fields__} | {"size": size}
    )


def wild_clock(rng: random.Random) -> Callable[[], int]:
    """A clock that jumps, backwards too."""
    start = 1_767_323_045_000_000
    return lambda: start + rng.randrange(-3_600_000_000, 3_600_000_000)


@asynccontextmanager
async def open_world(cluster: FreshCluster) -> AsyncIterator[World]:
    """Services, an account and connections of the test's own."""
    rng = random.Random(secrets.randbits(32))
    async with run_services(cluster, wild_clock(rng)) as services:
        conns = {
            name: await psycopg.AsyncConnection.connect(dsn, autocommit=True)
            for name, dsn in cluster.shard_dsns.items()
        }
        try:
            yield World(services, await services.user(), conns, cluster)
        finally:
            for conn in conns.values():
                await conn.close()
