"""A move's streams: what they carry, who holds them off, how they break, and that nothing of them stays."""

import dataclasses
import itertools
import secrets
import shutil
import signal
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from psycopg import sql

from ops.ports import reserve_port
from ops.postgres import NO_DURABILITY, PgServer, make_password, read_passfile, write_passfile
from ops.processes import stop
from sharding.reshard import servers, stream
from sharding.reshard.catalog import Table
from sharding.reshard.errors import MoveRefused
from sharding.reshard.model import namespace_unit, slot_unit
from sharding.reshard.servers import TransactionsOpen, check_different_servers, check_server
from sharding.reshard.sites import Site
from sharding.reshard.stream import StreamBroken, StreamLate
from tests.support.databases import PgServers
from tests.support.keeper import MARK, server_at
from tests.support.run import run_dir
from tests.support.two_shards import (
    TwoShards,
    list_namespaces,
    list_slots,
    open_transaction,
    put_namespaces,
    two_shards,
)
from tests.support.waiting import wait_for
from wire.ids import MAX_COUNT, MAX_SLOTS, NsId, Slot, make_ns_id, system_ns

pytestmark = pytest.mark.usefixtures("slots_in_turn")

__all__ = ["two_shards"]


def unit(slot: int, *excluded: int):
    """The unit of a slot, without some counts."""
    return slot_unit(system_ns(Slot(slot)), tuple(make_ns_id(Slot(slot), count) for count in excluded))


@pytest.mark.parametrize("slot", [0, 7, MAX_SLOTS - 1])
def test_exactly_the_rows_of_the_units_are_carried(two_shards: TwoShards, slot: int):
    inside = [make_ns_id(Slot(slot), count) for count in (0, 1, 4, 6, MAX_COUNT - 1, MAX_COUNT)]
    excluded = make_ns_id(Slot(slot), 5)
    outside = [n for n in (inside[0] - 1, inside[-1] + 1) if 0 <= n < 1 << 63]
    alone = NsId(system_ns(Slot(30)) + 17)
    outside += [excluded, alone - 1, alone + 1]
    two_shards.stream_forth([unit(slot, 5), namespace_unit(alone)])
    put_namespaces(two_shards.source_conn, [*inside, alone, *outside])
    two_shards.catch_up_forth()
    assert list_namespaces(two_shards.target_conn) == dict.fromkeys([*inside, alone], 1)

    two_shards.source_conn.execute("UPDATE ns.namespaces SET head = 2")
    two_shards.source_conn.execute("DELETE FROM ns.namespaces WHERE ns_id = %s", [inside[2]])
    # Their own of the target, which a deletion at the source must not meet.
    put_namespaces(two_shards.target_conn, [excluded, *outside[:1]], head=9)
    two_shards.source_conn.execute("DELETE FROM ns.namespaces WHERE ns_id = ANY(%s)", [outside])
    two_shards.catch_up_forth()
    kept = [*(n for n in inside if n != inside[2]), alone]
    assert list_namespaces(two_shards.target_conn) == dict.fromkeys(kept, 2) | dict.fromkeys(
        [excluded, *outside[:1]], 9
    )


def test_a_truncate_does_not_empty_the_target(two_shards: TwoShards):
    two_shards.stream_forth([unit(7)])
    put_namespaces(two_shards.source_conn, [make_ns_id(Slot(7), 1)])
    put_namespaces(two_shards.target_conn, [make_ns_id(Slot(9), 1)])
    two_shards.catch_up_forth()
    two_shards.source_conn.execute("TRUNCATE ns.namespaces")
    put_namespaces(two_shards.source_conn, [make_ns_id(Slot(7), 2)])
    two_shards.catch_up_forth()
    found = set(list_namespaces(two_shards.target_conn))
    assert found == {make_ns_id(Slot(7), 1), make_ns_id(Slot(7), 2), make_ns_id(Slot(9), 1)}


def test_what_came_by_one_stream_does_not_go_back_by_the_other(two_shards: TwoShards):
    ns_id, other = make_ns_id(Slot(7), 1), make_ns_id(Slot(7), 2)
    two_shards.stream_forth([unit(7)])
    two_shards.stream_back([unit(7)])
    put_namespaces(two_shards.source_conn, [ns_id])
    for _ in range(5):
        two_shards.source_conn.execute("UPDATE ns.namespaces SET head = head + 1 WHERE ns_id = %s", [ns_id])
    version = "SELECT xmin FROM ns.namespaces WHERE ns_id = %s"
    written = two_shards.source_conn.execute(version, [ns_id]).fetchone()
    two_shards.catch_up_forth()
    two_shards.catch_up_back()
    assert two_shards.source_conn.execute(version, [ns_id]).fetchone() == written
    put_namespaces(two_shards.target_conn, [other])
    two_shards.catch_up_back()
    two_shards.catch_up_forth()
    for conn in (two_shards.source_conn, two_shards.target_conn):
        assert list_namespaces(conn) == {ns_id: 6, other: 1}


