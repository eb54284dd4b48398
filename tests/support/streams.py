"""Two shards with a stream each way between them, as a move that is ready has them, and rows to compare.

`python -m tests.support.streams OWNER DSN FOLLOWER DSN FOLDER` compares them in a process of its own, which a
test may kill: it goes on from FOLDER/progress, and writes FOLDER/report.
"""

import secrets
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random

import msgspec
import pytest
from psycopg import sql

from sharding.directory import Connection
from sharding.locks import SLOT_LOCK_CLASS
from sharding.reshard.catalog import Table, check_tables
from sharding.reshard.marker import bump_marker, wait_for_marker
from sharding.reshard.model import Throttle, Unit, slot_unit
from sharding.reshard.pacing import Control, Pacer
from sharding.reshard.sites import Site
from sharding.reshard.stream import (
    drop_publication,
    drop_slot,
    drop_subscription,
    ensure_publication,
    ensure_slot,
    ensure_subscription,
    stream_name,
)
from sharding.reshard.verify import Verified, VerifyReport, verify_units
from tests.support.databases import FreshCluster
from wire import faults
from wire.ids import NsId, Slot, slot_of, system_ns

UNITS = (slot_unit(system_ns(Slot(3))), slot_unit(system_ns(Slot(4))), slot_unit(system_ns(Slot(9))))
MOVE_ID = 7


@dataclass(repr=False)
class StreamPair:
    """An owner, a follower that applies its writes, and what is between them."""

    owner: Site
    follower: Site
    tables: Sequence[Table]
    units: Sequence[Unit]
    ours: Connection
    """To the owner."""
    theirs: Connection
    """To the follower."""
    name: str
    """Of the stream from the owner to the follower."""
    back: str
    """Of the other one."""
    saved: list[Verified] = field(default_factory=list[Verified])
    """What comparisons said of their progress."""

    def verify(
        self, progress: Verified | None = None, on_save: Callable[[Verified], None] = lambda _: None
    ) -> VerifyReport:
        """Compare; `on_save` is told after each chunk."""

        def save(done: Verified) -> None:
            self.saved.append(done)
            on_save(done)

        with Pacer(lambda: Control(Throttle())) as pacer:
            return verify_units(
                self.owner, self.follower, self.tables, self.units, MOVE_ID, progress, save, pacer
            )

    def turned(self) -> "StreamPair":
        """The same after a switch: the follower owns."""
        return replace(
            self,
            owner=self.follower,
            follower=self.owner,
            ours=self.theirs,
            theirs=self.ours,
            name=self.back,
            back=self.name,
        )

    def stop_way_back(self) -> None:
        """Let the owner not have what is written to the follower from now on."""
        self.ours.execute(sql.SQL("ALTER SUBSCRIPTION {} DISABLE").format(sql.Identifier(self.back)))

    def catch_up(self) -> None:
        """Return when the follower has all that the owner has committed."""
        key = self.units[0].key
        with self.ours.transaction():
            self.ours.execute("SELECT pg_advisory_xact_lock(%s, %s)", [SLOT_LOCK_CLASS, slot_of(key)])
            seq = bump_marker(self.ours, key, self.owner.name)
        wait_for_marker(self.theirs, key, self.owner.name, seq, 30.0)


@contextmanager
def open_streams(cluster: FreshCluster, units: Sequence[Unit] = UNITS) -> Iterator[StreamPair]:
    """Streams both ways between the two shards of a cluster, whose tables are the same."""
    owner, follower = (Site(name, dsn) for name, dsn in cluster.shard_dsns.items())
    cluster_id = secrets.token_hex(8)
    there = stream_name(cluster_id, MOVE_ID, is_back=False)
    back = stream_name(cluster_id, MOVE_ID, is_back=True)
    with owner.connect() as ours, follower.connect() as theirs:
        tables = check_tables(ours, theirs)
        try:
            for site, conn, other, name in ((owner, ours, theirs, there), (follower, theirs, ours, back)):
                ensure_publication(conn, name, tables, units)
                ensure_slot(conn, name)
                ensure_subscription(other, site, name)
            yield StreamPair(owner, follower, tables, units, ours, theirs, there, back)
        finally:
            for conn, other, name in ((ours, theirs, there), (theirs, ours, back)):
                drop_subscription(other, name)
                drop_slot(conn, name)
                drop_publication(conn, name)


@pytest.fixture
def streams(fresh_cluster: FreshCluster) -> Iterator[StreamPair]:
    """Streams of three slots, two of them neighbours, between shards with no rows yet."""
    with open_streams(fresh_cluster) as pair:
        yield pair


