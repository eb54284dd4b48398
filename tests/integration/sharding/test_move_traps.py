"""The traps of logical replication, sprung on whole moves: each is named, harms nothing, and can be left."""

import os
import secrets
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from ops.doctor.moves import check_moves, fix_moves
from ops.osuser import ensure_server_user
from ops.postgres import PgServer
from sharding.locks import SLOT_LOCK_CLASS
from sharding.reshard import fence, stream
from sharding.reshard.alone import come_home, keep_here
from sharding.reshard.catalog import NoPrimaryKey, TablesDiffer, read_tables
from sharding.reshard.copy import NoRoom
from sharding.reshard.errors import FenceHeld, MoveRefused, VerifyFailed
from sharding.reshard.fence import find_ownership
from sharding.reshard.model import Goal, Move, MoveOptions, MoveState, Side, Throttle, namespace_unit
from sharding.reshard.records import delete_pin, insert_move, insert_pin
from sharding.reshard.servers import TransactionsOpen
from sharding.reshard.stream import StreamBroken, stream_name
from sharding.shardmap import OwnershipState, Pin, Placement
from tests.reshard.leftovers import find_leftovers
from tests.support.databases import (
    DIRECTORY_TEMPLATE,
    SHARD_TEMPLATE,
    FreshCluster,
    PgServers,
    clone_database,
    cloned_cluster,
    drop_database,
)
from tests.support.private import private_server, with_shard
from tests.support.slot_world import SlotWorld, open_slot_world
from tests.support.two_shards import all_rows, list_namespaces, put_journal, put_namespaces
from tests.support.waiting import wait_for
from wire.ids import make_ns_id, slot_of

pytestmark = [pytest.mark.timeout(600), pytest.mark.usefixtures("slots_in_turn")]
"""Several moves each, some of which wait for servers that are slow on a busy machine."""
# A comparison has its own tests; here it would only be another way to meet the trap, and slower.
UNVERIFIED = MoveOptions(quarantine_s=0, is_verified=False, throttle=Throttle(max_commit_ms=60_000.0))
MANY_ROWS = 200_000


@pytest.fixture
def world(fresh_cluster: FreshCluster) -> Iterator[SlotWorld]:
    with open_slot_world(fresh_cluster, *fresh_cluster.shard_dsns) as found:
        yield found


def assert_ended_well(world: SlotWorld, owner: str) -> None:
    """One shard has everything, and nothing is left of any move."""
    assert wait_for(lambda: not find_leftovers(world.directory, world.shards), "nothing left")
    assert world.owners() == [owner]
    has = {name: list_namespaces(conn) for name, conn in world.shards.items()}
    assert has.pop(owner).keys() == set(world.ns_ids)
    assert not any(has.values())


def cancel(world: SlotWorld, move: Move) -> None:
    assert world.run(move, Goal.CANCELLED).state is MoveState.CANCELLED
    assert_ended_well(world, world.home.name)


def complete(world: SlotWorld, move: Move) -> None:
    assert world.run(move, Goal.COMPLETED).state is MoveState.COMPLETED
    assert_ended_well(world, world.away.name)


# ---- Transactions that nobody ends


@contextmanager
def stuck_transaction(world: SlotWorld, *, is_prepared: bool) -> Iterator[str]:
    """A write to the slot on its owner that stands still; what names it. At the end it is rolled back."""
    gid = f"orphan {secrets.token_hex(4)}"
    with psycopg.connect(world.home.dsn) as conn:
        conn.execute(
            "SELECT pg_advisory_xact_lock_shared(%s, %s)", [SLOT_LOCK_CLASS, slot_of(world.unit.key)]
        )
        conn.execute("UPDATE ns.namespaces SET head = 99 WHERE ns_id = %s", [world.ns_ids[0]])
        if not is_prepared:
            yield f"pid {conn.info.backend_pid}"
            conn.rollback()
            return
        conn.execute(sql.SQL("PREPARE TRANSACTION {}").format(gid))
        conn.commit()
    try:
        yield gid
    finally:
        world.home_conn.execute(sql.SQL("ROLLBACK PREPARED {}").format(gid))


