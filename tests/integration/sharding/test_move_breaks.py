"""Moves that were cut off, overtaken or misled: nothing is owned twice, and nothing by nobody."""

import threading
from collections.abc import Callable, Iterator

import psycopg
import pytest
from msgspec.structs import replace

from ops.errors import EXIT_CONFLICT, EXIT_OK, EXIT_USAGE
from sharding.directory import change_shard, list_pins, set_shard_state
from sharding.reshard import fence, runner
from sharding.reshard.alone import keep_here
from sharding.reshard.errors import MoveConflict
from sharding.reshard.fence import find_ownership
from sharding.reshard.model import Goal, IllegalGoal, MoveOptions, MoveState, namespace_unit, slot_unit
from sharding.reshard.own_rows import bring_home, take_out
from sharding.reshard.records import begin_cut, delete_pin, insert_move, insert_pin, list_moves
from sharding.shardmap import OwnershipState, Pin, ShardState
from tests.support.commands import OPERATOR, run_command
from tests.support.databases import FreshCluster
from tests.support.slot_world import SlotWorld, open_slot_world
from wire.ids import NsId, slot_of

HOUR = MoveOptions(quarantine_s=3600)


@pytest.fixture
def world(fresh_cluster: FreshCluster) -> Iterator[SlotWorld]:
    home, away = fresh_cluster.shard_dsns
    with open_slot_world(fresh_cluster, home, away) as found:
        yield found


def active_on(world: SlotWorld, ns_id: NsId) -> list[str]:
    """The shards by whose rows they own a namespace: its own row, else its slot's."""
    found: list[str] = []
    for name, conn in world.shards.items():
        row = find_ownership(conn, ns_id) or find_ownership(conn, world.unit.key)
        if row is not None and row.state is OwnershipState.ACTIVE:
            found.append(name)
    return found


def test_a_switch_whose_call_off_was_cut_short_can_be_gone_on_with(world: SlotWorld):
    """The heir was raised, and the owner is fenced still."""
    move = world.insert()
    world.run(move, Goal.READY)
    world.directory.execute("UPDATE moves SET state = 'switching' WHERE move_id = %s", [move.move_id])
    begin_cut(world.directory, move, world.unit)
    fence.fence(world.home_conn, world.unit, 1, world.home.name, world.away.name)
    world.away_conn.execute("UPDATE local.ownership SET epoch = 3 WHERE ns_id = %s", [world.unit.key])
    assert world.run(move, Goal.SOAKING).state is MoveState.SOAKING
    assert world.owners() == [world.away.name]


def leave_taken_out(world: SlotWorld) -> None:
    """What `keep_here` leaves that dies before the map is told."""
    take_out(world.home_conn, world.ns_ids[0], 0)


def leave_come_home(world: SlotWorld) -> None:
    """What `come_home` leaves that dies before the map is told."""
    insert_pin(world.directory, world.ns_ids[0], Pin(shard=world.home.name))
    assert keep_here(world.directory, world.ns_ids[0])
    delete_pin(world.directory, world.ns_ids[0])
    bring_home(world.home_conn, world.ns_ids[0])
    world.unit = slot_unit(world.unit.key, (world.ns_ids[0],))


@pytest.mark.parametrize("leave", [leave_taken_out, leave_come_home])
def test_a_slot_does_not_leave_a_namespace_behind_of_which_the_map_knows_otherwise(
    world: SlotWorld, leave: Callable[[SlotWorld], None]
):
    """It would be owned twice, or by nobody."""
    leave(world)
    move = world.insert()
    for _ in range(2):
        with pytest.raises(MoveConflict, match="doctor --fix"):
            world.run(move, Goal.SOAKING)
        assert active_on(world, world.ns_ids[0]) == [world.home.name]
    assert world.run(move, Goal.CANCELLED).state is MoveState.CANCELLED


def test_a_namespace_that_is_taken_out_late_is_seen_at_the_fence(world: SlotWorld):
    move = world.insert()
    world.run(move, Goal.READY)
    leave_taken_out(world)
    for _ in range(2):
        with pytest.raises(MoveConflict, match="doctor --fix"):
            world.run(move, Goal.SOAKING)
        assert world.find(move).state is MoveState.READY
        assert active_on(world, world.ns_ids[0]) == [world.home.name]
        assert world.owners() == [world.home.name]


def test_a_late_deletion_leaves_a_newer_move_what_it_wrote(world: SlotWorld):
    """A slot without rows of its own comes back before the quarantine of its old rows ends."""
    ns_id = world.ns_ids[0]
    world.home_conn.execute("DELETE FROM ns.namespaces WHERE ns_id <> %s", [ns_id])
    insert_pin(world.directory, ns_id, Pin(shard=world.away.name))
    alone = insert_move(
        world.directory,
        world.home.name,
        world.away.name,
        [namespace_unit(ns_id)],
        MoveOptions(quarantine_s=0),
        Goal.COMPLETED,
    )
    world.run(alone, Goal.COMPLETED)
    world.unit = slot_unit(world.unit.key, (ns_id,))
    forth = world.insert(HOUR)
    assert world.run(forth, Goal.COMPLETED).state is MoveState.DELETING
    # The deletion had come so far when its process died.
    world.home_conn.execute("DELETE FROM ns.move_markers")
    back = insert_move(world.directory, world.away.name, world.home.name, [world.unit], HOUR, Goal.SOAKING)
    world.run(back, Goal.SOAKING)
    world.directory.execute(
        "UPDATE moves SET retired_at = now() - interval '1 day' WHERE move_id = %s", [forth.move_id]
    )
    world.run(forth, Goal.COMPLETED)
    assert active_on(world, ns_id) == [world.away.name]