def test_a_slot_begins_at_its_snapshot(two_shards: TwoShards):
    before, after = make_ns_id(Slot(7), 1), make_ns_id(Slot(7), 2)
    stream.ensure_publication(two_shards.source_conn, two_shards.forth, two_shards.tables, [unit(7)])
    put_namespaces(two_shards.source_conn, [before])
    with stream.create_slot(two_shards.source, two_shards.forth) as snapshot:
        put_namespaces(two_shards.source_conn, [after])
        with two_shards.source.connect() as conn, conn.transaction():
            conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            conn.execute(sql.SQL("SET TRANSACTION SNAPSHOT {}").format(snapshot))
            assert set(list_namespaces(conn)) == {before}
    stream.ensure_subscription(two_shards.target_conn, two_shards.source, two_shards.forth)
    two_shards.catch_up_forth()
    assert set(list_namespaces(two_shards.target_conn)) == {after}


def test_a_slot_of_a_run_that_died_is_made_anew(two_shards: TwoShards):
    with stream.create_slot(two_shards.source, two_shards.forth) as first:
        pass
    with stream.create_slot(two_shards.source, two_shards.forth) as second:
        assert second != first
        assert list_slots(two_shards.source_conn) == {two_shards.forth}


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slots wait for no longer than this."""
    monkeypatch.setattr(stream, "LOCK_TIMEOUT", "1s")


@pytest.mark.usefixtures("impatient")
def test_a_prepared_transaction_that_holds_off_a_slot_is_named(two_shards: TwoShards):
    gid = f"orphan {two_shards.cluster_id}"
    with open_transaction(two_shards.source) as conn:
        conn.execute(sql.SQL("PREPARE TRANSACTION {}").format(gid))
    try:
        with (
            pytest.raises(TransactionsOpen, match=gid),
            stream.create_slot(two_shards.source, two_shards.forth),
        ):
            pytest.fail("not to be made")
        with pytest.raises(TransactionsOpen, match=gid):
            stream.ensure_slot(two_shards.source_conn, two_shards.forth)
    finally:
        two_shards.source_conn.execute(sql.SQL("ROLLBACK PREPARED {}").format(gid))
    assert list_slots(two_shards.source_conn) == set()
    stream.ensure_slot(two_shards.source_conn, two_shards.forth)
    assert list_slots(two_shards.source_conn) == {two_shards.forth}


@pytest.mark.usefixtures("impatient")
def test_a_transaction_that_holds_off_a_slot_is_named(two_shards: TwoShards):
    with open_transaction(two_shards.source) as conn:
        pid = conn.info.backend_pid
        with pytest.raises(TransactionsOpen, match=rf"pid {pid}, .*pg_current_xact_id"):
            stream.ensure_slot(two_shards.source_conn, two_shards.forth)
        conn.execute("ROLLBACK")
    with two_shards.source.connect() as reader, reader.transaction():
        reader.execute("SELECT 1 FROM ns.namespaces")
        stream.ensure_slot(two_shards.source_conn, two_shards.forth)


def test_what_is_there_already_is_left_as_it_is(two_shards: TwoShards):
    parts = (
        "SELECT (SELECT array_agg(oid) FROM pg_publication), (SELECT array_agg(oid) FROM pg_subscription"
        " WHERE subdbid = (SELECT oid FROM pg_database WHERE datname = current_database()))"
    )
    two_shards.stream_forth([unit(7, 5), unit(8)])
    before = [conn.execute(parts).fetchone() for conn in (two_shards.source_conn, two_shards.target_conn)]
    two_shards.stream_forth([unit(7, 5), unit(8)])
    assert before == [
        conn.execute(parts).fetchone() for conn in (two_shards.source_conn, two_shards.target_conn)
    ]
    assert list_slots(two_shards.source_conn) == {two_shards.forth}


@pytest.mark.parametrize("units", [[unit(7)], [unit(7, 5), unit(8), unit(9)]], ids=["fewer", "more"])
def test_a_publication_of_other_rows_is_refused(two_shards: TwoShards, units: list):
    stream.ensure_publication(
        two_shards.source_conn, two_shards.forth, two_shards.tables, [unit(7, 5), unit(8)]
    )
    with pytest.raises(StreamBroken, match="not of the move's tables and rows"):
        stream.ensure_publication(two_shards.source_conn, two_shards.forth, two_shards.tables, units)
    with pytest.raises(StreamBroken, match="not of the move's tables and rows"):
        stream.ensure_publication(
            two_shards.source_conn, two_shards.forth, two_shards.tables[1:], [unit(7, 5), unit(8)]
        )
    assert stream.list_parts(two_shards.source_conn, two_shards.cluster_id).publications == (
        two_shards.forth,
    )


def test_a_subscription_that_was_made_otherwise_is_refused(two_shards: TwoShards):
    two_shards.stream_forth([unit(7)])
    name = sql.Identifier(two_shards.forth)
    two_shards.target_conn.execute(sql.SQL("ALTER SUBSCRIPTION {} SET (origin = any)").format(name))
    with pytest.raises(StreamBroken, match="was not made by this move"):
        stream.ensure_subscription(two_shards.target_conn, two_shards.source, two_shards.forth)


# ---- Broken streams


def check(shards: TwoShards) -> stream.StreamState:
    """How the stream forth does."""
    return stream.check_stream(shards.source_conn, shards.target_conn, shards.forth)


def broken(shards: TwoShards) -> str | None:
    """What is wrong with the stream forth, if anything is."""
    try:
        check(shards)
    except StreamBroken as error:
        return str(error)
    return None


def test_a_whole_stream_tells_how_far_it_is(two_shards: TwoShards):
    two_shards.stream_forth([unit(7)])
    two_shards.catch_up_forth()
    state = check(two_shards)
    assert (state.is_active, state.is_ready) == (True, True)
    with two_shards.target.connect() as holder, holder.transaction():
        holder.execute("LOCK TABLE ns.namespaces IN ACCESS EXCLUSIVE MODE")
        put_namespaces(two_shards.source_conn, [make_ns_id(Slot(7), 1)])
        behind = wait_for(lambda: check(two_shards).lag_bytes, "a lag")
        with pytest.raises(StreamLate, match="bytes behind"):
            stream.wait_until_caught_up(two_shards.source_conn, two_shards.target_conn, two_shards.forth, 0.5)
    assert behind > 0
    two_shards.catch_up_forth()
    assert len(list_namespaces(two_shards.target_conn)) == 1


def test_a_row_that_was_there_already_holds_the_stream_up(
    two_shards: TwoShards, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(stream, "MAX_ERRORS", 1)
    ns_id = make_ns_id(Slot(7), 1)
    put_namespaces(two_shards.target_conn, [ns_id])
    two_shards.stream_forth([unit(7)])
    put_namespaces(two_shards.source_conn, [ns_id])
    wait_for(lambda: check(two_shards).error_count, "an error")
    with pytest.raises(StreamBroken, match="ends at an error each time"):
        two_shards.catch_up_forth()
    two_shards.target_conn.execute("DELETE FROM ns.namespaces")
    two_shards.catch_up_forth()
    assert len(list_namespaces(two_shards.target_conn)) == 1


def test_a_stream_whose_connection_is_lost_finds_back(two_shards: TwoShards):
    two_shards.stream_forth([unit(7)])
    two_shards.catch_up_forth()
    two_shards.source_conn.execute(
        "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = %s",
        [two_shards.forth],
    )
    put_namespaces(two_shards.source_conn, [make_ns_id(Slot(7), 1)])
    two_shards.catch_up_forth()
    assert len(list_namespaces(two_shards.target_conn)) == 1


def test_a_stream_that_somebody_disabled_is_told(two_shards: TwoShards):
    two_shards.stream_forth([unit(7)])
    disable = sql.SQL("ALTER SUBSCRIPTION {} DISABLE").format(sql.Identifier(two_shards.forth))
    two_shards.target_conn.execute(disable)
    assert "somebody disabled" in (broken(two_shards) or "")


def test_a_column_that_is_added_in_between_holds_the_stream_up(
    two_shards: TwoShards, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(stream, "MAX_ERRORS", 1)
    two_shards.stream_forth([unit(7)])
    put_namespaces(two_shards.source_conn, [make_ns_id(Slot(7), 1)])
    two_shards.catch_up_forth()
    two_shards.source_conn.execute("ALTER TABLE ns.namespaces ADD COLUMN added integer DEFAULT 1")
    put_namespaces(two_shards.source_conn, [make_ns_id(Slot(7), 2)])
    wait_for(lambda: check(two_shards).error_count, "an error")
    with pytest.raises(StreamBroken, match="ends at an error each time"):
        two_shards.catch_up_forth()


@pytest.mark.parametrize(
    ("change", "counted"),
    [
        ("UPDATE ns.namespaces SET head = 2", "1 updates and 0 deletes"),
        ("DELETE FROM ns.namespaces", "0 updates and 1"),
    ],
)
def test_a_change_of_a_row_that_is_missing_is_told(two_shards: TwoShards, change: str, counted: str):
    if two_shards.target_conn.info.server_version < 180000:
        pytest.skip("counted from PostgreSQL 18 on")
    ns_id = make_ns_id(Slot(7), 1)
    put_namespaces(two_shards.source_conn, [ns_id])
    two_shards.stream_forth([unit(7)])
    two_shards.source_conn.execute(change)
    others = itertools.count(2)

    def look() -> str | None:
        # A worker tells its counts at a commit, once a second; it counts as idle only on a server that is.
        put_namespaces(two_shards.source_conn, [make_ns_id(Slot(7), next(others))])
        return broken(two_shards)

    assert counted in wait_for(look, "the change that met no row")


def test_a_part_that_is_missing_is_told(two_shards: TwoShards):
    two_shards.stream_forth([unit(7)])
    name = two_shards.forth
    stream.drop_subscription(two_shards.target_conn, name)
    with pytest.raises(StreamBroken, match=f"subscription {name} is gone"):
        check(two_shards)
    stream.drop_publication(two_shards.source_conn, name)
    with pytest.raises(StreamBroken, match=f"publication {name} is gone"):
        check(two_shards)
    stream.drop_slot(two_shards.source_conn, name)
    with pytest.raises(StreamBroken, match=f"replication slot {name} is gone"):
        check(two_shards)


# ---- Dropping, and what is found


def test_dropping_what_is_not_there_is_harmless(two_shards: TwoShards):
    for _ in range(2):
        stream.drop_subscription(two_shards.target_conn, two_shards.forth)
        stream.drop_slot(two_shards.source_conn, two_shards.forth)
        stream.drop_publication(two_shards.source_conn, two_shards.forth)
        two_shards.stream_forth([unit(7)])
    two_shards.drop_streams()
    for conn in (two_shards.source_conn, two_shards.target_conn):
        parts = stream.list_parts(conn, two_shards.cluster_id)
        assert (parts.publications, parts.subscriptions, parts.slots) == ((), (), ())


def test_a_slot_that_is_being_read_is_dropped(two_shards: TwoShards):
    two_shards.stream_forth([unit(7)])
    wait_for(lambda: check(two_shards).is_active, "a reader of the slot")
    stream.drop_slot(two_shards.source_conn, two_shards.forth)
    assert list_slots(two_shards.source_conn) == set()


def test_a_subscription_is_dropped_without_its_publisher(two_shards: TwoShards):
    two_shards.stream_forth([unit(7)])
    two_shards.target_conn.execute(
        sql.SQL("ALTER SUBSCRIPTION {} CONNECTION 'host=127.0.0.1 port=1'").format(
            sql.Identifier(two_shards.forth)
        )
    )
    row = two_shards.target_conn.execute(
        "SELECT 'pg_' || oid FROM pg_subscription WHERE subname = %s", [two_shards.forth]
    ).fetchone()
    assert row is not None
    stream.drop_subscription(two_shards.target_conn, two_shards.forth)
    assert stream.list_parts(two_shards.target_conn, two_shards.cluster_id).subscriptions == ()
    assert not two_shards.target_conn.execute(
        "SELECT 1 FROM pg_replication_origin WHERE roname = %s", row
    ).fetchone()


def test_the_parts_of_this_cluster_are_found(two_shards: TwoShards):
    two_shards.stream_forth([unit(7)])
    two_shards.stream_back([unit(7)])
    other = stream.stream_name("ffff" * 4, 7, is_back=False)
    stream.ensure_publication(two_shards.source_conn, other, two_shards.tables, [unit(8)])
    parts = stream.list_parts(two_shards.source_conn, two_shards.cluster_id)
    assert (parts.publications, parts.slots) == ((two_shards.forth,), (two_shards.forth,))
    assert parts.subscriptions == (two_shards.back,)
    assert stream.parse_stream_name(two_shards.cluster_id, two_shards.forth) == (7, False)
    assert stream.parse_stream_name(two_shards.cluster_id, two_shards.back) == (7, True)
    assert stream.parse_stream_name(two_shards.cluster_id, other) is None


def test_an_origin_of_a_subscription_that_is_gone_is_found(two_shards: TwoShards):
    conn, lost = two_shards.source_conn, "pg_4000000007"
    two_shards.stream_back([unit(7)])
    conn.execute("SELECT pg_replication_origin_create('lost')")
    conn.execute("UPDATE pg_replication_origin SET roname = %s WHERE roname = 'lost'", [lost])
    try:
        found = stream.list_parts(conn, two_shards.cluster_id).origins
        assert lost in found
        in_use = conn.execute("SELECT 'pg_' || oid FROM pg_subscription").fetchall()
        assert not {row[0] for row in in_use} & set(found)
    finally:
        for _ in range(2):
            stream.drop_origin(conn, lost)
    assert lost not in stream.list_parts(conn, two_shards.cluster_id).origins


# ---- Servers


def test_servers_that_can_take_part(two_shards: TwoShards):
    check_different_servers(two_shards.source_conn, two_shards.target_conn)
    assert check_server(two_shards.source_conn) == []
    maintenance = two_shards.source.dsn.rsplit("/", 1)[0] + "/postgres"
    with (
        Site("other", maintenance).connect() as same,
        pytest.raises(MoveRefused, match="both shards are on one server"),
    ):
        check_different_servers(two_shards.source_conn, same)


def test_an_old_transaction_is_refused_at_once(two_shards: TwoShards, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(servers, "OLD_TRANSACTION_S", 0.0)
    gid = f"old {two_shards.cluster_id}"
    with open_transaction(two_shards.source) as conn:
        with pytest.raises(TransactionsOpen, match=f"pid {conn.info.backend_pid}"):
            check_server(two_shards.source_conn)
        conn.execute(sql.SQL("PREPARE TRANSACTION {}").format(gid))
    try:
        with pytest.raises(TransactionsOpen, match=gid):
            check_server(two_shards.source_conn)
    finally:
        two_shards.source_conn.execute(sql.SQL("ROLLBACK PREPARED {}").format(gid))


# ---- On a server of their own


@contextmanager
def private_server(name: str, **settings: str) -> Iterator[PgServer]:
    """A server whose settings a test may choose, beside those of the run."""
    folder = run_dir() / f"{name}-{secrets.token_hex(4)}"
    folder.mkdir(mode=0o711)
    held = reserve_port()
    server = dataclasses.replace(server_at(folder, name, held.port), settings=NO_DURABILITY | settings)
    passwords = read_passfile(run_dir() / "pgpass") | {server.port: make_password()}
    write_passfile(server.passfile, passwords)
    server.ensure_initialised(passwords[server.port], sync=False)
    handle = server.start(f"{MARK}{folder}:{name}")
    held.close()
    try:
        server.wait_ready(handle)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PGPASSFILE", str(server.passfile))
            yield server
    finally:
        stop(handle, signal.SIGQUIT, grace_s=5)
        shutil.rmtree(folder)


THINGS = Table("things", ("ns_id",), ("ns_id",))


@pytest.fixture(scope="module")
def talkative(pg_servers: PgServers) -> Iterator[Site]:
    """A shard with one table, on a server that logs everything and keeps little."""
    with private_server(
        "talkative",
        log_statement="all",
        log_min_duration_statement="0",
        log_min_error_statement="error",
        log_parameter_max_length="-1",
        max_slot_wal_keep_size="1MB",
        max_replication_slots="2",
    ) as server:
        server.ensure_database("shard")
        with server.connect("shard") as conn:
            conn.execute("CREATE SCHEMA ns CREATE TABLE things (ns_id bigint PRIMARY KEY)")
        yield LoggedSite("talkative", server.dsn("shard"), log=server.log)


@dataclass(frozen=True)
class LoggedSite(Site):
    """A shard, and its server's log."""

    log: Path = Path()


