"""Shards that come and go, and what `shardctl plan` makes of them."""

import io
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from ops.errors import (
    EXIT_BUSY,
    EXIT_CONFLICT,
    EXIT_FAILURE,
    EXIT_NOT_FOUND,
    EXIT_OK,
    EXIT_UNAVAILABLE,
    EXIT_USAGE,
    MigrationBusy,
)
from ops.migrate import migrate_databases, migration_lock
from ops.ports import reserve_port
from ops.restore.directory import ask_shards, write_directory
from ops.shards import read_dsn
from sharding.bootstrap import create_cluster
from sharding.directory import Connection, list_pins, list_shards, load_map_sync
from sharding.locks import MIGRATION_LOCK_CLASS
from sharding.reshard.errors import MoveConflict
from sharding.reshard.model import STREAMED, Goal, MoveOptions, MoveState, Unit, slot_unit
from sharding.reshard.records import (
    insert_move,
    lock_map,
    publish_placement,
    withdraw_override,
)
from sharding.shardmap import Pin, Placement
from tests.integration.ops.test_commands import Shardctl
from tests.support.commands import OPERATOR, run_command
from tests.support.databases import FreshCluster, PgServers, drop_database
from wire.ids import NsId, Slot, make_ns_id, system_ns

POINTS = ("ops.shard.migrated", "ops.shard.signed", "ops.shard.recorded")


@pytest.fixture
def alone(fresh_cluster: FreshCluster) -> Shardctl:
    """A cluster of shard-1 alone; shard-2's database is there, migrated and empty."""
    create_cluster(fresh_cluster.directory_dsn, fresh_cluster.shards[:1])
    return Shardctl(fresh_cluster.directory_dsn)


@pytest.fixture
def both(fresh_cluster: FreshCluster) -> Shardctl:
    """A cluster of both."""
    create_cluster(fresh_cluster.directory_dsn, fresh_cluster.shards)
    return Shardctl(fresh_cluster.directory_dsn)


@pytest.fixture
def directory(fresh_cluster: FreshCluster) -> Iterator[Connection]:
    """A connection to the directory."""
    with psycopg.connect(fresh_cluster.directory_dsn, autocommit=True) as conn:
        yield conn


@pytest.fixture
def second(fresh_cluster: FreshCluster, tmp_path: Path) -> str:
    """The option that names shard-2's database."""
    return in_file(tmp_path, fresh_cluster.shard_dsns["shard-2"])


@pytest.fixture
def blank(pg_servers: PgServers) -> Iterator[str]:
    """The address of a database with nothing in it, on a server that has no shard."""
    name = f"t_{secrets.token_hex(6)}"
    pg_servers.directory.ensure_database(name)
    yield pg_servers.directory.dsn(name)
    drop_database(pg_servers.directory, name)


def in_file(folder: Path, text: str) -> str:
    path = folder / f"dsn-{secrets.token_hex(4)}"
    path.write_text(text + "\n")
    return f"--dsn-file={path}"


def shards_of(shardctl: Shardctl) -> dict[str, Any]:
    return {shard["name"]: shard for shard in shardctl.json("shard", "list")["shards"]}


def version_of(shardctl: Shardctl) -> int:
    return int(shardctl.json("map", "show")["version"])


# ---- Adding


def test_a_shard_is_added_once_and_holds_nothing(alone: Shardctl, second: str, tmp_path: Path) -> None:
    options = (second, "--weight=3", "--label=region=eu", "--label", "tier=1")
    options = (*options, in_file(tmp_path, "host=inside dbname=x").replace("--dsn", "--replication-dsn"))

    added = alone.json("shard", "add", "shard-2", *options)

    assert (added["slot_count"], added["weight"], added["state"]) == (0, 3, "in_service")
    assert added["labels"] == {"region": "eu", "tier": "1"}
    assert added["replication_dsn"] == "host=inside dbname=x"
    assert shards_of(alone)["shard-2"] == added
    assert version_of(alone) == 2  # so servers take the new map
    assert alone.json("shard", "add", "shard-2", *options) == added
    assert version_of(alone) == 2
    assert alone.error("shard", "add", "shard-2", second) == (EXIT_CONFLICT, "shard_exists")


