"""The fence: reads and writes refuse what is not owned, refresh, and follow the map."""

import asyncio
import time

import psycopg
import pytest

from metaserver.services.heads import HeadService
from sharding import tx
from sharding.bootstrap import create_cluster
from sharding.pool import POOL_MIN
from sharding.reshard.own_rows import bring_home
from sharding.router import Router
from sharding.shardmap import Placement
from tests.support.databases import FreshCluster
from tests.support.estate import Estate, open_estate
from tests.support.services import Services, run_services
from tests.support.waiting import wait_until
from wire.api import CreateFolder, ListFolder
from wire.errors import NotFound, ShardUnavailable
from wire.ids import slot_of, system_ns

PATIENCE_S = 2.5
"""A caller is to hear within 2 s; the rest is for a busy machine."""


async def names(estate: Estate) -> list[str]:
    result = await estate.services.reads.list_folder(estate.user.caller, ListFolder())
    return [str(entry.name) for entry in result.entries]


async def assert_refused(estate: Estate, deadline_s: float = 0.3) -> None:
    """A read and a write are refused in time, retryably, and nothing is written."""
    heads = await estate.heads()
    started = time.monotonic()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tx, "DEADLINE_S", deadline_s)
        outcomes = await asyncio.gather(
            names(estate), estate.user.write(CreateFolder(path="/refused")), return_exceptions=True
        )
    assert time.monotonic() - started < PATIENCE_S
    for outcome in outcomes:
        assert isinstance(outcome, ShardUnavailable), outcome
        assert outcome.retryable
    assert await estate.heads() == heads


async def assert_at(estate: Estate, shard: str, name: str) -> None:
    """A read and a write work, and happen on that shard alone."""
    heads = await estate.heads()
    assert "before" in await names(estate)
    await estate.user.ok(CreateFolder(path=f"/{name}"))
    assert name in await names(estate)
    assert await estate.heads() == heads | {shard: heads[shard] + 1}
    assert estate.placement().shard == shard


async def test_a_later_epoch_on_the_same_shard_is_followed(estate: Estate):
    await estate.own(estate.home, 7, "a")
    await assert_at(estate, estate.home, "after")
    assert estate.placement() == Placement(estate.home, 7)
    await estate.publish(estate.home, 7)
    assert await estate.services.router.refresh()
    await assert_at(estate, estate.home, "published")


@pytest.mark.parametrize(
    ("epoch", "state"),
    [(0, "a"), (1, "i"), (2, "f"), (2, "g")],
    ids=["an earlier epoch", "importing", "fenced", "gone"],
)
async def test_what_is_not_owned_is_refused(estate: Estate, epoch: int, state: str):
    await estate.own(estate.home, epoch, state)
    await assert_refused(estate)
    await estate.own(estate.home, 3, "a")  # an abort raises the epoch
    await assert_at(estate, estate.home, "after")


async def test_no_row_at_all_is_refused(slot_estate: Estate):
    conn = slot_estate.conns[slot_estate.home]
    await conn.execute("DELETE FROM local.ownership WHERE ns_id = %s", [slot_estate.key])
    await assert_refused(slot_estate, tx.DEADLINE_S)


async def test_the_map_is_followed(estate: Estate):
    await estate.move(estate.home, estate.away, 2, names_successor=False)
    await assert_refused(estate)
    await estate.publish(estate.away, 2)
    await assert_at(estate, estate.away, "after")
    # And back again.
    await estate.move(estate.away, estate.home, 3, names_successor=False)
    await estate.publish(estate.home, 3)
    await assert_at(estate, estate.home, "back")


async def test_a_successor_is_followed_before_the_map_knows(estate: Estate):
    await estate.move(estate.home, estate.away, 2)
    await assert_at(estate, estate.away, "after")
    assert estate.services.router.map.version == 1


async def test_a_successor_is_followed_while_the_directory_is_out_of_reach(
    estate: Estate, monkeypatch: pytest.MonkeyPatch
):
    nowhere = "host=127.0.0.1 port=1 dbname=none connect_timeout=1"
    monkeypatch.setattr(estate.services.router, "_directory_conninfo", nowhere)
    await estate.move(estate.home, estate.away, 2)
    await assert_at(estate, estate.away, "after")
    await estate.move(estate.away, estate.home, 3)
    await assert_at(estate, estate.home, "back")
    await estate.own(estate.home, 4, "g")
    await assert_refused(estate)


