"""What a router believes: the map, and what shards told of successors meanwhile."""

from collections.abc import AsyncIterator

import pytest

from sharding.router import Router
from sharding.shardmap import Placement, ShardInfo, ShardMap
from wire.errors import NotFound
from wire.ids import NsId, Slot, make_ns_id, system_ns

NOWHERE = "host=127.0.0.1 port=1 dbname=none connect_timeout=1"
SLOT = system_ns(Slot(1))
ALONE = make_ns_id(Slot(1), 5)
BESIDE = make_ns_id(Slot(1), 6)


def make_map(version: int, slot: Placement, **overrides: Placement) -> ShardMap:
    """A map of two slots, the second one of which is looked at; `alone` places a namespace of it."""
    return ShardMap(
        cluster_id="c",
        version=version,
        slots=[Placement("one", 1), slot],
        overrides={ALONE: overrides["alone"]} if overrides else {},
        shards={name: ShardInfo(name=name, dsn=NOWHERE, weight=1) for name in ("one", "two", "three")},
    )


@pytest.fixture
async def router() -> AsyncIterator[Router]:
    router = Router(NOWHERE, None, "test")
    yield router
    await router.close()


async def test_a_successor_is_followed_until_the_map_has_caught_up(router: Router):
    await router._apply(make_map(1, Placement("one", 3)))
    assert router.learn(SLOT, Placement("two", 4))
    for ns_id in (SLOT, ALONE, BESIDE):
        assert router.placement(ns_id) == Placement("two", 4)
    assert router.placement(system_ns(Slot(0))) == Placement("one", 1)
    await router._apply(make_map(2, Placement("one", 3)))  # of before the cutover
    assert router.placement(BESIDE) == Placement("two", 4)
    await router._apply(make_map(3, Placement("two", 4)))
    assert router._learned == {}
    assert router.placement(BESIDE) == Placement("two", 4)


async def test_only_news_are_learned(router: Router):
    await router._apply(make_map(1, Placement("one", 3)))
    assert not router.learn(SLOT, Placement("two", 3))
    assert not router.learn(SLOT, Placement("unheard of", 4))
    assert router._learned == {}
    assert router.learn(SLOT, Placement("two", 5))
    assert router.learn(SLOT, Placement("two", 5))  # known already: another request was there first
    assert not router.learn(SLOT, Placement("three", 4))
    assert router.placement(ALONE) == Placement("two", 5)
    with pytest.raises(NotFound):
        router.placement(make_ns_id(Slot(2), 1))


async def test_a_namespace_by_itself_is_not_moved_by_what_is_learned_of_its_slot(router: Router):
    """Its slot may have moved more often, and so have the higher epoch."""
    await router._apply(make_map(1, Placement("one", 3), alone=Placement("three", 4)))
    assert router.learn(SLOT, Placement("two", 5))
    assert router.placement(ALONE) == Placement("three", 4)
    assert router.placement(BESIDE) == Placement("two", 5)
    assert router.learn(ALONE, Placement("one", 5))
    assert router.placement(ALONE) == Placement("one", 5)


async def test_a_namespace_that_leaves_its_slot_before_the_map_knows(router: Router):
    await router._apply(make_map(1, Placement("one", 3)))
    assert router.learn(ALONE, Placement("two", 4))
    assert router.placement(ALONE) == Placement("two", 4)
    assert router.placement(BESIDE) == Placement("one", 3)
    await router._apply(make_map(2, Placement("one", 3), alone=Placement("two", 4)))
    assert router._learned == {}
    assert router.placement(ALONE) == Placement("two", 4)


async def test_a_namespace_that_came_home(router: Router):
    """Its own placement is gone from the map, and its slot's epoch raised above what was learned of it."""
    await router._apply(make_map(1, Placement("one", 3), alone=Placement("two", 4)))
    assert router.learn(ALONE, Placement("three", 6))
    await router._apply(make_map(2, Placement("one", 7)))
    assert router._learned == {}
    assert router.placement(ALONE) == Placement("one", 7)


async def test_a_homecoming_that_its_slot_tells_before_the_map(router: Router):
    await router._apply(make_map(1, Placement("one", 3)))
    assert router.learn(ALONE, Placement("two", 4))
    assert router.learn(SLOT, Placement("one", 5))
    assert router.placement(ALONE) == Placement("one", 5)


async def test_what_is_forgotten_of_a_namespace_is_forgotten_of_its_slot(router: Router):
    await router._apply(make_map(1, Placement("one", 3)))
    assert router.learn(SLOT, Placement("two", 4))
    assert router.learn(ALONE, Placement("three", 5))
    router.forget(ALONE)
    assert router.placement(ALONE) == Placement("one", 3)
    assert router.placement(BESIDE) == Placement("one", 3)


async def test_an_older_map_changes_nothing(router: Router):
    await router._apply(make_map(2, Placement("two", 4)))
    await router._apply(make_map(1, Placement("one", 3)))
    assert router.placement(NsId(ALONE)) == Placement("two", 4)


async def test_a_namespace_that_came_home_is_followed_by_its_slots_row(router: Router):
    """Where the map places it by itself, its slot's row counted: it has none of its own any more."""
    await router._apply(make_map(1, Placement("one", 3), alone=Placement("one", 4)))
    assert router.learn(SLOT, Placement("one", 5), ALONE)
    assert router.placement(ALONE) == router.placement(BESIDE) == Placement("one", 5)
    assert router.learn(SLOT, Placement("two", 6), ALONE)
    assert router.placement(ALONE) == Placement("two", 6)
    await router._apply(make_map(2, Placement("two", 6)))
    assert router._learned == {}


async def test_nobody_is_led_to_where_he_comes_from(router: Router):
    """What its slot's row says cannot help a namespace whose own placement is the newer one."""
    await router._apply(make_map(1, Placement("one", 3), alone=Placement("one", 7)))
    assert not router.learn(SLOT, Placement("two", 5), ALONE)
    assert router.placement(ALONE) == Placement("one", 7)
