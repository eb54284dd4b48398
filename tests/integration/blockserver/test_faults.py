"""A blockserver killed at every step, a metaserver that is gone, a shard that is down."""

import asyncio
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import aiohttp
import psycopg
import pytest
from psycopg import sql

import blockserver.main  # declares every fault point
from tests.integration.blockserver.client import BlockClient, object_names, object_paths, pack_of
from tests.integration.blockserver.servers import Stack
from tests.support.databases import PgServers
from wire import faults
from wire.hashes import BLOCK_BYTES, block_hash
from wire.ids import slot_of, slot_of_digest

assert blockserver.main
pytestmark = pytest.mark.xdist_group("blockserver faults")  # they share their servers
UPLOADS = ("blockserver.upload.", "blockserver.object.")
POINTS = [name for name in faults.declared() if name.startswith(UPLOADS)]
DROPS = "blockserver.object.before_delete"
MENDS = [name for name in faults.declared() if name.startswith("blockserver.mend.")]


async def cut(client: BlockClient, *blocks: bytes) -> None:
    """An upload whose server dies."""
    with pytest.raises(aiohttp.ClientError):  # noqa: PT012
        if len(blocks) == 1:
            await client.put(blocks[0])
        else:
            await client.put_pack(pack_of(*blocks))


async def assert_what_is_ready_is_there(client: BlockClient, *blocks: bytes) -> None:
    missing = await client.missing(*blocks)
    for data in blocks:
        if block_hash(data).hex() not in missing:
            assert (await client.get(data))[:2] == (200, data)


def leftovers(stack: Stack) -> list[str]:
    return [p.name for p in (stack.folder / "blocks" / "writing").rglob("*") if p.suffix != ".lock"]


@pytest.mark.parametrize("point", [p for p in POINTS if p != DROPS])
async def test_killed_at_any_step_and_tried_again(stack: Stack, point: str):
    client = BlockClient(stack, await stack.new_user())
    # One block by itself, or a pack.
    count = 1 if point.startswith("blockserver.object.") else 20
    blocks = [os.urandom(3_000) for _ in range(count)]
    stack.blockserver.kill()
    stack.blockserver.start(SHARDBOX_FAULT=point)
    await cut(client, *blocks)
    assert stack.blockserver.wait() == -signal.SIGKILL
    stack.blockserver.start()
    # One directory and one lock file are the new process's own.
    assert len(leftovers(stack)) == 1
    await assert_what_is_ready_is_there(client, *blocks)
    assert [v.error for v in await client.put_pack(pack_of(*blocks))] == [None] * count
    assert await client.missing(*blocks) == []
    await assert_what_is_ready_is_there(client, *blocks)
    # An object too many may be left for the sweep, never one too few.
    assert all(1 <= len(object_names(stack, data)) <= 2 for data in blocks)


@pytest.mark.parametrize("point", MENDS)
async def test_killed_while_it_mends(stack: Stack, point: str):
    """The damaged object or the right one lies there, and the next try puts it right."""
    client = BlockClient(stack, await stack.new_user())
    data = os.urandom(3_000)
    assert await client.put(data) is None
    (place,) = object_paths(stack, data)
    place.write_bytes(b"damaged")
    stack.blockserver.kill()
    stack.blockserver.start(SHARDBOX_FAULT=point)
    await cut(client, data)
    assert stack.blockserver.wait() == -signal.SIGKILL
    stack.blockserver.start()
    assert len(leftovers(stack)) == 1
    assert place.read_bytes() in (b"damaged", data)
    assert await client.put(data) is None
    assert (await client.get(data))[:2] == (200, data)
    assert object_paths(stack, data) == [place]


async def test_killed_before_it_drops_its_own(stack: Stack):
    """Several namespaces send one block at once until one of them loses the race."""
    clients = [BlockClient(stack, await stack.new_user()) for _ in range(6)]
    stack.blockserver.kill()
    stack.blockserver.start(SHARDBOX_FAULT=DROPS)
    deadline = time.monotonic() + 60
    while True:
        data = os.urandom(200_000)
        ends = await asyncio.gather(*(client.put(data) for client in clients), return_exceptions=True)
        if any(isinstance(end, aiohttp.ClientError) for end in ends):
            break
        assert time.monotonic() < deadline, "no upload lost a race"
    assert stack.blockserver.wait() == -signal.SIGKILL
    stack.blockserver.start()
    for client in clients:
        await assert_what_is_ready_is_there(client, data)
        assert await client.put(data) is None
        assert (await client.get(data))[1] == data


async def test_an_upload_that_is_overtaken_starts_anew(stack: Stack):
    """Somebody lets go of pending rows all the time, as the collector will of forgotten ones."""
    user = await stack.new_user()
    client = BlockClient(stack, user)
    shard = stack.services.router.map.slots[slot_of(user.root_ns)].shard
    blocks = [os.urandom(20_000) for _ in range(60)]
    dropped = 0
    is_over = asyncio.Event()

    async def drop_pending() -> None:
        nonlocal dropped
        dsn = stack.cluster.shard_dsns[shard]
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
            while not is_over.is_set():
                statement = "DELETE FROM ns.namespace_blocks WHERE ns_id = %s AND state = 'p'"
                dropped += (await conn.execute(statement, [user.root_ns])).rowcount

    dropper = asyncio.create_task(drop_pending())
    outcomes = [await client.put(data) for data in blocks]
    is_over.set()
    await dropper
    assert dropped > 0
    assert {error.code for error in outcomes if error} <= {"upload_expired"}
    await assert_what_is_ready_is_there(client, *blocks)
    assert [await client.put(data) for data in blocks] == [None] * len(blocks)
    await assert_what_is_ready_is_there(client, *blocks)
    assert await client.missing(*blocks) == []