def test_a_goal_that_cannot_be_is_not_kept(world: SlotWorld):
    move = world.insert(HOUR)
    assert world.run(move, Goal.COMPLETED).state is MoveState.DELETING
    with pytest.raises(IllegalGoal):
        world.run(move, Goal.READY)
    assert world.find(move).goal is Goal.COMPLETED


def shardctl(world: SlotWorld, *args: str, status: int, says: str = "") -> None:
    """Pass when a command ends with a status, and with one line of words if it failed."""
    done = run_command(OPERATOR, *args, env={"SHARDBOX_DIRECTORY_DSN": world.directory_dsn})
    assert done.returncode == status, (args, done.stderr)
    assert says in done.stderr, (args, done.stderr)
    assert "Traceback" not in done.stderr, (args, done.stderr)


def test_nonsense_is_refused(world: SlotWorld):
    slot, home, away = str(slot_of(world.unit.key)), world.home.name, world.away.name
    for slots in ("3-", "-1", "", "0-99999999999", "64", "5-3"):
        shardctl(world, "move", "start", "--to", away, f"--slots={slots}", status=EXIT_USAGE)
    for option in (
        "--quarantine=inf",
        "--quarantine=nan",
        "--max-commit-ms=inf",
        "--max-lag-mb=99999999999999",
    ):
        shardctl(world, "move", "start", "--to", away, "--slots", slot, option, status=EXIT_USAGE)
    for target in (home, "nowhere"):
        for dry in ((), ("--dry-run",)):
            shardctl(world, "move", "start", "--to", target, "--slots", slot, *dry, status=EXIT_CONFLICT)
    set_shard_state(world.directory, away, ShardState.DRAINING)
    for dry in ((), ("--dry-run",)):
        args = ("move", "start", "--to", away, "--slots", slot, *dry)
        shardctl(world, *args, status=EXIT_CONFLICT, says="drains")
    assert list_moves(world.directory) == []


def test_a_paused_move_goes_on_by_a_command_and_an_ended_one_does_nothing(world: SlotWorld):
    move = world.insert()
    number = str(move.move_id)
    shardctl(world, "move", "pause", number, status=EXIT_OK)
    shardctl(world, "move", "cancel", number, status=EXIT_OK, says="was paused")
    assert world.find(move).state is MoveState.CANCELLED
    for args in (("pause", number), ("throttle", number, "--max-rows-per-s", "5")):
        shardctl(world, "move", *args, status=EXIT_CONFLICT, says="is cancelled")
    world.directory.execute("UPDATE moves SET source = 'a shard of the past'")
    shardctl(world, "move", "resume", number, status=EXIT_CONFLICT, says="no shard any more")


def test_a_label_is_not_lost_by_moving_a_namespace(world: SlotWorld):
    ns_id, pin = world.ns_ids[0], Pin(label="region", value="eu")
    insert_pin(world.directory, ns_id, pin)
    args = ("namespace", "move", str(ns_id), world.away.name)
    shardctl(world, *args, status=EXIT_CONFLICT, says="region=eu")
    assert list_moves(world.directory) == []
    label_shard(world, world.away.name)
    shardctl(world, *args, "--until", "ready", status=EXIT_OK)
    (move,) = list_moves(world.directory)
    world.run(move, Goal.CANCELLED)
    assert list_pins(world.directory) == {ns_id: pin}


def label_shard(world: SlotWorld, name: str) -> None:
    change_shard(world.directory, name, lambda info: replace(info, labels={"region": "eu"}))


def test_what_a_run_gives_up_for_is_recorded_and_its_server_notices_soon_if_it_is_gone(
    world: SlotWorld, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(runner, "PATIENCE_S", 0.1)
    move = world.insert()
    nowhere = "host=127.0.0.1 port=1 dbname=none"
    change_shard(world.directory, world.away.name, lambda info: replace(info, dsn=nowhere))
    with pytest.raises(psycopg.OperationalError):
        world.run(move, Goal.READY)
    assert "port 1" in (world.find(move).error or "")
    with runner.MoveRunner(world.directory_dsn, print, threading.Event())._connect() as conn:
        row = conn.execute("SELECT current_setting('tcp_keepalives_idle')").fetchone()
    assert row == ("10",)


def test_a_namespace_goes_and_comes_home_by_commands(world: SlotWorld):
    ns_id, home, away = world.ns_ids[0], world.home.name, world.away.name
    for args, place in ((("move", str(ns_id), away), away), (("unpin", str(ns_id)), home)):
        shardctl(world, "namespace", *args, "--quarantine", "0", status=EXIT_OK)
        assert active_on(world, ns_id) == [place]
        assert set(list_pins(world.directory)) == ({ns_id} if place == away else set())
    assert world.shard_map.overrides == {}
