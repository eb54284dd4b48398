"""`shardctl dev up|down|reset`: a whole cluster on one machine."""

import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

from migrations import Tree
from ops.dev_setup import (
    check_folder,
    check_nothing_lost,
    ensure_archives,
    ensure_data_folders,
    ensure_keys,
    ensure_record,
    read_record,
)
from ops.dev_shards import drop_removed, drop_shards, join_shards
from ops.errors import ClusterBusy, DataLost, StartFailed
from ops.files import locked, tail
from ops.layout import CODE_ROOT, DevLayout, link_from_checkout
from ops.migrate import is_current, migrate_databases
from ops.osuser import check_can_enter, ensure_server_user
from ops.postgres import PgServer, use_passfile
from ops.processes import ProcessHandle, base_environment, find_marked, spawn
from ops.programs import find_programs
from ops.readiness import is_server_ready
from ops.specs import (
    DIRECTORY,
    ClusterRecord,
    ProcessSpec,
    database_of,
    pg_server,
    postgres_spec,
    server_specs,
)
from ops.state import read_demo_specs, read_specs, read_state, write_specs
from ops.supervisor import SUPERVISOR, Supervisor
from sharding.bootstrap import EMBEDDED_SLOTS, DirectoryLost, create_cluster

START_TIMEOUT_S = 120.0
"""Crash recovery of three servers at once on a slow disk is the longest part."""
STOP_TIMEOUT_S = 180.0
"""The sum of the stages' graces, and some."""
POLL_S = 0.05
CRASHES_TOLERATED = 5
"""A process that dies this often before it is ready will not get there."""

Say = Callable[[str], None]


def up(
    layout: DevLayout,
    say: Say,
    *,
    metaservers: int | None = None,
    shards: int | None = None,
    has_servers: bool = True,
    is_archiving: bool | None = None,
    pg_settings: Mapping[str, str] | None = None,
) -> ClusterRecord:
    """Start the cluster, or what of it does not run; returns when everything answers.

    Args:
        layout: where it lies.
        say: told what is being done.
        metaservers: how many; None keeps the number, or takes the default for a new cluster.
        shards: likewise; those that an existing cluster gets hold nothing until they are moved something.
        has_servers: whether more than the databases is wanted.
        is_archiving: whether the PostgreSQL servers archive their logs, from their next start on.
        pg_settings: more settings of PostgreSQL's, in force from its next start on.

    Raises:
        OpsError: something did not come up; what did is left running.
    """
    user = ensure_server_user(say)
    programs = find_programs(user)
    check_folder(layout)
    layout.make_folders()
    link_from_checkout(layout.root)
    check_can_enter(user, layout.postgres)
    with exclusive(layout, say):
        record = ensure_record(layout, metaservers, shards, is_archiving)
        ensure_keys(layout)
        servers = [
            pg_server(layout, record, name, programs, user, pg_settings) for name in record.database_names
        ]
        check_nothing_lost(layout, [server for server in servers if server.name not in record.joining])
        if record.is_archiving:
            ensure_archives(layout, record.database_names, user)
        if made := ensure_data_folders(layout, servers):
            version = f"{programs.major}.{programs.minor}"
            say(f"made {', '.join(made)}: PostgreSQL {version} ({programs.source}), as the user {user.name}")
        use_passfile(layout.passfile)
        databases = [postgres_spec(server) for server in servers]
        wanted = databases.copy()
        if has_servers:
            wanted += [*server_specs(layout, record, record.dsn(DIRECTORY)), *read_demo_specs(layout)]
        running = find_marked(layout.mark_prefix)
        # Servers that run go on; the others wait until their databases are migrated.
        ask_for(layout, [spec for spec in wanted if spec in databases or spec.name in running], say)
        wait_until_ready(layout, {server.name: server.is_ready for server in servers})
        if record.is_archiving:
            _say_who_does_not_archive(servers, say)
        _prepare_databases(record, servers, say)
        layout.whole_file.touch()
        record = drop_removed(layout, join_shards(layout, record, say), say)
        ask_for(layout, [spec for spec in wanted if spec.name not in record.removed], say)
        if has_servers:
            say("waiting for the servers")
        wait_until_ready(layout, {s.name: _probe_of(s.url) for s in wanted if s.url is not None})
    return record


def _say_who_does_not_archive(servers: Sequence[PgServer], say: Say) -> None:
    for server in servers:
        with server.connect() as conn:
            row = conn.execute("SHOW archive_mode").fetchone()
        if row == ("off",):
            say(f"{server.name} archives from its next start on: `shardctl dev down`, then `shardctl dev up`")


def run_beside(layout: DevLayout, specs: list[ProcessSpec], say: Say) -> None:
    """Have more processes running beside those of a cluster that is up."""
    with exclusive(layout, say):
        ask_for(layout, list((read_specs(layout) | {spec.name: spec for spec in specs}).values()), say)


def down(layout: DevLayout, say: Say) -> None:
    """Stop everything, gracefully and in order; the data stays.

    Raises:
        StartFailed: it does not stop.
    """
    if layout.record_file.exists():
        with exclusive(layout, say):
            _stop_all(layout, say)


