"""Copying: exactly the rows of the units as of the snapshot, paced, and whole or not there."""

import random
import threading
from collections.abc import Callable, Sequence

import psycopg
import pytest

from sharding.directory import Connection
from sharding.reshard import pacing, stream
from sharding.reshard.copy import CopyProgress, NoRoom, copy_rows, estimate_bytes, estimate_rows
from sharding.reshard.errors import Interrupted
from sharding.reshard.model import Throttle, namespace_unit, slot_unit
from sharding.reshard.pacing import Pacer, find_lag_bytes, time_commit_ms
from tests.support.two_shards import (
    ControlBox,
    TwoShards,
    all_rows,
    count_all,
    fill,
    list_namespaces,
    put_journal,
    put_namespaces,
    two_shards,
)
from tests.support.waiting import wait_for
from wire.ids import MAX_COUNT, NsId, Slot, make_ns_id, system_ns

__all__ = ["two_shards"]

UNITS = (
    slot_unit(system_ns(Slot(7)), (make_ns_id(Slot(7), 5),)),
    slot_unit(system_ns(Slot(8))),
    slot_unit(system_ns(Slot(4095))),
    namespace_unit(make_ns_id(Slot(30), 17)),
)
INSIDE = [
    *(make_ns_id(Slot(7), count) for count in (0, 4, 6, MAX_COUNT)),
    *(make_ns_id(Slot(8), count) for count in (0, MAX_COUNT)),
    *(make_ns_id(Slot(4095), count) for count in (0, MAX_COUNT)),
    make_ns_id(Slot(30), 17),
]
OUTSIDE = [
    make_ns_id(Slot(6), MAX_COUNT),
    make_ns_id(Slot(7), 5),
    make_ns_id(Slot(9), 0),
    make_ns_id(Slot(30), 16),
    make_ns_id(Slot(30), 18),
    make_ns_id(Slot(4094), MAX_COUNT),
]


def copy(
    shards: TwoShards,
    on_snapshot: Callable[[], object] = lambda: None,
    on_progress: Callable[[CopyProgress], None] = lambda _: None,
) -> CopyProgress:
    """Copy as of now; `on_snapshot` is done before the first row is copied, and after the snapshot."""
    with stream.create_slot(shards.source, shards.forth) as snapshot:
        on_snapshot()
        return copy_rows(
            shards.source, snapshot, shards.target, shards.tables, UNITS, shards.pacer, on_progress
        )


def test_exactly_the_rows_of_the_units_are_copied(two_shards: TwoShards):
    fill(two_shards.source_conn, [*INSIDE, *OUTSIDE])
    copied = copy(two_shards)
    wanted = all_rows(two_shards.source_conn, two_shards.tables, UNITS)
    assert all_rows(two_shards.target_conn, two_shards.tables, UNITS) == wanted
    counts = {name: len(rows) for name, rows in wanted.items()}
    assert {name: table.rows for name, table in copied.tables.items()} == counts
    assert counts["namespaces"] == len(INSIDE)
    assert copied.rows == sum(counts.values()) == count_all(two_shards.target_conn, two_shards.tables)
    assert copied.bytes == sum(table.bytes for table in copied.tables.values()) > 0


def test_the_target_plans_for_the_rows_that_were_copied(two_shards: TwoShards):
    put_namespaces(two_shards.source_conn, INSIDE[:1])
    put_journal(two_shards.source_conn, INSIDE[0], range(1, 3001))
    copy(two_shards)
    known = two_shards.target_conn.execute(
        "SELECT reltuples FROM pg_class WHERE oid = 'ns.server_file_journal'::regclass"
    ).fetchone()
    assert known == (3000,)


def test_a_copy_is_as_of_its_snapshot(two_shards: TwoShards):
    fill(two_shards.source_conn, INSIDE)
    wanted = all_rows(two_shards.source_conn, two_shards.tables, UNITS)

    def write() -> None:
        put_namespaces(two_shards.source_conn, [make_ns_id(Slot(8), 99)])
        two_shards.source_conn.execute("UPDATE ns.namespaces SET head = 77")
        two_shards.source_conn.execute("DELETE FROM ns.server_file_journal WHERE jid > 3")

    copy(two_shards, on_snapshot=write)
    assert all_rows(two_shards.target_conn, two_shards.tables, UNITS) == wanted


