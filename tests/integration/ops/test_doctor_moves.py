"""What `shardctl doctor` finds of dead moves, and puts right; and what it leaves alone."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack

import psycopg
import pytest

from ops.doctor.finding import Verdict
from ops.doctor.moves import check_moves, fix_moves
from sharding.reshard import stream
from sharding.reshard.catalog import read_tables
from sharding.reshard.fence import fence, find_ownership
from sharding.reshard.marker import bump_marker
from sharding.reshard.model import Goal, MoveOptions, MoveState, slot_unit
from sharding.reshard.own_rows import bring_home, expect_unit, take_out
from sharding.reshard.records import advance_move, insert_move, insert_pin
from sharding.reshard.runner import MoveRunner
from sharding.shardmap import OwnershipState, Pin, Placement
from tests.reshard.leftovers import find_leftovers
from tests.support.commands import OPERATOR, run_command
from tests.support.databases import FreshCluster
from tests.support.estate import Estate, open_estate
from tests.support.services import Services
from tests.support.slot_world import SlotWorld, open_slot_world
from tests.support.two_shards import list_namespaces, put_namespaces
from tests.support.waiting import wait_for, wait_until
from wire.api import CreateFolder, ListFolder

ACTIVE, FENCED = OwnershipState.ACTIVE, OwnershipState.FENCED
DEAD_MOVE = 77
"""A number that no move has."""


@pytest.fixture
def world(fresh_cluster: FreshCluster) -> Iterator[SlotWorld]:
    with open_slot_world(fresh_cluster, *fresh_cluster.shard_dsns) as found:
        yield found


def check(world: SlotWorld) -> list[str]:
    """The checks that find something, in order."""
    return [f.check for f in check_moves(world.directory_dsn) if f.verdict is not Verdict.OK]


def fix(world: SlotWorld) -> list[bool]:
    """What was tried, and whether it was done."""
    return [mend.is_done for mend in fix_moves(world.directory_dsn, print)]


def leave_streams(world: SlotWorld) -> None:
    for sender, receiver, receiving, is_back in (
        (world.home, world.home_conn, world.away_conn, False),
        (world.away, world.away_conn, world.home_conn, True),
    ):
        name = stream.stream_name(world.shard_map.cluster_id, DEAD_MOVE, is_back=is_back)
        stream.ensure_publication(receiver, name, read_tables(receiver), [world.unit])
        stream.ensure_slot(receiver, name)
        stream.ensure_subscription(receiving, sender, name)


def leave_origin(world: SlotWorld) -> None:
    world.home_conn.execute("SELECT pg_replication_origin_create('lost')")
    world.home_conn.execute("UPDATE pg_replication_origin SET roname = 'pg_4000000001' WHERE roname = 'lost'")


def leave_expected(world: SlotWorld) -> None:
    expect_unit(world.away_conn, world.unit, 1, {})
    put_namespaces(world.away_conn, world.ns_ids)


def leave_fenced_with_heir(world: SlotWorld) -> None:
    """As after an activation: the map is behind, the former owner fenced, its rows still there."""
    leave_expected(world)
    fence(world.home_conn, world.unit, 1, world.home.name, world.away.name)
    world.away_conn.execute(
        "UPDATE local.ownership SET state = 'a', epoch = 2 WHERE ns_id = %s", [world.unit.key]
    )


def leave_fenced_alone(world: SlotWorld) -> None:
    leave_expected(world)
    fence(world.home_conn, world.unit, 1, world.home.name, world.away.name)


def leave_called_off_halfway(world: SlotWorld) -> None:
    """As an abort that died between its two halves: the heir's row is the higher one."""
    leave_fenced_alone(world)
    world.away_conn.execute("UPDATE local.ownership SET epoch = 3 WHERE ns_id = %s", [world.unit.key])


def leave_rows(world: SlotWorld) -> None:
    put_namespaces(world.away_conn, world.ns_ids)


