"""Namespaces that are placed by themselves, while their slot moves: on three shards, under writers."""

import asyncio
import subprocess
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import msgspec
import psycopg
import pytest

from ops.errors import EXIT_NOT_FOUND, EXIT_OK
from sharding.bootstrap import create_cluster
from sharding.directory import Connection, load_map_sync
from sharding.reshard.alone import come_home, keep_here
from sharding.reshard.errors import MoveConflict
from sharding.reshard.model import Goal, Move, MoveOptions, MoveState, Unit, namespace_unit, slot_unit
from sharding.reshard.records import delete_pin, insert_move, insert_pin, list_moves
from sharding.reshard.runner import MoveRunner
from sharding.reshard.verify import VerifyReport
from sharding.shardmap import Pin, Placement
from tests.reshard.leftovers import find_leftovers
from tests.support.commands import OPERATOR, run_command
from tests.support.databases import FreshCluster, PgServers, cloned_cluster
from tests.support.private import private_server, with_shard
from tests.support.services import Services, User, run_services
from tests.support.waiting import wait_until
from wire.api import CreateFolder, ListFolder
from wire.ids import NsId, slot_of, system_ns

pytestmark = pytest.mark.timeout(600)
"""Several moves each, some of which wait for servers that are slow on a busy machine."""
SLOTS = 6
"""Few, so that two accounts meet in one soon."""
MAX_ACCOUNTS = 60
OPTIONS = MoveOptions(quarantine_s=0)


@pytest.fixture(scope="module")
def three_servers(pg_templates: PgServers) -> Iterator[PgServers]:
    with private_server("shard-3") as third, with_shard(pg_templates, third) as servers:
        yield servers


@pytest.fixture
def three_shards(three_servers: PgServers) -> Iterator[FreshCluster]:
    with cloned_cluster(three_servers) as cluster:
        yield cluster


@dataclass
class Writer:
    """Writes without pause, and notes what was acknowledged; an error ends the test."""

    user: User
    acked: list[str] = field(default_factory=list)
    is_stopping: bool = False

    async def write(self) -> None:
        while not self.is_stopping:
            name = f"file {len(self.acked):05}"
            await self.user.ok(CreateFolder(path=f"/{name}"))
            self.acked.append(name)
            await asyncio.sleep(0)


