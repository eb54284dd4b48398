"""Restores in the embedded cluster: its supervisor lets go of the server meanwhile, and takes it back."""

import time
from collections.abc import Sequence
from pathlib import Path

from migrations import Tree
from ops.backup.repository import ShardBackups
from ops.dev import ask_for, exclusive, wait_until_ready
from ops.dev_setup import read_record
from ops.errors import StartFailed
from ops.layout import DevLayout
from ops.migrate import is_current, migrate_databases
from ops.osuser import ensure_server_user
from ops.postgres import PgServer, find_postmaster, read_passfile, use_passfile
from ops.programs import find_programs
from ops.restore.directory import DirectoryReport, ask_shards, newest_map, write_directory
from ops.restore.private import Tell
from ops.restore.recover import Recovery
from ops.restore.shard import Cluster, RestoreReport, recover_shard
from ops.restore.work import RestoreState, Target, work_of
from ops.specs import DIRECTORY, POSTGRES_GRACE_S, ClusterRecord, database_of, pg_server, postgres_spec
from ops.state import read_specs
from sharding.shardmap import ShardMap, read_map_file
from wire.errors import NotFound

STOP_POLL_S = 0.05


def servers_of(layout: DevLayout, record: ClusterRecord, tell: Tell) -> dict[str, PgServer]:
    """The PostgreSQL servers by name; PGPASSFILE is set to their passwords."""
    user = ensure_server_user(tell)
    programs = find_programs(user)
    use_passfile(layout.passfile)
    return {name: pg_server(layout, record, name, programs, user) for name in record.database_names}


def restore_embedded_shard(
    layout: DevLayout,
    name: str,
    source: Path,
    target: Target,
    backup_id: str | None,
    without: Sequence[str],
    tell: Tell,
) -> RestoreReport:
    """Bring a shard of an embedded cluster back, the others running; it runs again afterwards.

    Raises:
        NotFound: no shard has that name.
        BackupMissing: nothing reaches the target; the shard is as it was, unless a restore had been begun.
        OpsError: see `recover_shard`; the shard stays out.
    """
    record = read_record(layout)
    _check_shards(record, name, *without)
    with exclusive(layout, tell):
        servers = servers_of(layout, record, tell)
        server = servers[name]
        recovery = Recovery(
            work_of(server.data_dir), ShardBackups(source, name), server.programs, server.user, tell
        )
        if recovery.work.read_state() is None:
            # Refused here, a server that runs goes on running.
            recovery.choose(target, backup_id)
        _run_only(
            layout, {n: s for n, s in servers.items() if n not in (name, *without)}, without=name, tell=tell
        )
        password = read_passfile(layout.passfile)[server.port]
        cluster = Cluster(servers[DIRECTORY].dsn(database_of(DIRECTORY)), without)
        report = recover_shard(cluster, recovery, target, backup_id, password)
        server.ensure_initialised(password)  # writes today's settings
        ask_for(layout, [*read_specs(layout).values(), postgres_spec(server)], tell)
        wait_until_ready(layout, {name: server.is_ready})
        recovery.finish()
    return report


def abandon_embedded_restore(layout: DevLayout, name: str, tell: Tell) -> RestoreState:
    """Forget a restore that was begun, so that the shard can be started with its former data.

    Raises:
        OpsError: see `Recovery.abandon`.
    """
    record = read_record(layout)
    _check_shards(record, name)
    with exclusive(layout, tell):
        server = servers_of(layout, record, tell)[name]
        backups = ShardBackups(layout.backups, name)
        return Recovery(work_of(server.data_dir), backups, server.programs, server.user, tell).abandon()


def _check_shards(record: ClusterRecord, *names: str) -> None:
    for name in names:
        if name not in record.shard_names:
            raise NotFound(f"the cluster has no shard {name!r}")


def _run_only(layout: DevLayout, needed: dict[str, PgServer], *, without: str, tell: Tell) -> None:
    """Have these databases running, with whatever else runs, and one server not."""
    specs = {n: spec for n, spec in read_specs(layout).items() if n != without}
    specs |= {n: postgres_spec(server) for n, server in needed.items() if n not in specs}
    ask_for(layout, list(specs.values()), tell)
    data_dir = layout.postgres / without / "data"
    deadline = time.monotonic() + POSTGRES_GRACE_S
    while find_postmaster(data_dir) is not None:
        if time.monotonic() > deadline:
            raise StartFailed(f"{without} does not stop; see {layout.log(without)}")
        time.sleep(STOP_POLL_S)
    wait_until_ready(layout, {n: server.is_ready for n, server in needed.items()})


def restore_embedded_directory(
    layout: DevLayout, without: Sequence[str], tell: Tell, *, is_dry_run: bool
) -> DirectoryReport:
    """Make the directory of an embedded cluster again; servers that run find it by themselves.

    Raises:
        OpsError, ShardboxError: see `ask_shards` and `write_directory`.
    """
    record = read_record(layout)
    with exclusive(layout, tell):
        servers = servers_of(layout, record, tell)
        directory = servers[DIRECTORY]
        password = read_passfile(layout.passfile)[directory.port]
        if not is_dry_run and directory.ensure_initialised(password):
            tell("made an empty server for the directory")
        needed = {n: s for n, s in servers.items() if n not in without}
        if is_dry_run:
            needed.pop(DIRECTORY)
        specs = read_specs(layout)
        specs |= {n: postgres_spec(server) for n, server in needed.items() if n not in specs}
        ask_for(layout, list(specs.values()), tell)
        wait_until_ready(layout, {n: server.is_ready for n, server in needed.items()})
        dsns = {n: servers[n].dsn(database_of(n)) for n in record.member_names}
        found = ask_shards(dsns, newest_map(kept_maps(layout)), without)
        dsn = directory.dsn(database_of(DIRECTORY))
        if not is_dry_run:
            directory.ensure_database(database_of(DIRECTORY))
            migrate_directory(dsn)
        return write_directory(dsn, found, tell, is_dry_run=is_dry_run)


def migrate_directory(dsn: str) -> None:
    """Make the tables of an empty directory."""
    if not is_current(dsn, Tree.DIRECTORY):
        migrate_databases(dsn, {}).raise_for_failures()


def kept_maps(layout: DevLayout) -> list[ShardMap]:
    """What the metaservers have kept."""
    return [kept for path in sorted(layout.maps.glob("*.json")) if (kept := read_map_file(path)) is not None]