@pytest.mark.long
def test_cut_at_each_step_a_shard_is_added_all_the_same(alone: Shardctl, blank: str, tmp_path: Path) -> None:
    option = in_file(tmp_path, blank)
    for point, is_known in zip(POINTS, (False, False, True), strict=True):
        done = alone.run("shard", "add", "shard-2", option, fault=point)

        assert done.returncode == -9, done.stderr
        assert ("shard-2" in shards_of(alone)) == is_known
    assert alone.json("shard", "add", "shard-2", option)["is_reachable"]
    assert version_of(alone) == 2
    with psycopg.connect(blank) as conn:
        assert conn.execute("SELECT shard FROM local.cluster").fetchone() == ("shard-2",)
        assert conn.execute("SELECT count(*) FROM local.ownership").fetchone() == (0,)


def test_an_address_on_standard_input_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("postgresql://me@host/db\n"))

    assert read_dsn(Path("-")) == "postgresql://me@host/db"


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://me:secret@host/db",  # pragma: allowlist secret
        "host=h dbname=d password=secret",  # pragma: allowlist secret
        "no address",
        "dbname=d",
    ],
)
def test_an_address_with_a_password_or_without_a_host_is_refused(
    alone: Shardctl, tmp_path: Path, text: str
) -> None:
    done = alone.run("shard", "add", "shard-2", in_file(tmp_path, text))

    assert (done.returncode, done.stderr.split(": ")[1]) == (EXIT_USAGE, "usage")
    assert "secret" not in done.stdout + done.stderr
    assert ("PGPASSFILE" in done.stderr) == ("secret" in text)


@pytest.mark.parametrize(
    "args", [["directory"], ["a b"], ["shard-2", "--label=region"], ["shard-2", "--weight=0"]]
)
def test_options_that_make_no_sense_are_refused(alone: Shardctl, second: str, args: list[str]) -> None:
    assert alone.run("shard", "add", *args, second).returncode == EXIT_USAGE
    assert list(shards_of(alone)) == ["shard-1"]


def test_a_database_that_is_no_empty_one_of_its_own_is_refused(
    alone: Shardctl, second: str, fresh_cluster: FreshCluster
) -> None:
    with psycopg.connect(fresh_cluster.shard_dsns["shard-2"], autocommit=True) as conn:
        conn.execute("INSERT INTO ns.outbox (ns_id, jid) VALUES (1, 1)")
        assert alone.error("shard", "add", "shard-2", second) == (EXIT_CONFLICT, "shard_taken")
        conn.execute("DELETE FROM ns.outbox")
        conn.execute("INSERT INTO local.cluster VALUES (1, 'another', 64, 'shard-2')")
        assert alone.error("shard", "add", "shard-2", second) == (EXIT_CONFLICT, "shard_taken")
        conn.execute("DELETE FROM local.cluster")
    assert alone.json("shard", "add", "shard-2", second)["slot_count"] == 0


def test_two_shards_are_on_two_servers(
    alone: Shardctl, fresh_cluster: FreshCluster, pg_servers: PgServers, tmp_path: Path
) -> None:
    beside = make_conninfo(fresh_cluster.shard_dsns["shard-1"], dbname="postgres")

    assert alone.error("shard", "add", "shard-2", in_file(tmp_path, beside)) == (
        EXIT_FAILURE,
        "move_refused",
    )
    with pg_servers.shards[0].connect() as conn:
        assert conn.execute("SELECT to_regnamespace('ns')").fetchone() == (None,)  # nothing was begun


def test_a_shard_that_does_not_answer_is_not_added(alone: Shardctl, tmp_path: Path) -> None:
    held = reserve_port()
    nowhere = in_file(tmp_path, f"postgresql://shardbox@127.0.0.1:{held.port}/nowhere")

    assert alone.error("shard", "add", "shard-2", nowhere) == (EXIT_UNAVAILABLE, "shard_unavailable")
    held.close()


def test_a_shard_is_added_beside_moves_and_not_beside_a_migration(
    alone: Shardctl, second: str, fresh_cluster: FreshCluster, directory: Connection
) -> None:
    with migration_lock(fresh_cluster.directory_dsn):
        assert alone.error("shard", "add", "shard-2", second) == (EXIT_BUSY, "migration_busy")

    directory.execute("SELECT pg_advisory_lock_shared(%s, 0)", [MIGRATION_LOCK_CLASS])
    assert alone.json("shard", "add", "shard-2", second)["slot_count"] == 0


