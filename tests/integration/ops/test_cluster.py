"""`shardctl cluster`: a cluster on servers of one's own, and its keys."""

from pathlib import Path

import psycopg
import pytest

from ops.errors import EXIT_CONFLICT, EXIT_OK, EXIT_USAGE
from runtime.tokens import TokenIssuer, TokenVerifier
from tests.integration.ops.test_commands import Shardctl
from tests.support.databases import FreshCluster
from wire.keys import KeyRing


def test_a_cluster_is_created_once(fresh_cluster: FreshCluster):
    shardctl = Shardctl(fresh_cluster.directory_dsn)
    shards = [f"--shard={name}={dsn}" for name, dsn in fresh_cluster.shard_dsns.items()]
    for wrong in (
        [],
        [shards[0], shards[0]],
        ["--shard=postgresql://h/d"],
        ["--shard=x"],
        [f"--shard=directory={fresh_cluster.shard_dsns['shard-1']}"],
        [*shards, "--slots=1"],
    ):
        done = shardctl.run("cluster", "create", *wrong)
        assert done.returncode == EXIT_USAGE, done.stderr
    made = shardctl.json("cluster", "create", *shards, "--slots=8")
    assert (made["slot_count"], made["shards"]) == (8, sorted(fresh_cluster.shard_dsns))
    assert shardctl.json("cluster", "create", *shards, "--slots=16") == made
    assert shardctl.run("cluster", "create", shards[0], "--slots=8").returncode == EXIT_CONFLICT
    assert shardctl.json("user", "add", "ann@example.org")["state"] == "active"


@pytest.mark.long
def test_cut_at_each_step_a_cluster_is_created_all_the_same(fresh_cluster: FreshCluster):
    shardctl = Shardctl(fresh_cluster.directory_dsn)
    shards = [f"--shard={name}={dsn}" for name, dsn in fresh_cluster.shard_dsns.items()]
    steps = (("directory_written", 0), ("shard_written", 1), ("shard_written:2", 2))
    for point, written in steps:
        done = shardctl.run("cluster", "create", *shards, "--slots=8", fault=f"sharding.bootstrap.{point}")
        assert done.returncode == -9, done.stderr
        assert sum(map(is_in_cluster, fresh_cluster.shard_dsns.values())) == written
    made = shardctl.json("cluster", "create", *shards, "--slots=8")
    assert (made["slot_count"], made["shards"]) == (8, sorted(fresh_cluster.shard_dsns))
    assert shardctl.json("user", "add", "ann@example.org")["state"] == "active"


def is_in_cluster(dsn: str) -> bool:
    with psycopg.connect(dsn) as conn:
        return conn.execute("SELECT 1 FROM local.cluster").fetchone() is not None


def test_identities_by_command(fresh_cluster: FreshCluster):
    shardctl = Shardctl(fresh_cluster.directory_dsn)
    shards = [f"--shard={name}={dsn}" for name, dsn in fresh_cluster.shard_dsns.items()]
    shardctl.json("cluster", "create", *shards, "--slots=8")
    for email in ("ann@example.org", "bob@example.org"):
        shardctl.json("user", "add", email)
    who = ("--issuer", "https://id.example.org", "--subject", "17")
    added = shardctl.json("user", "identity", "add", "ann@example.org", *who)
    assert [(i["issuer"], i["subject"]) for i in added["identities"]] == [(who[1], who[3])]
    assert shardctl.json("user", "identity", "list", "ann@example.org") == added
    assert shardctl.error("user", "identity", "add", "bob@example.org", *who)[1] == "already_exists"
    assert shardctl.error("user", "identity", "remove", "bob@example.org", *who)[1] == "not_found"
    assert shardctl.json("user", "identity", "remove", "ann@example.org", *who)["identities"] == []
    assert shardctl.error("user", "identity", "add", "nobody@example.org", *who)[1] == "not_found"


def test_key_files_are_made_once(fresh_cluster: FreshCluster, tmp_path: Path):
    shardctl = Shardctl(fresh_cluster.directory_dsn)
    folder = tmp_path / "etc" / "keys"
    files = [Path(file) for file in shardctl.json("cluster", "keys", str(folder))["files"]]
    contents = [file.read_bytes() for file in files]
    service, cursor, private, public = contents
    assert KeyRing.parse(service).current.secret != KeyRing.parse(cursor).current.secret
    TokenIssuer(private)
    TokenVerifier(public)
    assert b'"d"' not in public
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
    assert shardctl.run("cluster", "keys", str(folder)).returncode == EXIT_OK
    assert [file.read_bytes() for file in files] == contents