async def test_what_was_learned_gives_way_to_the_map(estate: Estate):
    await estate.move(estate.home, estate.away, 2)
    await assert_at(estate, estate.away, "after")
    await estate.publish(estate.away, 2)
    assert await estate.services.router.refresh()
    assert estate.services.router._learned == {}
    await assert_at(estate, estate.away, "published")


async def test_a_late_activation_matches_nothing_after_an_abort(estate: Estate):
    """The source fenced at 2 and named its successor; the move was given up at 3."""
    await estate.own(estate.away, 1, "i")
    await estate.own(estate.home, 2, "f", (estate.away, 2))
    await assert_refused(estate)
    await estate.own(estate.away, 3, "i")
    await estate.own(estate.home, 3, "a")
    await estate.publish(estate.home, 3)
    await assert_at(estate, estate.home, "after")


async def test_a_cutover_that_was_called_off_is_followed_before_the_map_knows(estate: Estate):
    """Requests that went to the named successor come back, also while the directory is out of reach."""
    await estate.own(estate.away, 1, "i")
    await estate.own(estate.home, 2, "f", (estate.away, 2))
    await assert_refused(estate)
    writing = asyncio.create_task(estate.user.ok(CreateFolder(path="/in between")))
    await wait_until(lambda: estate.placement().shard == estate.away, "a request at the successor")
    await estate.own(estate.away, 3, "i")
    await estate.own(estate.home, 3, "a")
    assert (await writing).name == "in between"
    await assert_at(estate, estate.home, "after")
    assert estate.services.router.map.version == 1


async def test_requests_in_a_cutover_see_no_error(estate: Estate):
    await estate.own(estate.home, 2, "f", (estate.away, 2))
    await estate.copy(estate.home, estate.away)
    heads = await estate.heads()
    before = estate.services.router._refreshed_at
    reading = asyncio.create_task(names(estate))
    writing = asyncio.create_task(estate.user.ok(CreateFolder(path="/in between")))
    await wait_until(lambda: estate.services.router._refreshed_at > before, "a request that met the fence")
    await estate.own(estate.away, 2, "a")
    await estate.own(estate.home, 2, "g", (estate.away, 2))
    assert "before" in await reading
    assert (await writing).name == "in between"
    assert await estate.heads() == heads | {estate.away: heads[estate.away] + 1}


async def test_writers_follow_a_slot_there_and_back(slot_estate: Estate):
    """Each cutover is met by all of them: at the fence, and at a target that is not active yet."""
    estate = slot_estate
    created: list[str] = []
    is_over = False

    async def write(writer: int) -> None:
        while not is_over:
            name = f"{writer} {len(created)}"
            await estate.user.ok(CreateFolder(path=f"/{name}", autorename=True))
            created.append(name)

    writers = [asyncio.create_task(write(number)) for number in range(6)]
    source, target = estate.home, estate.away
    for epoch in (2, 3, 4, 5):
        seen = len(created)
        await wait_until(lambda seen=seen: len(created) > seen + 5, "writers at work")
        await estate.own(target, epoch - 1, "i")
        await estate.own(source, epoch, "f", (target, epoch))
        await estate.copy(source, target)
        await estate.own(target, epoch, "a")
        await estate.own(source, epoch, "g", (target, epoch))
        await estate.publish(target, epoch)
        source, target = target, source
    seen = len(created)
    await wait_until(lambda: len(created) > seen + 5, "writers at work after the last cutover")
    is_over = True
    await asyncio.gather(*writers)
    assert len(await names(estate)) == 1 + len(created)
    assert (await estate.heads())[estate.home] == 1 + len(created)
    assert estate.placement() == Placement(estate.home, 5)


async def test_a_successor_on_a_shard_that_the_map_does_not_know_yet(slot_estate: Estate):
    """It is asked as soon as the map has told of it, and the caller waits."""
    estate = slot_estate
    added = "INSERT INTO shards (name, dsn, weight) VALUES ('shard-3', %s, 1)"
    await estate.own(estate.home, 2, "f", ("shard-3", 2))
    await estate.copy(estate.home, estate.away)
    await estate.own(estate.away, 2, "a")
    writing = asyncio.create_task(estate.user.ok(CreateFolder(path="/in between")))
    before = estate.services.router._refreshed_at
    await wait_until(lambda: estate.services.router._refreshed_at > before, "a request that met the fence")
    await estate.directory.execute(added, [estate.cluster.shard_dsns[estate.away]])
    await estate.publish("shard-3", 2)
    assert (await writing).name == "in between"
    assert estate.placement() == Placement("shard-3", 2)