def leave_away_row(world: SlotWorld) -> None:
    world.away_conn.execute(
        "INSERT INTO local.ownership (ns_id, epoch, state, successor, successor_epoch)"
        " VALUES (%s, 4, 'g', %s, 4)",
        [world.ns_ids[2], world.home.name],
    )


def leave_markers(world: SlotWorld) -> None:
    for conn, writer in ((world.home_conn, world.home.name), (world.away_conn, world.away.name)):
        with conn.transaction():
            bump_marker(conn, world.unit.key, writer)


def leave_taken_out(world: SlotWorld) -> None:
    """As `namespace pin` cut off before the map knew, and the pin gone since."""
    take_out(world.home_conn, world.ns_ids[0], 0)


def leave_brought_home(world: SlotWorld) -> None:
    """As `namespace unpin` cut off before the map knew."""
    epoch = take_out(world.home_conn, world.ns_ids[0], 0)
    world.directory.execute(
        "INSERT INTO overrides (ns_id, shard, epoch) VALUES (%s, %s, %s)",
        [world.ns_ids[0], world.home.name, epoch],
    )
    bring_home(world.home_conn, world.ns_ids[0])


def leave_pin(world: SlotWorld) -> None:
    insert_pin(world.directory, world.ns_ids[0], Pin(shard=world.home.name))


REMAINS: list[tuple[Callable[[SlotWorld], None], set[str]]] = [
    (leave_streams, {"moves.streams"}),
    (leave_origin, {"moves.streams"}),
    (leave_expected, {"moves.importing"}),
    (leave_fenced_with_heir, {"moves.map", "moves.fenced", "moves.markers"}),
    (leave_fenced_alone, {"moves.ownerless", "moves.markers"}),
    (leave_called_off_halfway, {"moves.ownerless", "moves.markers"}),
    (leave_rows, {"moves.rows"}),
    (leave_away_row, {"moves.away"}),
    (leave_markers, {"moves.markers"}),
    (leave_taken_out, {"moves.map"}),
    (leave_brought_home, {"moves.map", "moves.home"}),
    (leave_pin, {"moves.pins"}),
]


@pytest.mark.long
@pytest.mark.parametrize(("leave", "checks"), REMAINS, ids=lambda v: getattr(v, "__name__", "…"))
def test_what_a_dead_move_left_is_found_and_put_right(
    world: SlotWorld, leave: Callable[[SlotWorld], None], checks: set[str]
) -> None:
    assert check(world) == []
    leave(world)

    assert set(check(world)) == checks
    done = fix(world)

    assert done
    assert all(done)
    assert check(world) == []
    assert wait_for(lambda: not find_leftovers(world.directory, world.shards), "nothing left")
    owner = world.shard_map.placement(world.ns_ids[1])
    assert owner is not None
    owned, other = (
        (world.home_conn, world.away_conn)
        if owner.shard == world.home.name
        else (world.away_conn, world.home_conn)
    )
    assert list_namespaces(owned) == dict.fromkeys(world.ns_ids, 1)
    assert list_namespaces(other) == {}


def test_who_was_fenced_owns_again_above_all_epochs(world: SlotWorld) -> None:
    leave_called_off_halfway(world)

    fix(world)

    row = find_ownership(world.home_conn, world.unit.key)
    assert row is not None
    assert (row.state, row.epoch) == (ACTIVE, 4)
    assert world.shard_map.placement(world.unit.key) == Placement(world.home.name, 4)
    # Nothing that comes late can make the other one an owner.
    assert find_ownership(world.away_conn, world.unit.key) is None


@pytest.mark.long
def test_a_fence_stays_while_a_shard_that_may_have_taken_over_is_out(world: SlotWorld) -> None:
    leave_fenced_alone(world)
    former = world.shard_map.shards[world.away.name].dsn
    world.directory.execute(
        "UPDATE shards SET dsn = 'postgresql://127.0.0.1:1/x' WHERE name = %s", [world.away.name]
    )

    assert "moves.ownerless" in check(world)
    fix(world)

    row = find_ownership(world.home_conn, world.unit.key)
    assert row is not None
    assert row.state is FENCED
    world.directory.execute("UPDATE shards SET dsn = %s WHERE name = %s", [former, world.away.name])


