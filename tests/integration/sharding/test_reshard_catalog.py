"""What a move reads of a shard's tables, and which it refuses."""

from collections.abc import Iterator
from dataclasses import dataclass

import psycopg
import pytest

from metaserver.storage.tables import metadata
from sharding.directory import Connection
from sharding.reshard.catalog import NoPrimaryKey, TableNotMovable, TablesDiffer, check_tables, read_tables
from tests.support.databases import FreshCluster


@dataclass
class Shards:
    """Both shards of a cluster."""

    source: Connection
    target: Connection

    def execute_on_both(self, statement: str) -> None:
        """Run the same statement on both."""
        for conn in (self.source, self.target):
            conn.execute(statement.encode())


@pytest.fixture
def shards(fresh_cluster: FreshCluster) -> Iterator[Shards]:
    first, second = fresh_cluster.shard_dsns.values()
    with (
        psycopg.connect(first, autocommit=True) as source,
        psycopg.connect(second, autocommit=True) as target,
    ):
        yield Shards(source, target)


def test_the_tables_are_those_of_the_metaserver(shards: Shards):
    tables = {table.name: table for table in read_tables(shards.source)}
    assert tables.keys() == {table.name for table in metadata.tables.values()}
    for defined in metadata.tables.values():
        found = tables[defined.name]
        assert set(found.columns) == {column.name for column in defined.columns}
        assert found.key == tuple(column.name for column in defined.primary_key)
    assert check_tables(shards.source, shards.target) == list(tables.values())


def test_referenced_tables_come_first(shards: Shards):
    names = [table.name for table in read_tables(shards.source)]
    assert names.index("blocks") < names.index("block_claims")
    assert names.index("upload_sessions") < names.index("upload_targets")


def test_a_new_table_is_found_and_comes_after_what_it_refers_to(shards: Shards):
    shards.execute_on_both("CREATE TABLE ns.zebras (ns_id bigint, n bigint, PRIMARY KEY (ns_id, n))")
    shards.execute_on_both(
        "CREATE TABLE ns.apes (ns_id bigint, n bigint, parent bigint, PRIMARY KEY (ns_id, n),"
        " FOREIGN KEY (ns_id, n) REFERENCES ns.zebras, FOREIGN KEY (ns_id, parent) REFERENCES ns.apes)"
    )
    names = [table.name for table in check_tables(shards.source, shards.target)]
    assert names.index("zebras") < names.index("apes")


def test_views_hold_nothing(shards: Shards):
    shards.source.execute("CREATE VIEW ns.heads AS SELECT ns_id, head FROM ns.namespaces")
    check_tables(shards.source, shards.target)


def test_what_is_dropped_generated_or_included_does_not_count(shards: Shards):
    shards.execute_on_both(
        "CREATE TABLE ns.parts (gone text, n int, ns_id bigint, note text,"
        " twice int GENERATED ALWAYS AS (n * 2) STORED, PRIMARY KEY (ns_id, n) INCLUDE (note))"
    )
    shards.execute_on_both("ALTER TABLE ns.parts DROP COLUMN gone")
    (parts,) = (table for table in read_tables(shards.source) if table.name == "parts")
    assert parts.columns == ("n", "ns_id", "note")
    assert parts.key == ("ns_id", "n")


def test_only_text_without_a_fixed_order_is_localised(shards: Shards):
    localised = {table.name: table.localised for table in read_tables(shards.source)}
    assert localised["members"] == {"account_id"}
    assert localised["idempotency"] == {"account_id", "key"}
    assert localised["emails"] == localised["identities"] == localised["entries"] == frozenset()


def test_the_order_of_columns_indexes_and_defaults_may_differ(shards: Shards):
    shards.source.execute("CREATE TABLE ns.pairs (ns_id bigint PRIMARY KEY, a int DEFAULT 1, b text)")
    shards.target.execute("CREATE TABLE ns.pairs (b text, ns_id bigint PRIMARY KEY, a int)")
    shards.target.execute("CREATE INDEX ON ns.pairs (a)")
    (pairs,) = (t for t in check_tables(shards.source, shards.target) if t.name == "pairs")
    assert pairs.columns == ("ns_id", "a", "b")