def reset(layout: DevLayout, say: Say) -> None:
    """Stop everything and delete the cluster with all its data.

    Raises:
        UsageError: the folder is no cluster of ours.
    """
    check_folder(layout)
    if layout.root.is_dir():
        with exclusive(layout, say):
            _stop_all(layout, say)
            link = link_from_checkout(layout.root)
            shutil.rmtree(layout.root)
            if link is not None:
                link.unlink()
        say(f"deleted {layout.root}")


@contextmanager
def exclusive(layout: DevLayout, say: Say) -> Iterator[None]:
    """Keep other commands off this cluster; a second `dev up` waits and then finds everything running."""
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(layout.command_lock, wait=False))
        except ClusterBusy:
            say("another command is at work on this cluster; waiting for it")
            stack.enter_context(locked(layout.command_lock))
        if not layout.command_lock.exists():
            raise ClusterBusy("the cluster was deleted meanwhile; run the command again")
        yield


def _prepare_databases(record: ClusterRecord, servers: list[PgServer], say: Say) -> None:
    """Create the databases, and migrate and record those of the cluster, as far as that has not been done."""
    for server in servers:
        server.ensure_database(database_of(server.name))
    directory = record.dsn(DIRECTORY)
    shards = {name: record.dsn(name) for name in record.member_names}
    are_current = [is_current(dsn, Tree.SHARD) for dsn in shards.values()]
    if not all((is_current(directory, Tree.DIRECTORY), *are_current)):
        report = migrate_databases(directory, shards)
        report.raise_for_failures()
        say(f"migrated {', '.join(result.name for result in report.databases if result.applied)}")
    try:
        create_cluster(directory, [(name, dsn, 1) for name, dsn in shards.items()], EMBEDDED_SLOTS)
    except DirectoryLost as error:
        raise DataLost(f"{error}: run `shardctl restore directory`") from error


def stop_shard(layout: DevLayout, name: str, say: Say) -> None:
    """Let the server of a shard that was removed run no more; its data stay."""
    with exclusive(layout, say):
        record = drop_shards(layout, read_record(layout), [name])
        specs = read_specs(layout)
        if name in record.removed and specs.pop(name, None) is not None:
            ask_for(layout, list(specs.values()), say)
            say(f"the server of {name} stops; nothing needs its data in {layout.postgres / name} any more")


# ---- The supervisor


def find_supervisor(layout: DevLayout) -> ProcessHandle | None:
    """The cluster's supervisor; None when there is none."""
    identity = find_marked(layout.mark_prefix).get(SUPERVISOR)
    try:
        return None if identity is None else ProcessHandle(identity)
    except ProcessLookupError:
        return None


def ask_for(layout: DevLayout, specs: list[ProcessSpec], say: Say) -> None:
    """Have exactly these processes running; starts a supervisor when there is none.

    Raises:
        StartFailed: the supervisor does not come up.
    """
    write_specs(layout, specs)
    handle = find_supervisor(layout)
    if handle is None:
        say(f"starting the supervisor of {layout.root}")
        handle = spawn(
            [sys.executable, "-m", "ops.supervisor", str(layout.root)],
            mark=layout.mark(SUPERVISOR),
            env=base_environment(),
            log=layout.log(SUPERVISOR),
            cwd=CODE_ROOT,
        )
    deadline = time.monotonic() + START_TIMEOUT_S
    # A signal that comes before it has said that it listens would end it.
    while read_state(layout).supervisor_pid != handle.pid:
        if handle.wait(POLL_S) or time.monotonic() > deadline:
            raise StartFailed(f"the supervisor did not start:\n{tail(layout.log(SUPERVISOR))}")
    handle.send(signal.SIGHUP)
    handle.close()


def _stop_all(layout: DevLayout, say: Say) -> None:
    supervisor = find_supervisor(layout)
    if supervisor is None:
        # Nobody watches, yet the processes may run: take the supervisor's place for a moment.
        with locked(layout.supervisor_lock, wait=False, what="a supervisor"):
            stand_in = Supervisor(layout)
            stand_in.adopt()
            stand_in.stop_all()
        return
    say("stopping: clients, servers, databases")
    supervisor.send(signal.SIGTERM)
    if not supervisor.wait(STOP_TIMEOUT_S):
        log = layout.log(SUPERVISOR)
        raise StartFailed(f"the supervisor (pid {supervisor.pid}) does not stop; see {log}")
    supervisor.close()


def wait_until_ready(layout: DevLayout, probes: dict[str, Callable[[], bool]]) -> None:
    """Return when all processes answer.

    Raises:
        StartFailed: one keeps dying, or does not answer in time; the message quotes its log.
    """
    deadline = time.monotonic() + START_TIMEOUT_S
    restarts = {state.name: state.restarts for state in read_state(layout).processes}
    waiting = dict(probes)
    while waiting:
        waiting = {name: probe for name, probe in waiting.items() if not probe()}
        for state in read_state(layout).processes if waiting else []:
            is_hopeless = state.restarts - restarts.get(state.name, 0) >= CRASHES_TOLERATED
            if state.name in waiting and (is_hopeless or time.monotonic() > deadline):
                what = f"keeps dying ({state.last_exit})" if is_hopeless else "does not answer"
                raise StartFailed(
                    f"{state.name} {what}; {state.log} ends with:\n{tail(layout.log(state.name))}"
                )
        if waiting:
            time.sleep(POLL_S)


def _probe_of(url: str) -> Callable[[], bool]:
    return lambda: is_server_ready(url)
