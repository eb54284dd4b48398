"""Real PostgreSQL for tests: three servers a run, and a cluster of fresh databases on them in 0.1 s.

* `pg_servers` (session): the directory's server and two shard servers, shared by all xdist workers.
* `pg_templates` (session): the same, with migrated template databases on them.
* `fresh_cluster` (function): migrated, empty databases of its own, on the three servers.
* `cloned_cluster(pg_templates)`: the same as a context manager, for a fixture of another scope.

All of them set PGPASSFILE, so that the plain DSNs work in this process and in its children.
"""

import secrets
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
from psycopg import sql

from ops.files import locked
from ops.postgres import PgServer, use_passfile
from tests.support.keeper import DIRECTORY, FAILED_FILE, LOG_FILE, READY_FILE, SHARDS, server_at, start_keeper
from tests.support.run import owner_pid, run_dir

START_TIMEOUT_S = 120.0
DIRECTORY_TEMPLATE = "template_directory"
SHARD_TEMPLATE = "template_shard"


@dataclass(frozen=True, slots=True)
class PgServers:
    """The servers of a test run."""

    directory: PgServer
    shards: tuple[PgServer, ...]

    @property
    def all(self) -> tuple[PgServer, ...]:
        """The directory's server and the shards'."""
        return (self.directory, *self.shards)


@dataclass(frozen=True, slots=True)
class FreshCluster:
    """Migrated, empty databases: a directory and one shard on each shard server."""

    directory_dsn: str
    shard_dsns: dict[str, str]
    """By shard name."""

    @property
    def shards(self) -> list[tuple[str, str, int]]:
        """(name, DSN, weight), as `sharding.bootstrap.create_cluster` takes them."""
        return [(name, dsn, 1) for name, dsn in self.shard_dsns.items()]


@pytest.fixture(scope="session")
def pg_servers() -> PgServers:
    """Two shard servers and the directory's, each a PostgreSQL of its own, started once a run."""
    folder = run_dir()
    with locked(folder / "servers.lock"):
        if not (folder / READY_FILE).exists() and not (folder / FAILED_FILE).exists():
            _start_servers(folder)
    if (folder / FAILED_FILE).exists():
        pytest.fail((folder / FAILED_FILE).read_text(), pytrace=False)
    ports = msgspec.json.decode((folder / READY_FILE).read_bytes(), type=dict[str, int])
    use_passfile(folder / "pgpass")
    return PgServers(
        server_at(folder, DIRECTORY, ports[DIRECTORY]),
        tuple(server_at(folder, name, ports[name]) for name in SHARDS),
    )


def _start_servers(folder: Path) -> None:
    keeper = start_keeper(folder, owner_pid())
    deadline = time.monotonic() + START_TIMEOUT_S
    while not (folder / READY_FILE).exists() and not (folder / FAILED_FILE).exists():
        if keeper.wait(0.02) or time.monotonic() > deadline:
            pytest.fail(
                f"no servers ({keeper.exit_text()}): {(folder / LOG_FILE).read_text()}", pytrace=False
            )
    keeper.close()


@pytest.fixture(scope="session")
def pg_templates(pg_servers: PgServers) -> PgServers:
    """The servers, with a migrated template on each."""
    folder = run_dir()
    with locked(folder / "templates.lock"):
        if not (folder / "templates").exists():
            _make_templates(pg_servers)
            (folder / "templates").touch()
    return pg_servers


def _make_templates(servers: PgServers) -> None:
    from ops.migrate import migrate_databases

    servers.directory.ensure_database(DIRECTORY_TEMPLATE)
    for server in servers.shards:
        server.ensure_database(SHARD_TEMPLATE)
    report = migrate_databases(
        servers.directory.dsn(DIRECTORY_TEMPLATE),
        {server.name: server.dsn(SHARD_TEMPLATE) for server in servers.shards},
    )
    report.raise_for_failures()


@contextmanager
def cloned_cluster(servers: PgServers) -> Iterator[FreshCluster]:
    """Databases of one's own on servers with templates, dropped at the end whoever is still connected."""
    name = f"t_{secrets.token_hex(6)}"
    templates = [DIRECTORY_TEMPLATE, *(SHARD_TEMPLATE for _ in servers.shards)]
    with ThreadPoolExecutor(len(templates)) as pool:
        try:
            list(
                pool.map(
                    lambda server, template: clone_database(server, template, name), servers.all, templates
                )
            )
            yield FreshCluster(servers.directory.dsn(name), {s.name: s.dsn(name) for s in servers.shards})
        finally:
            list(pool.map(lambda server: drop_database(server, name), servers.all))


def clone_database(server: PgServer, template: str, name: str) -> None:
    """Copy a database of a server under a new name."""
    # Measured without fsync: 47 ms by file copy, 54 ms through the WAL.
    statement = sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY file_copy")
    with server.connect() as conn:
        conn.execute(statement.format(sql.Identifier(name), sql.Identifier(template)))


def drop_database(server: PgServer, name: str) -> None:
    """Delete a database of a server, if it is there."""
    with server.connect() as conn:
        conn.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture
def fresh_cluster(pg_templates: PgServers) -> Iterator[FreshCluster]:
    """Migrated, empty databases for this test alone."""
    with cloned_cluster(pg_templates) as cluster:
        yield cluster


@pytest.fixture
def slots_in_turn() -> Iterator[None]:
    """Be the only such test: a replication slot waits for every transaction of its server, in whichever
    database, and some tests leave one standing, or have little patience."""
    with locked(run_dir() / "slots.lock"):
        yield
