"""Whole moves, of a slot and of a single namespace, while clients write."""

import asyncio
import itertools
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import psycopg
import pytest

from sharding.directory import load_map_sync
from sharding.reshard.errors import MoveConflict
from sharding.reshard.model import Goal, Move, MoveOptions, MoveState, Side, Unit, namespace_unit, slot_unit
from sharding.reshard.records import get_move, insert_move
from sharding.reshard.runner import Event, MoveRunner, RunReport
from sharding.shardmap import Placement
from tests.support.estate import Estate
from tests.support.waiting import wait_until
from wire.api import CreateFolder, ListFolder
from wire.ids import slot_of, system_ns

OPTIONS = MoveOptions(quarantine_s=0)


def unit_of(estate: Estate) -> Unit:
    return namespace_unit(estate.key) if estate.key == estate.ns_id else slot_unit(estate.key)


def plan(estate: Estate, goal: Goal = Goal.READY) -> Move:
    with psycopg.connect(estate.cluster.directory_dsn, autocommit=True) as conn:
        return insert_move(conn, estate.home, estate.away, [unit_of(estate)], OPTIONS, goal)


async def run(estate: Estate, move: Move, goal: Goal) -> RunReport:
    events: list[Event] = []
    runner = MoveRunner(estate.cluster.directory_dsn, events.append, threading.Event())
    return await asyncio.to_thread(runner.run, move.move_id, goal)


@dataclass
class Writer:
    """Writes without pause, and notes what was acknowledged; an error ends the test."""

    estate: Estate
    acked: list[str] = field(default_factory=list)
    is_stopping: bool = False

    async def write(self) -> None:
        for number in itertools.count():
            if self.is_stopping:
                return
            name = f"file {number:05}"
            await self.estate.user.ok(CreateFolder(path=f"/{name}"))
            self.acked.append(name)
            await asyncio.sleep(0)

    async def go_on(self, count: int = 5) -> None:
        """Return after some more writes."""
        goal = len(self.acked) + count
        await wait_until(lambda: len(self.acked) >= goal, "further writes", timeout_s=20)


@asynccontextmanager
async def writing(estate: Estate) -> AsyncIterator[Writer]:
    writer = Writer(estate)
    async with asyncio.TaskGroup() as group:
        group.create_task(writer.write())
        yield writer
        writer.is_stopping = True


async def names(estate: Estate) -> list[str]:
    result = await estate.services.reads.list_folder(estate.user.caller, ListFolder())
    found = [str(entry.name) for entry in result.entries]
    while result.has_more:
        result = await estate.services.reads.list_folder_continue(estate.user.caller, result.cursor)
        found += [str(entry.name) for entry in result.entries]
    return found


async def assert_nothing_left(estate: Estate, owner: str) -> None:
    """Neither streams nor rows nor rights of a move are left, and one shard owns."""
    cluster_id = load_cluster_id(estate)
    for name, conn in estate.conns.items():
        for query in (
            "SELECT slot_name FROM pg_replication_slots WHERE slot_name LIKE %s",
            "SELECT pubname FROM pg_publication WHERE pubname LIKE %s",
            "SELECT subname FROM pg_subscription WHERE subname LIKE %s",
        ):
            cursor = await conn.execute(query, [f"shardbox_{cluster_id[:8]}%"])
            assert await cursor.fetchall() == [], (name, query)
        cursor = await conn.execute("SELECT 1 FROM ns.move_markers")
        assert await cursor.fetchall() == []
        cursor = await conn.execute("SELECT state FROM local.ownership WHERE state IN ('i', 'f')")
        assert await cursor.fetchall() == []
    assert set(await estate.heads()) == {owner}


def load_cluster_id(estate: Estate) -> str:
    with psycopg.connect(estate.cluster.directory_dsn, autocommit=True) as conn:
        return load_map_sync(conn).cluster_id


async def test_there_and_back_and_there_for_good(estate: Estate):
    async with writing(estate) as writer:
        await writer.go_on()
        move = plan(estate)
        report = await run(estate, move, Goal.READY)
        assert report.move.state is MoveState.READY
        await writer.go_on()
        for goal, holder in [
            (Goal.SOAKING, Side.TARGET),
            (Goal.READY, Side.SOURCE),
            (Goal.SOAKING, Side.TARGET),
        ]:
            report = await run(estate, move, goal)
            assert report.move.state.value == goal.value
            assert [unit.holder for unit in report.move.units] == [holder]
            assert len(report.cutovers) == 1
            await writer.go_on()
            assert estate.placement().shard == report.move.shard(holder)
        report = await run(estate, move, Goal.COMPLETED)
        assert report.move.state is MoveState.COMPLETED
        await writer.go_on()
    assert sorted(await names(estate)) == sorted(["before", *writer.acked])
    await assert_nothing_left(estate, estate.away)


async def test_a_move_that_is_cancelled_leaves_all_as_it_was(estate: Estate):
    async with writing(estate) as writer:
        move = plan(estate)
        await run(estate, move, Goal.READY)
        await writer.go_on()
        report = await run(estate, move, Goal.CANCELLED)
        assert report.move.state is MoveState.CANCELLED
        await writer.go_on()
    assert sorted(await names(estate)) == sorted(["before", *writer.acked])
    assert estate.placement().shard == estate.home
    await assert_nothing_left(estate, estate.home)
    with psycopg.connect(estate.cluster.directory_dsn, autocommit=True) as conn:
        assert load_map_sync(conn).overrides == {}
    # It can be begun anew, and go through in one run.
    again = plan(estate, Goal.COMPLETED)
    report = await run(estate, again, Goal.COMPLETED)
    assert report.move.state is MoveState.COMPLETED
    await assert_nothing_left(estate, estate.away)


async def test_a_unit_is_in_one_move_only(estate: Estate):
    move = plan(estate)
    with pytest.raises(MoveConflict, match=f"move {move.move_id}"):
        plan(estate)
    await run(estate, move, Goal.CANCELLED)
    assert plan(estate).move_id > move.move_id


async def test_a_namespace_comes_home(estate: Estate):
    if estate.key != estate.ns_id:
        return
    async with writing(estate) as writer:
        await run(estate, plan(estate), Goal.COMPLETED)
        await writer.go_on()
        with psycopg.connect(estate.cluster.directory_dsn, autocommit=True) as conn:
            back = insert_move(conn, estate.away, estate.home, [unit_of(estate)], OPTIONS, Goal.COMPLETED)
        await run(estate, back, Goal.COMPLETED)
        await writer.go_on()
    with psycopg.connect(estate.cluster.directory_dsn, autocommit=True) as conn:
        shard_map = load_map_sync(conn)
        assert get_move(conn, back.move_id).state is MoveState.COMPLETED
    assert shard_map.overrides == {}
    slot_key = system_ns(slot_of(estate.ns_id))
    placed = shard_map.placement(slot_key)
    assert isinstance(placed, Placement)
    assert placed.shard == estate.home
    assert sorted(await names(estate)) == sorted(["before", *writer.acked])
    await assert_nothing_left(estate, estate.home)
    for conn in estate.conns.values():
        cursor = await conn.execute("SELECT 1 FROM local.ownership WHERE ns_id = %s", [estate.ns_id])
        assert await cursor.fetchone() is None
