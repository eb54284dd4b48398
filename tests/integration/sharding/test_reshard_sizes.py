"""How much of each slot a shard has: counted, and estimated where it is large."""

from collections.abc import Iterator

import psycopg
import pytest

from sharding.directory import Connection
from sharding.reshard.situation import Size
from sharding.reshard.sizes import read_sizes
from tests.support.databases import FreshCluster
from wire.ids import MAX_SLOTS, NsId, Slot, make_ns_id

LAST = Slot(MAX_SLOTS - 1)
ROWS = {make_ns_id(Slot(0), 1): 4_000, make_ns_id(Slot(0), 2): 8_000, make_ns_id(LAST, 1): 12_000}
BIG = make_ns_id(Slot(0), 2)


@pytest.fixture
def conn(fresh_cluster: FreshCluster) -> Iterator[Connection]:
    """A shard with journals of some length."""
    with psycopg.connect(fresh_cluster.shard_dsns["shard-1"], autocommit=True) as conn:
        for ns_id, count in ROWS.items():
            _append(conn, ns_id, count)
        yield conn


def _append(conn: Connection, ns_id: NsId, count: int) -> None:
    conn.execute(
        "INSERT INTO ns.server_file_journal"
        " (ns_id, jid, entry_id, parent_id, at_us, op, kind, is_deleted, name)"
        " SELECT %s, n, n, 0, 0, 'f', 'd', false, repeat('x', 100) FROM generate_series(1, %s) n",
        [ns_id, count],
    )


def table_bytes(conn: Connection) -> int:
    row = conn.execute("SELECT pg_table_size('ns.server_file_journal')").fetchone()
    assert row is not None
    return int(row[0])


def test_small_tables_are_counted(conn: Connection):
    found = read_sizes(conn)

    assert found.is_exact
    assert {slot: size.rows for slot, size in found.slots.items()} == {0: 12_000, LAST: 12_000}
    # What pages leave empty, and pad, does not count.
    assert 0.8 < sum(size.bytes for size in found.slots.values()) / table_bytes(conn) < 1


def test_rows_that_went_away_leave_nothing(conn: Connection):
    before = read_sizes(conn).slots
    conn.execute("DELETE FROM ns.server_file_journal WHERE ns_id = %s", [BIG])

    after = read_sizes(conn).slots

    assert after[LAST] == before[LAST]
    assert after[Slot(0)].rows == 4_000
    assert after[Slot(0)].bytes < 0.4 * before[Slot(0)].bytes


def test_namespaces_that_are_asked_for_do_not_count_for_their_slots(conn: Connection):
    absent = make_ns_id(Slot(7), 1)

    found = read_sizes(conn, [BIG, absent])

    assert {slot: size.rows for slot, size in found.slots.items()} == {0: 4_000, LAST: 12_000}
    assert found.namespaces[BIG].rows == 8_000
    assert found.namespaces[absent] == Size()


def test_all_tables_count(conn: Connection):
    before = read_sizes(conn).slots[LAST].rows
    conn.execute("INSERT INTO ns.outbox (ns_id, jid) VALUES (%s, 1)", [make_ns_id(LAST, 1)])

    assert read_sizes(conn).slots[LAST].rows == before + 1


def test_large_tables_are_sampled_and_twice_alike(conn: Connection):
    whole = table_bytes(conn)

    found = read_sizes(conn, [BIG], exact_bytes=whole // 4)

    assert not found.is_exact
    assert read_sizes(conn, [BIG], exact_bytes=whole // 4) == found
    # The pages of a sample are the same each time; these are wide bounds for a quarter of some 400 of them.
    sizes = {0: found.slots[Slot(0)], LAST: found.slots[LAST], BIG: found.namespaces[BIG]}
    for key, count in ((0, 4_000), (LAST, 12_000), (BIG, 8_000)):
        assert 0.4 * count < sizes[key].rows < 1.6 * count
    assert 0.4 < sum(size.bytes for size in sizes.values()) / whole < 1.6