class Writer(threading.Thread):
    """Inserts, updates and deletes rows of some namespaces, until it is ended."""

    def __init__(self, shards: TwoShards, ns_ids: Sequence[NsId], seed: int):
        super().__init__()
        self.writes = 0
        self._shards = shards
        self._ns_ids = ns_ids
        self._random = random.Random(seed)
        self._is_ended = threading.Event()

    def run(self) -> None:
        """Write until the end."""
        with self._shards.source.connect() as conn:
            while not self._is_ended.is_set():
                with conn.transaction():
                    for _ in range(self._random.randint(1, 4)):
                        self._write(conn, self._random.choice(self._ns_ids))
                self.writes += 1

    def _write(self, conn: Connection, ns_id: NsId) -> None:
        at = self._random.randint(100, 10_000)
        match self._random.randint(0, 3):
            case 0:
                conn.execute(
                    "UPDATE ns.namespaces SET head = %s, lost_ranges = ARRAY[1, head] WHERE ns_id = %s",
                    [at, ns_id],
                )
            case 1:
                conn.execute(
                    "UPDATE ns.server_file_journal SET name = repeat('w', %s)"
                    " WHERE ns_id = %s AND jid %% 7 = 3",
                    [at % 300, ns_id],
                )
            case 2:
                conn.execute(
                    "DELETE FROM ns.server_file_journal WHERE ns_id = %s AND jid = (SELECT min(jid)"
                    " FROM ns.server_file_journal WHERE ns_id = %s)",
                    [ns_id, ns_id],
                )
            case _:
                conn.execute(
                    "INSERT INTO ns.members (ns_id, account_id, level) VALUES (%s, %s, 'e')"
                    " ON CONFLICT (ns_id, account_id) DO UPDATE SET level = 'v'",
                    [ns_id, f"account {at}"],
                )

    def end(self) -> None:
        """Let it end, and wait for that."""
        self._is_ended.set()
        self.join(30)
        assert not self.is_alive()


def test_copy_and_stream_together_lose_and_double_nothing(two_shards: TwoShards):
    fill(two_shards.source_conn, [*INSIDE, *OUTSIDE], range(1, 400))
    stream.ensure_publication(two_shards.source_conn, two_shards.forth, two_shards.tables, UNITS)
    writers = [Writer(two_shards, [*INSIDE, *OUTSIDE][at::2], at) for at in range(2)]
    for writer in writers:
        writer.start()
    try:
        wait_for(lambda: all(writer.writes > 5 for writer in writers), "writes before the copy")
        copy(two_shards)
        stream.ensure_subscription(two_shards.target_conn, two_shards.source, two_shards.forth)
        two_shards.catch_up_forth()
        reached = [writer.writes for writer in writers]
        wait_for(
            lambda: all(w.writes > before + 5 for w, before in zip(writers, reached, strict=True)),
            "writes while streaming",
        )
    finally:
        for writer in writers:
            writer.end()
    two_shards.catch_up_forth()
    wanted = all_rows(two_shards.source_conn, two_shards.tables, UNITS)
    assert all_rows(two_shards.target_conn, two_shards.tables, UNITS) == wanted
    assert count_all(two_shards.target_conn, two_shards.tables) == sum(map(len, wanted.values()))


def has_other_sessions(conn: Connection) -> bool:
    """Whether a copy's connection is still there, beside those that this test has open."""
    row = conn.execute(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        " AND (query LIKE 'COPY%' OR state LIKE 'idle in transaction%')"
    ).fetchone()
    assert row is not None
    return bool(row[0])


def test_an_interrupted_copy_leaves_no_session_and_no_half_table(
    two_shards: TwoShards, monkeypatch: pytest.MonkeyPatch
):
    ns_id = INSIDE[0]
    put_namespaces(two_shards.source_conn, [ns_id])
    put_journal(two_shards.source_conn, ns_id, range(1, 50_000))

    def interrupt(progress: CopyProgress) -> None:
        if progress.tables["server_file_journal"].rows:
            raise Interrupted("by the test")

    monkeypatch.setattr("sharding.reshard.copy.PROGRESS_INTERVAL_S", 0.0)
    with pytest.raises(Interrupted):
        copy(two_shards, on_progress=interrupt)
    monkeypatch.undo()
    for conn in (two_shards.source_conn, two_shards.target_conn):
        wait_for(lambda conn=conn: not has_other_sessions(conn), "the end of its sessions")
    assert two_shards.target_conn.execute("SELECT count(*) FROM ns.server_file_journal").fetchone() == (0,)
    two_shards.target_conn.execute("TRUNCATE ns.namespaces")
    assert copy(two_shards).rows == 50_000


def test_a_full_disk_has_a_name_and_leaves_no_half_table(two_shards: TwoShards):
    fill(two_shards.source_conn, INSIDE)
    two_shards.target_conn.execute(
        "CREATE FUNCTION public.fill_up() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " IF NEW.jid = 7 THEN RAISE EXCEPTION 'could not extend file' USING ERRCODE = 'disk_full'; END IF;"
        " RETURN NEW; END $$;"
        " CREATE TRIGGER full_disk BEFORE INSERT ON ns.server_file_journal FOR EACH ROW"
        " EXECUTE FUNCTION public.fill_up()"
    )
    with pytest.raises(NoRoom, match=r"shard-2 has no room: could not extend file"):
        copy(two_shards)
    assert two_shards.target_conn.execute("SELECT count(*) FROM ns.server_file_journal").fetchone() == (0,)


