"""PostgreSQL servers that one test module has for itself: with settings of its own, or as a third shard's."""

import dataclasses
import secrets
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ops.migrate import migrate_databases
from ops.ports import reserve_port
from ops.postgres import NO_DURABILITY, PgServer, make_password, read_passfile, write_passfile
from ops.processes import stop
from tests.support.databases import (
    DIRECTORY_TEMPLATE,
    SHARD_TEMPLATE,
    PgServers,
    clone_database,
    drop_database,
)
from tests.support.keeper import MARK, server_at
from tests.support.run import run_dir


@contextmanager
def private_server(name: str, folder: Path | None = None, **settings: str) -> Iterator[PgServer]:
    """A server whose settings a test may choose, beside those of the run; its folder goes with it."""
    folder = folder or run_dir() / f"{name}-{secrets.token_hex(4)}"
    folder.mkdir(mode=0o711, exist_ok=True)
    held = reserve_port()
    server = dataclasses.replace(server_at(folder, name, held.port), settings={**NO_DURABILITY, **settings})
    passwords = read_passfile(run_dir() / "pgpass") | {server.port: make_password()}
    write_passfile(server.passfile, passwords)
    server.ensure_initialised(passwords[server.port], sync=False)
    handle = server.start(f"{MARK}{folder}:{name}")
    held.close()
    try:
        server.wait_ready(handle)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PGPASSFILE", str(server.passfile))
            yield server
    finally:
        stop(handle, signal.SIGQUIT, grace_s=5)
        shutil.rmtree(folder / name, ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def with_shard(servers: PgServers, server: PgServer) -> Iterator[PgServers]:
    """A run's servers and a further shard's, with a template on it: for `cloned_cluster`."""
    directory = f"t_{secrets.token_hex(6)}"
    clone_database(servers.directory, DIRECTORY_TEMPLATE, directory)
    try:
        server.ensure_database(SHARD_TEMPLATE)
        report = migrate_databases(
            servers.directory.dsn(directory), {server.name: server.dsn(SHARD_TEMPLATE)}
        )
        report.raise_for_failures()
    finally:
        drop_database(servers.directory, directory)
    yield dataclasses.replace(servers, shards=(*servers.shards, server))
