"""Transactions: hooks, failures, and outcomes that nobody knows."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

import psycopg
import pytest

from sharding import pool as pool_module
from sharding import tx as tx_module
from sharding.pool import POOL_MAX, PROBE_TIMEOUT_S, ShardPool
from sharding.tx import Tx, WriterQueues
from tests.support.databases import FreshCluster
from tests.support.estate import Estate
from tests.support.proxy import CuttingProxy, cutting_proxy
from tests.support.services import Services, User, run_services
from wire.api import CreateFolder, ListFolder
from wire.errors import Overloaded, ShardboxError, ShardUnavailable, TooManyWriteOperations
from wire.ids import NsId

TOUCH = "UPDATE ns.namespaces SET modified_us = 77 WHERE ns_id = %s"


async def modified(estate: Estate) -> int:
    cursor = await estate.conns[estate.home].execute(
        "SELECT modified_us FROM ns.namespaces WHERE ns_id = %s", [estate.ns_id]
    )
    row = await cursor.fetchone()
    assert row is not None
    return row[0]


class CacheFailed(Exception):
    """A cached value could not be deleted."""


async def test_hooks_run_in_order_before_the_commit(slot_estate: Estate):
    seen: list[str] = []

    async def write(tx: Tx) -> str:
        await tx.conn.execute(TOUCH, [slot_estate.ns_id])

        async def first() -> None:
            seen.append(f"first {await modified(slot_estate) == 77}")

        async def second() -> None:
            seen.append("second")

        tx.before_commit += [first, second]
        return "done"

    assert await slot_estate.services.tx.run_tx([slot_estate.ns_id], "test", write) == "done"
    assert seen == ["first False", "second"]
    assert await modified(slot_estate) == 77


async def test_a_hook_that_fails_rolls_back(slot_estate: Estate):
    async def write(tx: Tx) -> None:
        await tx.conn.execute(TOUCH, [slot_estate.ns_id])

        async def fail() -> None:
            raise CacheFailed

        tx.before_commit.append(fail)

    with pytest.raises(CacheFailed):
        await slot_estate.services.tx.run_tx([slot_estate.ns_id], "test", write)
    assert await modified(slot_estate) != 77
    await slot_estate.user.ok(CreateFolder(path="/after"))


async def test_the_commit_of_an_aborted_transaction_is_noticed(slot_estate: Estate):
    async def write(tx: Tx) -> None:
        await tx.conn.execute(TOUCH, [slot_estate.ns_id])
        with contextlib.suppress(psycopg.errors.DivisionByZero):  # so it can only roll back
            await tx.conn.execute("SELECT 1 / 0")

    with pytest.raises(psycopg.InternalError, match="ROLLBACK"):
        await slot_estate.services.tx.run_tx([slot_estate.ns_id], "test", write)
    assert await modified(slot_estate) != 77
    await slot_estate.user.ok(CreateFolder(path="/after"))


async def test_a_cancelled_request_rolls_back_and_gives_its_connection_back(slot_estate: Estate):
    reached, never = asyncio.Event(), asyncio.Event()

    async def write(tx: Tx) -> None:
        await tx.conn.execute(TOUCH, [slot_estate.ns_id])
        reached.set()
        await never.wait()

    for _ in range(20):  # more than the pool has connections
        reached.clear()
        task = asyncio.create_task(slot_estate.services.tx.run_tx([slot_estate.ns_id], "test", write))
        await reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert await modified(slot_estate) != 77
    await slot_estate.user.ok(CreateFolder(path="/after"))


@pytest.mark.parametrize("failure", [psycopg.errors.SerializationFailure, psycopg.errors.DeadlockDetected])
async def test_what_the_database_asks_to_repeat_is_repeated(
    slot_estate: Estate, failure: type[psycopg.Error]
):
    tries = 0

    async def write(tx: Tx) -> int:
        nonlocal tries
        tries += 1
        await tx.conn.execute(TOUCH, [slot_estate.ns_id])
        if tries < 3:
            await tx.conn.execute(
                f"DO $$ BEGIN RAISE EXCEPTION 'test' USING ERRCODE = '{failure.sqlstate}'; END $$"
            )
        return tries

    assert await slot_estate.services.tx.run_tx([slot_estate.ns_id], "test", write) == 3

    async def always(tx: Tx) -> None:
        await tx.conn.execute(
            f"DO $$ BEGIN RAISE EXCEPTION 'test' USING ERRCODE = '{failure.sqlstate}'; END $$"
        )

    with pytest.raises(Overloaded):
        await slot_estate.services.tx.run_tx([slot_estate.ns_id], "test", always)


# ---- COMMIT, and no answer


@dataclass
class Proxied:
    """Services that reach all shards through proxies."""

    services: Services
    user: User
    proxies: dict[str, CuttingProxy]

    @property
    def proxy(self) -> CuttingProxy:
        """The one before the user's shard."""
        return self.proxies[self.services.router.placement(self.user.root_ns).shard]

    async def names(self) -> list[str]:
        """What is in the user's root."""
        result = await self.services.reads.list_folder(self.user.caller, ListFolder())
        return sorted(str(entry.name) for entry in result.entries)


