"""Shards that come to a cluster and go from it. Neither moves anything: a shard comes and goes empty."""

import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from migrations import Tree
from ops.errors import EXIT_CONFLICT, MigrationBusy, OpsError, UsageError
from ops.migrate import MigrationOptions, MigrationReport, is_current, migrate_one
from ops.session import APPLICATION, CONNECT_TIMEOUT_S, connect_directory, read_map
from ops.specs import DIRECTORY, EVERY_SERVER
from sharding.bootstrap import sign_shard
from sharding.directory import (
    Connection,
    ShardDiffers,
    ShardInUse,
    change_shard,
    delete_shard,
    insert_shard,
)
from sharding.locks import MIGRATION_LOCK_CLASS
from sharding.reshard.catalog import read_tables
from sharding.reshard.servers import TransactionsOpen, check_different_servers, check_server
from sharding.shardmap import OwnershipState, ShardInfo, ShardMap
from wire import faults
from wire.errors import NotFound, ShardUnavailable

faults.declare(
    "ops.shard.migrated",
    "ops.shard.signed",
    "ops.shard.recorded",
    "ops.shard.cleared",
    "ops.shard.removed",
)


class ShardExists(OpsError):
    """A shard of that name is recorded with another address, weight or labels."""

    code, exit_status = "shard_exists", EXIT_CONFLICT


class ShardTaken(OpsError):
    """A database is not free to become this shard."""

    code, exit_status = "shard_taken", EXIT_CONFLICT


class ShardBusy(OpsError):
    """A shard cannot be removed as long as it has something."""

    code, exit_status = "shard_in_use", EXIT_CONFLICT


# ---- Adding


def add_shard(directory_dsn: str, info: ShardInfo, warn: Callable[[str], None]) -> ShardMap:
    """Make a shard of an empty database and record it; the map that has it.

    May be repeated: what was cut short goes on, and a shard that is there stays as it is. It holds nothing
    until something is moved to it.

    Args:
        directory_dsn: the directory.
        info: the shard.
        warn: told what is unfit about its server, and no obstacle.

    Raises:
        NoCluster: the directory does not answer, or holds no cluster.
        ShardUnavailable: the new shard, or one of the others, does not answer.
        ShardExists, ShardTaken: the name, or the database, is something else already.
        MigrationBusy: a migration is under way, or has yet to be run.
        MigrationFailed: the database could not be brought to its head.
        MoveRefused: its server cannot take part in moves.
    """
    with connect_directory(directory_dsn) as directory:
        _keep_migrations_away(directory, directory_dsn)
        shard_map = read_map(directory)
        former = shard_map.shards.get(info.name)
        if former is not None and former != info:
            raise ShardExists(
                f"there is a shard {info.name!r} already, with another address, weight or labels"
            )
        with connect_shard(info) as conn:
            for warning in _check_server(conn, shard_map, info):
                warn(f"warning: {warning}")
            _check_is_free(conn, shard_map, info)
            migrated = migrate_one(info.name, Tree.SHARD, info.dsn, MigrationOptions())
            MigrationReport([migrated]).raise_for_failures()
            faults.fault_point("ops.shard.migrated")
            sign_shard(conn, shard_map, info.name)
            faults.fault_point("ops.shard.signed")
        try:
            insert_shard(directory, info)
        except ShardDiffers as error:
            raise ShardExists(str(error)) from error
        faults.fault_point("ops.shard.recorded")
        return read_map(directory)


def _keep_migrations_away(directory: Connection, directory_dsn: str) -> None:
    """Let no migration begin as long as the session lasts, as moves do; they and this do not mind each other.

    Raises:
        MigrationBusy: one is under way, or has yet to be run: a shard that comes is at this program's head.
    """
    row = directory.execute("SELECT pg_try_advisory_lock_shared(%s, 0)", [MIGRATION_LOCK_CLASS]).fetchone()
    if row is None or not row[0]:
        raise MigrationBusy("a migration is under way; wait for it to end")
    if not is_current(directory_dsn, Tree.DIRECTORY):
        raise MigrationBusy("the directory is not at this program's version: run `shardctl migrate` first")


def connect_shard(info: ShardInfo) -> Connection:
    """An autocommit connection to a shard.

    Raises:
        ShardUnavailable: it does not answer.
    """
    try:
        return psycopg.connect(
            info.dsn, autocommit=True, connect_timeout=CONNECT_TIMEOUT_S, application_name=APPLICATION
        )
    except psycopg.OperationalError as error:
        raise ShardUnavailable(f"{info.name} does not answer: {str(error).strip()}") from error


def _check_server(conn: Connection, shard_map: ShardMap, info: ShardInfo) -> list[str]:
    """Warnings about a server, if moves between it and those of all other shards are possible."""
    for other in shard_map.shards.values():
        if other.name == info.name:
            continue
        with connect_shard(other) as there:
            if find_signature(there) is None:
                raise OpsError(f"{other.name} is not made yet: run what created the cluster again")
            check_different_servers(there, conn)
    with suppress(TransactionsOpen):  # a matter of the moment: each move looks again
        return check_server(conn)
    return []


