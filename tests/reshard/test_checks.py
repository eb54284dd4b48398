"""What looks for lost and doubled commits and for leftovers finds them: each is put there, and taken away."""

import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import psycopg
import pytest

from sharding.locks import MOVE_LOCK_CLASS, SLOT_LOCK_CLASS
from tests.reshard.history import Findings
from tests.reshard.leftovers import find_leftovers
from tests.reshard.load import Note, under_load
from tests.reshard.matrix import Kind
from tests.reshard.world import DIRECTORY, World, peopled
from tests.support.dev import DevCluster
from tests.support.waiting import wait_until
from wire.api import Batch, BatchResult, CreateFolder
from wire.ids import Slot, slot_of, system_ns

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
async def world(shared_cluster: DevCluster, own_passfile: None) -> AsyncIterator[World]:
    shared_cluster.ensure_up()
    async with peopled(shared_cluster) as world:
        async with under_load(world.writers, world.readers):
            await wait_until(lambda: all(len(w.notes) > 8 for w in world.writers), "some commits")
        yield world


@pytest.fixture
async def history(world: World) -> AsyncIterator["History"]:
    history = History(world)
    assert (await history.judge()).is_clean
    yield history
    assert (await history.judge()).is_clean, "a test has not taken back what it did"


class History:
    """The first mover's, and what is found of it."""

    def __init__(self, world: World):
        self.world = world
        self.writer, self.reader = world.movers[0], world.readers[0]
        self.before = world.take_picture(world.heads())

    async def judge(self) -> Findings:
        return await self.world.judge(self.before)

    @contextmanager
    def owner(self) -> Iterator[psycopg.Connection]:
        with self.world.connect(self.world.sides(Kind.SLOTS)[0]) as conn:
            yield conn


@contextmanager
def without(conn: psycopg.Connection, table: str, where: str) -> Iterator[None]:
    """Some rows of schema ns are gone while the body runs."""
    conn.execute(f"CREATE TABLE public.kept AS SELECT * FROM ns.{table} WHERE {where}")
    assert conn.execute(f"DELETE FROM ns.{table} WHERE {where}").rowcount == 1
    try:
        yield
    finally:
        conn.execute(f"INSERT INTO ns.{table} SELECT * FROM public.kept")
        conn.execute("DROP TABLE public.kept")


async def test_a_lost_journal_row_is_found(history: History):
    name, note = list(history.writer.notes.items())[2]
    with (
        history.owner() as conn,
        without(conn, "server_file_journal", f"ns_id = {history.writer.root} AND jid = {note.jid}"),
    ):
        found = await history.judge()
    assert [name in text and "journal" in text for text in found.lost] == [True]
    assert any("journal rows are not 1 to" in text for text in found.other)
    assert any("is another one than before" in text for text in found.other)


async def test_a_lost_entry_is_found(history: History):
    name, note = list(history.writer.notes.items())[3]
    with (
        history.owner() as conn,
        without(conn, "entries", f"ns_id = {history.writer.root} AND last_jid = {note.jid}"),
    ):
        found = await history.judge()
    assert [name in text and "listing" in text for text in found.lost] == [True]


async def test_a_commit_that_was_done_twice_is_found(history: History):
    writer, name = history.writer, f"twice-{secrets.token_hex(4)}"
    request = Batch([CreateFolder(path=f"/{name}", autorename=True)])
    jids: list[int] = []
    for _ in range(2):
        result = await writer.device.post("/v1/files/batch", request, BatchResult, secrets.token_hex(16))
        jids.append(result.head)
    writer.notes[name] = Note(jids[0], None)
    await history.reader.read()

    found = await history.judge()
    assert len(found.doubled) == 3
    assert all(f"{name} (1)" in text for text in found.doubled)
    assert {text.split(" ")[0] for text in found.doubled} == {"journal", "deltas", "listing"}
    writer.notes[f"{name} (1)"] = Note(jids[1], None)


async def test_a_row_that_differs_is_found_where_nobody_writes(history: History):
    root = history.world.still_root
    grow = "UPDATE ns.entries SET size = size + %s WHERE ns_id = %s AND entry_id = 2"
    with history.owner() as conn:
        assert conn.execute(grow, [1, root]).rowcount == 1
        found = await history.judge()
        conn.execute(grow, [-1, root])
    assert [text.startswith(f"entries of {root}") for text in found.other] == [True]


async def test_an_answer_older_than_what_was_acknowledged_is_found(history: History):
    history.writer.notes["of tomorrow"] = Note(history.writer.newest + 1, None)
    await history.reader.read()
    del history.writer.notes["of tomorrow"]

    assert (await history.judge()).stale_reads == 1