@dataclass
class World:
    """Three users: two in one slot, and one in another of the same shard or elsewhere."""

    services: Services
    cluster: FreshCluster
    directory: Connection
    pinned: User
    neighbour: User
    stranger: User

    @property
    def users(self) -> dict[str, User]:
        return {"pinned": self.pinned, "neighbour": self.neighbour, "stranger": self.stranger}

    @property
    def ns_id(self) -> NsId:
        """The namespace that goes its own ways."""
        return self.pinned.root_ns

    @property
    def slot_key(self) -> NsId:
        return system_ns(slot_of(self.ns_id))

    @property
    def overrides(self) -> dict[NsId, Placement]:
        return load_map_sync(self.directory).overrides

    def home(self, key: NsId) -> str:
        placed = load_map_sync(self.directory).placement(key)
        assert placed is not None
        return placed.shard

    def others(self) -> list[str]:
        """The shards that the slot is not on."""
        return [name for name in self.cluster.shard_dsns if name != self.home(self.slot_key)]

    def slot(self) -> Unit:
        return slot_unit(
            self.slot_key, tuple(n for n in self.overrides if slot_of(n) == slot_of(self.slot_key))
        )

    def plan(self, unit: Unit, target: str, goal: Goal = Goal.COMPLETED) -> Move:
        return insert_move(self.directory, self.home(unit.key), target, [unit], OPTIONS, goal)

    async def run(self, move: Move, goal: Goal = Goal.COMPLETED) -> Move:
        runner = MoveRunner(self.cluster.directory_dsn, lambda _: None, threading.Event())
        report = await asyncio.to_thread(runner.run, move.move_id, goal)
        assert report.move.state.value == goal.value
        return report.move

    async def verify(self, move: Move) -> VerifyReport:
        runner = MoveRunner(self.cluster.directory_dsn, lambda _: None, threading.Event())
        return await asyncio.to_thread(runner.verify, move.move_id)

    # Beside the loop: both wait for the slot's writers, who are in it.
    async def keep_here(self) -> bool:
        return await asyncio.to_thread(keep_here, self.directory, self.ns_id)

    async def come_home(self) -> bool:
        return await asyncio.to_thread(come_home, self.directory, self.ns_id)

    def pin_to(self, shard: str) -> None:
        insert_pin(self.directory, self.ns_id, Pin(shard=shard))

    def rows(self, ns_id: NsId) -> dict[str, int]:
        """How many journal rows each shard has of a namespace, where there are any."""
        found: dict[str, int] = {}
        for name, dsn in self.cluster.shard_dsns.items():
            with psycopg.connect(dsn) as conn:
                row = conn.execute(
                    "SELECT count(*) FROM ns.server_file_journal WHERE ns_id = %s", [ns_id]
                ).fetchone()
                if row is not None and row[0]:
                    found[name] = row[0]
        return found

    def leftovers(self) -> list[str]:
        conns: dict[str, psycopg.Connection] = {}
        try:
            for name, dsn in self.cluster.shard_dsns.items():
                conns[name] = psycopg.connect(dsn, autocommit=True)
            return find_leftovers(self.directory, conns)
        finally:
            for conn in conns.values():
                conn.close()

    async def names(self, user: User) -> list[str]:
        result = await self.services.reads.list_folder(user.caller, ListFolder())
        found = [str(entry.name) for entry in result.entries]
        while result.has_more:
            result = await self.services.reads.list_folder_continue(user.caller, result.cursor)
            found += [str(entry.name) for entry in result.entries]
        return sorted(found)


async def find_users(services: Services) -> tuple[User, User, User]:
    """Two of one slot, and one of another."""
    by_slot: dict[int, list[User]] = {}
    for number in range(MAX_ACCOUNTS):
        user = await services.user(f"user{number}@example.org")
        by_slot.setdefault(slot_of(user.root_ns), []).append(user)
        pair = next((users for users in by_slot.values() if len(users) > 1), None)
        if pair is not None and len(by_slot) > 1:
            stranger = next(users[0] for users in by_slot.values() if users is not pair)
            return pair[0], pair[1], stranger
    raise AssertionError("no two accounts in one slot")


@pytest.fixture
async def world(three_shards: FreshCluster) -> AsyncIterator[World]:
    create_cluster(three_shards.directory_dsn, three_shards.shards, SLOTS)
    async with run_services(three_shards) as services:
        users = await find_users(services)
        for user in users:
            await user.ok(CreateFolder(path="/before"))
        with psycopg.connect(three_shards.directory_dsn, autocommit=True) as directory:
            yield World(services, three_shards, directory, *users)


Progress = Callable[[], Awaitable[None]]


@asynccontextmanager
async def writing(world: World) -> AsyncIterator[Progress]:
    """All three write; what is given waits for some more writes of each. At the end nothing is lost."""
    writers = {name: Writer(user) for name, user in world.users.items()}

    async def go_on() -> None:
        goals = {name: len(writer.acked) + 3 for name, writer in writers.items()}
        await wait_until(
            lambda: all(len(writers[name].acked) >= goal for name, goal in goals.items()),
            "further writes of all",
        )

    async with AsyncExitStack() as stack:
        group = await stack.enter_async_context(asyncio.TaskGroup())
        for writer in writers.values():
            group.create_task(writer.write())
        try:
            await go_on()
            yield go_on
            await go_on()
        finally:
            for writer in writers.values():
                writer.is_stopping = True
    for writer in writers.values():
        assert await world.names(writer.user) == sorted(["before", *writer.acked])


