"""Two shards on two servers, as a move meets them: rows to put there, and streams that leave nothing."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import psycopg
import pytest
from psycopg import sql

from sharding.bootstrap import create_cluster
from sharding.directory import Connection
from sharding.reshard import stream
from sharding.reshard.catalog import Table, read_tables
from sharding.reshard.model import Throttle, Unit
from sharding.reshard.pacing import Control, Pacer
from sharding.reshard.scope import rows_of
from sharding.reshard.sites import Site
from tests.support.databases import FreshCluster
from wire.ids import NsId

CATCH_UP_S = 30.0


@dataclass
class TwoShards:
    """A source and a target, each with a connection."""

    cluster_id: str
    source: Site
    target: Site
    source_conn: Connection
    target_conn: Connection
    tables: list[Table]
    pacer: Pacer
    control: "ControlBox"

    @property
    def forth(self) -> str:
        """The name of the stream from source to target."""
        return stream.stream_name(self.cluster_id, 7, is_back=False)

    @property
    def back(self) -> str:
        """The name of the other one."""
        return stream.stream_name(self.cluster_id, 7, is_back=True)

    def stream_forth(self, units: Sequence[Unit]) -> None:
        """Stream from the source to the target from now on."""
        stream.ensure_publication(self.source_conn, self.forth, self.tables, units)
        stream.ensure_slot(self.source_conn, self.forth)
        stream.ensure_subscription(self.target_conn, self.source, self.forth)

    def stream_back(self, units: Sequence[Unit]) -> None:
        """Stream from the target to the source from now on."""
        stream.ensure_publication(self.target_conn, self.back, self.tables, units)
        stream.ensure_slot(self.target_conn, self.back)
        stream.ensure_subscription(self.source_conn, self.target, self.back)

    def catch_up_forth(self) -> None:
        """Return when the target has what the source has."""
        stream.wait_until_caught_up(self.source_conn, self.target_conn, self.forth, CATCH_UP_S)

    def catch_up_back(self) -> None:
        """Return when the source has what the target has."""
        stream.wait_until_caught_up(self.target_conn, self.source_conn, self.back, CATCH_UP_S)

    def drop_streams(self) -> None:
        """Leave nothing of any stream on either shard."""
        for conn in (self.source_conn, self.target_conn):
            for name in stream.list_parts(conn, self.cluster_id).subscriptions:
                stream.drop_subscription(conn, name)
        for conn in (self.source_conn, self.target_conn):
            parts = stream.list_parts(conn, self.cluster_id)
            for name in parts.slots:
                stream.drop_slot(conn, name)
            for name in parts.publications:
                stream.drop_publication(conn, name)


@dataclass
class ControlBox:
    """What the operator wants, to be changed while something runs."""

    throttle: Throttle = field(default_factory=Throttle)
    is_paused: bool = False
    is_interrupted: bool = False
    asked: threading.Event = field(default_factory=threading.Event)

    def __call__(self) -> Control:
        self.asked.set()
        return Control(self.throttle, self.is_paused, self.is_interrupted)


@pytest.fixture
def two_shards(fresh_cluster: FreshCluster) -> Iterator[TwoShards]:
    """Two empty shards of a cluster of 64 slots."""
    cluster_id = create_cluster(fresh_cluster.directory_dsn, fresh_cluster.shards).cluster_id
    source, target = (Site(name, dsn) for name, dsn in fresh_cluster.shard_dsns.items())
    control = ControlBox(Throttle(max_commit_ms=60_000.0))
    with ExitStack() as stack:
        conns = [stack.enter_context(site.connect()) for site in (source, target)]
        pacer = stack.enter_context(Pacer(control, source, target))
        shards = TwoShards(cluster_id, source, target, *conns, read_tables(conns[0]), pacer, control)
        try:
            yield shards
        finally:
            shards.drop_streams()


def put_namespaces(conn: Connection, ns_ids: Sequence[int], head: int = 1) -> None:
    """Write a row of ns.namespaces for each."""
    with conn.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO ns.namespaces (ns_id, head, next_entry_id, modified_us, lost_ranges)"
            " VALUES (%s, %s, 1, 0, '{}')",
            [(ns_id, head) for ns_id in ns_ids],
        )


def list_namespaces(conn: Connection) -> dict[int, int]:
    """The heads of all namespaces of a shard."""
    return dict(conn.execute("SELECT ns_id, head FROM ns.namespaces").fetchall())


def put_journal(conn: Connection, ns_id: NsId, jids: range) -> None:
    """Write journal rows of a namespace: names of any length, and nulls."""
    conn.execute(
        "INSERT INTO ns.server_file_journal (ns_id, jid, entry_id, parent_id, at_us, op, kind, is_deleted,"
        " name, device, content_hash)"
        " SELECT %s, j, j %% 10 + 1, 0, 1700000000000000 + j, 'c', 'f', false,"
        " repeat('é', (1 + j %% 60)::int) || j, CASE j %% 2 WHEN 0 THEN '\\x00ff'::bytea END,"
        " sha256(j::text::bytea)"
        " FROM generate_series(%s::bigint, %s::bigint) j",
        [ns_id, jids.start, jids.stop - 1],
    )


def all_rows(conn: Connection, tables: Sequence[Table], units: Sequence[Unit]) -> dict[str, list[object]]:
    """Every row of some units, by table, in the order of keys."""
    found: dict[str, list[object]] = {}
    for table in tables:
        columns, key = (
            sql.SQL(", ").join(map(sql.Identifier, names)) for names in (sorted(table.columns), table.key)
        )
        statement = sql.SQL("SELECT {} FROM {} WHERE {} ORDER BY {}").format(
            columns, sql.Identifier("ns", table.name), rows_of(units), key
        )
        found[table.name] = list(conn.execute(statement).fetchall())
    return found


def list_slots(conn: Connection) -> set[str]:
    """The replication slots of a shard."""
    rows = conn.execute(
        "SELECT slot_name FROM pg_replication_slots WHERE database = current_database()"
    ).fetchall()
    return {row[0] for row in rows}


def open_transaction(site: Site) -> psycopg.Connection:
    """A connection with a transaction that has written."""
    conn = site.connect()
    conn.execute("BEGIN")
    conn.execute("SELECT pg_current_xact_id()")
    return conn


def fill(conn: Connection, ns_ids: Sequence[NsId], jids: range = range(1, 30)) -> None:
    """Rows in namespaces, in tables of each kind: with nulls, with arrays, and with references."""
    put_namespaces(conn, ns_ids)
    for ns_id in ns_ids:
        put_journal(conn, ns_id, jids)
        conn.execute(
            "INSERT INTO ns.upload_sessions (ns_id, session_id, account_id, parent_id, file_name, file_size,"
            " content_hash, expires_at)"
            " SELECT %s, decode(lpad(i::text, 32, '0'), 'hex'), 'a', 0, 'f', 1, ''::bytea, now()"
            " FROM generate_series(1, 6) i",
            [ns_id],
        )
        conn.execute(
            "INSERT INTO ns.upload_targets (ns_id, session_id, hash, generation, size)"
            " SELECT ns_id, session_id, sha256(i::text::bytea), ''::bytea, 1 FROM ns.upload_sessions,"
            " generate_series(1, 2) i WHERE ns_id = %s",
            [ns_id],
        )
        conn.execute(
            "INSERT INTO ns.blocks (ns_id, hash, generation, size)"
            " SELECT %s, sha256(i::text::bytea), ''::bytea, 1 FROM generate_series(1, 5) i",
            [ns_id],
        )
        conn.execute(
            "INSERT INTO ns.block_claims (ns_id, hash, claimant_ns_id, claim_id)"
            " SELECT ns_id, hash, ns_id, '\\x01' FROM ns.blocks WHERE ns_id = %s",
            [ns_id],
        )


def count_all(conn: Connection, tables: Sequence[Table]) -> int:
    """The rows of all tables, whosever they are."""
    total = 0
    for table in tables:
        row = conn.execute(
            sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier("ns", table.name))
        ).fetchone()
        assert row is not None
        total += row[0]
    return total