def _check_is_free(conn: Connection, shard_map: ShardMap, info: ShardInfo) -> None:
    """Pass when a database is empty, or has been this shard before.

    Raises:
        ShardTaken: it is another shard, or has rows that a cluster must not come by.
    """
    found = find_signature(conn)
    if found is not None and found != (shard_map.cluster_id, info.name):
        whose = "this cluster" if found[0] == shard_map.cluster_id else f"cluster {found[0]}"
        raise ShardTaken(f"the database of {info.name} is {found[1]} of {whose}")
    if info.name not in shard_map.shards and (rows := _find_rows(conn)) is not None:
        raise ShardTaken(f"the database of {info.name} has rows in {rows}: name an empty one")


def find_signature(conn: Connection) -> tuple[str, str] | None:
    """The cluster that a database says to be of, and its name there; None: nothing."""
    if conn.execute("SELECT to_regclass('local.cluster')").fetchone() == (None,):
        return None
    row = conn.execute("SELECT cluster_id, shard FROM local.cluster").fetchone()
    return None if row is None else (str(row[0]), str(row[1]))


def _find_rows(conn: Connection) -> str | None:
    """A table that makes a database more than an empty shard; rows that say `gone` do not."""
    if conn.execute("SELECT to_regclass('local.ownership')").fetchone() == (None,):
        return None
    owned = conn.execute("SELECT 1 FROM local.ownership WHERE state <> %s LIMIT 1", [OwnershipState.GONE])
    if owned.fetchone() is not None:
        return "local.ownership"
    for table in read_tables(conn):
        query = sql.SQL("SELECT 1 FROM {} LIMIT 1").format(sql.Identifier("ns", table.name))
        if conn.execute(query).fetchone() is not None:
            return f"ns.{table.name}"
    return None


def set_shard(directory_dsn: str, name: str, change: Callable[[ShardInfo], ShardInfo]) -> ShardMap:
    """Record a shard otherwise than it is, as long as its address leads to it; the map that has it.

    Raises:
        NotFound: there is no such shard.
        ShardUnavailable: it does not answer.
        ShardTaken: at the new address is something else.
    """
    with connect_directory(directory_dsn) as directory:
        shard_map = read_map(directory)
        former = shard_map.shards.get(name)
        if former is not None and (info := change(former)).dsn != former.dsn:
            with connect_shard(info) as conn:
                if find_signature(conn) != (shard_map.cluster_id, name):
                    raise ShardTaken(f"the database at the new address is not {name} of this cluster")
        change_shard(directory, name, change)
        return read_map(directory)


# ---- Removing


def remove_shard(directory_dsn: str, name: str, *, is_lost: bool = False) -> None:
    """Forget a shard that holds nothing; its database can become a shard again.

    Args:
        directory_dsn: the directory.
        name: the shard's.
        is_lost: its server is gone, and is not asked.

    Raises:
        NotFound: there is no such shard.
        ShardUnavailable: it does not answer, so nobody knows that it is empty.
        ShardBusy: it has slots, namespaces, rows, pins or moves; the message says which.
    """
    with connect_directory(directory_dsn) as directory:
        info = read_map(directory).shards.get(name)
        if info is None:
            raise NotFound(f"there is no shard {name!r}")
        # Nobody can record a move to it meanwhile; and what is cut short here can be done again.
        with directory.transaction():
            try:
                delete_shard(directory, name)
            except ShardInUse as error:
                raise ShardBusy(f"{error}: drain it, and move what is left (`shardctl rebalance`)") from error
            if not is_lost:
                with connect_shard(info) as conn, conn.transaction():
                    _clear(conn, name)
            faults.fault_point("ops.shard.cleared")
        faults.fault_point("ops.shard.removed")


def _clear(conn: Connection, name: str) -> None:
    """Let an empty database no longer be a shard."""
    rows = _find_rows(conn)
    if rows is not None:
        raise ShardBusy(
            f"{name} has rows in {rows}, of which the map knows nothing: a move's quarantine has not ended"
            " (`shardctl move list`), or `shardctl doctor` tells more"
        )
    conn.execute("DELETE FROM local.ownership")
    conn.execute("DELETE FROM local.cluster")


# ---- What a command is told


def check_shard_name(name: str) -> str:
    """The name, if a shard can have it.

    Raises:
        UsageError: it has other characters than letters, digits and hyphens, or means something else.
    """
    if not name.replace("-", "").isalnum():
        raise UsageError(f"a shard's name has letters, digits and hyphens: {name!r}")
    if name in (DIRECTORY, EVERY_SERVER):
        raise UsageError(f"no shard can be called {name!r}: commands mean something else by it")
    return name


def read_dsn(file: Path) -> str:
    """The address in a file; `-` is standard input. It never stands in a command line, which others can see.

    Raises:
        UsageError: it is none, or holds a password.
    """
    text = (sys.stdin.read() if str(file) == "-" else file.read_text()).strip()
    try:
        parameters = conninfo_to_dict(text)
    except psycopg.ProgrammingError as error:
        raise UsageError(f"{file} holds no address of a database") from error
    if not parameters.get("host") or not parameters.get("dbname"):
        raise UsageError(f"the address in {file} names no host, or no database")
    if "password" in parameters:
        raise UsageError(
            f"the address in {file} holds a password, which the directory would keep: leave it out, and put"
            " it into the file that PGPASSFILE names, here and on every metaserver"
        )
    return text
