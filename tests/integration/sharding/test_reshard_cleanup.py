"""Deleting what a shard does not own, and nothing else, whatever happens in between."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest

from sharding.directory import Connection
from sharding.locks import SLOT_LOCK_CLASS
from sharding.reshard import cleanup
from sharding.reshard.cleanup import DeleteProgress, count_rows, delete_rows, has_rows
from sharding.reshard.errors import Interrupted, MoveBusy
from sharding.reshard.model import Unit, namespace_unit, slot_unit
from tests.support.two_shards import TwoShards, all_rows, count_all, fill, two_shards
from tests.support.waiting import wait_for
from wire.ids import MAX_COUNT, NsId, Slot, make_ns_id, slot_of, system_ns

__all__ = ["two_shards"]

SLOT = Slot(7)
UNIT = slot_unit(system_ns(SLOT))
INSIDE = [make_ns_id(SLOT, count) for count in (0, 1, 5, MAX_COUNT)]
NEIGHBOURS = [make_ns_id(Slot(6), MAX_COUNT), make_ns_id(Slot(8), 0)]


def own(conn: Connection, key: NsId, state: str | None) -> None:
    """Write an ownership row as a cutover does; None deletes it."""
    with conn.transaction():
        conn.execute("SELECT pg_advisory_xact_lock(%s, %s)", [SLOT_LOCK_CLASS, slot_of(key)])
        conn.execute("DELETE FROM local.ownership WHERE ns_id = %s", [key])
        if state is not None:
            conn.execute("INSERT INTO local.ownership (ns_id, epoch, state) VALUES (%s, 2, %s)", [key, state])


def delete(
    shards: TwoShards,
    units: Sequence[Unit] = (UNIT,),
    on_progress: Callable[[DeleteProgress], None] = lambda _: None,
    batch_rows: int = 1000,
) -> int:
    """Delete from the source."""
    return delete_rows(shards.source, shards.tables, units, shards.pacer, on_progress, batch_rows)


def holders(conn: Connection) -> set[int]:
    """The namespaces that still have journal rows; all of them have as many."""
    rows = conn.execute("SELECT ns_id, count(*) FROM ns.server_file_journal GROUP BY ns_id").fetchall()
    assert len({count for _, count in rows}) <= 1
    return {ns_id for ns_id, _ in rows}


@pytest.mark.parametrize("slot_state", [None, "a", "f", "i", "g"])
def test_only_what_is_gone_goes(two_shards: TwoShards, slot_state: str | None):
    conn = two_shards.source_conn
    by_state = {state: make_ns_id(SLOT, 10 + at) for at, state in enumerate((None, "a", "f", "i", "g"))}
    fill(conn, [*INSIDE, *by_state.values(), *NEIGHBOURS])
    own(conn, UNIT.key, slot_state)
    for state, ns_id in by_state.items():
        own(conn, ns_id, state)
    going = {by_state["g"]}
    if slot_state in (None, "g"):
        going |= {by_state[None], *INSIDE}
    staying = {*INSIDE, *by_state.values(), *NEIGHBOURS} - going
    gone = all_rows(conn, two_shards.tables, [namespace_unit(NsId(ns_id)) for ns_id in sorted(going)])
    kept_units = [namespace_unit(NsId(ns_id)) for ns_id in sorted(staying)]
    kept = all_rows(conn, two_shards.tables, kept_units)

    assert delete(two_shards, batch_rows=50) == sum(map(len, gone.values())) > 0
    assert holders(conn) == staying
    assert all_rows(conn, two_shards.tables, kept_units) == kept
    assert delete(two_shards) == 0


def test_excluded_namespaces_stay(two_shards: TwoShards):
    conn = two_shards.source_conn
    fill(conn, INSIDE)
    own(conn, UNIT.key, "g")
    delete(two_shards, [slot_unit(UNIT.key, (INSIDE[2],))], batch_rows=7)
    assert holders(conn) == {INSIDE[2]}


def test_a_single_namespace_goes_alone(two_shards: TwoShards):
    conn = two_shards.source_conn
    fill(conn, INSIDE)
    own(conn, UNIT.key, "a")
    own(conn, INSIDE[1], "g")
    delete(two_shards, [namespace_unit(INSIDE[1])])
    assert holders(conn) == {*INSIDE} - {INSIDE[1]}
    delete(two_shards, [namespace_unit(INSIDE[2])])  # the slot's row says that it is here
    assert holders(conn) == {*INSIDE} - {INSIDE[1]}


@pytest.mark.parametrize("batch_rows", [1, 2, 29, 30, 1000])
def test_batches_are_no_larger_than_told_and_come_to_an_end(two_shards: TwoShards, batch_rows: int):
    conn = two_shards.source_conn
    fill(conn, INSIDE[:2], range(1, 16))
    own(conn, UNIT.key, "g")
    total, told = count_all(conn, two_shards.tables), [0]
    assert (
        delete(two_shards, on_progress=lambda p: told.append(p.deleted_rows), batch_rows=batch_rows) == total
    )
    sizes = [after - before for before, after in pairwise(told)]
    assert sum(sizes) == total
    assert 0 < min(sizes) <= max(sizes) <= batch_rows
    assert count_all(conn, two_shards.tables) == 0


@pytest.mark.parametrize("state", ["a", "i"], ids=["active", "importing"])
def test_a_slot_that_comes_back_keeps_what_is_left(two_shards: TwoShards, state: str):
    conn = two_shards.source_conn
    fill(conn, INSIDE)
    own(conn, UNIT.key, "g")
    total, deleted = count_all(conn, two_shards.tables), []

    def come_back(progress: DeleteProgress) -> None:
        deleted.append(progress.deleted_rows)
        own(conn, UNIT.key, state)

    assert delete(two_shards, on_progress=come_back, batch_rows=10) == deleted[0] == 10
    assert len(deleted) == 1
    assert count_all(conn, two_shards.tables) == total - 10


def test_a_pinned_namespace_that_comes_in_between_stays(two_shards: TwoShards):
    conn = two_shards.source_conn
    fill(conn, INSIDE[1:3])
    own(conn, UNIT.key, "g")
    pinned = make_ns_id(SLOT, 7)

    def come(progress: DeleteProgress) -> None:
        if progress.deleted_rows == 10:
            own(conn, pinned, "a")
            fill(conn, [pinned])

    delete(two_shards, on_progress=come, batch_rows=10)
    assert all_rows(conn, two_shards.tables, [namespace_unit(pinned)])["upload_targets"]
    assert holders(conn) == {pinned}


def test_a_held_slot_is_told_of_and_nothing_is_deleted(
    two_shards: TwoShards, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(cleanup, "LOCK_TIMEOUT", "200ms")
    conn = two_shards.source_conn
    fill(conn, INSIDE)
    own(conn, UNIT.key, "g")
    with two_shards.source.connect() as fencer, fencer.transaction():
        fencer.execute("SELECT pg_advisory_xact_lock(%s, %s)", [SLOT_LOCK_CLASS, SLOT])
        with pytest.raises(MoveBusy, match="somebody holds slot 7 on shard-1"):
            delete(two_shards)
        assert holders(conn) == {*INSIDE}
    with two_shards.source.connect() as writer, writer.transaction():
        writer.execute("SELECT pg_advisory_xact_lock_shared(%s, %s)", [SLOT_LOCK_CLASS, SLOT])
        delete(two_shards)
    assert count_all(conn, two_shards.tables) == 0


def test_a_deletion_that_is_stopped_goes_on_where_it_was(two_shards: TwoShards):
    conn = two_shards.source_conn
    fill(conn, INSIDE)
    own(conn, UNIT.key, "g")
    total = count_all(conn, two_shards.tables)

    def stop(progress: DeleteProgress) -> None:
        if progress.deleted_rows >= 30:
            raise Interrupted("by the test")

    with pytest.raises(Interrupted):
        delete(two_shards, on_progress=stop, batch_rows=10)
    left = count_all(conn, two_shards.tables)
    assert left == total - 30
    wait_for(lambda: _locks(conn) == 0, "its locks gone")
    assert delete(two_shards) == left


def _locks(conn: Connection) -> int:
    row = conn.execute(
        "SELECT count(*) FROM pg_locks l JOIN pg_database d ON d.oid = l.database"
        " WHERE d.datname = current_database() AND l.locktype = 'advisory'"
    ).fetchone()
    assert row is not None
    return int(row[0])


def test_rows_are_counted_whosever_they_are(two_shards: TwoShards):
    conn = two_shards.source_conn
    assert not has_rows(two_shards.source, two_shards.tables, [UNIT])
    assert count_rows(two_shards.source, two_shards.tables, [UNIT]) == 0
    fill(conn, [*INSIDE, *NEIGHBOURS])
    wanted = sum(map(len, all_rows(conn, two_shards.tables, [UNIT]).values()))
    assert count_rows(two_shards.source, two_shards.tables, [UNIT]) == wanted
    assert has_rows(two_shards.source, two_shards.tables, [UNIT])
    only = slot_unit(system_ns(Slot(6)), (NEIGHBOURS[0],))
    assert not has_rows(two_shards.source, two_shards.tables, [only])
    # One row of the last table is enough.
    conn.execute("INSERT INTO ns.move_markers (ns_id, writer, seq) VALUES (%s, 'w', 1)", [Slot(9) << 51])
    assert has_rows(two_shards.source, two_shards.tables, [slot_unit(system_ns(Slot(9)))])
