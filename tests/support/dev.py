"""Embedded clusters of real processes for tests, started by the code of `shardctl dev up`.

* `dev_cluster` (module): every process of a cluster, with data of its own.
* `shared_cluster` (session): the same, for all modules that bring accounts of their own and leave it whole.
* `dev_databases` (module): its PostgreSQL servers under a supervisor, and no servers.
* `running_cluster(…)`: the same as a context manager, for a fixture of another scope.

A test that needs the cluster whole calls `cluster.ensure_up()`: one before it may have killed something.
"""

import secrets
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import psycopg
import pytest

from ops import dev
from ops.dev_status import DevStatus, ProcessReport, get_status
from ops.layout import DevLayout
from ops.postgres import NO_DURABILITY
from ops.processes import ProcessHandle, find_marked
from ops.specs import database_of
from ops.supervisor import SUPERVISOR
from tests.support.databases import PgServers
from tests.support.keeper import CLUSTERS
from tests.support.run import run_dir
from tests.support.waiting import wait_for


@dataclass(frozen=True, slots=True)
class DevCluster:
    """A cluster of processes, and what tests do to it."""

    layout: DevLayout
    has_servers: bool
    metaservers: int | None = None
    is_durable: bool = False
    """Whether PostgreSQL flushes as in production, rather than as suits a test."""
    is_archiving: bool | None = None
    shards: int | None = None
    """How many it begins with."""

    def up(self) -> None:
        """What `shardctl dev up` does."""
        dev.up(
            self.layout,
            print,
            metaservers=self.metaservers,
            shards=None if self.layout.record_file.exists() else self.shards,
            has_servers=self.has_servers,
            is_archiving=self.is_archiving,
            pg_settings=None if self.is_durable else NO_DURABILITY,
        )

    def ensure_up(self) -> None:
        """The same, unless everything runs and answers already."""
        status = self.status()
        wanted = [p for p in status.processes if self.has_servers or p.dsn is not None]
        if status.supervisor_pid is None or not all(process.is_ready for process in wanted):
            self.up()

    def down(self) -> None:
        """What `shardctl dev down` does."""
        dev.down(self.layout, print)

    def status(self) -> DevStatus:
        """What `shardctl dev status` tells."""
        return get_status(self.layout)

    def process(self, name: str) -> ProcessReport:
        """One process of the status."""
        return next(p for p in self.status().processes if p.name == name)

    def pids(self) -> dict[str, int]:
        """The running processes by name, the supervisor among them."""
        return {name: identity.pid for name, identity in find_marked(self.layout.mark_prefix).items()}

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> int:
        """Send a signal to a process of the cluster; the pid that got it."""
        handle = ProcessHandle(find_marked(self.layout.mark_prefix)[name])
        handle.send(number)
        if number == signal.SIGKILL:
            assert handle.wait(10)
        handle.close()
        return handle.pid

    def kill_supervisor(self) -> None:
        """Leave the processes to themselves."""
        self.kill(SUPERVISOR)

    def wait_restarted(self, name: str, former_pid: int) -> ProcessReport:
        """The process once another one has taken its place and answers."""

        def restarted() -> ProcessReport | None:
            report = self.process(name)
            is_new = report.pid is not None and report.pid != former_pid
            return report if is_new and report.is_ready is not False else None

        return wait_for(restarted, f"{name} starting again")

    def dsn(self, name: str) -> str:
        """The address of the database of a PostgreSQL server, with its password file."""
        report = self.process(name)
        return psycopg.conninfo.make_conninfo(
            f"postgresql://shardbox@127.0.0.1:{report.port}/{database_of(name)}",
            passfile=str(self.layout.passfile),
            connect_timeout=5,
        )

    def connect(self, name: str) -> psycopg.Connection:
        """An autocommit connection to the database of a PostgreSQL server."""
        return psycopg.connect(self.dsn(name), autocommit=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest modules first, so that no worker is left alone with one at the end."""
    items.sort(key=_timeout_s, reverse=True)


def _timeout_s(item: pytest.Item) -> float:
    mark = item.get_closest_marker("timeout")
    return float(mark.args[0]) if mark is not None else 0.0


@contextmanager
def running_cluster(
    *,
    has_servers: bool = True,
    metaservers: int | None = None,
    is_durable: bool = False,
    is_archiving: bool | None = None,
    shards: int | None = None,
) -> Iterator[DevCluster]:
    """A cluster of one's own, stopped at the end; its keeper stops it should this process be killed."""
    root = run_dir() / CLUSTERS / secrets.token_hex(4)
    root.parent.mkdir(exist_ok=True)
    root.parent.chmod(0o711)
    cluster = DevCluster(DevLayout(root), has_servers, metaservers, is_durable, is_archiving, shards)
    try:
        cluster.up()
        yield cluster
    finally:
        dev.reset(cluster.layout, print)


@pytest.fixture(scope="module")
def dev_cluster(pg_servers: PgServers, own_passfile: None) -> Iterator[DevCluster]:
    """Every process of a cluster."""
    with running_cluster() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def shared_cluster(pg_servers: PgServers) -> Iterator[DevCluster]:
    """Every process of a cluster, one for each xdist worker."""
    with ExitStack() as stack:
        with restored_passfile(pg_servers):
            cluster = stack.enter_context(running_cluster())
        yield cluster


@pytest.fixture(scope="module")
def dev_databases(pg_servers: PgServers, own_passfile: None) -> Iterator[DevCluster]:
    """The databases of a cluster under a supervisor."""
    with running_cluster(has_servers=False) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def own_passfile(pg_servers: PgServers) -> Iterator[None]:
    """For modules on the shared cluster that run commands."""
    with restored_passfile(pg_servers):
        yield


@contextmanager
def restored_passfile(servers: PgServers) -> Iterator[None]:
    """Commands point PGPASSFILE at their own cluster, in this process; the shared servers' comes back."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PGPASSFILE", str(servers.directory.passfile))
        yield