async def test_without_a_metaserver_everything_can_be_tried_again(stack: Stack):
    client = BlockClient(stack, await stack.new_user())
    data, other = os.urandom(1_000), os.urandom(1_000)
    assert await client.put(data) is None
    before = stack.objects()
    stack.metaserver.kill()
    error = await client.put(other)
    assert error is not None
    assert (error.code, error.retryable) == ("upstream_unavailable", True)
    status, _, answer = await client.get(data)
    assert (status, answer.headers["Retry-After"]) == (503, "1")
    assert stack.objects() == before
    stack.metaserver.start()
    assert await client.put(other) is None
    assert (await client.get(data))[1] == data


@contextmanager
def out_of_reach(server_name: str, cluster_dsn: str, servers: PgServers) -> Iterator[None]:
    """Nobody gets a connection to one shard's database."""
    name = psycopg.conninfo.conninfo_to_dict(cluster_dsn)["dbname"]
    server = next(s for s in servers.shards if s.name == server_name)
    allow = sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS {}")
    with server.connect() as conn:
        conn.execute(allow.format(sql.Identifier(str(name)), sql.SQL("false")))
        conn.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
    try:
        yield
    finally:
        with server.connect() as conn:
            conn.execute(allow.format(sql.Identifier(str(name)), sql.SQL("true")))


async def test_a_shard_that_is_down_costs_its_hashes_alone(stack: Stack, pg_servers: PgServers):
    shard_map = stack.services.router.map
    down, up = sorted(stack.cluster.shard_dsns)
    users = [await stack.new_user() for _ in range(12)]
    by_shard = {shard_map.slots[slot_of(user.root_ns)].shard: user for user in users}
    client, unlucky = BlockClient(stack, by_shard[up]), BlockClient(stack, by_shard[down])
    blocks = [os.urandom(500) for _ in range(60)]
    shard_of = {
        data: shard_map.slots[slot_of_digest(block_hash(data), shard_map.slot_count)].shard for data in blocks
    }
    assert set(shard_of.values()) == {down, up}
    with out_of_reach(down, stack.cluster.shard_dsns[down], pg_servers):
        started = time.monotonic()
        verdicts = await client.put_pack(pack_of(*blocks))
        assert time.monotonic() - started < 4
        for data, verdict in zip(blocks, verdicts, strict=True):
            if shard_of[data] == up:
                assert verdict.error is None
                assert (await client.get(data))[1] == data
            else:
                assert verdict.error is not None
                assert (verdict.error.code, verdict.error.retryable) == ("shard_unavailable", True)
        assert (await unlucky.get(blocks[0]))[0] == 503
        error = await unlucky.put(blocks[0])
        assert error is not None
        assert (error.code, error.retryable) == ("shard_unavailable", True)
    deadline = time.monotonic() + 30
    while any(v.error for v in await client.put_pack(pack_of(*blocks))):
        assert time.monotonic() < deadline
    assert await client.missing(*blocks) == []


@contextmanager
def small_disk(folder: Path) -> Iterator[dict[str, str]]:
    """Room for two large blocks: a file system of its own; where that is not allowed, a large reserve."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=11m,nr_inodes=20k", "shardbox-test", str(folder)]
    is_mounted = os.getuid() == 0 and subprocess.run(mount, check=False, capture_output=True).returncode == 0
    reserve = 2**20 if is_mounted else shutil.disk_usage(folder).free - 10 * 2**20
    try:
        yield {"SHARDBOX_BLOCK_DIR": str(folder / "blocks"), "SHARDBOX_BLOCK_MIN_FREE_BYTES": str(reserve)}
    finally:
        if is_mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


async def put_alone(stack: Stack, client: BlockClient, data: bytes) -> aiohttp.ClientResponse:
    async with stack.http.put(client.url(data), data=BytesIO(data), headers=client.auth) as answer:
        return answer


async def test_a_full_disk_refuses_new_blocks_and_hands_out_the_old(stack: Stack, tmp_path: Path):
    client = BlockClient(stack, await stack.new_user())
    blocks = [os.urandom(BLOCK_BYTES) for _ in range(6)]
    with small_disk(tmp_path / "disk") as settings:
        stack.blockserver.kill()
        stack.blockserver.start(**settings)
        verdicts = await client.put_pack(pack_of(*blocks))
        refused = [data for data, verdict in zip(blocks, verdicts, strict=True) if verdict.error]
        assert 4 <= len(refused) < 6
        assert {verdict.error.code for verdict in verdicts if verdict.error} == {"storage_full"}
        # Written side by side they may have been refused for one another: one by one until none goes in.
        while (answer := await put_alone(stack, client, refused[0])).status == 200:
            refused.pop(0)
        assert (answer.status, answer.headers["Retry-After"]) == (507, "1")
        assert await client.missing(*blocks) == [block_hash(data).hex() for data in refused]
        disk = tmp_path / "disk" / "blocks"
        assert len(list(disk.glob("objects/*/*"))) == len(blocks) - len(refused)
        assert [p.name for p in disk.glob("writing/*/*")] == []
        for data in set(blocks) - set(refused):
            assert (await client.get(data))[:2] == (200, data)
        async with stack.http.get(f"{stack.blockserver.url}/readyz") as answer:
            assert answer.status == 200
        stack.blockserver.kill()
    stack.blockserver.start()