SHARD_LEFTOVERS = {
    "replication slot: remains": (
        "SELECT pg_create_logical_replication_slot('remains', 'pgoutput')",
        "SELECT pg_drop_replication_slot('remains')",
    ),
    "publication: remains": ("CREATE PUBLICATION remains", "DROP PUBLICATION remains"),
    "subscription: remains": (
        "CREATE SUBSCRIPTION remains CONNECTION 'host=nowhere' PUBLICATION remains WITH (connect = false)",
        "ALTER SUBSCRIPTION remains SET (slot_name = NONE); DROP SUBSCRIPTION remains",
    ),
    "replication origin: remains": (
        "SELECT pg_replication_origin_create('remains')",
        "SELECT pg_replication_origin_drop('remains')",
    ),
    "prepared transaction: remains": (
        "BEGIN; SELECT pg_advisory_xact_lock(1, 999); PREPARE TRANSACTION 'remains'",
        "ROLLBACK PREPARED 'remains'",
    ),
    "1 rows of slot_counters that are not owned here": (
        "INSERT INTO ns.slot_counters VALUES (4095::bigint << 51, 1)",
        "DELETE FROM ns.slot_counters WHERE ns_id = 4095::bigint << 51",
    ),
    "marker of 0 by remains": (
        "INSERT INTO ns.move_markers VALUES (0, 'remains', 1, NULL)",
        "DELETE FROM ns.move_markers WHERE writer = 'remains'",
    ),
    f"lock: class {MOVE_LOCK_CLASS}, key 7": (
        f"SELECT pg_advisory_lock({MOVE_LOCK_CLASS}, 7)",
        f"SELECT pg_advisory_unlock({MOVE_LOCK_CLASS}, 7)",
    ),
    f"{4095 << 51} is i at epoch 3": (
        "INSERT INTO local.ownership (ns_id, epoch, state) VALUES (4095::bigint << 51, 3, 'i')",
        "DELETE FROM local.ownership WHERE ns_id = 4095::bigint << 51",
    ),
}


@pytest.mark.parametrize("line", SHARD_LEFTOVERS)
def test_what_is_left_on_a_shard_is_found(world: World, line: str):
    leave, take_away = SHARD_LEFTOVERS[line]
    with world.connected() as (directory, shards), world.connect("shard-2") as conn:
        for statement in leave.split("; "):
            conn.execute(statement)
        found = find_leftovers(directory, shards)
        for statement in take_away.split("; "):
            conn.execute(statement)
    assert [text for text in found if f"shard-2: {line}" in text], found
    assert world.leftovers() == []


def test_a_lock_of_a_dead_transaction_is_found(world: World):
    with world.connected() as (directory, shards), world.connect("shard-1") as conn:
        conn.execute("BEGIN")
        conn.execute("SELECT pg_advisory_xact_lock_shared(%s, 5)", [SLOT_LOCK_CLASS])
        conn.execute("PREPARE TRANSACTION 'remains'")
        found = find_leftovers(directory, shards)
        conn.execute("ROLLBACK PREPARED 'remains'")
    assert [t for t in found if t.startswith(f"shard-1: lock: class {SLOT_LOCK_CLASS}, key 5, ShareLock")], (
        found
    )
    assert world.leftovers() == []


def test_a_move_that_has_not_ended_is_found(world: World):
    with world.connected() as (directory, shards):
        row = directory.execute(
            "INSERT INTO moves (source, target, state, goal, options)"
            " VALUES ('a', 'b', 'copying', 'ready', '{}') RETURNING move_id"
        ).fetchone()
        assert row is not None
        directory.execute("INSERT INTO move_units VALUES (%s, 0, 0, 1, '{}', 's', true, true)", row)
        found = find_leftovers(directory, shards)
        directory.execute("DELETE FROM move_units")
        directory.execute("DELETE FROM moves")
    kinds = [text.split(": ")[1] for text in found]
    assert kinds == ["live move", "live unit of a move", "half-done cutover"]
    assert world.leftovers() == []


@pytest.mark.parametrize(("state", "owners"), [("a", 2), ("f", 0)])
def test_a_slot_with_two_owners_or_none_is_found(world: World, state: str, owners: int):
    key = system_ns(slot_of(world.still_root))
    home, away = world.sides(Kind.SLOTS)
    shard = away if owners == 2 else home
    with world.connect(shard) as conn:
        before = conn.execute("SELECT state FROM local.ownership WHERE ns_id = %s", [key]).fetchone()
        conn.execute(
            "INSERT INTO local.ownership (ns_id, epoch, state) VALUES (%s, 1, %s)"
            " ON CONFLICT (ns_id) DO UPDATE SET state = excluded.state",
            [key, state],
        )
        complaints, doubled = world.complain_of_owners(), world.find_doubled()
        if before is None:
            conn.execute("DELETE FROM local.ownership WHERE ns_id = %s", [key])
        else:
            conn.execute("UPDATE local.ownership SET state = %s WHERE ns_id = %s", [before[0], key])
    assert [text.startswith(f"owners: {key} is active at") for text in complaints] == [True]
    assert len(doubled) == (owners == 2)
    assert world.complain_of_owners() == world.find_doubled() == []


def test_a_map_that_names_another_epoch_is_found(world: World):
    with world.connect(DIRECTORY) as conn:
        conn.execute("UPDATE shard_map SET epoch = epoch + 1 WHERE slot = 3")
        complaints = world.complain_of_owners()
        conn.execute("UPDATE shard_map SET epoch = epoch - 1 WHERE slot = 3")
    start = f"owners: {system_ns(Slot(3))} is active at"
    assert [text.startswith(start) for text in complaints] == [True]
    assert world.complain_of_owners() == []