@pytest.mark.long
def test_tables_are_not_changed_under_a_move_that_streams_even_if_nobody_runs_it(
    both: Shardctl, directory: Connection, fresh_cluster: FreshCluster
) -> None:
    move = begin_move(directory)
    for state in MoveState:
        directory.execute("UPDATE moves SET state = %s", [state])
        if state in STREAMED:
            with pytest.raises(MigrationBusy, match=f"{move} \\({state}\\)"):
                migrate_databases(fresh_cluster.directory_dsn)
    directory.execute("UPDATE moves SET state = 'soaking'")

    assert both.error("migrate") == (EXIT_BUSY, "migration_busy")
    assert both.run("migrate", "--dry-run").returncode == EXIT_OK
    for state in ("planned", "deleting"):
        directory.execute("UPDATE moves SET state = %s", [state])
        migrate_databases(fresh_cluster.directory_dsn).raise_for_failures()


def begin_move(directory: Connection) -> int:
    """A move from shard-1 to shard-2."""
    slot = both_slots(directory)["shard-1"][0]
    units = [slot_unit(system_ns(slot))]
    return insert_move(directory, "shard-1", "shard-2", units, MoveOptions(), Goal.COMPLETED).move_id


def both_slots(directory: Connection) -> dict[str, list[Slot]]:
    rows = directory.execute("SELECT shard, array_agg(slot ORDER BY slot) FROM shard_map GROUP BY shard")
    return {shard: list(map(Slot, slots)) for shard, slots in rows}


def test_weight_labels_and_addresses_can_be_changed(
    both: Shardctl, fresh_cluster: FreshCluster, tmp_path: Path
) -> None:
    elsewhere = fresh_cluster.shard_dsns["shard-2"] + "?keepalives_idle=9"

    changed = both.json(
        "shard", "set", "shard-2", "--weight=2", "--label=region=eu", "--label=tier=1",
        in_file(tmp_path, elsewhere),
    )  # fmt: skip

    assert (changed["weight"], changed["labels"]) == (2, {"region": "eu", "tier": "1"})
    assert (changed["dsn"], changed["slot_count"]) == (elsewhere, 32)
    assert version_of(both) == 2
    assert both.json("shard", "set", "shard-2", "--weight=2")["weight"] == 2
    assert version_of(both) == 2  # nothing has changed
    assert both.json("shard", "set", "shard-2", "--no-label=tier")["labels"] == {"region": "eu"}
    assert {m["target"] for m in both.json("plan")["moves"]} == {"shard-2"}
    wrong = in_file(tmp_path, fresh_cluster.shard_dsns["shard-1"])
    assert both.error("shard", "set", "shard-2", wrong) == (EXIT_CONFLICT, "shard_taken")
    assert both.error("shard", "set", "shard-9", "--weight=2") == (EXIT_NOT_FOUND, "not_found")


def test_a_directory_without_a_cluster_gets_no_shard(fresh_cluster: FreshCluster, second: str) -> None:
    shardctl = Shardctl(fresh_cluster.directory_dsn)

    assert shardctl.error("shard", "add", "shard-2", second) == (EXIT_UNAVAILABLE, "no_cluster")
    assert shardctl.error("plan") == (EXIT_UNAVAILABLE, "no_cluster")


def test_what_is_recorded_of_shards_is_in_a_directory_that_is_rebuilt(
    both: Shardctl, directory: Connection, fresh_cluster: FreshCluster
) -> None:
    directory.execute(
        "UPDATE shards SET weight = 3, labels = '{\"region\": \"eu\"}', state = 'draining',"
        " replication_dsn = 'host=inside dbname=x' WHERE name = 'shard-2'"
    )
    kept = load_map_sync(directory)
    found = ask_shards(fresh_cluster.shard_dsns, kept, [])
    directory.execute("TRUNCATE cluster, shards, shard_map, overrides, pins")

    write_directory(fresh_cluster.directory_dsn, found, print, is_dry_run=False)

    rebuilt = load_map_sync(directory)
    assert rebuilt.shards == kept.shards
    assert rebuilt.shards["shard-2"].replication_dsn == "host=inside dbname=x"
    assert (rebuilt.slots, rebuilt.version > kept.version) == (kept.slots, True)