async def test_a_cursor_survives_a_move(estate: Estate):
    listed = await estate.services.reads.list_folder(estate.user.caller, ListFolder(recursive=True))
    await estate.move(estate.home, estate.away, 2)
    await estate.publish(estate.away, 2)
    await estate.user.ok(CreateFolder(path="/after"))
    page = await estate.services.reads.list_folder_continue(estate.user.caller, listed.cursor)
    assert [entry.name for entry in page.entries] == ["after"]


async def test_a_single_namespace_moves_and_its_slot_stays(services: Services, fresh_cluster: FreshCluster):
    async with open_estate(services, fresh_cluster, "namespace") as estate:
        await estate.move(estate.home, estate.away, 2)
        await estate.publish(estate.away, 2)
        await assert_at(estate, estate.away, "after")
        slot_ns = system_ns(slot_of(estate.ns_id))
        assert services.router.placement(slot_ns) == Placement(estate.home, 1)
        async with run_services(fresh_cluster) as again:
            assert again.router.placement(estate.ns_id) == Placement(estate.away, 2)
            listed = await again.reads.list_folder(estate.user.caller, ListFolder())
            assert sorted(str(entry.name) for entry in listed.entries) == ["after", "before"]


async def test_a_namespace_that_came_home_is_found_before_the_map_knows(
    services: Services, fresh_cluster: FreshCluster, monkeypatch: pytest.MonkeyPatch
):
    """Its own row is gone and its slot's epoch is higher; nobody has told the map, which is out of reach."""
    async with open_estate(services, fresh_cluster, "namespace") as estate:
        await estate.own(estate.home, 2, "a")
        await estate.publish(estate.home, 2)
        assert await services.router.refresh()
        await assert_at(estate, estate.home, "by itself")
        nowhere = "host=127.0.0.1 port=1 dbname=none connect_timeout=1"
        monkeypatch.setattr(services.router, "_directory_conninfo", nowhere)
        with psycopg.connect(fresh_cluster.shard_dsns[estate.home], autocommit=True) as conn:
            epoch = bring_home(conn, estate.ns_id)
        await assert_at(estate, estate.home, "at home")
        assert services.router.placement(estate.ns_id) == Placement(estate.home, epoch)


async def test_an_own_row_covers_its_slots(slot_estate: Estate):
    """The slot goes; a namespace with an active row of its own stays."""
    estate = slot_estate
    await estate.own(estate.home, 2, "g", (estate.away, 2))
    estate.key = estate.ns_id
    await estate.own(estate.home, 3, "a")
    await estate.publish(estate.home, 3)
    await assert_at(estate, estate.home, "after")


async def test_heads_are_unknown_where_ownership_is_not_proved(estate: Estate):
    service = HeadService(estate.services.router)
    assert await service.get_heads([estate.ns_id]) == [1]
    await estate.move(estate.home, estate.away, 2)
    assert await service.get_heads([estate.ns_id]) == [-1]
    await estate.publish(estate.away, 2)
    assert await service.get_heads([estate.ns_id]) == [-1]  # it has met the fence, and looked at the map
    assert await service.get_heads([estate.ns_id]) == [1]


async def test_a_cutover_finds_connections_at_a_shard_that_was_never_asked(slot_estate: Estate):
    pool = slot_estate.services.router.pool(slot_estate.away)
    await wait_until(lambda: pool.load().idle >= POOL_MIN, "connections that wait")


async def test_a_slot_that_is_not_in_use_is_not_found(services):
    user = await services.user()
    beyond = (64 << 51) + 5
    with pytest.raises(NotFound):
        await services.reads.list_folder(user.caller, ListFolder(path=f"ns:{beyond}"))
    with pytest.raises(NotFound):
        await user.write(CreateFolder(path=f"ns:{beyond}/x"))


async def test_a_start_without_the_directory_uses_the_kept_map(fresh_cluster, tmp_path, monkeypatch):
    create_cluster(fresh_cluster.directory_dsn, fresh_cluster.shards)
    kept = tmp_path / "map.json"
    first = Router(fresh_cluster.directory_dsn, kept, "test")
    await first.open()
    known = first.map
    await first.close()
    second = Router("host=127.0.0.1 port=1 dbname=none", kept, "test")
    await second.open()
    assert second.map == known
    assert second.shards_out() == []
    await second.close()
    kept.write_text("{not a map")
    third = Router("host=127.0.0.1 port=1 dbname=none", kept, "test")
    await third.open()
    assert not third.is_ready
    await third.close()