async def assert_whole(world: World) -> None:
    """Each namespace is on the shard of the map alone, and nothing is left of any move."""
    for user in world.users.values():
        assert set(world.rows(user.root_ns)) == {world.home(user.root_ns)}
    assert await wait_until(lambda: not world.leftovers(), "nothing left of the moves"), world.leftovers()


async def test_a_slot_moves_around_a_namespace_that_is_placed_by_itself(world: World):
    """Namespace → B, slot → C, slot → B, unpin."""
    a = world.home(world.slot_key)
    b, c = world.others()
    async with writing(world) as go_on:
        cursor = (await world.services.reads.list_folder(world.pinned.caller, ListFolder())).cursor

        world.pin_to(b)
        await world.run(world.plan(namespace_unit(world.ns_id), b))
        await go_on()
        assert (world.home(world.ns_id), world.home(world.neighbour.root_ns)) == (b, a)

        # To C: of the pinned one nothing may go along, be compared or be deleted.
        move = world.plan(world.slot(), c)
        await world.run(move, Goal.READY)
        assert set(world.rows(world.ns_id)) == {b}
        report = await world.verify(move)
        assert report.differences == ()
        await world.run(move)
        await go_on()
        assert (world.home(world.ns_id), world.home(world.neighbour.root_ns)) == (b, c)
        assert set(world.rows(world.ns_id)) == {b}

        # To B, where rows of the slot are already: its own.
        before = world.rows(world.ns_id)[b]
        await world.run(world.plan(world.slot(), b))
        await go_on()
        assert world.home(world.neighbour.root_ns) == b
        assert world.rows(world.ns_id)[b] >= before
        assert list(world.overrides) == [world.ns_id]

        assert delete_pin(world.directory, world.ns_id)
        assert await world.come_home()
        await go_on()
        assert world.overrides == {}
        # A cursor from before all that still works, and nothing was left out since.
        changes = await world.services.reads.list_folder_continue(world.pinned.caller, cursor)
        assert changes.entries
    await assert_whole(world)
    for dsn in world.cluster.shard_dsns.values():
        with psycopg.connect(dsn) as conn:
            row = conn.execute("SELECT 1 FROM local.ownership WHERE ns_id = %s", [world.ns_id]).fetchone()
            assert row is None


@pytest.mark.long
async def test_a_slot_is_rolled_back_and_cancelled_around_a_namespace(world: World):
    b, c = world.others()
    async with writing(world) as go_on:
        world.pin_to(b)
        await world.run(world.plan(namespace_unit(world.ns_id), b))
        for target in (b, c):
            move = world.plan(world.slot(), target)
            for goal in (Goal.SOAKING, Goal.READY, Goal.CANCELLED):
                await world.run(move, goal)
                await go_on()
                assert set(world.rows(world.ns_id)) == {b}
    await assert_whole(world)


async def test_a_pinned_namespace_stays_when_its_slot_leaves(world: World):
    """Pinned in place: it never moves, and its slot goes without it."""
    a = world.home(world.slot_key)
    b, _ = world.others()
    async with writing(world) as go_on:
        world.pin_to(a)
        assert await world.keep_here()
        await world.run(world.plan(world.slot(), b))
        await go_on()
        assert (world.home(world.ns_id), world.home(world.neighbour.root_ns)) == (a, b)
        assert set(world.rows(world.ns_id)) == {a}
        # Unpinned, it follows its slot by a move of its own.
        assert delete_pin(world.directory, world.ns_id)
        assert not await world.come_home()
        await world.run(world.plan(namespace_unit(world.ns_id), b))
        await go_on()
        assert world.home(world.ns_id) == b
        assert world.overrides == {}
    await assert_whole(world)


async def test_pinned_and_unpinned_in_place(world: World):
    a = world.home(world.slot_key)
    async with writing(world) as go_on:
        for _ in range(2):
            world.pin_to(a)
            assert await world.keep_here()
            assert await world.keep_here()
            assert list(world.overrides) == [world.ns_id]
            await go_on()
            with pytest.raises(MoveConflict, match="pinned"):
                await world.come_home()
            assert delete_pin(world.directory, world.ns_id)
            assert await world.come_home()
            assert await world.come_home()
            assert world.overrides == {}
            await go_on()
    await assert_whole(world)