def test_a_directory_that_is_rebuilt_pins_what_lay_by_itself(
    both: Shardctl, directory: Connection, fresh_cluster: FreshCluster
) -> None:
    ns_id = make_ns_id(Slot(0), 5)
    holder = load_map_sync(directory).slots[0].shard
    with psycopg.connect(fresh_cluster.shard_dsns[holder], autocommit=True) as shard:
        shard.execute("INSERT INTO local.ownership (ns_id, epoch, state) VALUES (%s, 7, 'a')", [ns_id])
    found = ask_shards(fresh_cluster.shard_dsns, None, [])
    directory.execute("TRUNCATE cluster, shards, shard_map, overrides, pins")

    write_directory(fresh_cluster.directory_dsn, found, print, is_dry_run=False)

    assert load_map_sync(directory).overrides == {ns_id: Placement(holder, 7)}
    assert list_pins(directory) == {ns_id: Pin(shard=holder)}
    again = insert_move(directory, *other_way(directory, Slot(3)), MoveOptions(), Goal.READY)
    assert again.move_id > 1_000_000  # streams of moves that the lost directory knew may be there


def other_way(directory: Connection, slot: Slot) -> tuple[str, str, list[Unit]]:
    """Source, target and unit of a move of a slot."""
    shard_map = load_map_sync(directory)
    source = shard_map.slots[slot].shard
    return source, next(name for name in shard_map.shards if name != source), [slot_unit(system_ns(slot))]


def test_a_shard_that_drains_takes_nothing(both: Shardctl, directory: Connection) -> None:
    source, target, units = other_way(directory, Slot(3))
    both.json("shard", "drain", target)
    with pytest.raises(MoveConflict, match=f"{target} drains"):
        insert_move(directory, source, target, units, MoveOptions(), Goal.READY)


# ---- Draining, planning


def test_a_plan_fills_a_new_shard_and_then_empties_one_that_drains(alone: Shardctl, second: str) -> None:
    assert alone.json("plan")["moves"] == []
    assert alone.run("plan").stdout.endswith("nothing is to be moved\n")
    alone.json("shard", "add", "shard-2", second)

    grown = alone.json("plan")
    text = alone.run("plan").stdout

    assert {(m["source"], m["target"], m["namespace"]) for m in grown["moves"]} == {
        ("shard-1", "shard-2", None)
    }
    assert sum(len(m["slots"]) for m in grown["moves"]) == grown["slots"] == 28
    assert [(s["name"], s["slots_before"], s["slots_after"]) for s in grown["shards"]] == [
        ("shard-1", 64, 36),
        ("shard-2", 0, 28),
    ]
    assert max(s["over_fair"] for s in grown["shards"]) <= 1.15
    assert grown["is_exact"]
    assert "shard-1 is above its share, shard-2 below" in text

    drained = alone.json("shard", "drain", "shard-1")

    assert (drained["state"], drained["has_changed"], drained["plan"]["slots"]) == ("draining", True, 64)
    assert alone.json("shard", "drain", "shard-1")["has_changed"] is False
    assert {m["reason"] for m in alone.json("plan")["moves"]} == {"shard-1 drains"}
    assert shards_of(alone)["shard-1"]["state"] == "draining"
    undone = alone.json("shard", "drain", "shard-1", "--undo")
    assert (undone["state"], undone["plan"]["slots"]) == ("in_service", 28)


def test_a_plan_tells_how_much_moves(alone: Shardctl, second: str, fresh_cluster: FreshCluster) -> None:
    alone.json("shard", "add", "shard-2", second)
    with psycopg.connect(fresh_cluster.shard_dsns["shard-1"]) as conn:
        conn.execute(
            "INSERT INTO ns.outbox (ns_id, jid)"
            " SELECT slot << 51 | n, 1 FROM generate_series(0, 63::bigint) slot, generate_series(1, 100) n"
        )

    plan = alone.json("plan", "--mb-per-s=0.001")

    assert plan["rows"] == sum(m["rows"] for m in plan["moves"]) == 2_800
    assert plan["data_share"] == round(28 / 64, 4)
    assert abs(plan["expected_s"] - plan["bytes"] / 1_000) < 1
    sizes = {s["name"]: (s["bytes_before"], s["bytes_after"]) for s in plan["shards"]}
    assert sizes["shard-1"][0] - sizes["shard-1"][1] == sizes["shard-2"][1] == plan["bytes"] > 0