def test_a_row_that_is_there_already_is_no_success(two_shards: TwoShards):
    fill(two_shards.source_conn, INSIDE)
    put_namespaces(two_shards.target_conn, INSIDE[:1], head=9)
    with pytest.raises(psycopg.errors.UniqueViolation):
        copy(two_shards)
    assert list_namespaces(two_shards.target_conn) == {INSIDE[0]: 9}


def test_progress_rises_to_what_was_copied(two_shards: TwoShards, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sharding.reshard.copy.PROGRESS_INTERVAL_S", 0.0)
    fill(two_shards.source_conn, INSIDE, range(1, 3000))
    two_shards.source_conn.execute("ANALYZE")
    told: list[CopyProgress] = []
    copied = copy(two_shards, on_progress=told.append)
    assert told[-1] == copied
    assert [p.rows for p in told] == sorted(p.rows for p in told)
    assert any(0 < p.rows < copied.rows for p in told)
    assert all(p.rows <= p.rows_expected for p in told)
    assert copied.rows / 2 < told[0].rows_expected < copied.rows * 2
    assert copied.rows_per_s > 0
    assert copied.mb_per_s > 0


def test_a_copy_waits_while_it_is_paused(two_shards: TwoShards, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pacing, "CONTROL_INTERVAL_S", 0.0)
    fill(two_shards.source_conn, INSIDE)
    two_shards.control.is_paused = True
    copied: list[CopyProgress] = []
    copying = threading.Thread(target=lambda: copied.append(copy(two_shards)))
    copying.start()
    wait_for(lambda: two_shards.pacer.reason == "paused", "the pause")
    assert count_all(two_shards.target_conn, two_shards.tables) == 0
    two_shards.control.is_paused = False
    copying.join(60)
    assert copied[0].rows == count_all(two_shards.target_conn, two_shards.tables) > 0


def test_what_units_take_is_estimated(two_shards: TwoShards):
    fill(two_shards.source_conn, [*INSIDE, *OUTSIDE], range(1, 2000))
    conn, tables = two_shards.source_conn, two_shards.tables
    unknown = estimate_bytes(conn, tables, UNITS)
    conn.execute("ANALYZE")
    row = conn.execute(
        "SELECT sum(pg_total_relation_size(oid)) FROM pg_class WHERE relnamespace = 'ns'::regnamespace"
        " AND relkind = 'r'"
    ).fetchone()
    assert row is not None
    total = int(row[0])
    assert 0 < estimate_bytes(conn, tables, UNITS[3:]) < estimate_bytes(conn, tables, UNITS) < total
    assert unknown <= total * 1.1
    share = estimate_bytes(conn, tables, UNITS) / total
    assert share == pytest.approx(len(INSIDE) / (len(INSIDE) + len(OUTSIDE)), rel=0.3)
    journal = next(table for table in tables if table.name == "server_file_journal")
    assert estimate_rows(conn, journal, UNITS) == pytest.approx(1999 * len(INSIDE), rel=0.3)


# ---- What the pacer sees of the servers


def test_commits_are_timed_by_one_that_is_written(two_shards: TwoShards):
    conn = two_shards.source_conn
    written = "SELECT pg_current_wal_flush_lsn()"
    before = conn.execute(written).fetchone()
    assert time_commit_ms(conn) > 0
    after = conn.execute(written).fetchone()
    assert before is not None
    assert after is not None
    assert after > before


def test_a_stream_that_is_behind_slows_a_copy(two_shards: TwoShards, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pacing, "CONTROL_INTERVAL_S", 0.0)
    monkeypatch.setattr(pacing, "PROBE_INTERVAL_S", 0.0)
    conn = two_shards.source_conn
    two_shards.stream_forth(UNITS)
    two_shards.catch_up_forth()
    control = ControlBox(Throttle(max_commit_ms=60_000, max_lag_bytes=100_000))
    with Pacer(control, two_shards.source) as pacer:
        with two_shards.target.connect() as holder, holder.transaction():
            holder.execute("LOCK TABLE ns.namespaces IN ACCESS EXCLUSIVE MODE")
            put_namespaces(conn, INSIDE[:1])
            conn.execute("SELECT pg_logical_emit_message(true, 'test', repeat('x', 200000))")
            wait_for(lambda: find_lag_bytes(conn) > 200_000, "the lag")
            pacer.wait(1)
            assert "behind" in pacer.reason

        def is_free() -> bool:
            pacer.wait(0)
            return pacer.reason == ""

        wait_for(is_free, "the stream to have caught up")
