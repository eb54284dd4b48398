"""Locks: a fence and a write exclude one another, and writes take theirs in one order."""

import asyncio
import random

import psycopg
import pytest

from sharding.locks import SLOT_LOCK_CLASS
from sharding.tx import Tx, TxKind
from tests.support.databases import FreshCluster
from tests.support.estate import Estate
from tests.support.services import Services
from tests.support.waiting import wait_until
from wire.api import CreateFolder
from wire.errors import Overloaded, ShardUnavailable, SpansShards
from wire.ids import NsId, Slot, make_ns_id, slot_of

TAKE_SLOT = "SELECT pg_advisory_xact_lock(%s, %s)"
TAKE_NAMESPACE = "SELECT pg_advisory_xact_lock(%s)"
# The one-integer form keeps its key in two halves, and says so by objsubid 1; the other form has 2.
LOCKS = """
SELECT CASE l.objsubid WHEN 1 THEN 'namespace' ELSE 'slot' END,
       CASE l.objsubid WHEN 1 THEN (l.classid::bigint << 32) | l.objid::bigint ELSE l.objid::bigint END,
       l.mode, l.granted
  FROM pg_locks l JOIN pg_stat_activity a USING (pid)
 WHERE l.locktype = 'advisory' AND a.datname = current_database() AND a.application_name = 'test'
   AND (l.objsubid = 1 OR l.classid = 1)
"""
FENCE_WAITS = """
SELECT 1 FROM pg_locks l JOIN pg_stat_activity a USING (pid)
 WHERE l.locktype = 'advisory' AND l.mode = 'ExclusiveLock' AND l.objsubid = 2 AND l.classid = 1
   AND NOT l.granted AND a.datname = current_database()
"""


async def locks(conn: psycopg.AsyncConnection) -> set[tuple[str, int, str, bool]]:
    """(kind, key, mode, granted) of the locks that the services hold or wait for."""
    return set(await (await conn.execute(LOCKS)).fetchall())


async def test_a_write_holds_off_a_fence(slot_estate: Estate):
    estate, go_on, has_locks = slot_estate, asyncio.Event(), asyncio.Event()

    async def write(tx: Tx) -> None:
        await tx.conn.execute("UPDATE ns.namespaces SET modified_us = 1 WHERE ns_id = %s", [estate.ns_id])
        has_locks.set()
        await go_on.wait()

    for kind in TxKind:
        go_on.clear()
        has_locks.clear()
        writing = asyncio.create_task(estate.services.tx.run_tx([estate.ns_id], "test", write, kind=kind))
        await has_locks.wait()
        held = await locks(estate.conns[estate.home])
        slot = ("slot", slot_of(estate.ns_id), "ShareLock", True)
        namespace = ("namespace", estate.ns_id, "ExclusiveLock", True)
        assert held == ({slot, namespace} if kind is TxKind.JOURNALLED else {slot})
        async with await psycopg.AsyncConnection.connect(estate.cluster.shard_dsns[estate.home]) as fencer:
            fence = asyncio.create_task(fencer.execute(TAKE_SLOT, [SLOT_LOCK_CLASS, slot_of(estate.ns_id)]))

            async def waits() -> bool:
                return await (await estate.conns[estate.home].execute(FENCE_WAITS)).fetchone() is not None

            await wait_until(waits, "the fence waiting for the write")
            assert not fence.done()
            go_on.set()
            await writing
            await fence


async def test_a_fence_holds_off_writes_which_then_see_it(slot_estate: Estate):
    estate = slot_estate
    heads = await estate.heads()
    async with await psycopg.AsyncConnection.connect(estate.cluster.shard_dsns[estate.home]) as fencer:
        await fencer.execute(TAKE_SLOT, [SLOT_LOCK_CLASS, slot_of(estate.ns_id)])
        await fencer.execute(
            "UPDATE local.ownership SET epoch = 2, state = 'f' WHERE ns_id = %s", [estate.key]
        )
        writing = asyncio.create_task(estate.user.write(CreateFolder(path="/late")))
        waiting = ("slot", slot_of(estate.ns_id), "ShareLock", False)

        async def waits() -> bool:
            return waiting in await locks(estate.conns[estate.home])

        await wait_until(waits, "the write waiting for the fence")
        await fencer.commit()
    with pytest.raises(ShardUnavailable):
        await writing
    assert await estate.heads() == heads