DIFFERENCES = {
    "CREATE TABLE ns.extra (ns_id bigint PRIMARY KEY)": "ns.extra is on the target only",
    "DROP TABLE ns.usage_debts": "ns.usage_debts is on the source only",
    "ALTER TABLE ns.members ADD nick text": ("ns.members.nick is absent on the source, text on the target"),
    "ALTER TABLE ns.members DROP level": (
        """ns.members.level is "char" NOT NULL on the source, absent on the target"""
    ),
    "ALTER TABLE ns.blocks ALTER size TYPE bigint": (
        "ns.blocks.size is integer NOT NULL on the source, bigint NOT NULL on the target"
    ),
    "ALTER TABLE ns.entries ALTER size SET NOT NULL": (
        "ns.entries.size is bigint on the source, bigint NOT NULL on the target"
    ),
    """ALTER TABLE ns.entries ALTER name TYPE text COLLATE "C" """: (
        "ns.entries.name is text NOT NULL on the source, text COLLATE C NOT NULL on the target"
    ),
    "ALTER TABLE ns.devices DROP name, ADD name text NOT NULL GENERATED ALWAYS AS ('x') STORED": (
        "ns.devices.name is text NOT NULL on the source, text NOT NULL GENERATED AS 'x'::text on the target"
    ),
    "ALTER TABLE ns.usage_debts DROP CONSTRAINT usage_debts_pkey, ADD PRIMARY KEY (entry_id, ns_id)": (
        "the primary key of ns.usage_debts is (ns_id, entry_id) on the source,"
        " (entry_id, ns_id) on the target"
    ),
    "ALTER TABLE ns.usage_debts DROP CONSTRAINT usage_debts_pkey": (
        "the primary key of ns.usage_debts is (ns_id, entry_id) on the source, (none) on the target"
    ),
}


@pytest.mark.parametrize("change", DIFFERENCES)
def test_a_difference_is_named(shards: Shards, change: str):
    shards.target.execute(change.encode())
    with pytest.raises(TablesDiffer) as raised:
        check_tables(shards.source, shards.target)
    assert DIFFERENCES[change] in str(raised.value)


def test_every_difference_is_named(shards: Shards):
    shards.source.execute("ALTER TABLE ns.members ADD nick text")
    shards.target.execute("ALTER TABLE ns.members ADD age int")
    shards.target.execute("DROP TABLE ns.usage_debts")
    with pytest.raises(TablesDiffer) as raised:
        check_tables(shards.source, shards.target)
    for name in ("ns.members.nick", "ns.members.age", "ns.usage_debts"):
        assert name in str(raised.value)


@pytest.mark.parametrize(
    "table",
    [
        "CREATE TABLE ns.loose (ns_id bigint NOT NULL, n int)",
        "CREATE TABLE ns.loose (ns_id bigint NOT NULL UNIQUE, n int)",
        "CREATE TABLE ns.loose (n int PRIMARY KEY, ns_id bigint)",
        "CREATE TABLE ns.loose (n int, ns_id bigint, PRIMARY KEY (n, ns_id))",
    ],
)
def test_a_key_begins_with_the_namespace(shards: Shards, table: str):
    shards.execute_on_both(table)
    with pytest.raises(NoPrimaryKey, match=r"ns\.loose"):
        check_tables(shards.source, shards.target)


OBSTACLES = {
    "CREATE UNLOGGED TABLE ns.odd (ns_id bigint PRIMARY KEY)": "unlogged",
    "CREATE TABLE ns.odd (ns_id bigint PRIMARY KEY) PARTITION BY RANGE (ns_id)": "partitioned",
    "CREATE TABLE ns.odd (PRIMARY KEY (ns_id)) INHERITS (ns.outbox)": "inherits",
    "CREATE TABLE ns.odd (ns_id bigint PRIMARY KEY DEFERRABLE)": "deferrable",
    "CREATE TABLE ns.odd (ns_id bigint PRIMARY KEY, n bigserial)": "sequence",
    "CREATE TABLE ns.odd (ns_id bigint PRIMARY KEY, n int GENERATED ALWAYS AS IDENTITY)": "sequence",
    "CREATE TABLE ns.odd (ns_id bigint PRIMARY KEY); ALTER TABLE ns.odd REPLICA IDENTITY NOTHING": "identity",
    "CREATE TABLE ns.odd (ns_id bigint PRIMARY KEY); ALTER TABLE ns.odd ENABLE ROW LEVEL SECURITY": "policy",
}


@pytest.mark.parametrize("table", OBSTACLES)
def test_what_a_stream_does_not_carry_is_refused(shards: Shards, table: str):
    shards.execute_on_both(table)
    with pytest.raises(TableNotMovable, match=OBSTACLES[table]):
        check_tables(shards.source, shards.target)


def test_a_table_unlogged_on_the_target_alone_is_refused(shards: Shards):
    shards.target.execute("ALTER TABLE ns.usage_debts SET UNLOGGED")
    with pytest.raises(TableNotMovable, match=r"ns\.usage_debts cannot be moved: it is unlogged"):
        check_tables(shards.source, shards.target)


def test_a_circle_of_references_is_refused(shards: Shards):
    for name in ("hens", "eggs"):
        shards.source.execute(f"CREATE TABLE ns.{name} (ns_id bigint PRIMARY KEY)".encode())
    shards.source.execute("ALTER TABLE ns.hens ADD FOREIGN KEY (ns_id) REFERENCES ns.eggs")
    shards.source.execute("ALTER TABLE ns.eggs ADD FOREIGN KEY (ns_id) REFERENCES ns.hens")
    with pytest.raises(TableNotMovable, match=r"circle: ns\..* → ns\."):
        read_tables(shards.source)