@pytest.fixture
async def proxied(fresh_cluster: FreshCluster) -> AsyncIterator[Proxied]:
    (one, one_dsn), (two, two_dsn) = fresh_cluster.shard_dsns.items()
    with cutting_proxy(one_dsn) as (first, first_dsn), cutting_proxy(two_dsn) as (second, second_dsn):
        cluster = replace(fresh_cluster, shard_dsns={one: first_dsn, two: second_dsn})
        async with run_services(cluster) as services:
            yield Proxied(services, await services.user(), {one: first, two: second})


@pytest.mark.parametrize("is_delivered", [True, False], ids=["committed", "rolled back"])
async def test_an_unknown_outcome_is_an_error_and_a_key_makes_the_retry_safe(
    proxied: Proxied, is_delivered: bool
):
    operation = CreateFolder(path="/once")
    proxied.proxy.is_delivered = is_delivered
    proxied.proxy.word = b"COMMIT"
    with pytest.raises(ShardUnavailable) as caught:
        await proxied.user.write(operation, key="k")
    assert caught.value.retryable
    assert proxied.proxy.cuts == 1
    assert await proxied.names() == (["once"] if is_delivered else [])
    again = await proxied.user.write(operation, key="k")
    assert (again.head, again.verdicts[0].error) == (1, None)
    assert await proxied.user.write(operation, key="k") == again
    assert await proxied.names() == ["once"]


async def test_without_a_key_an_unknown_outcome_is_not_tried_again(proxied: Proxied):
    proxied.proxy.word = b"COMMIT"
    with pytest.raises(ShardUnavailable):
        await proxied.user.write(CreateFolder(path="/n", autorename=True))
    assert await proxied.names() == ["n"]


@pytest.mark.parametrize("word", [b"server_file_journal", b"namespace_blocks"])
async def test_a_connection_lost_before_the_commit_changes_nothing(proxied: Proxied, word: bytes):
    operation = await proxied.user.put("/f", b"1")
    proxied.proxy.word = word
    proxied.proxy.is_delivered = False
    with pytest.raises(ShardUnavailable):
        await proxied.user.write(operation)
    assert proxied.proxy.cuts == 1
    assert await proxied.names() == []
    await proxied.user.ok(operation)


async def test_a_connection_lost_while_reading_is_retryable(proxied: Proxied):
    proxied.proxy.word = b"local.ownership"
    with pytest.raises(ShardUnavailable):
        await proxied.names()
    assert await proxied.names() == []


# ---- Pools


@pytest.fixture
async def small_pool(fresh_cluster: FreshCluster) -> AsyncIterator[ShardPool]:
    dsn = next(iter(fresh_cluster.shard_dsns.values()))
    pool = ShardPool("small", dsn, "test", max_size=1)
    await pool.open()
    yield pool
    await pool.close()


async def test_an_exhausted_pool_is_overload(small_pool: ShardPool):
    async with small_pool.connection():
        with pytest.raises(Overloaded) as caught:
            async with small_pool.connection():
                pytest.fail("there is one connection")
        assert isinstance(caught.value, ShardboxError)
        assert (caught.value.status, caught.value.retryable) == (503, True)
    async with small_pool.connection() as conn:
        await conn.execute("SELECT 1")
    assert not small_pool.is_out


async def test_a_full_queue_is_refused_at_once(fresh_cluster: FreshCluster, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pool_module, "POOL_MAX_WAITING", 1)
    pool = ShardPool("small", next(iter(fresh_cluster.shard_dsns.values())), "test", max_size=1)
    await pool.open()

    async def use() -> bool:
        async with pool.connection() as conn:
            await conn.execute("SELECT 1")
            return True

    try:
        async with pool.connection():
            tasks = [asyncio.create_task(use()) for _ in range(3)]
            done, waiting = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION, timeout=1)
            assert all(isinstance(task.exception(), Overloaded) for task in done)
            assert (len(done), len(waiting)) == (2, 1)
        assert await waiting.pop()
    finally:
        await pool.close()


