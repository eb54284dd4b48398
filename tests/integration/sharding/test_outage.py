"""A shard that is down, or hangs, costs its own namespaces a retryable 503 in time, and nobody else."""

import asyncio
import http.client
import json
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from metaserver.services.accounts import email_key
from metaserver.storage.accounts import Account
from runtime.tokens import generate_keys
from sharding.router import Router
from tests.integration.blockserver.servers import START_TIMEOUT_S, ServerProcess, reserved_ports
from tests.support.databases import FreshCluster
from tests.support.dev import DevCluster, running_cluster
from tests.support.services import Services, User, run_services
from tests.support.waiting import wait_until
from wire.api import CreateFolder, ListFolder
from wire.errors import ShardboxError, ShardUnavailable
from wire.hashes import BlockHash, block_hash
from wire.ids import slot_of_digest, slot_of_hash, system_ns
from wire.internal import BeginBlock, BeginUpload, BlockState
from wire.keys import KeyRing

ANSWER_S = 2.0
SLACK_S = 0.5
"""The machine has two cores and other tests on them."""
SHARDS = ("shard-1", "shard-2")


def new_address(number: int = 0) -> str:
    """One that nobody has."""
    return f"{number}-{time.monotonic_ns()}@example.org"


@dataclass
class Outage:
    """Services over servers of their own, and a user on each shard."""

    cluster: DevCluster
    services: Services
    users: dict[str, User]
    """Each with an address on the same shard."""

    def address_on(self, shard: str) -> str:
        """An e-mail address that nobody has, and whose row lies on a shard."""
        return next(a for a in map(new_address, range(1_000)) if self.shard_of(a) == shard)

    def shard_of(self, address: str) -> str:
        """Where the row of an e-mail address lies."""
        slot = slot_of_hash(email_key(address).encode(), 64)
        return self.services.router.placement(system_ns(slot)).shard

    def block_on(self, shard: str) -> BlockHash:
        """A block whose hash lies on a shard."""
        hashes = (block_hash(f"{time.monotonic_ns()} {i}".encode()) for i in range(1_000))
        placement = self.services.router.placement
        return next(h for h in hashes if placement(system_ns(slot_of_digest(h, 64))).shard == shard)

    async def write(self, shard: str) -> int:
        """A write on a shard; the head after it."""
        return (await self.users[shard].write(CreateFolder(path="/n", autorename=True))).head

    async def read(self, shard: str) -> int:
        """A read on a shard; how many entries it shows."""
        user = self.users[shard]
        return len((await self.services.reads.list_folder(user.caller, ListFolder(limit=2_000))).entries)


@pytest.fixture(scope="module")
def own_databases(pg_servers: object, own_passfile: None) -> Iterator[DevCluster]:
    with running_cluster(has_servers=False) as cluster:
        yield cluster


@pytest.fixture
async def outage(own_databases: DevCluster) -> AsyncIterator[Outage]:
    cluster = FreshCluster(own_databases.dsn("directory"), {name: own_databases.dsn(name) for name in SHARDS})
    async with run_services(cluster) as services:
        outage = Outage(own_databases, services, {})
        while len(outage.users) < len(SHARDS):
            user = await services.user(address := new_address())
            if services.router.placement(user.root_ns).shard == (shard := outage.shard_of(address)):
                outage.users.setdefault(shard, user)
        yield outage


@contextmanager
def stopped(cluster: DevCluster, name: str) -> Iterator[None]:
    """All processes of a PostgreSQL server, as if their machine hung."""
    root = psutil.Process(cluster.pids()[name])
    frozen: list[psutil.Process] = []
    try:
        root.suspend()  # first the parent: it starts no more children
        frozen.append(root)
        for child in root.children(recursive=True):
            child.suspend()
            frozen.append(child)
        yield
    finally:
        for process in reversed(frozen):
            process.resume()