def test_a_password_is_in_no_log_and_no_error(talkative: LoggedSite, two_shards: TwoShards):
    password = two_shards.source_conn.pgconn.password.decode()
    assert len(password) > 20
    two_shards.source_conn.execute("CREATE TABLE ns.things (ns_id bigint PRIMARY KEY)")
    name = two_shards.forth
    stream.ensure_publication(two_shards.source_conn, name, [THINGS], [unit(7)])
    stream.ensure_slot(two_shards.source_conn, name)
    unreachable = Site("nowhere", two_shards.source.dsn, "postgresql://shardbox@127.0.0.1:1/nowhere")
    with talkative.connect() as conn:
        with pytest.raises(StreamBroken, match="no subscription to nowhere") as caught:
            stream.ensure_subscription(conn, unreachable, name)
        assert password not in "".join(traceback.format_exception(caught.value))
        try:
            stream.ensure_subscription(conn, two_shards.source, name)
            two_shards.source_conn.execute("INSERT INTO ns.things VALUES (%s)", [unit(7).key])
            stream.wait_until_caught_up(two_shards.source_conn, conn, name, 30.0)
            assert conn.execute("SELECT ns_id FROM ns.things").fetchall() == [(unit(7).key,)]
        finally:
            stream.drop_subscription(conn, name)
    text = talkative.log.read_text()
    assert f'DROP SUBSCRIPTION IF EXISTS "{name}"' in text
    assert "CREATE SUBSCRIPTION" not in text
    assert password not in text