@pytest.mark.long
def test_a_fence_stays_where_the_other_shard_may_have_owned_later(world: SlotWorld) -> None:
    """As with a directory that was restored: the map is older than what happened since."""
    leave_fenced_with_heir(world)
    fence(world.away_conn, world.unit, 2, world.away.name, world.home.name)

    assert "moves.ownerless" in check(world)
    fix(world)

    states = [find_ownership(conn, world.unit.key) for conn in world.shards.values()]
    assert [row and row.state for row in states] == [FENCED, FENCED]
    assert list_namespaces(world.away_conn) == dict.fromkeys(world.ns_ids, 1)


def test_rows_that_nobody_says_to_own_stay(world: SlotWorld) -> None:
    world.home_conn.execute("DELETE FROM local.ownership")

    fix(world)

    assert list_namespaces(world.home_conn) == dict.fromkeys(world.ns_ids, 1)


@pytest.mark.long
def test_a_namespace_by_itself_keeps_its_rows_when_its_slots_are_deleted(
    world: SlotWorld,
) -> None:
    """The slot is elsewhere, one of its namespaces here, and rows of the others are left."""
    kept = world.ns_ids[2]
    epoch = take_out(world.home_conn, kept, 0)
    world.directory.execute(
        "INSERT INTO overrides (ns_id, shard, epoch) VALUES (%s, %s, %s)", [kept, world.home.name, epoch]
    )
    insert_pin(world.directory, kept, Pin(shard=world.home.name))
    others = [ns_id for ns_id in world.ns_ids if ns_id != kept]
    put_namespaces(world.away_conn, others)
    world.away_conn.execute(
        "INSERT INTO local.ownership (ns_id, epoch, state) VALUES (%s, 2, 'a')", [world.unit.key]
    )
    world.home_conn.execute(
        "UPDATE local.ownership SET state = 'g', epoch = 2 WHERE ns_id = %s", [world.unit.key]
    )
    world.directory.execute(
        "UPDATE shard_map SET shard = %s, epoch = 2 WHERE slot = %s", [world.away.name, world.unit.key >> 51]
    )

    assert check(world) == ["moves.rows"]
    assert fix(world) == [True]

    assert list_namespaces(world.home_conn) == {kept: 1}
    assert list_namespaces(world.away_conn) == dict.fromkeys(others, 1)
    assert check(world) == []


@pytest.mark.long
def test_a_move_that_rests_is_left_alone(world: SlotWorld) -> None:
    move = world.insert(MoveOptions(quarantine_s=3600))
    for goal in (Goal.READY, Goal.SOAKING):
        world.run(move, goal)
        assert check(world) == []
        assert fix(world) == []
    move = world.run(move, Goal.COMPLETED)
    assert move.state is MoveState.DELETING
    assert check(world) == []
    assert fix(world) == []
    # Rows in quarantine are the way back by hand.
    assert list_namespaces(world.home_conn) == dict.fromkeys(world.ns_ids, 1)


@pytest.mark.long
def test_deletions_that_are_due_and_moves_that_stand_still_are_named(world: SlotWorld) -> None:
    move = world.run(world.insert(MoveOptions(quarantine_s=3600)), Goal.COMPLETED)
    world.directory.execute("UPDATE moves SET retired_at = now() - interval '2 hours'")
    assert check(world) == ["moves.due"]
    assert fix(world) == []
    world.run(move, Goal.COMPLETED)
    assert check(world) == []

    stopped = insert_move(
        world.directory, world.away.name, world.home.name, [world.unit], MoveOptions(), Goal.READY
    )
    advance_move(world.directory, stopped, MoveState.PREPARING)
    (finding,) = check_moves(world.directory_dsn)
    assert (finding.check, finding.remedy) == (
        "moves.stopped",
        f"`shardctl move resume {stopped.move_id}`",
    )
    world.run(stopped, Goal.CANCELLED)


