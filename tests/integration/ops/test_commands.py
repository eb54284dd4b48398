"""`shardctl` from outside: a process, its exit status, its JSON."""

import subprocess
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from ops.errors import EXIT_CONFLICT, EXIT_FAILURE, EXIT_NOT_FOUND, EXIT_OK, EXIT_UNAVAILABLE, EXIT_USAGE
from ops.ports import reserve_port
from sharding.bootstrap import create_cluster
from sharding.shardmap import ShardMap
from tests.support.commands import OPERATOR, run_command
from tests.support.databases import FreshCluster
from wire.ids import format_file_id, parse_ns_id, system_ns


class Shardctl:
    """The command, on the cluster of one directory."""

    def __init__(self, directory_dsn: str):
        self._env = {"SHARDBOX_DIRECTORY_DSN": directory_dsn}

    def run(self, *args: str, fault: str = "") -> "subprocess.CompletedProcess[str]":
        return run_command(OPERATOR, *args, env=self._env | {"SHARDBOX_FAULT": fault})

    def json(self, *args: str, status: int = EXIT_OK) -> Any:
        done = self.run(*args, "--output", "json")
        assert done.returncode == status, done.stderr
        return msgspec.json.decode(done.stdout)

    def error(self, *args: str) -> tuple[int, str]:
        """Exit status and stable code of a command that fails."""
        done = self.run(*args, "--output", "json")
        assert done.stdout == ""
        return done.returncode, done.stderr.split(": ")[1]


@pytest.fixture
def shard_map(fresh_cluster: FreshCluster) -> ShardMap:
    return create_cluster(fresh_cluster.directory_dsn, fresh_cluster.shards)


@pytest.fixture
def shardctl(fresh_cluster: FreshCluster, shard_map: ShardMap) -> Shardctl:
    return Shardctl(fresh_cluster.directory_dsn)


def test_a_user_is_added_found_disabled_and_enabled(shardctl: Shardctl) -> None:
    added = shardctl.json("user", "add", "Ann@Example.org", "--name", "Ann")

    assert (added["email"], added["display_name"], added["state"]) == ("Ann@Example.org", "Ann", "active")
    assert len(added["account_id"]) == 40
    assert shardctl.error("user", "add", "ann@example.org") == (EXIT_CONFLICT, "already_exists")
    assert shardctl.json("user", "list")["users"] == [added]
    assert (added["used_bytes"], added["quota"]) == (0, "default")
    assert shardctl.json("user", "quota", "ann@example.org", "--bytes", "1000")["quota"] == "1000"
    assert shardctl.json("user", "quota", "ann@example.org", "--none")["quota"] == "none"
    assert shardctl.json("user", "quota", "ann@example.org", "--default") == added
    assert shardctl.run("user", "quota", "ann@example.org", "--none", "--default").returncode == EXIT_USAGE
    assert shardctl.json("user", "disable", "ANN@example.org")["state"] == "disabled"
    assert shardctl.json("user", "enable", added["account_id"])["state"] == "active"
    assert shardctl.error("user", "disable", "nobody@example.org") == (EXIT_NOT_FOUND, "not_found")
    assert shardctl.error("user", "add", "no address") == (EXIT_FAILURE, "bad_request")
    assert shardctl.run("user", "add").returncode == EXIT_USAGE


def test_a_half_made_account_is_taken_up_on_request(shardctl: Shardctl, fresh_cluster: FreshCluster) -> None:
    shardctl.json("user", "add", "bob@example.org")
    for dsn in fresh_cluster.shard_dsns.values():
        with psycopg.connect(dsn) as conn:  # as if `add` had died before it inserted the account
            conn.execute("UPDATE ns.emails SET is_confirmed = false")
            conn.execute("DELETE FROM ns.accounts")
            conn.execute("DELETE FROM ns.namespaces")
            conn.execute("DELETE FROM ns.members")

    assert shardctl.error("user", "add", "bob@example.org") == (EXIT_CONFLICT, "already_exists")
    assert shardctl.json("user", "add", "bob@example.org", "--retry")["email"] == "bob@example.org"


def test_codes_and_devices(shardctl: Shardctl) -> None:
    user = shardctl.json("user", "add", "eve@example.org")

    code = shardctl.json("device", "code", "eve@example.org")

    assert code["code"].startswith(user["root_ns"] + "-")
    assert shardctl.run("device", "code", "eve@example.org").stdout.count("\n") == 1  # fit for $(…)
    assert shardctl.json("device", "list", "eve@example.org")["devices"] == []
    unknown = "device:" + "A" * 32
    assert shardctl.error("device", "revoke", "eve@example.org", unknown) == (EXIT_NOT_FOUND, "not_found")


def test_shards_map_and_namespaces(shardctl: Shardctl, shard_map: ShardMap) -> None:
    user = shardctl.json("user", "add", "kim@example.org")
    ns_id = parse_ns_id(user["root_ns"])

    shards = {shard["name"]: shard for shard in shardctl.json("shard", "list")["shards"]}
    shown = shardctl.json("map", "show")
    by_email = shardctl.json("namespace", "locate", "kim@example.org")

    assert set(shards) == {"shard-1", "shard-2"}
    assert sum(shard["slot_count"] for shard in shards.values()) == 64
    assert all(shard["is_reachable"] for shard in shards.values())
    assert (shown["version"], len(shown["slots"])) == (1, 64)
    assert (by_email["ns_id"], by_email["shard"]) == (user["root_ns"], user["shard"])
    assert (by_email["exists"], by_email["owner_state"], by_email["owner_epoch"]) == (True, "active", 1)
    for name in (user["account_id"], user["root_ns"], format_file_id(ns_id, 1)):  # type: ignore[arg-type]
        assert shardctl.json("namespace", "locate", name) == by_email
    assert shardctl.error("namespace", "locate", str(64 << 51)) == (EXIT_NOT_FOUND, "not_found")
    assert shardctl.error("namespace", "locate", "what?") == (EXIT_FAILURE, "malformed_id")