async def slots_of_one_shard(services: Services, count: int) -> tuple[str, list[Slot]]:
    shard = next(iter(services.router.map.shards))
    return shard, services.router.map.slots_of(shard)[:count]


async def test_locks_are_taken_ascending_slots_first(services: Services, fresh_cluster: FreshCluster):
    shard, (low, middle, high) = await slots_of_one_shard(services, 3)
    ns_ids = [make_ns_id(slot, count) for slot in (high, low, middle) for count in (9, 7)]
    slots = [("slot", slot, "ShareLock") for slot in (low, middle, high)]
    names = [("namespace", n, "ExclusiveLock") for n in sorted(ns_ids)]
    order = [*slots, *names]

    async def nothing(_tx: Tx) -> None:
        pass

    dsn = fresh_cluster.shard_dsns[shard]
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as looking:
        for at, (kind, key, mode) in enumerate(order):
            if kind == "slot" and at != 1:
                continue  # one of them tells
            async with await psycopg.AsyncConnection.connect(dsn) as holder:
                if kind == "slot":
                    await holder.execute(TAKE_SLOT, [SLOT_LOCK_CLASS, key])
                else:
                    await holder.execute(TAKE_NAMESPACE, [key])
                running = asyncio.create_task(services.tx.run_tx(ns_ids, "test", nothing))
                want = {(*lock, True) for lock in order[:at]} | {(kind, key, mode, False)}

                async def waits(want: set = want) -> bool:
                    found = await locks(looking)
                    return bool(want) and want <= found and len(found) == len(want)

                await wait_until(waits, f"all locks below {kind} {key}, and no other")
                await holder.rollback()
                await running


async def test_many_namespaces_at_once_do_not_deadlock(services: Services, fresh_cluster: FreshCluster):
    shard, slots = await slots_of_one_shard(services, 4)
    ns_ids = [make_ns_id(slot, count) for slot in slots for count in range(1, 4)]
    rng = random.Random(7)
    counts = dict.fromkeys(ns_ids, 0)

    # Whoever waits for longer than he may is refused, which is not what this is about.
    turns = asyncio.Semaphore(12)

    async def add(chosen: list[NsId]) -> None:
        async def bump(tx: Tx) -> None:
            for ns_id in sorted(chosen):
                await tx.conn.execute(
                    "INSERT INTO ns.slot_counters (ns_id, next_count) VALUES (%s, 1) ON CONFLICT (ns_id)"
                    " DO UPDATE SET next_count = slot_counters.next_count + 1",
                    [ns_id],
                )

        async with turns:
            await services.tx.run_tx(chosen, "test", bump)

    batches = [rng.sample(ns_ids, rng.randint(2, 6)) for _ in range(120)]
    for batch in batches:
        for ns_id in batch:
            counts[ns_id] += 1
    await asyncio.gather(*map(add, batches))
    async with await psycopg.AsyncConnection.connect(
        fresh_cluster.shard_dsns[shard], autocommit=True
    ) as conn:
        cursor = await conn.execute("SELECT ns_id, next_count FROM ns.slot_counters")
        assert dict(await cursor.fetchall()) == counts
        cursor = await conn.execute(
            "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
        )
        assert await cursor.fetchone() == (0,)


async def test_one_transaction_lies_on_one_shard(services: Services):
    one, other = (services.router.map.slots_of(shard)[0] for shard in services.router.map.shards)

    async def nothing(_tx: Tx) -> None:
        pytest.fail("not to be run")

    with pytest.raises(SpansShards) as caught:
        await services.tx.run_tx([make_ns_id(one, 1), make_ns_id(other, 1)], "test", nothing)
    assert caught.value.retryable


async def test_a_lock_that_is_not_to_be_had_is_overload(slot_estate: Estate):
    estate = slot_estate

    async def impatient(tx: Tx) -> None:
        await tx.conn.execute("SET LOCAL lock_timeout = '20ms'")
        await tx.conn.execute("LOCK TABLE ns.members IN EXCLUSIVE MODE")

    async with await psycopg.AsyncConnection.connect(estate.cluster.shard_dsns[estate.home]) as holder:
        await holder.execute("LOCK TABLE ns.members IN EXCLUSIVE MODE")
        with pytest.raises(Overloaded):
            await estate.services.tx.run_tx([estate.ns_id], "test", impatient)
    assert estate.services.router.map.version == 1