@pytest.mark.long
def test_a_move_at_rest_whose_stream_is_gone_is_named(world: SlotWorld) -> None:
    move = world.run(world.insert(), Goal.READY)
    name = stream.stream_name(world.shard_map.cluster_id, move.move_id, is_back=False)
    stream.drop_subscription(world.away_conn, name)

    (finding,) = check_moves(world.directory_dsn)
    assert (finding.check, finding.verdict) == ("moves.broken", Verdict.FAIL)
    assert name in finding.detail
    assert fix(world) == []

    world.run(move, Goal.CANCELLED)
    assert check(world) == []


def test_the_command_says_what_it_mends(world: SlotWorld) -> None:
    leave_rows(world)

    def doctor(*args: str) -> "tuple[int, str, str]":
        env = {"SHARDBOX_DIRECTORY_DSN": world.directory_dsn}
        done = run_command(OPERATOR, "doctor", *args, env=env)
        return done.returncode, done.stdout, done.stderr

    status, out, _ = doctor()
    assert status == 0
    assert "--fix" in out
    assert list_namespaces(world.away_conn)
    status, out, err = doctor("--fix", "--output", "json")
    assert status == 0
    assert '"is_done": true' in out
    assert "5 rows of slot" in err
    assert not list_namespaces(world.away_conn)


# ---- Beside clients


@pytest.fixture
async def estate(services: Services, fresh_cluster: FreshCluster) -> AsyncIterator[Estate]:
    async with open_estate(services, fresh_cluster, "slot") as found:
        yield found


@pytest.mark.timeout(600)
async def test_moves_that_work_are_neither_complained_of_nor_harmed(estate: Estate) -> None:
    """The doctor runs, mending, for as long as a slot goes to and fro and a client writes."""
    dsn = estate.cluster.directory_dsn
    unit = slot_unit(estate.key)
    is_over = threading.Event()
    found: list[str] = []
    looks = 0
    acked: list[str] = []

    def examine() -> None:
        nonlocal looks
        while not is_over.is_set():
            found.extend(f"{f.check}: {f.detail}" for f in check_moves(dsn) if f.remedy)
            found.extend(mend.detail for mend in fix_moves(dsn, print))
            looks += 1

    def move(source: str, target: str, goals: Sequence[Goal]) -> None:
        runner = MoveRunner(dsn, lambda _: None, threading.Event())
        with psycopg.connect(dsn, autocommit=True) as directory:
            begun = insert_move(directory, source, target, [unit], MoveOptions(quarantine_s=0), goals[-1])
        for goal in goals:
            assert runner.run(begun.move_id, goal).move.state.value == goal.value

    async def write() -> None:
        while not is_over.is_set():
            await estate.user.ok(CreateFolder(path=f"/file {len(acked):05}"))
            acked.append(f"file {len(acked):05}")
            await asyncio.sleep(0)

    there_and_back = (Goal.SOAKING, Goal.READY, Goal.COMPLETED)
    async with asyncio.TaskGroup() as group:
        group.create_task(asyncio.to_thread(examine))
        group.create_task(write())
        try:
            await asyncio.to_thread(move, estate.home, estate.away, there_and_back)
            await asyncio.to_thread(move, estate.away, estate.home, (Goal.READY, Goal.CANCELLED))
            await wait_until(lambda: looks > 1, "the doctor's looks")
        finally:
            is_over.set()
    assert found == []
    listed = await estate.services.reads.list_folder(estate.user.caller, ListFolder())
    names = [str(entry.name) for entry in listed.entries]
    while listed.has_more:
        listed = await estate.services.reads.list_folder_continue(estate.user.caller, listed.cursor)
        names += [str(entry.name) for entry in listed.entries]
    assert sorted(names) == sorted(["before", *acked])
    with psycopg.connect(dsn, autocommit=True) as directory, ExitStack() as stack:
        conns = {
            name: stack.enter_context(psycopg.connect(shard, autocommit=True))
            for name, shard in estate.cluster.shard_dsns.items()
        }
        assert await wait_until(lambda: not find_leftovers(directory, conns), "nothing left")