async def test_a_connection_in_autocommit_comes_back_clean(small_pool: ShardPool):
    async def leave_open() -> None:
        async with small_pool.connection() as conn:
            await conn.execute("BEGIN")
            await conn.execute("CREATE TEMPORARY TABLE t (n int)")
            raise CacheFailed

    with pytest.raises(CacheFailed):
        await leave_open()
    async with small_pool.connection() as conn:
        cursor = await conn.execute("SELECT count(*) FROM pg_class WHERE relname = 't'")
        assert await cursor.fetchone() == (0,)


async def test_a_session_that_the_server_ends_is_an_outage_and_not_a_bug(slot_estate: Estate):
    async def stall(tx: Tx) -> None:
        await tx.conn.execute("SET LOCAL idle_in_transaction_session_timeout = '50ms'")
        deadline = asyncio.get_running_loop().time() + 10
        while asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.1)
            await tx.conn.execute("SELECT 1")

    with pytest.raises(ShardUnavailable):
        await slot_estate.services.tx.run_tx([slot_estate.ns_id], "stall", stall)
    await slot_estate.user.ok(CreateFolder(path="/after"))


async def test_writers_of_a_busy_namespace_leave_the_shard_to_the_others(services):
    """A namespace's lock is held elsewhere: its writers wait, and take no connection from anybody."""
    busy, other = await _two_on_one_shard(services)
    shard = services.router.map.shards[services.router.placement(busy.root_ns).shard]
    async with await psycopg.AsyncConnection.connect(shard.dsn) as holder:
        await holder.execute("SELECT pg_advisory_xact_lock(%s)", [busy.root_ns])
        writers = [
            asyncio.create_task(busy.write(CreateFolder(path=f"/{number}"))) for number in range(POOL_MAX + 4)
        ]
        async with asyncio.timeout(10):
            done, _ = await asyncio.wait(writers, return_when=asyncio.FIRST_COMPLETED)
            errors = [task.exception() for task in done]
            assert all(isinstance(e, TooManyWriteOperations) and e.retry_after_s for e in errors), errors
            assert (await other.write(CreateFolder(path="/free"))).verdicts[0].error is None
        await holder.rollback()
        outcomes = await asyncio.gather(*writers, return_exceptions=True)
    assert sum(not isinstance(outcome, Exception) for outcome in outcomes) >= 1


async def test_a_queue_of_writers_is_bounded(monkeypatch: pytest.MonkeyPatch):
    """As many wait as may; the next one is refused at once, and each of the others gets his turn."""
    monkeypatch.setattr(tx_module, "MAX_WAITING_WRITERS", 3)
    queues, go_on, turns = WriterQueues(), asyncio.Event(), 0

    async def write(ns_id: int = 1) -> None:
        nonlocal turns
        async with queues.turn([NsId(ns_id)]):
            await go_on.wait()
            turns += 1

    waiting = [asyncio.create_task(write()) for _ in range(4)]
    await asyncio.sleep(0)
    with pytest.raises(TooManyWriteOperations) as refused:
        await write()
    assert (refused.value.status, refused.value.retryable, refused.value.retry_after_s) == (429, True, 1)
    waiting.append(asyncio.create_task(write(2)))  # another namespace's
    waiting.pop(1).cancel()
    await asyncio.sleep(0)
    waiting.append(asyncio.create_task(write()))  # in the place of the one who has left
    go_on.set()
    await asyncio.gather(*waiting)
    assert turns == 5


async def _two_on_one_shard(services):
    users = [await services.user(f"user{number}@example.org") for number in range(3)]
    shards = [services.router.placement(user.root_ns).shard for user in users]
    first, second = next((i, j) for i in range(3) for j in range(i + 1, 3) if shards[i] == shards[j])
    return users[first], users[second]


async def test_a_process_that_stood_still_does_not_take_it_for_the_servers_silence(
    fresh_cluster: FreshCluster, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(pool_module, "PROBE_INTERVAL_S", 0.0)  # a question is nearly always under way
    name, dsn = next(iter(fresh_cluster.shard_dsns.items()))
    pool = ShardPool(name, dsn, "test")
    await pool.open()
    try:
        for _ in range(4):
            async with pool.connection() as conn:
                time.sleep(PROBE_TIMEOUT_S * 1.1)
                for _ in range(20):
                    await conn.execute("SELECT 1")
    finally:
        await pool.close()