def test_a_plan_by_activity_parts_what_is_busy(
    alone: Shardctl, second: str, fresh_cluster: FreshCluster
) -> None:
    alone.json("shard", "add", "shard-2", second)
    busy = [0, 1, 2, 3]
    with psycopg.connect(fresh_cluster.shard_dsns["shard-1"]) as conn:
        conn.execute(
            "INSERT INTO local.activity (key, at, writes, reads, content_bytes)"
            " SELECT slot << 51, now(), 1000, 1000, 0 FROM unnest(%s::bigint[]) slot",
            [busy],
        )

    leaving = {slot for m in alone.json("plan", "--by=activity")["moves"] for slot in m["slots"]}

    assert len(leaving & set(busy)) == 2


def test_what_is_being_moved_is_no_part_of_a_plan(
    alone: Shardctl, second: str, directory: Connection
) -> None:
    alone.json("shard", "add", "shard-2", second)
    begin_move(directory)

    plan = alone.json("plan")

    assert plan["slots"] == 27
    assert 0 not in {slot for m in plan["moves"] for slot in m["slots"]}


def test_a_drain_that_breaks_a_pin_is_refused_with_the_name(both: Shardctl, directory: Connection) -> None:
    ns_id = make_ns_id(both_slots(directory)["shard-1"][0], 5)
    directory.execute("INSERT INTO pins (ns_id, shard) VALUES (%s, 'shard-1')", [ns_id])

    done = both.run("shard", "drain", "shard-1")

    assert (done.returncode, done.stderr.split(": ")[1]) == (EXIT_CONFLICT, "pin_unmet")
    assert str(ns_id) in done.stderr
    assert shards_of(both)["shard-1"]["state"] == "in_service"
    assert both.error("shard", "drain", "shard-9") == (EXIT_NOT_FOUND, "not_found")


def test_the_last_shard_in_service_does_not_drain(both: Shardctl) -> None:
    both.json("shard", "drain", "shard-1")

    assert both.error("shard", "drain", "shard-2") == (EXIT_CONFLICT, "plan_refused")
    assert shards_of(both)["shard-2"]["state"] == "in_service"


# ---- Removing


def test_a_shard_that_has_something_is_not_removed(
    both: Shardctl, directory: Connection, fresh_cluster: FreshCluster
) -> None:
    in_use = (EXIT_CONFLICT, "shard_in_use")
    move = begin_move(directory)

    done = both.run("shard", "remove", "shard-2")

    assert f"holds 32 slots; it is in the moves {move}" in done.stderr
    assert both.error("shard", "remove", "shard-2") == in_use
    directory.execute("UPDATE shard_map SET shard = 'shard-1'")
    assert both.error("shard", "remove", "shard-2") == in_use  # the move
    directory.execute("UPDATE moves SET state = 'completed', ended_at = now()")
    directory.execute("INSERT INTO pins (ns_id, shard) VALUES (1, 'shard-2')")
    assert both.error("shard", "remove", "shard-2") == in_use
    directory.execute("DELETE FROM pins")
    assert both.error("shard", "remove", "shard-2") == in_use  # its ownership rows are active
    with psycopg.connect(fresh_cluster.shard_dsns["shard-2"], autocommit=True) as conn:
        conn.execute("UPDATE local.ownership SET state = 'g'")
        conn.execute("INSERT INTO ns.outbox (ns_id, jid) VALUES (1, 1)")
        assert both.error("shard", "remove", "shard-2") == in_use
        conn.execute("DELETE FROM ns.outbox")
    assert list(shards_of(both)) == ["shard-1", "shard-2"]
    assert both.json("shard", "remove", "shard-2") == {"name": "shard-2", "is_removed": True}
    assert both.error("shard", "remove", "shard-2") == (EXIT_NOT_FOUND, "not_found")