def test_a_slot_that_lost_its_place_is_told(talkative: LoggedSite, two_shards: TwoShards):
    name = two_shards.back
    with talkative.connect() as conn:
        stream.ensure_publication(conn, name, [THINGS], [unit(7)])
        stream.ensure_slot(conn, name)
        try:

            def is_lost() -> bool:
                conn.execute("SELECT pg_logical_emit_message(true, 'test', 'x'), pg_switch_wal()")
                conn.execute("CHECKPOINT")
                row = conn.execute(
                    "SELECT wal_status FROM pg_replication_slots WHERE slot_name = %s", [name]
                ).fetchone()
                return row == ("lost",)

            wait_for(is_lost, "the slot losing its place")
            with pytest.raises(StreamBroken, match="max_slot_wal_keep_size"):
                stream.check_stream(conn, two_shards.source_conn, name)
            with pytest.raises(StreamBroken, match="max_slot_wal_keep_size"):
                stream.ensure_slot(conn, name)
        finally:
            stream.drop_slot(conn, name)
            stream.drop_publication(conn, name)


def test_slots_that_are_used_up_are_told(talkative: LoggedSite):
    with talkative.connect() as conn:
        check_server(conn)
        for name in ("one", "two"):
            stream.ensure_slot(conn, name)
        try:
            with pytest.raises(MoveRefused, match="0 of max_replication_slots are free"):
                check_server(conn)
        finally:
            for name in ("one", "two"):
                stream.drop_slot(conn, name)