@pytest.mark.long
async def test_a_move_of_a_namespace_is_cancelled_from_either_side_of_its_switch(world: World):
    a = world.home(world.slot_key)
    b, _ = world.others()
    async with writing(world) as go_on:
        for goals in ((Goal.READY,), (Goal.SOAKING, Goal.READY)):
            world.pin_to(b)
            move = world.plan(namespace_unit(world.ns_id), b)
            for goal in goals:
                await world.run(move, goal)
                await go_on()
            assert (await world.run(move, Goal.CANCELLED)).state is MoveState.CANCELLED
            await go_on()
            assert world.home(world.ns_id) == a
            assert world.overrides == {}
            row = world.directory.execute("SELECT count(*) FROM pins").fetchone()
            assert row == (0,)
    await assert_whole(world)


async def test_a_slot_does_not_take_a_namespace_where_its_label_is_not_met(world: World):
    a = world.home(world.slot_key)
    b, c = world.others()
    for name, region in ((a, "eu"), (b, "us"), (c, "eu")):
        world.directory.execute(
            "UPDATE shards SET labels = jsonb_build_object('region', %s::text) WHERE name = %s",
            [region, name],
        )
    insert_pin(world.directory, world.ns_id, Pin(label="region", value="eu"))

    with pytest.raises(MoveConflict, match="pinned to region=eu"):
        world.plan(world.slot(), b)

    await world.run(world.plan(world.slot(), c))
    assert world.home(world.ns_id) == c
    with pytest.raises(MoveConflict, match="pinned to region=eu"):
        world.plan(namespace_unit(world.ns_id), b)
    await assert_whole(world)


async def test_a_slot_and_its_namespaces_do_not_move_at_once(world: World):
    b, c = world.others()
    world.pin_to(b)
    move = world.plan(namespace_unit(world.ns_id), b)
    with pytest.raises(MoveConflict, match=f"move {move.move_id}"):
        world.plan(world.slot(), c)
    with pytest.raises(MoveConflict, match=f"move {move.move_id}"):
        delete_pin(world.directory, world.ns_id)
    await world.run(move, Goal.CANCELLED)
    with pytest.raises(MoveConflict, match="is on"):
        world.plan(namespace_unit(world.ns_id), world.home(world.ns_id))
    slot_move = world.plan(world.slot(), c, Goal.READY)
    with pytest.raises(MoveConflict, match=f"move {slot_move.move_id}"):
        world.plan(namespace_unit(world.ns_id), b)
    await world.run(slot_move, Goal.CANCELLED)
    await assert_whole(world)


async def test_a_namespace_that_is_there_already_is_pinned_and_nothing_moves(world: World):
    a = world.home(world.slot_key)

    async def shardctl(*args: str) -> "subprocess.CompletedProcess[str]":
        env = {"SHARDBOX_DIRECTORY_DSN": world.cluster.directory_dsn}
        return await asyncio.to_thread(run_command, OPERATOR, "namespace", *args, "-o", "json", env=env)

    async with writing(world) as go_on:
        done = await shardctl("move", str(world.ns_id), a)
        assert (done.returncode, msgspec.json.decode(done.stdout)) == (
            EXIT_OK,
            {"ns_id": str(world.ns_id), "pin": a, "shard": a, "is_met": True, "move": None},
        )
        assert list(world.overrides) == [world.ns_id]
        await go_on()
        nobody = await shardctl("move", str(world.ns_id + 1_000_000), a)
        assert (nobody.returncode, "not_found" in nobody.stderr) == (EXIT_NOT_FOUND, True)
        done = await shardctl("unpin", str(world.ns_id))
        assert (done.returncode, world.overrides) == (EXIT_OK, {})
        await go_on()
    assert list_moves(world.directory) == []
    await assert_whole(world)