@pytest.mark.parametrize("is_prepared", [True, False], ids=["prepared", "open"])
def test_a_transaction_that_nobody_ends_holds_off_the_copy(
    world: SlotWorld, monkeypatch: pytest.MonkeyPatch, is_prepared: bool
):
    monkeypatch.setattr(stream, "LOCK_TIMEOUT", "1s")
    move = world.insert()
    with stuck_transaction(world, is_prepared=is_prepared) as name:
        with pytest.raises(TransactionsOpen, match=name):
            world.run(move, Goal.READY)
        assert world.find(move).state is MoveState.COPYING
        assert (world.find(move).error or "").startswith("transactions_open")
        assert world.owners() == [world.home.name]
        assert list_namespaces(world.away_conn) == {}
    complete(world, move)


@pytest.mark.parametrize("is_verified", [True, False], ids=["verified", "unverified"])
@pytest.mark.parametrize("is_prepared", [True, False], ids=["prepared", "open"])
def test_a_transaction_that_nobody_ends_holds_off_the_switch(
    world: SlotWorld, is_prepared: bool, is_verified: bool
):
    move = world.insert(MoveOptions(quarantine_s=0, is_verified=is_verified))
    world.run(move, Goal.READY)
    with stuck_transaction(world, is_prepared=is_prepared) as name:
        with pytest.raises(FenceHeld, match=name):
            world.run(move, Goal.SOAKING)
        # It rests where it was, and writers go on: what was fenced for a moment is so no more.
        assert world.find(move).state is MoveState.READY
        assert world.owners() == [world.home.name]
        placed = world.shard_map.placement(world.unit.key)
        assert placed is not None
        assert placed.shard == world.home.name
        with psycopg.connect(world.home.dsn, options="-c lock_timeout=5s") as conn:
            conn.execute(
                "SELECT pg_advisory_xact_lock_shared(%s, %s)", [SLOT_LOCK_CLASS, slot_of(world.unit.key)]
            )
            conn.execute("UPDATE ns.namespaces SET head = 2 WHERE ns_id = %s", [world.ns_ids[1]])
    complete(world, move)
    assert list_namespaces(world.away_conn)[world.ns_ids[1]] == 2
    assert list_namespaces(world.away_conn)[world.ns_ids[0]] == 1


