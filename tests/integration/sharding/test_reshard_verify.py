"""What a comparison of two shards finds: every row that differs, and no other."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from sharding.reshard import verify, verify_chunks, verify_snapshots
from sharding.reshard.model import slot_unit
from sharding.reshard.verify import Difference, DifferenceKind
from tests.support.databases import FreshCluster
from tests.support.streams import UNITS, StreamPair, open_streams, streams, write_namespace, writers
from wire.ids import NsId

__all__ = ["streams"]

NAMESPACES = [NsId(unit.key + count) for unit in UNITS for count in (0, 1, 5)]
MISSING, EXTRA, DIFFERING = DifferenceKind.MISSING, DifferenceKind.EXTRA, DifferenceKind.DIFFERING


def fill(pair: StreamPair, rows: int, namespaces: Sequence[NsId] = NAMESPACES) -> None:
    """Write the same number of rows into some tables of each namespace."""
    for ns_id in namespaces:
        write_namespace(pair.ours, ns_id, rows)
    pair.catch_up()


def tamper(pair: StreamPair, *statements: str) -> None:
    """Change the follower alone, and nothing but the rows that are named."""
    pair.stop_way_back()
    pair.theirs.execute("SET session_replication_role = replica")
    for statement in statements:
        assert pair.theirs.execute(statement.encode()).rowcount > 0, statement
    pair.theirs.execute("RESET session_replication_role")


def found(differences: Iterable[Difference]) -> set[tuple[str, tuple[str, ...], DifferenceKind]]:
    """Differences, to be compared."""
    return {(each.table, each.key, each.kind) for each in differences}


@pytest.fixture(params=[20_000, 7], ids=["one chunk", "chunks of 7"])
def chunk_rows(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """A table within a chunk, and the same table in many."""
    monkeypatch.setattr(verify_chunks, "CHUNK_ROWS", request.param)
    return request.param


def test_under_writers_nothing_differs(streams: StreamPair, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(verify_chunks, "CHUNK_ROWS", 100)
    fill(streams, 20)
    with writers(streams, NAMESPACES) as commits:
        for _ in range(20):
            before = sum(commits)
            report = streams.verify()
            assert report.differences == ()
            assert report.rows >= len(NAMESPACES) * 4 * 20
            assert sum(commits) > before
            assert len(report.pauses_ms) >= 1


def test_writes_between_two_pairs_are_no_difference(streams: StreamPair, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(verify_chunks, "CHUNK_ROWS", 50)
    monkeypatch.setattr(verify_snapshots, "PAIR_MAX_S", 0.0)
    few = replace(
        streams, tables=[t for t in streams.tables if t.name in ("members", "namespaces", "outbox")]
    )
    fill(few, 20)
    with writers(few, NAMESPACES):
        report = few.verify()
    assert report.differences == ()
    assert len(report.pauses_ms) >= report.chunks > 6


def test_the_former_owner_is_compared_in_the_same_way(streams: StreamPair):
    fill(streams, 5)
    turned = streams.turned()
    turned.ours.execute("UPDATE ns.members SET level = 'v'")
    with writers(turned, NAMESPACES):
        assert turned.verify().differences == ()
    tamper(turned, f"UPDATE ns.members SET level = 'o' WHERE ns_id = {NAMESPACES[4]} AND account_id = '> 2'")
    assert found(turned.verify().differences) == {("members", (str(NAMESPACES[4]), "> 2"), DIFFERING)}


def test_each_kind_of_difference_is_found_at_either_end(streams: StreamPair, chunk_rows: int):
    fill(streams, 4)
    first, last, beyond = NAMESPACES[0], NAMESPACES[-1], UNITS[-1].last
    tamper(
        streams,
        f"UPDATE ns.server_file_journal SET old_path = 'x' WHERE ns_id = {first} AND jid = 1",
        f"DELETE FROM ns.server_file_journal WHERE ns_id = {last} AND jid = 4",
        f"UPDATE ns.server_file_journal SET ns_id = {beyond} WHERE ns_id = {last} AND jid = 3",
        f"DELETE FROM ns.members WHERE ns_id = {first} AND account_id = '= 1'",
        f"INSERT INTO ns.members VALUES ({first}, '', 'e'), ({beyond}, 'ÿ', 'e')",
        f"UPDATE ns.members SET level = 'x' WHERE ns_id = {last} AND account_id = '@ 4'",
        f"UPDATE ns.blocks SET size = size + 1 WHERE ns_id = {last} AND hash = sha256('1')",
        f"DELETE FROM ns.block_claims WHERE ns_id = {NAMESPACES[4]} AND claimant_ns_id = 2",
        f"UPDATE ns.namespaces SET lost_ranges = ARRAY[1, 2, 3, 5] WHERE ns_id = {NAMESPACES[3]}",
    )
    one = "\\x6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b"
    two = "\\xd4735e3a265e16eee03f59718b9b5d03019c07d8b6c51f90da3a666eec13ab35"
    report = streams.verify()
    assert found(report.differences) == {
        ("server_file_journal", (str(first), "1"), DIFFERING),
        ("server_file_journal", (str(last), "4"), MISSING),
        ("server_file_journal", (str(last), "3"), MISSING),
        ("server_file_journal", (str(beyond), "3"), EXTRA),
        ("members", (str(first), "= 1"), MISSING),
        ("members", (str(first), ""), EXTRA),
        ("members", (str(beyond), "ÿ"), EXTRA),
        ("members", (str(last), "@ 4"), DIFFERING),
        ("blocks", (str(last), one), DIFFERING),
        ("block_claims", (str(NAMESPACES[4]), two, "2", "\\x00"), MISSING),
        ("namespaces", (str(NAMESPACES[3]),), DIFFERING),
    }
    assert report.difference_count == len(report.differences) == 11


def test_one_row_in_a_big_table_is_found(streams: StreamPair):
    write_namespace(streams.ours, NAMESPACES[1], 3 * verify_chunks.CHUNK_ROWS // 2)
    streams.catch_up()
    tamper(
        streams, f"UPDATE ns.server_file_journal SET name = 'x' WHERE jid = {verify_chunks.CHUNK_ROWS + 1}"
    )
    report = streams.verify()
    key = (str(NAMESPACES[1]), str(verify_chunks.CHUNK_ROWS + 1))
    assert found(report.differences) == {("server_file_journal", key, DIFFERING)}
    assert report.rows > 6 * verify_chunks.CHUNK_ROWS


def test_values_that_are_exchanged_or_folded_differ(streams: StreamPair):
    fill(streams, 4)
    ns = NAMESPACES[0]
    tamper(
        streams,
        f"UPDATE ns.blocks SET size = CASE size WHEN 1 THEN 2 ELSE 1 END WHERE ns_id = {ns} AND size < 3",
        f"UPDATE ns.server_file_journal SET parent_id = (1::bigint << 32) + 1 WHERE ns_id = {ns} AND jid = 1",
        f"UPDATE ns.server_file_journal SET old_path = '' WHERE ns_id = {ns} AND jid = 2",
    )
    assert [(each.table, each.kind) for each in streams.verify().differences] == [
        ("blocks", DIFFERING),
        ("blocks", DIFFERING),
        ("server_file_journal", DIFFERING),
        ("server_file_journal", DIFFERING),
    ]


def test_rows_that_nobody_streamed_are_counted_and_the_first_named(
    streams: StreamPair, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(verify_chunks, "CHUNK_ROWS", 10)
    monkeypatch.setattr(verify, "MAX_DIFFERENCES", 25)
    fill(streams, 15)
    streams.ours.execute("TRUNCATE ns.members")
    report = streams.verify()
    assert report.difference_count == 15 * len(NAMESPACES)
    assert len(report.differences) == 25
    assert {(each.table, each.kind) for each in report.differences} == {("members", EXTRA)}


def test_rows_of_others_do_not_count(fresh_cluster: FreshCluster):
    alone = NsId(UNITS[0].key + 1)
    units = (slot_unit(UNITS[0].key, (alone,)), *UNITS[1:])
    with open_streams(fresh_cluster, units) as pair:
        stranger = NsId(UNITS[-1].last + 1)
        fill(pair, 3, [*NAMESPACES, stranger])
        assert pair.theirs.execute("SELECT DISTINCT ns_id FROM ns.members").rowcount == len(NAMESPACES) - 1
        tamper(
            pair,
            f"INSERT INTO ns.members VALUES ({alone}, 'x', 'e'), ({stranger}, 'x', 'e')",
            f"INSERT INTO ns.members VALUES ({UNITS[1].last}, 'x', 'e')",
        )
        assert found(pair.verify().differences) == {("members", (str(UNITS[1].last), "x"), EXTRA)}


def test_the_followers_own_markers_do_not_count(streams: StreamPair):
    fill(streams, 3)
    key = UNITS[1].key
    tamper(
        streams,
        f"INSERT INTO ns.move_markers VALUES ({key}, '{streams.follower.name}', 9, NULL)",
        f"INSERT INTO ns.move_markers VALUES ({key}, 'a-third', 9, NULL)",
    )
    assert found(streams.verify().differences) == {("move_markers", (str(key), "a-third"), EXTRA)}


def test_the_order_of_columns_does_not_matter(fresh_cluster: FreshCluster):
    with open_streams(fresh_cluster) as pair:
        fill(pair, 3)
    with open_streams(fresh_cluster) as pair:
        pair.theirs.execute("ALTER TABLE ns.blocks ADD COLUMN later integer")
        pair.theirs.execute("UPDATE ns.blocks SET later = size")
        pair.theirs.execute("ALTER TABLE ns.blocks DROP COLUMN size")
        pair.theirs.execute("ALTER TABLE ns.blocks RENAME later TO size")
        fill(pair, 3, [NsId(UNITS[0].key + 9)])
        assert pair.verify().differences == ()
        tamper(pair, f"UPDATE ns.blocks SET size = 7 WHERE ns_id = {UNITS[0].key} AND hash = sha256('1')")
        (difference,) = pair.verify().differences
        assert (difference.table, difference.kind) == ("blocks", DIFFERING)


def test_a_databases_own_settings_do_not_matter(streams: StreamPair):
    fill(streams, 3)
    database = streams.theirs.info.dbname
    for setting in (
        "datestyle = 'SQL, DMY'",
        "timezone = 'Asia/Tokyo'",
        "bytea_output = 'escape'",
        "extra_float_digits = -5",
        "default_transaction_isolation = 'serializable'",
    ):
        streams.theirs.execute(f"ALTER DATABASE {database} SET {setting}".encode())
    assert streams.verify().differences == ()
    # Rows beside one that differs are compared by another way.
    tamper(streams, f"UPDATE ns.blocks SET generation = '\\x00' WHERE ns_id = {NAMESPACES[2]} AND size = 2")
    assert streams.verify().difference_count == 1


ROWS = st.dictionaries(st.tuples(st.sampled_from(NAMESPACES), st.integers(0, 9)), st.sampled_from("abc"))
Rows = dict[tuple[NsId, int], str]


def test_any_two_tables_are_told_apart(streams: StreamPair):
    few = replace(streams, tables=[table for table in streams.tables if table.name == "members"])
    few.stop_way_back()

    # Without shrinking: an example takes a second on a busy machine, and is small as it is.
    @settings(max_examples=15, deadline=None, derandomize=True, phases=[Phase.generate])
    @given(ours=ROWS, theirs=ROWS, size=st.integers(1, 6))
    def compare(ours: Rows, theirs: Rows, size: int) -> None:
        mine, other = write_members(few, ours, theirs)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(verify_chunks, "CHUNK_ROWS", size)
            report = few.verify()
        assert report.rows == len(ours)
        assert found(report.differences) == {
            *(("members", key, MISSING) for key in mine.keys() - other.keys()),
            *(("members", key, EXTRA) for key in other.keys() - mine.keys()),
            *(("members", key, DIFFERING) for key in mine.keys() & other.keys() if mine[key] != other[key]),
        }

    compare()


def write_members(pair: StreamPair, *contents: Rows) -> list[dict[tuple[str, ...], str]]:
    """Make all that the owner, and the follower, have of one table; the same by key."""
    pair.theirs.execute("DELETE FROM ns.members")  # or what the owner inserts would be there already
    written: list[dict[tuple[str, ...], str]] = []
    for conn, rows in zip((pair.ours, pair.theirs), contents, strict=True):
        named = [(ns_id, f"{'aBc-ä'[n % 5]}{n}", level) for (ns_id, n), level in rows.items()]
        with conn.transaction(), conn.cursor() as cursor:
            cursor.execute("DELETE FROM ns.members")
            cursor.executemany("INSERT INTO ns.members VALUES (%s, %s, %s)", named)
        if conn is pair.ours:
            pair.catch_up()
        written.append({(str(ns_id), name): level for ns_id, name, level in named})
    return written
