"""A PostgreSQL server that nobody but its starter can reach: a socket in a private folder, no network.

While a restored server is not reconciled, a read of it would be as wrong as a write: its heads lie below what
clients have seen. A state in its tables could only be written after it has started; where it cannot be
reached, there is nothing to refuse.
"""

import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg.conninfo import make_conninfo

from ops.errors import OpsError
from ops.files import tail, write_file
from ops.osuser import OsUser
from ops.postgres import find_postmaster
from ops.processes import ProcessHandle, spawn, stop
from ops.programs import PgPrograms

STOP_GRACE_S = 120.0
"""A fast stop writes a checkpoint."""
POLL_S = 0.1
TELL_EVERY_S = 5.0

Tell = Callable[[str], None]


class RecoveryFailed(OpsError):
    """PostgreSQL did not get to the moment asked for; the message quotes its log."""

    code = "recovery_failed"


@dataclass(frozen=True, slots=True)
class PrivateServer:
    """Where it is reached, and as whom."""

    socket_folder: Path
    role: str

    def dsn(self, database: str) -> str:
        """The address of a database."""
        return make_conninfo(host=str(self.socket_folder), port=_PORT, user=self.role, dbname=database)


_PORT = 5432
"""Only a part of the socket's name."""


def end_leftover(data_dir: Path) -> None:
    """Stop the server that a restore which was killed has left running on a folder."""
    identity = find_postmaster(data_dir)
    if identity is not None:
        handle = ProcessHandle(identity)
        stop(handle, signal.SIGINT, grace_s=STOP_GRACE_S)
        handle.close()


@contextmanager
def private_server(
    programs: PgPrograms,
    user: OsUser,
    data_dir: Path,
    log: Path,
    *,
    role: str,
    settings: Mapping[str, str],
    tell: Tell,
) -> Iterator[PrivateServer]:
    """The server of a data folder, once it takes writes; stopped at the end.

    Raises:
        RecoveryFailed: it ended before.
    """
    end_leftover(data_dir)
    # Not beside the data: a socket's path may have 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="shardbox-restore-"))
    try:
        user.give(folder)
        hba = folder / "hba.conf"
        # The folder is closed to all but this user and root, who could read the data anyway.
        write_file(hba, b"local all all trust\n")
        user.give(hba)
        options = {
            "listen_addresses": "",
            "unix_socket_directories": str(folder),
            "unix_socket_permissions": "0700",
            "port": str(_PORT),
            "hba_file": str(hba),
            "hot_standby": "off",
            # The log of this time is archived once the server is in service: an attempt that is given up must
            # leave no timeline in the archive. Until then it is kept.
            "archive_command": "/bin/false",
            "autovacuum": "off",
            **settings,
        }
        argv = [programs.path("postgres"), "-D", str(data_dir)]
        argv += [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        handle = spawn(
            argv,
            mark=f"restore:{data_dir}",
            env={"PATH": f"{programs.bin_dir}:/usr/bin:/bin", "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8"},
            log=log,
            cwd=data_dir,
            user=user,
        )
        try:
            server = PrivateServer(folder, role)
            _wait_writable(server, handle, log, tell)
            yield server
        finally:
            stop(handle, signal.SIGINT, grace_s=STOP_GRACE_S)
            handle.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _wait_writable(server: PrivateServer, handle: ProcessHandle, log: Path, tell: Tell) -> None:
    told = time.monotonic()
    while not _is_writable(server):
        if handle.wait(POLL_S):
            raise RecoveryFailed(f"PostgreSQL ended ({handle.exit_text()}); {log} ends with:\n{tail(log)}")
        if time.monotonic() > told + TELL_EVERY_S:
            told = time.monotonic()
            tell(f"still replaying: {_last_restored(log)}")


def _is_writable(server: PrivateServer) -> bool:
    try:
        with psycopg.connect(server.dsn("template1"), autocommit=True, connect_timeout=5) as conn:
            row = conn.execute("SELECT pg_is_in_recovery()").fetchone()
    except psycopg.OperationalError:
        return False
    return row is not None and not row[0]


def _last_restored(log: Path) -> str:
    lines = [line for line in tail(log, 200).splitlines() if "restored log file" in line]
    return lines[-1].partition("restored ")[2] if lines else "the base backup's own log"