def test_slots_without_a_bound_are_warned_of(talkative: LoggedSite):
    with talkative.connect() as conn:
        assert check_server(conn) == []
        conn.execute("ALTER SYSTEM SET max_slot_wal_keep_size = -1")
        conn.execute("SELECT pg_reload_conf()")
        (warning,) = wait_for(lambda: check_server(conn), "the setting in force")
        assert "max_slot_wal_keep_size is -1" in warning
        conn.execute("ALTER SYSTEM RESET ALL")
        conn.execute("SELECT pg_reload_conf()")
        wait_for(lambda: not check_server(conn), "the setting out of force")


def test_a_role_without_rights_is_refused_by_name_of_each(talkative: LoggedSite):
    with talkative.connect() as conn:
        conn.execute("CREATE ROLE plain; SET ROLE plain")
        with pytest.raises(MoveRefused) as caught:
            check_server(conn)
        for right in ("ROLE … REPLICATION", "pg_create_subscription", "GRANT CREATE", "own the tables"):
            assert right in str(caught.value)
        conn.execute(
            "RESET ROLE; ALTER ROLE plain REPLICATION; GRANT pg_create_subscription TO plain;"
            " GRANT CREATE ON DATABASE shard TO plain; ALTER TABLE ns.things OWNER TO plain; SET ROLE plain"
        )
        check_server(conn)


def test_a_server_without_logical_wal_is_refused(pg_servers: PgServers):
    with (
        private_server("plain", wal_level="replica") as server,
        Site("plain", server.dsn("postgres")).connect() as conn,
        pytest.raises(MoveRefused, match="wal_level is replica: set it to logical and restart"),
    ):
        check_server(conn)
