"""The outbox relay: one holder per shard, nothing forgotten that was not taken."""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import psycopg
import pytest

from metaserver.services import relay as module
from metaserver.services.hints import Publisher
from metaserver.services.relay import Relay
from tests.support.databases import FreshCluster
from tests.support.moving import set_ownership
from tests.support.services import Services, User
from tests.support.waiting import wait_until
from wire.api import CreateFolder
from wire.ids import Jid, NsId, slot_of, system_ns

Hints = list[tuple[NsId, Jid]]


class Heard(Publisher):
    """A notification tier that is up or down, and what it was told."""

    def __init__(self) -> None:
        self.hints: Hints = []
        self.is_up = True
        self.meanwhile: Callable[[], Awaitable[object]] | None = None

    async def publish(self, hints: Hints) -> bool:
        """Take the hints."""
        if self.meanwhile is not None:
            await self.meanwhile()
        if self.is_up:
            self.hints += hints
        return self.is_up


@dataclass
class Scene:
    """A user, its shard, and a relay."""

    services: Services
    user: User
    conn: psycopg.AsyncConnection
    shard: str
    heard: Heard

    def relay(self) -> Relay:
        """One more relay that tells the same tier."""
        return Relay(self.services.tx, self.heard)

    async def outbox(self) -> list[tuple[int, int]]:
        """What waits."""
        cursor = await self.conn.execute("SELECT ns_id, jid FROM ns.outbox ORDER BY ns_id")
        return await cursor.fetchall()

    async def write(self) -> int:
        """A commit; its jid."""
        return (await self.user.write(CreateFolder(path="/n", autorename=True))).head


@pytest.fixture
async def scene(services: Services, fresh_cluster: FreshCluster) -> AsyncIterator[Scene]:
    user = await services.user()
    shard = services.router.placement(user.root_ns).shard
    async with await psycopg.AsyncConnection.connect(
        fresh_cluster.shard_dsns[shard], autocommit=True
    ) as conn:
        yield Scene(services, user, conn, shard, Heard())


async def test_what_waits_is_told_once_and_forgotten(scene: Scene):
    relay = scene.relay()
    for _ in range(3):
        await scene.write()
    assert await scene.outbox() == [(scene.user.root_ns, 3)]  # one row, coalesced
    assert await relay.sweep(scene.shard) == 1
    assert scene.heard.hints == [(scene.user.root_ns, 3)]
    assert await scene.outbox() == []
    assert await relay.sweep(scene.shard) == 0


async def test_what_was_not_taken_stays(scene: Scene):
    relay = scene.relay()
    await scene.write()
    scene.heard.is_up = False
    await relay.sweep(scene.shard)
    assert await scene.outbox() == [(scene.user.root_ns, 1)]
    scene.heard.is_up = True
    await relay.sweep(scene.shard)
    assert await scene.outbox() == []


async def test_a_row_that_grew_meanwhile_stays(scene: Scene):
    relay = scene.relay()
    await scene.write()
    scene.heard.meanwhile = scene.write
    await relay.sweep(scene.shard)
    assert scene.heard.hints == [(scene.user.root_ns, 1)]
    assert await scene.outbox() == [(scene.user.root_ns, 2)]
    scene.heard.meanwhile = None
    await relay.sweep(scene.shard)
    assert await scene.outbox() == []


async def test_one_of_two_has_the_lease(scene: Scene):
    first, second = scene.relay(), scene.relay()
    await scene.write()
    assert await first.sweep(scene.shard) == 1
    await scene.write()
    assert await second.sweep(scene.shard) == 0
    assert await scene.outbox() == [(scene.user.root_ns, 2)]
    assert await first.sweep(scene.shard) == 1


async def test_a_dead_holder_is_succeeded(scene: Scene, monkeypatch: pytest.MonkeyPatch):
    first, second = scene.relay(), scene.relay()
    monkeypatch.setattr(module, "LEASE_S", 0.3)
    assert await first.sweep(scene.shard) == 0
    await scene.write()
    assert await second.sweep(scene.shard) == 0

    async def taken_over() -> bool:
        return await second.sweep(scene.shard) == 1

    await wait_until(taken_over, "the lease's end", timeout_s=5)
    await scene.write()
    assert await first.sweep(scene.shard) == 0
    assert scene.heard.hints == [(scene.user.root_ns, 1)]


@pytest.mark.parametrize("state", ["f", "g", "i"])
async def test_what_is_not_active_here_is_passed_over(scene: Scene, state: str):
    relay = scene.relay()
    await scene.write()
    slot_ns = system_ns(slot_of(scene.user.root_ns))
    await set_ownership(scene.conn, slot_ns, 2, state)
    assert await relay.sweep(scene.shard) == 0
    assert await scene.outbox() == [(scene.user.root_ns, 1)]
    await set_ownership(scene.conn, slot_ns, 3, "a")
    assert await relay.sweep(scene.shard) == 1
    assert await scene.outbox() == []


async def test_a_namespace_of_its_own_is_passed_over(scene: Scene):
    await scene.write()
    await set_ownership(scene.conn, scene.user.root_ns, 2, "g")
    assert await scene.relay().sweep(scene.shard) == 0
    assert await scene.outbox() == [(scene.user.root_ns, 1)]


async def test_a_fence_between_reading_and_forgetting_keeps_the_row(scene: Scene):
    """What moves on meanwhile is forgotten by nobody here: its new owner tells it again."""
    await scene.write()
    slot_ns = system_ns(slot_of(scene.user.root_ns))

    async def fence() -> None:
        await set_ownership(scene.conn, slot_ns, 2, "f")

    scene.heard.meanwhile = fence
    relay = scene.relay()
    await relay._sweep_guarded(scene.shard)
    assert scene.heard.hints == [(scene.user.root_ns, 1)]
    assert await scene.outbox() == [(scene.user.root_ns, 1)]


async def test_the_sweep_runs_by_itself(scene: Scene):
    relay = scene.relay()
    relay.start()
    try:
        await scene.write()

        async def told() -> bool:
            return scene.heard.hints == [(scene.user.root_ns, 1)] and not await scene.outbox()

        await wait_until(told, "the sweep", timeout_s=10)
    finally:
        await relay.stop()