def write_namespace(conn: Connection, ns_id: NsId, rows: int) -> None:
    """Insert a namespace with so many rows in each of some tables, of every type of key that there is."""
    params = {"ns": ns_id, "rows": rows}
    with conn.transaction():
        for statement in _NAMESPACE:
            conn.execute(statement, params)


_NAMESPACE = (
    "INSERT INTO ns.namespaces VALUES (%(ns)s, %(rows)s, %(rows)s, 0, ARRAY[1, 2, 3, 4], 0)",
    "INSERT INTO ns.server_file_journal (ns_id, jid, entry_id, parent_id, at_us, op, kind, is_deleted, name,"
    " old_path, content_hash) SELECT %(ns)s, j, j, 0, 1700000000000000 + j, 'c', 'f', j %% 2 = 0,"
    " 'größe, \"' || j || '\\', nullif('', repeat('x', j %% 2)), sha256(j::text::bytea)"
    " FROM generate_series(1, %(rows)s) j",
    # In the order of the locale, or of the bytes: it is not the same.
    "INSERT INTO ns.members SELECT %(ns)s, chr(60 + j %% 60) || ' ' || j, 'e'"
    " FROM generate_series(1, %(rows)s) j",
    "INSERT INTO ns.blocks SELECT %(ns)s, sha256(j::text::bytea), '\\x00ff', j"
    " FROM generate_series(1, %(rows)s) j",
    "INSERT INTO ns.block_claims SELECT %(ns)s, sha256(j::text::bytea), j, '\\x00'"
    " FROM generate_series(1, %(rows)s) j",
)


@contextmanager
def writers(pair: StreamPair, ns_ids: Sequence[NsId], count: int = 3) -> Iterator[list[int]]:
    """Commit to the owner from several threads, in the manner of `run_tx`; how many commits each one made.

    Raises:
        BaseException: what a writer met.
    """
    is_over = threading.Event()
    commits = [0] * count
    failures: list[BaseException] = []

    def write(number: int) -> None:
        try:
            with pair.owner.connect() as conn:
                random = Random(number)
                while not is_over.is_set():
                    _write_once(conn, random, random.choice(ns_ids))
                    commits[number] += 1
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=[number]) for number in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield commits
    finally:
        is_over.set()
        for thread in threads:
            thread.join()
    for failure in failures:
        raise failure


def _write_once(conn: Connection, random: Random, ns_id: NsId) -> None:
    params = {"ns": ns_id, "name": str(random.randrange(50))}
    with conn.transaction():
        conn.execute("SELECT pg_advisory_xact_lock_shared(%s, %s)", [SLOT_LOCK_CLASS, slot_of(ns_id)])
        conn.execute("SELECT pg_advisory_xact_lock(%s)", [ns_id])
        for statement in _WRITES[: random.randint(1, len(_WRITES))]:
            conn.execute(statement, params)


_WRITES = (
    "UPDATE ns.namespaces SET head = head + 1 WHERE ns_id = %(ns)s",
    "INSERT INTO ns.outbox SELECT ns_id, head FROM ns.namespaces WHERE ns_id = %(ns)s"
    " ON CONFLICT (ns_id) DO UPDATE SET jid = excluded.jid",
    "INSERT INTO ns.members VALUES (%(ns)s, %(name)s, 'e') ON CONFLICT (ns_id, account_id)"
    """ DO UPDATE SET level = chr(97 + (ascii(members.level::text) - 96) %% 26)::"char" """,
    "DELETE FROM ns.outbox WHERE ns_id = %(ns)s",
    "DELETE FROM ns.members WHERE ns_id = %(ns)s AND account_id = %(name)s",
)


def main() -> None:
    """Compare, until killed."""
    owner, follower = (Site(*sys.argv[i : i + 2]) for i in (1, 3))
    folder = Path(sys.argv[5])
    kept = folder / "progress"
    faults.arm_from_environment()
    with owner.connect() as ours, follower.connect() as theirs:
        tables = check_tables(ours, theirs)

    def save(done: Verified) -> None:
        kept.write_bytes(msgspec.json.encode(done))

    progress = msgspec.json.decode(kept.read_bytes(), type=Verified) if kept.exists() else None
    with Pacer(lambda: Control(Throttle())) as pacer:
        report = verify_units(owner, follower, tables, UNITS, MOVE_ID, progress, save, pacer)
    (folder / "report").write_bytes(msgspec.json.encode(report))


if __name__ == "__main__":
    main()