def test_a_fence_waits_for_a_moment_without_writers_before_it_makes_them_wait(
    world: SlotWorld, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(fence, "GAP_WAIT_S", 60.0)
    slot = slot_of(world.unit.key)
    with (
        ThreadPoolExecutor(1) as pool,
        world.home.connect() as fencing,
        world.home.connect() as slow,
        world.home.connect() as other,
    ):
        with slow.transaction():
            slow.execute("SELECT pg_advisory_xact_lock_shared(%s, %s)", [SLOT_LOCK_CLASS, slot])
            fenced = pool.submit(fence.fence, fencing, world.unit, 1, world.home.name, world.away.name)
            for _ in range(100):
                # It would have to queue behind whoever waits for the lock.
                got = other.execute(
                    "SELECT pg_try_advisory_xact_lock_shared(%s, %s)", [SLOT_LOCK_CLASS, slot]
                ).fetchone()
                assert got == (True,)
                time.sleep(fence.GAP_POLL_S)
            assert not fenced.done()
        assert fenced.result(60).seq == 1
    found = find_ownership(world.home_conn, world.unit.key)
    assert found is not None
    assert found.state is OwnershipState.FENCED


@pytest.mark.long
@pytest.mark.parametrize("is_prepared", [True, False], ids=["prepared", "open"])
def test_a_transaction_that_nobody_ends_holds_off_a_namespace_that_is_to_go_alone(
    world: SlotWorld, is_prepared: bool
):
    """It is to get a row of its own under the slot's lock, which writers would queue up behind."""
    ns_id = world.ns_ids[3]
    insert_pin(world.directory, ns_id, Pin(shard=world.home.name))
    with stuck_transaction(world, is_prepared=is_prepared) as name:
        with pytest.raises(FenceHeld, match=name):
            keep_here(world.directory, ns_id)
        assert world.shard_map.overrides == {}
    assert keep_here(world.directory, ns_id)
    assert delete_pin(world.directory, ns_id)
    with stuck_transaction(world, is_prepared=is_prepared) as name, pytest.raises(FenceHeld, match=name):
        come_home(world.directory, ns_id)
    assert come_home(world.directory, ns_id)

    units = [namespace_unit(ns_id)]
    move = insert_move(world.directory, world.home.name, world.away.name, units, UNVERIFIED, Goal.READY)
    with stuck_transaction(world, is_prepared=is_prepared) as name:
        with pytest.raises(FenceHeld, match=name):
            world.run(move, Goal.READY)
        assert world.find(move).state is MoveState.PREPARING
        assert world.shard_map.overrides == {}
    assert world.run(move, Goal.READY).state is MoveState.READY
    cancel(world, move)


def test_a_big_transaction_before_a_switch_does_not_keep_writers_waiting(world: SlotWorld):
    """It is decoded as a whole before the fence's marker could pass: the rehearsal waits for that."""
    move = world.insert(UNVERIFIED)
    world.run(move, Goal.READY)
    foreign = make_ns_id(world.shard_map.slots_of(world.home.name)[1], 7)
    put_journal(world.home_conn, foreign, range(1, MANY_ROWS + 1))

    report = world.report(move, Goal.SOAKING)

    # A fence that had to be called off would have cost an epoch, and been told.
    assert len(report.cutovers) == 1
    assert world.shard_map.placement(world.unit.key) == Placement(world.away.name, 2)
    row = world.home_conn.execute(
        "SELECT seq FROM ns.move_markers WHERE ns_id = %s AND writer = %s", [world.unit.key, world.home.name]
    ).fetchone()
    assert row is not None
    assert row[0] > 1  # a marker came through before the fence's own
    complete(world, move)


# ---- Tables


def test_a_table_without_a_primary_key_is_refused(world: SlotWorld):
    for conn in world.shards.values():
        conn.execute("CREATE TABLE ns.loose (ns_id bigint)")
    move = world.insert()

    with pytest.raises(NoPrimaryKey, match=r"ns\.loose"):
        world.run(move, Goal.READY)

    assert world.find(move).state is MoveState.PREPARING
    for conn in world.shards.values():
        assert stream.list_parts(conn, world.shard_map.cluster_id).publications == ()
        conn.execute("ALTER TABLE ns.loose ADD PRIMARY KEY (ns_id)")
    complete(world, move)


DDL = {
    "column": (
        "ALTER TABLE ns.namespaces ADD COLUMN added integer",
        "ALTER TABLE ns.namespaces DROP COLUMN added",
    ),
    "table": ("CREATE TABLE ns.added (ns_id bigint PRIMARY KEY)", "DROP TABLE ns.added"),
}


@pytest.mark.parametrize("side", list(Side))
@pytest.mark.parametrize("change", DDL)
def test_tables_that_change_amid_a_move_hold_off_the_switch(world: SlotWorld, change: str, side: Side):
    do, undo = DDL[change]
    conn = world.home_conn if side is Side.SOURCE else world.away_conn
    move = world.insert(UNVERIFIED)
    world.run(move, Goal.READY)
    conn.execute(do)

    with pytest.raises(TablesDiffer, match="added"):
        world.run(move, Goal.SOAKING)

    assert world.owners() == [world.home.name]
    conn.execute(undo)
    assert world.run(move, Goal.SOAKING).state is MoveState.SOAKING
    # And on the way back, where nothing but giving up may help.
    conn.execute(do)
    with pytest.raises(TablesDiffer, match="added"):
        world.run(move, Goal.READY)
    assert world.owners() == [world.away.name]
    conn.execute(undo)
    cancel(world, move)


def test_a_column_that_stops_the_stream_ends_the_move(world: SlotWorld, monkeypatch: pytest.MonkeyPatch):
    """Undoing it does not help here: what was written meanwhile cannot be applied."""
    monkeypatch.setattr(fence, "REHEARSAL_TIMEOUT_S", 1.0)
    move = world.insert(UNVERIFIED)
    world.run(move, Goal.READY)
    world.home_conn.execute("ALTER TABLE ns.namespaces ADD COLUMN added integer DEFAULT 1")
    world.home_conn.execute("UPDATE ns.namespaces SET head = 2 WHERE ns_id = %s", [world.ns_ids[0]])
    name = stream_name(world.shard_map.cluster_id, move.move_id, is_back=False)

    def errors() -> int:
        row = world.away_conn.execute(
            "SELECT apply_error_count FROM pg_stat_subscription_stats WHERE subname = %s", [name]
        ).fetchone()
        return 0 if row is None else int(row[0])

    assert wait_for(errors, "the stream stopped")
    with pytest.raises((TablesDiffer, StreamBroken), match=f"added|{name}"):
        world.run(move, Goal.SOAKING)
    world.home_conn.execute("ALTER TABLE ns.namespaces DROP COLUMN added")
    with pytest.raises((FenceHeld, StreamBroken), match=f"brought nothing new|{name}"):
        world.run(move, Goal.SOAKING)
    assert world.owners() == [world.home.name]

    cancel(world, move)
    complete(world, world.insert(UNVERIFIED))
    assert list_namespaces(world.away_conn)[world.ns_ids[0]] == 2


def test_a_truncate_empties_the_source_alone_and_is_found(world: SlotWorld):
    put_journal(world.home_conn, world.ns_ids[0], range(1, 11))
    move = world.insert()
    world.run(move, Goal.READY)
    world.home_conn.execute("TRUNCATE ns.server_file_journal")

    with pytest.raises(VerifyFailed, match="server_file_journal"):
        world.run(move, Goal.SOAKING)

    assert world.find(move).state is MoveState.READY
    count = world.away_conn.execute("SELECT count(*) FROM ns.server_file_journal").fetchone()
    assert count == (10,)
    cancel(world, move)


# ---- Rows


def test_a_target_that_holds_rows_is_refused_until_the_doctor_was_there(world: SlotWorld):
    put_namespaces(world.away_conn, world.ns_ids[:2])
    move = world.insert()

    with pytest.raises(MoveRefused, match="doctor --fix"):
        world.run(move, Goal.READY)
    assert world.find(move).state is MoveState.PREPARING
    assert "moves.rows" in [finding.check for finding in check_moves(world.directory_dsn)]

    assert [mend.check for mend in fix_moves(world.directory_dsn, print) if mend.is_done] == ["moves.rows"]

    assert list_namespaces(world.away_conn) == {}
    complete(world, move)


def test_a_change_of_a_row_that_the_target_lacks_is_an_alarm(world: SlotWorld):
    if world.away_conn.info.server_version < 180000:
        pytest.skip("PostgreSQL counts conflicts from 18 on")
    move = world.insert(UNVERIFIED)
    world.run(move, Goal.READY)
    origin = f"test_{secrets.token_hex(4)}"
    world.away_conn.execute("SELECT pg_replication_origin_create(%s)", [origin])
    try:
        # Under an origin, so that it does not go back to the source.
        with psycopg.connect(world.away.dsn, autocommit=True) as conn:
            conn.execute("SELECT pg_replication_origin_session_setup(%s)", [origin])
            conn.execute("DELETE FROM ns.namespaces WHERE ns_id = %s", [world.ns_ids[0]])
    finally:
        wait_for(lambda: _drop_origin(world.away_conn, origin), "the origin dropped")
    world.home_conn.execute("UPDATE ns.namespaces SET head = 7 WHERE ns_id = %s", [world.ns_ids[0]])
    name = stream_name(world.shard_map.cluster_id, move.move_id, is_back=False)

    def missed() -> bool:
        # A worker tells its counts at a commit, once a second; it counts as idle only on a server that is.
        world.home_conn.execute("UPDATE ns.namespaces SET head = head WHERE ns_id = %s", [world.ns_ids[1]])
        row = world.away_conn.execute(
            "SELECT confl_update_missing FROM pg_stat_subscription_stats WHERE subname = %s", [name]
        ).fetchone()
        return row is not None and row[0] > 0

    assert wait_for(missed, "the missing row counted")
    with pytest.raises(StreamBroken, match="met no row for 1 updates"):
        world.run(move, Goal.SOAKING)
    assert world.owners() == [world.home.name]
    cancel(world, move)
    assert list_namespaces(world.home_conn)[world.ns_ids[0]] == 7


def _drop_origin(conn: psycopg.Connection, name: str) -> bool:
    try:
        conn.execute("SELECT pg_replication_origin_drop(%s)", [name])
    except psycopg.errors.ObjectInUse:
        return False  # its session is on its way out
    return True


# ---- Servers that are short of room


@pytest.fixture(scope="module")
def forgetful(pg_templates: PgServers) -> Iterator[PgServers]:
    """A third shard's server that keeps hardly any log for those who read it."""
    with (
        private_server("forgetful", max_slot_wal_keep_size="1MB") as server,
        with_shard(pg_templates, server) as servers,
    ):
        yield servers


@pytest.mark.long
def test_a_slot_that_lost_its_place_ends_the_move(forgetful: PgServers):
    with (
        cloned_cluster(forgetful) as cluster,
        open_slot_world(cluster, "forgetful", "shard-1") as world,
    ):
        move = world.insert(UNVERIFIED)
        world.run(move, Goal.READY)
        name = stream_name(world.shard_map.cluster_id, move.move_id, is_back=False)
        world.away_conn.execute(sql.SQL("ALTER SUBSCRIPTION {} DISABLE").format(sql.Identifier(name)))

        def is_lost() -> bool:
            world.home_conn.execute("SELECT pg_logical_emit_message(true, 'test', 'x'), pg_switch_wal()")
            world.home_conn.execute("CHECKPOINT")
            row = world.home_conn.execute(
                "SELECT wal_status FROM pg_replication_slots WHERE slot_name = %s", [name]
            ).fetchone()
            return row == ("lost",)

        assert wait_for(is_lost, "the slot losing its place", timeout_s=60)
        assert "moves.broken" in [finding.check for finding in check_moves(world.directory_dsn)]
        with pytest.raises(StreamBroken, match="max_slot_wal_keep_size"):
            world.run(move, Goal.SOAKING)
        assert world.owners() == ["forgetful"]
        cancel(world, move)
        complete(world, world.insert(UNVERIFIED))


TINY_MB = 64
ROOM_LEFT = 2 * 2**20


@pytest.fixture
def tiny_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A filesystem of some megabytes that the servers' user owns."""
    user = ensure_server_user()
    folder = Path("/var/tmp") / f"shardbox-tiny-{secrets.token_hex(4)}"
    folder.mkdir(mode=0o755)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={TINY_MB}m", "tmpfs", str(folder)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode != 0:
        folder.rmdir()
        pytest.skip(f"no filesystem can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        inner = folder / "space"
        inner.mkdir(mode=0o700)
        user.give(inner)
        yield inner
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
        folder.rmdir()


@contextmanager
def shard_on(disk: Path, servers: PgServers) -> Iterator[tuple[FreshCluster, PgServer]]:
    """A cluster whose third shard's database, but not its server's log, lies on a small disk."""
    with private_server("cramped") as server, with_shard(servers, server):
        name = f"t_{secrets.token_hex(6)}"
        places = [
            (servers.directory, DIRECTORY_TEMPLATE),
            *((s, SHARD_TEMPLATE) for s in servers.shards),
        ]
        with server.connect() as conn:
            conn.execute(sql.SQL("CREATE TABLESPACE cramped LOCATION {}").format(str(disk)))
            conn.execute(
                sql.SQL("CREATE DATABASE {} TEMPLATE {} TABLESPACE cramped STRATEGY file_copy").format(
                    sql.Identifier(name), sql.Identifier(SHARD_TEMPLATE)
                )
            )
        try:
            for other, template in places:
                clone_database(other, template, name)
            dsns = {s.name: s.dsn(name) for s in (*servers.shards, server)}
            yield FreshCluster(servers.directory.dsn(name), dsns), server
        finally:
            for other in (*servers.all, server):
                drop_database(other, name)


@pytest.mark.long
@pytest.mark.parametrize("goal", [Goal.CANCELLED, Goal.COMPLETED])
def test_a_target_without_room_has_nothing_half_done(pg_templates: PgServers, tiny_disk: Path, goal: Goal):
    with (
        shard_on(tiny_disk, pg_templates) as (cluster, _),
        open_slot_world(cluster, "shard-1", "cramped") as world,
    ):
        put_journal(world.home_conn, world.ns_ids[0], range(1, 40_001))
        usage = os.statvfs(tiny_disk)
        ballast = tiny_disk / "ballast"
        ballast.write_bytes(b"\0" * (usage.f_bavail * usage.f_frsize - ROOM_LEFT))
        move = world.insert(UNVERIFIED)

        with pytest.raises(NoRoom, match="cramped has no room"):
            world.run(move, Goal.READY)

        assert world.find(move).state is MoveState.COPYING
        assert world.owners() == ["shard-1"]
        tables = read_tables(world.home_conn)
        count = world.away_conn.execute("SELECT count(*) FROM ns.server_file_journal").fetchone()
        assert count == (0,)
        before = all_rows(world.home_conn, tables, [world.unit])
        ballast.unlink()
        if goal is Goal.CANCELLED:
            cancel(world, move)
            assert all_rows(world.home_conn, tables, [world.unit]) == before
        else:
            complete(world, move)
            assert all_rows(world.away_conn, tables, [world.unit]) == before
