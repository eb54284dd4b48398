"""`shardctl migrate` against real databases."""

import os
import subprocess
from collections.abc import Iterator

import msgspec
import psycopg
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from metaserver.storage.tables import metadata as ns_metadata
from migrations import Tree
from migrations.running import has_type_changed
from ops.errors import EXIT_BUSY, EXIT_FAILURE, EXIT_UNAVAILABLE, MigrationBusy, MigrationFailed
from ops.migrate import MigrationOptions, MigrationStatus, migrate_databases, migration_lock
from ops.migrate_messages import MigrationJob
from ops.migrate_worker import WORKER_LOCK, make_engine
from ops.ports import reserve_port
from sharding.bootstrap import create_cluster
from sharding.locks import MIGRATION_LOCK_CLASS
from sharding.tables import directory_metadata, local_metadata
from tests.support.commands import OPERATOR, run_command
from tests.support.databases import FreshCluster, PgServers, clone_database, drop_database


@pytest.fixture
def empty_cluster(pg_servers: PgServers) -> Iterator[FreshCluster]:
    """Databases with nothing in them."""
    name = f"empty_{os.getpid()}"
    for server in pg_servers.all:
        clone_database(server, "template0", name)
    yield FreshCluster(pg_servers.directory.dsn(name), {s.name: s.dsn(name) for s in pg_servers.shards})
    for server in pg_servers.all:
        drop_database(server, name)


def migrate(cluster: FreshCluster, *options: str) -> "subprocess.CompletedProcess[str]":
    return run_command(OPERATOR, "migrate", *options, env={"SHARDBOX_DIRECTORY_DSN": cluster.directory_dsn})


def unreachable_dsn() -> str:
    held = reserve_port()
    held.close()
    return f"postgresql://shardbox@127.0.0.1:{held.port}/nowhere"


def test_empty_databases_are_brought_to_their_heads_and_then_left_alone(empty_cluster: FreshCluster) -> None:
    dry = migrate_databases(
        empty_cluster.directory_dsn, empty_cluster.shard_dsns, MigrationOptions(is_dry_run=True)
    )
    first = migrate_databases(empty_cluster.directory_dsn, empty_cluster.shard_dsns)
    second = migrate_databases(empty_cluster.directory_dsn, empty_cluster.shard_dsns)

    assert {r.status for r in dry.databases} == {MigrationStatus.PENDING}
    assert [r.planned for r in dry.databases] == [r.applied for r in first.databases]
    assert {r.status for r in first.databases} == {MigrationStatus.MIGRATED}
    assert {r.status for r in second.databases} == {MigrationStatus.CURRENT}
    for dsn in empty_cluster.shard_dsns.values():
        with psycopg.connect(dsn) as conn:
            tables = conn.execute(
                "SELECT schemaname FROM pg_tables WHERE tablename = 'alembic_version'"
            ).fetchall()
        assert tables == [("local",)]  # `ns` moves with its namespaces


@pytest.mark.parametrize("tree", list(Tree))
def test_the_migrations_make_the_tables_of_the_code(fresh_cluster: FreshCluster, tree: Tree) -> None:
    is_directory = tree is Tree.DIRECTORY
    dsn = fresh_cluster.directory_dsn if is_directory else fresh_cluster.shard_dsns["shard-1"]
    metadata = [directory_metadata] if is_directory else [local_metadata, ns_metadata]
    engine = make_engine(MigrationJob(tree, dsn, 5_000, 5_000, is_dry_run=True))
    schemas = {table.schema for m in metadata for table in m.tables.values()}
    options = {
        "include_schemas": not is_directory,
        "include_name": lambda name, kind, _parents: kind != "schema" or name in schemas,
        "version_table_schema": tree.version_schema,
        "target_metadata": metadata,
        "compare_type": has_type_changed,
        "compare_server_default": True,
    }
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts=options)
        differences = compare_metadata(context, metadata)  # type: ignore[arg-type]
    engine.dispose()

    assert differences == []


@pytest.mark.long
def test_a_migration_beside_another_is_refused(fresh_cluster: FreshCluster) -> None:
    create_cluster(fresh_cluster.directory_dsn, fresh_cluster.shards)

    with migration_lock(fresh_cluster.directory_dsn):
        with pytest.raises(MigrationBusy):
            migrate_databases(fresh_cluster.directory_dsn)
        done = migrate(fresh_cluster)
    assert done.returncode == EXIT_BUSY
    assert done.stderr.startswith("shardctl: migration_busy: another migration")

    assert migrate(fresh_cluster).returncode == 0