@pytest.mark.long
def test_cut_at_each_step_a_shard_is_removed_all_the_same_and_can_be_added_again(
    alone: Shardctl, second: str, fresh_cluster: FreshCluster
) -> None:
    alone.json("shard", "add", "shard-2", second)
    with psycopg.connect(fresh_cluster.shard_dsns["shard-2"]) as conn:
        conn.execute("INSERT INTO local.ownership (ns_id, epoch, state) VALUES (0, 7, 'g')")
    for point, is_left in (("ops.shard.cleared", True), ("ops.shard.removed", False)):
        done = alone.run("shard", "remove", "shard-2", fault=point)

        assert done.returncode == -9, done.stderr
        assert ("shard-2" in shards_of(alone)) == is_left
    assert version_of(alone) == 3
    with psycopg.connect(fresh_cluster.shard_dsns["shard-2"]) as conn:
        assert conn.execute("SELECT count(*) FROM local.cluster").fetchone() == (0,)
        assert conn.execute("SELECT count(*) FROM local.ownership").fetchone() == (0,)
    assert alone.json("shard", "add", "shard-2", second)["state"] == "in_service"
    assert version_of(alone) == 4


def test_a_shard_that_does_not_answer_is_removed_only_if_it_is_said_to_be_lost(
    alone: Shardctl, directory: Connection
) -> None:
    held = reserve_port()
    directory.execute(
        "INSERT INTO shards (name, dsn, weight) VALUES ('shard-2', %s, 1)",
        [f"postgresql://shardbox@127.0.0.1:{held.port}/nowhere"],
    )

    assert alone.error("shard", "remove", "shard-2") == (EXIT_UNAVAILABLE, "shard_unavailable")
    assert [shard.name for shard in list_shards(directory)] == ["shard-1", "shard-2"]
    assert alone.error("shard", "remove", "shard-1", "--lost") == (EXIT_CONFLICT, "shard_in_use")
    assert alone.json("shard", "remove", "shard-2", "--lost")["is_removed"]
    assert [shard.name for shard in list_shards(directory)] == ["shard-1"]
    held.close()


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_shard_is_filled_emptied_and_removed(
    alone: Shardctl, second: str, fresh_cluster: FreshCluster
) -> None:
    for name in ("ann", "bob", "kim"):
        alone.json("user", "add", f"{name}@example.org")
    alone.json("shard", "add", "shard-2", second)

    rebalance(fresh_cluster)

    assert {name: s["slot_count"] for name, s in shards_of(alone).items()} == {"shard-1": 36, "shard-2": 28}
    alone.json("shard", "drain", "shard-2")
    rebalance(fresh_cluster)

    assert alone.json("shard", "remove", "shard-2")["is_removed"]
    assert len(alone.json("user", "list")["users"]) == 3
    assert len(alone.json("map", "history", "--limit=1000")["changes"]) == 2 * 28


def rebalance(cluster: FreshCluster) -> None:
    env = {"SHARDBOX_DIRECTORY_DSN": cluster.directory_dsn}
    done = run_command(OPERATOR, "rebalance", "--auto", "--quarantine=0", env=env, timeout_s=240)
    assert done.returncode == EXIT_OK, done.stderr


# ---- The map's history


def test_the_history_of_the_map_is_told_newest_first(both: Shardctl, directory: Connection) -> None:
    ns_id = NsId(make_ns_id(Slot(3), 9))
    assert both.json("map", "history") == {"changes": []}
    with directory.transaction():
        lock_map(directory)
        publish_placement(directory, system_ns(Slot(3)), Placement("shard-2", 3), 17)
        publish_placement(directory, ns_id, Placement("shard-1", 5), None)
    withdraw_override(directory, ns_id, Placement("shard-2", 6), None)

    changes = both.json("map", "history")["changes"]

    assert [(c["map_version"], c["what"], c["shard"], c["epoch"], c["move_id"]) for c in changes] == [
        (5, f"namespace {ns_id}", None, None, None),
        (4, "slot 3", "shard-2", 6, None),
        (3, f"namespace {ns_id}", "shard-1", 5, None),
        (2, "slot 3", "shard-2", 3, 17),
    ]
    assert both.json("map", "history", "--limit", "1")["changes"] == changes[:1]
    assert "by its slot" in both.run("map", "history").stdout