def verdicts(report: Any) -> dict[str, set[str]]:
    """The checks that were not ok, by their verdict."""
    found: dict[str, set[str]] = {"warn": set(), "fail": set()}
    for finding in report["findings"]:
        if finding["verdict"] != "ok":
            found[finding["verdict"]].add(finding["check"])
    return found


def test_the_doctor_finds_a_cluster_well_but_for_its_durability(shardctl: Shardctl) -> None:
    report = shardctl.json("doctor")

    # The test servers run without fsync, and it says so.
    assert verdicts(report) == {"warn": {"durability"}, "fail": set()}
    assert all(f["remedy"] for f in report["findings"] if f["verdict"] != "ok")


def test_the_doctor_finds_what_is_wrong(
    shardctl: Shardctl, shard_map: ShardMap, fresh_cluster: FreshCluster
) -> None:
    lost, doubled = shard_map.slots_of("shard-1")[:2]
    with psycopg.connect(fresh_cluster.shard_dsns["shard-1"]) as conn:
        conn.execute("DELETE FROM local.ownership WHERE ns_id = %s", [system_ns(lost)])
        conn.execute("INSERT INTO ns.outbox (ns_id, jid) VALUES (%s, 1)", [system_ns(doubled) + 1])
        conn.execute(
            "INSERT INTO ns.emails (ns_id, email_key, account_id, is_confirmed, since)"
            " VALUES (%s, 'half@example.org', 'dbid:x', false, now() - interval '1 hour')",
            [system_ns(doubled)],
        )
    with psycopg.connect(fresh_cluster.shard_dsns["shard-2"]) as conn:
        conn.execute(
            "INSERT INTO local.ownership (ns_id, epoch, state) VALUES (%s, 1, 'a')", [system_ns(doubled)]
        )
    held = reserve_port()

    report = shardctl.json("doctor", "--url", f"http://127.0.0.1:{held.port}", status=EXIT_FAILURE)
    held.close()

    assert verdicts(report) == {
        "fail": {"ownership.unowned", "ownership.doubled", "ready"},
        "warn": {"durability", "outbox", "accounts"},
    }


def test_the_doctor_goes_on_when_a_shard_is_out(shardctl: Shardctl, fresh_cluster: FreshCluster) -> None:
    with psycopg.connect(fresh_cluster.directory_dsn) as conn:
        conn.execute("UPDATE shards SET dsn = 'postgresql://127.0.0.1:1/x' WHERE name = 'shard-2'")
    with psycopg.connect(fresh_cluster.shard_dsns["shard-1"]) as conn:
        conn.execute("UPDATE local.alembic_version SET version_num = 'older'")

    report = shardctl.json("doctor", status=EXIT_FAILURE)

    assert verdicts(report)["fail"] == {"reachable", "schema"}
    assert [s["is_reachable"] for s in shardctl.json("shard", "list")["shards"]] == [True, False]


def test_a_backup_of_a_shard_that_is_out_is_refused_in_a_line(
    shardctl: Shardctl, fresh_cluster: FreshCluster, tmp_path: Path
) -> None:
    with psycopg.connect(fresh_cluster.directory_dsn) as conn:
        conn.execute("UPDATE shards SET dsn = 'postgresql://127.0.0.1:1/x' WHERE name = 'shard-2'")

    found = shardctl.error("backup", "base", "shard-2", "--to", str(tmp_path))

    assert found == (EXIT_UNAVAILABLE, "database_unavailable")


def test_a_server_of_several_shards_is_not_taken_back_for_one_of_them(
    shardctl: Shardctl, fresh_cluster: FreshCluster, tmp_path: Path
) -> None:
    with psycopg.connect(fresh_cluster.directory_dsn) as conn:
        conn.execute(
            "UPDATE shards SET dsn = %s WHERE name = 'shard-2'",
            [make_conninfo(fresh_cluster.shard_dsns["shard-1"], dbname="another")],
        )
    folders = ("--from", str(tmp_path), "--pgdata", str(tmp_path / "data"))

    done = shardctl.run("restore", "shard", "shard-1", "--yes", *folders)

    assert done.returncode == EXIT_USAGE
    assert "usage: shard-1 shares its server with shard-2" in done.stderr


def test_an_address_that_is_none_is_wrong_usage() -> None:
    assert Shardctl("garbage").error("user", "list") == (EXIT_USAGE, "usage")


def test_token_keys_are_not_changed_without_their_public_ones(shardctl: Shardctl, tmp_path: Path) -> None:
    shardctl.json("cluster", "keys", str(tmp_path))
    private = tmp_path / "token-keys.json"
    before = private.read_bytes()

    for command in (("rotate", "token", "--only-add"), ("retire", "token", "--force")):
        assert shardctl.error("keys", *command, "--file", str(private)) == (EXIT_USAGE, "usage")

    assert private.read_bytes() == before


def test_without_a_directory_every_command_says_so() -> None:
    held = reserve_port()
    nowhere = Shardctl(f"postgresql://shardbox@127.0.0.1:{held.port}/directory")

    assert nowhere.error("user", "list") == (EXIT_UNAVAILABLE, "no_cluster")
    assert nowhere.error("map", "show") == (EXIT_UNAVAILABLE, "no_cluster")
    assert verdicts(nowhere.json("doctor", status=EXIT_FAILURE))["fail"] == {"reachable", "map"}
    held.close()