@pytest.mark.long
def test_an_orphaned_worker_keeps_its_database_to_itself(fresh_cluster: FreshCluster) -> None:
    with psycopg.connect(fresh_cluster.shard_dsns["shard-1"], autocommit=True) as conn:
        conn.execute("SELECT pg_advisory_lock(%s, %s)", [MIGRATION_LOCK_CLASS, WORKER_LOCK])
        report = migrate_databases(fresh_cluster.directory_dsn, fresh_cluster.shard_dsns)

    assert [r.status for r in report.databases] == [
        MigrationStatus.CURRENT,
        MigrationStatus.BUSY,
        MigrationStatus.CURRENT,
    ]
    with pytest.raises(MigrationBusy):
        report.raise_for_failures()


@pytest.mark.long
def test_one_shard_that_is_down_does_not_keep_the_others_back(empty_cluster: FreshCluster) -> None:
    healthy = dict(empty_cluster.shard_dsns)
    broken = healthy | {"shard-1": unreachable_dsn()}

    report = migrate_databases(empty_cluster.directory_dsn, broken)

    assert {r.name: r.status for r in report.databases} == {
        "directory": MigrationStatus.MIGRATED,
        "shard-1": MigrationStatus.FAILED,
        "shard-2": MigrationStatus.MIGRATED,
    }
    with pytest.raises(MigrationFailed, match=r"shard-1: .*refused"):
        report.raise_for_failures()

    resumed = migrate_databases(empty_cluster.directory_dsn, healthy)
    assert {r.name: r.status for r in resumed.databases} == {
        "directory": MigrationStatus.CURRENT,
        "shard-1": MigrationStatus.MIGRATED,
        "shard-2": MigrationStatus.CURRENT,
    }


def test_the_command_tells_of_each_shard_and_fails_with_one_down(fresh_cluster: FreshCluster) -> None:
    create_cluster(fresh_cluster.directory_dsn, fresh_cluster.shards)
    with psycopg.connect(fresh_cluster.directory_dsn) as conn:
        conn.execute("UPDATE shards SET dsn = %s WHERE name = 'shard-2'", [unreachable_dsn()])

    done = migrate(fresh_cluster, "--output", "json")

    assert done.returncode == EXIT_FAILURE
    told = {r["name"]: r for r in msgspec.json.decode(done.stdout)["databases"]}
    assert {name: result["status"] for name, result in told.items()} == {
        "directory": "current",
        "shard-1": "current",
        "shard-2": "failed",
    }
    assert "shardctl: migration_failed: shard-2:" in done.stderr


def test_a_lock_that_cannot_be_had_fails_the_shard_within_the_time_out(empty_cluster: FreshCluster) -> None:
    with psycopg.connect(empty_cluster.shard_dsns["shard-1"]) as conn:
        # Uncommitted, so the migration's own CREATE SCHEMA waits for it.
        conn.execute("CREATE SCHEMA local")
        report = migrate_databases(
            empty_cluster.directory_dsn, empty_cluster.shard_dsns, MigrationOptions(lock_timeout_ms=50)
        )
        conn.rollback()

    failed = next(r for r in report.databases if r.name == "shard-1")
    assert failed.status is MigrationStatus.FAILED
    assert "lock timeout" in str(failed.error)
    assert migrate_databases(empty_cluster.directory_dsn, empty_cluster.shard_dsns).is_ok


def test_a_database_newer_than_the_program_is_left_alone(fresh_cluster: FreshCluster) -> None:
    with psycopg.connect(fresh_cluster.shard_dsns["shard-1"]) as conn:
        conn.execute("UPDATE local.alembic_version SET version_num = 'from_the_future'")

    report = migrate_databases(fresh_cluster.directory_dsn, fresh_cluster.shard_dsns)

    failed = next(r for r in report.databases if r.name == "shard-1")
    assert failed.status is MigrationStatus.FAILED
    assert "newer than this program" in str(failed.error)


def test_without_a_directory_the_command_says_so(fresh_cluster: FreshCluster) -> None:
    nowhere = FreshCluster(unreachable_dsn(), {})

    done = migrate(nowhere)

    assert done.returncode == EXIT_UNAVAILABLE
    assert done.stderr.startswith("shardctl: no_cluster: the directory does not answer")


def test_engines_connect_with_the_time_outs_of_the_job(fresh_cluster: FreshCluster) -> None:
    engine = make_engine(MigrationJob(Tree.SHARD, fresh_cluster.shard_dsns["shard-1"], 1_234, 5_678, True))
    with engine.connect() as connection:
        shown = [connection.execute(sa.text(f"SHOW {n}_timeout")).scalar_one() for n in ("lock", "statement")]
    engine.dispose()

    assert shown == ["1234ms", "5678ms"]