async def timed(call) -> tuple[float, object]:
    """How long a call took, and its result or error."""
    started = time.monotonic()
    try:
        result: object = await call
    except ShardboxError as error:
        result = error
    return time.monotonic() - started, result


async def assert_outage(outage: Outage, out: str) -> None:
    """For as long as it is looked at, one shard's users are refused in time and the others see nothing."""
    other = next(name for name in SHARDS if name != out)
    heads = []
    for _ in range(4):
        calls = [outage.write(out), outage.read(out), outage.write(other), outage.read(other)]
        (w_s, w), (r_s, r), (ow_s, ow), (or_s, _) = await asyncio.gather(*map(timed, calls))
        for took_s, result in ((w_s, w), (r_s, r)):
            assert isinstance(result, ShardUnavailable), result
            assert "shard" not in f"{result} {result.details}", "clients learn of namespaces alone"
            assert result.retryable
            assert took_s < ANSWER_S + SLACK_S
        assert isinstance(ow, int), ow
        assert max(ow_s, or_s) < 1
        heads.append(ow)
    assert heads == sorted(set(heads))
    await assert_blocks(outage, out, other)


async def assert_blocks(outage: Outage, out: str, other: str) -> None:
    """New blocks have a verdict each, by the shard of their hash."""
    user, here, there = outage.users[other], outage.block_on(other), outage.block_on(out)
    request = BeginUpload(user.caller, user.root_ns, [BeginBlock(there, 1), BeginBlock(here, 1)])
    took_s, begun = await timed(outage.services.blocks.begin(request))
    assert took_s < ANSWER_S + SLACK_S
    assert isinstance(begun, list)
    assert [block.state for block in begun] == [BlockState.FAILED, BlockState.ABSENT]
    assert begun[0].error.code == "shard_unavailable"
    assert begun[0].error.retryable


async def assert_addresses(outage: Outage, out: str) -> str:
    """Addresses on the shard that is out cannot be looked up or given away; one of these."""
    accounts = outage.services.accounts
    refused = outage.address_on(out)
    for call in (accounts.create_account(refused, "Ada"), accounts.find_by_email(refused)):
        took_s, result = await timed(call)
        assert isinstance(result, ShardUnavailable), result
        assert result.retryable
        assert took_s < ANSWER_S + SLACK_S
    other = next(name for name in SHARDS if name != out)
    known = await accounts.find_account(outage.users[other].caller.account_id)
    took_s, found = await timed(accounts.find_by_email(known.email))
    assert found == known
    assert took_s < 1
    address = outage.address_on(other)

    async def is_created() -> bool:
        # Its root namespace may be drawn on the shard that is out: then nothing has happened.
        _, result = await timed(accounts.create_account(address, "Bob"))
        assert isinstance(result, Account | ShardUnavailable), result
        return isinstance(result, Account)

    await wait_until(is_created, "an account with an address on the other shard")
    return refused


async def assert_back(outage: Outage, shard: str) -> None:
    async def works() -> bool:
        _, result = await timed(outage.write(shard))
        return isinstance(result, int)

    await wait_until(works, f"{shard} in service again")
    assert outage.services.router.shards_out() == []
    assert await outage.read(shard) >= 1


async def test_a_shard_that_hangs(outage: Outage):
    await outage.write("shard-1")
    await outage.write("shard-2")
    with stopped(outage.cluster, "shard-2"):
        await assert_outage(outage, "shard-2")
        assert outage.services.router.shards_out() == ["shard-2"]
        refused = await assert_addresses(outage, "shard-2")
    await assert_back(outage, "shard-2")
    assert (await outage.services.accounts.create_account(refused, "Ada")).email == refused
    # Nothing that was refused is half there: the journal has no gaps, and the next jid is the next.
    head = await outage.write("shard-2")
    assert await outage.write("shard-2") == head + 1


