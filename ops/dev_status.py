"""`shardctl dev status`: what the cluster consists of, where, and what of it answers."""

from concurrent.futures import ThreadPoolExecutor

import msgspec

from ops.dev import find_supervisor
from ops.dev_setup import read_record
from ops.layout import DevLayout
from ops.osuser import ensure_server_user
from ops.postgres import PgServer
from ops.processes import find_marked
from ops.programs import find_programs
from ops.readiness import is_server_ready
from ops.specs import DIRECTORY, ClusterRecord, ProcessKind, database_of, pg_server
from ops.state import ProcessState, ProcessStatus, read_state
from ops.supervisor import SUPERVISOR


class ProcessReport(msgspec.Struct, frozen=True, kw_only=True):
    """One process, looked at from outside."""

    name: str
    kind: str
    status: str
    is_ready: bool | None
    """Whether it answers; None for a process that takes no requests."""
    pid: int | None
    port: int | None
    url: str | None
    dsn: str | None
    restarts: int
    last_exit: str | None
    last_exit_at: str | None
    log: str


class DevStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The whole cluster."""

    is_up: bool
    """Whether everything runs and answers, under a supervisor."""
    data_dir: str
    supervisor_pid: int | None
    """None when nobody watches: the processes may still run, and the next `dev up` adopts them."""
    supervisor_log: str
    directory_dsn: str
    """Without the password, like all DSNs here: libpq finds it by PGPASSFILE."""
    shard_dsns: dict[str, str]
    passfile: str
    metaserver_urls: list[str]
    blockserver_url: str
    notifserver_url: str
    processes: list[ProcessReport]


def get_status(layout: DevLayout) -> DevStatus:
    """What the cluster is and does.

    Raises:
        NoCluster: none was made there.
    """
    record = read_record(layout)
    user = ensure_server_user()
    programs = find_programs(user)
    servers = {n: pg_server(layout, record, n, programs, user) for n in record.database_names}
    supervisor = find_supervisor(layout)
    states = {state.name: state for state in read_state(layout).processes}
    running = {n: p.pid for n, p in find_marked(layout.mark_prefix).items() if n != SUPERVISOR}
    names = list(dict.fromkeys([*record.process_names, *states]))
    with ThreadPoolExecutor(len(names)) as pool:
        reports = list(
            pool.map(
                lambda n: _report(n, record, layout, servers.get(n), states.get(n), running.get(n)), names
            )
        )
    dsns = {name: server.dsn(database_of(name)) for name, server in servers.items()}
    result = DevStatus(
        is_up=supervisor is not None and all(report.is_ready is not False for report in reports),
        data_dir=str(layout.root),
        supervisor_pid=supervisor.pid if supervisor else None,
        supervisor_log=str(layout.log(SUPERVISOR)),
        directory_dsn=dsns.pop(DIRECTORY),
        shard_dsns=dsns,
        passfile=str(layout.passfile),
        metaserver_urls=[record.url(name) for name in record.metaserver_names],
        blockserver_url=record.url("blockserver"),
        notifserver_url=record.url("notifserver"),
        processes=reports,
    )
    if supervisor is not None:
        supervisor.close()
    return result


def _report(
    name: str,
    record: ClusterRecord,
    layout: DevLayout,
    server: PgServer | None,
    state: ProcessState | None,
    pid: int | None,
) -> ProcessReport:
    # What runs is asked of the kernel: the state file is as old as its supervisor's last sign of life.
    port = record.ports.get(name)
    url = record.url(name) if port is not None and server is None else None
    if pid is not None:
        status = ProcessStatus.RUNNING
    elif state is not None and state.status is ProcessStatus.BACKOFF:
        status = ProcessStatus.BACKOFF
    else:
        status = ProcessStatus.STOPPED
    is_ready: bool | None = None
    if server is not None:
        is_ready = pid is not None and server.is_ready()
    elif url is not None:
        is_ready = pid is not None and is_server_ready(url)
    elif state is not None:
        is_ready = None if pid is not None else False
    return ProcessReport(
        name=name,
        kind=state.kind if state else (ProcessKind.POSTGRES if server else name.rsplit("-", 1)[0]),
        status=status,
        is_ready=is_ready,
        pid=pid,
        port=port,
        url=url,
        dsn=server.dsn(database_of(name)) if server else None,
        restarts=state.restarts if state else 0,
        last_exit=state.last_exit if state else None,
        last_exit_at=state.last_exit_at if state else None,
        log=str(layout.log(name)),
    )