async def test_a_shard_that_dies(outage: Outage):
    before = await outage.write("shard-1")
    outage.cluster.kill("supervisor")  # or it would be back before anybody has noticed
    outage.cluster.kill("shard-1", signal.SIGKILL)
    await assert_outage(outage, "shard-1")
    refused = await assert_addresses(outage, "shard-1")
    outage.cluster.up()
    await assert_back(outage, "shard-1")
    assert (await outage.services.accounts.create_account(refused, "Ada")).email == refused
    assert await outage.write("shard-1") > before


@pytest.mark.long
async def test_a_new_process_starts_while_a_shard_hangs(outage: Outage):
    with stopped(outage.cluster, "shard-1"):
        cluster = outage.cluster
        databases = FreshCluster(cluster.dsn("directory"), {name: cluster.dsn(name) for name in SHARDS})
        started = time.monotonic()
        router = Router(databases.directory_dsn, None, "test")
        await router.open()
        try:
            assert time.monotonic() - started < ANSWER_S + SLACK_S
            assert router.is_ready
            assert router.shards_out() == ["shard-1"]
        finally:
            await router.close()
    await assert_back(outage, "shard-1")


async def test_a_metaserver_tells_whether_it_has_a_map_and_which_shards_are_out(
    own_databases: DevCluster, tmp_path: Path
):
    for name, content in (("service", KeyRing.generate()), ("token", generate_keys()[0])):
        (tmp_path / name).write_bytes(content)
    env = {
        "SHARDBOX_DIRECTORY_DSN": own_databases.dsn("directory"),
        "SHARDBOX_SERVICE_KEYS_FILE": str(tmp_path / "service"),
        "SHARDBOX_CURSOR_KEYS_FILE": str(tmp_path / "service"),
        "SHARDBOX_TOKEN_KEYS_FILE": str(tmp_path / "token"),
    }
    with reserved_ports(1) as (port,):
        server = ServerProcess("metaserver", port, env, tmp_path / "log")
        try:
            with stopped(own_databases, "directory"):
                server.start_unready()
                await wait_until(
                    lambda: readiness(port)[0] == 503, "an answer, and no map", timeout_s=START_TIMEOUT_S
                )
                assert readiness(port)[1]["error"]["code"] == "not_ready"
            await wait_until(lambda: readiness(port)[0] == 200, "a map")
            assert readiness(port)[1]["shards_out"] == []
            with stopped(own_databases, "shard-2"):
                await wait_until(lambda: readiness(port)[1]["shards_out"] == ["shard-2"], "shard-2 out")
                assert readiness(port)[0] == 200
            await wait_until(lambda: readiness(port)[1]["shards_out"] == [], "shard-2 in service again")
        finally:
            server.kill()


def readiness(port: int) -> tuple[int, dict[str, Any]]:
    """Status and body of a server's /readyz; status 0: it does not listen yet."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_S)
    with closing(connection):
        try:
            connection.request("GET", "/readyz")
            answer = connection.getresponse()
        except ConnectionError:
            return 0, {}
        return answer.status, json.loads(answer.read())


async def test_the_directory_hangs_and_nobody_notices(outage: Outage):
    with stopped(outage.cluster, "directory"):
        for shard in SHARDS:
            took_s, result = await timed(outage.write(shard))
            assert isinstance(result, int)
            assert took_s < 1


async def test_many_requests_at_a_hanging_shard_do_not_hold_the_others_up(outage: Outage):
    with stopped(outage.cluster, "shard-2"):
        crowd = [asyncio.create_task(timed(outage.write("shard-2"))) for _ in range(300)]
        for _ in range(5):
            took_s, result = await timed(outage.read("shard-1"))
            assert isinstance(result, int)
            assert took_s < ANSWER_S
        for took_s, result in await asyncio.gather(*crowd):
            assert isinstance(result, ShardboxError)
            assert (result.status, result.retryable) == (503, True)
            assert took_s < ANSWER_S + 2 * SLACK_S
    await assert_back(outage, "shard-2")
