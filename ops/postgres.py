"""One PostgreSQL server of an embedded cluster: made, configured, started, stopped."""

import os
import re
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
from psycopg import sql

from ops.errors import StartFailed
from ops.files import PUBLIC, tail, write_file
from ops.osuser import OsUser
from ops.ports import LOOPBACK
from ops.processes import ProcessHandle, ProcessIdentity, processes_in, spawn
from ops.programs import PgPrograms

ROLE = "shardbox"
MAINTENANCE_DB = "postgres"
_INCLUDE = "include_if_exists = 'shardbox.conf'\n"

_SETTINGS: Mapping[str, str] = {
    "listen_addresses": LOOPBACK,
    # TCP only: a socket's path may be 107 bytes long, which a deep data folder exceeds.
    "unix_socket_directories": "",
    "password_encryption": "scram-sha-256",  # pragma: allowlist secret
    # Two metaservers with bounded pools, an operator, a move's walsenders and the tests' onlookers.
    "max_connections": "200",
    # Three servers share a laptop with everything else; the benchmarks' working sets fit.
    "shared_buffers": "128MB",
    # Moves of slots (docs/resharding.md) stream by logical replication, several at once.
    "wal_level": "logical",
    "max_replication_slots": "32",
    "max_wal_senders": "32",
    "max_logical_replication_workers": "16",
    "max_sync_workers_per_subscription": "4",
    "max_worker_processes": "32",
    # An abandoned slot keeps WAL; this is where it loses its place instead of filling the disk.
    "max_slot_wal_keep_size": "4GB",
    # Transactions over several shards are prepared; one for each connection is enough.
    "max_prepared_transactions": "200",
    "fsync": "on",
    "synchronous_commit": "on",
    # Its statements are short: compiling them costs more than it gains.
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_line_prefix": "%m [%p] %q%d %a ",
    "log_lock_waits": "on",
    # Statements carry names and hashes, which no log should hold.
    "log_min_error_statement": "panic",
    "log_parameter_max_length": "0",
    "log_checkpoints": "off",
}

NO_DURABILITY: Mapping[str, str] = {
    "fsync": "off",
    "full_page_writes": "off",
    "autovacuum_naptime": "1min",
    # DROP DATABASE waits for every backend, one in mid login too, and a test may leave such a one behind.
    "authentication_timeout": "5s",
    "shared_buffers": "64MB",
}
"""For the tests' servers, which are thrown away: what is lost with the machine does not matter there. A
commit is still written before it is acknowledged, as servers are killed there."""


@dataclass(frozen=True, slots=True)
class PgServer:
    """Where a server lies and how it is reached; says nothing about whether it runs."""

    name: str
    folder: Path
    """Holds `data`; belongs to the user that the server runs as."""
    port: int
    log: Path
    programs: PgPrograms
    user: OsUser
    passfile: Path
    """libpq's password file, which the caller alone can read."""
    settings: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def data_dir(self) -> Path:
        """PGDATA."""
        return self.folder / "data"

    def argv(self) -> list[str]:
        """The command of the server process."""
        return [self.programs.path("postgres"), "-D", str(self.data_dir)]

    def environment(self) -> dict[str, str]:
        """The whole environment of the server process: nothing of the caller's matters to it."""
        return {"PATH": f"{self.programs.bin_dir}:/usr/bin:/bin", "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8"}

    def dsn(self, database: str) -> str:
        """The address of a database, without the password: libpq finds that in the passfile."""
        return f"postgresql://{ROLE}@{LOOPBACK}:{self.port}/{database}"

    def connect(self, database: str = MAINTENANCE_DB, *, timeout_s: int = 5) -> psycopg.Connection:
        """An autocommit connection of the operator's."""
        return psycopg.connect(
            self.dsn(database), passfile=str(self.passfile), connect_timeout=timeout_s, autocommit=True
        )

    # ---- Making it

    def ensure_initialised(self, password: str, *, sync: bool = True) -> bool:
        """Make the data folder, if it is not there; answers whether it had to.

        The folder gets its name when it is whole, so a run that died half-way leaves nothing to trip over.

        Args:
            password: of the role `shardbox`, a superuser.
            sync: whether it has to survive a power cut from now on.

        Raises:
            StartFailed: initdb failed; the message quotes it.
        """
        if (self.data_dir / "PG_VERSION").exists():
            self._write_settings()
            return False
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o700)
        self.user.give(self.folder)
        with tempfile.TemporaryDirectory(dir=self.folder, prefix=".initdb-") as temporary:
            scratch = Path(temporary)
            self.user.give(scratch)
            self._run_initdb(scratch, password, sync=sync)
            with (scratch / "data" / "postgresql.conf").open("a") as config:
                config.write(_INCLUDE)
            (scratch / "data").rename(self.data_dir)
        self._write_settings()
        return True

    def _run_initdb(self, scratch: Path, password: str, *, sync: bool) -> None:
        pwfile = scratch / "password"
        write_file(pwfile, password.encode() + b"\n")
        self.user.give(pwfile)
        options = [
            "--username",
            ROLE,
            "--pwfile",
            str(pwfile),
            "--auth",
            "scram-sha-256",
            "--encoding",
            "UTF8",
        ]
        # The built-in provider sorts alike on every machine and needs no locale of the system's.
        options += (
            ["--locale", "C", "--locale-provider", "builtin", "--builtin-locale", "C.UTF-8"]
            if self.programs.major >= 17
            else ["--locale", "C.UTF-8"]
        )
        options += ["--data-checksums"] if sync else ["--no-sync"]
        done = subprocess.run(
            [self.programs.path("initdb"), "--pgdata", str(scratch / "data"), *options],
            env=self.environment(),
            cwd=scratch,
            capture_output=True,
            text=True,
            check=False,
            **self.user.popen_options(),
        )
        if done.returncode != 0:
            raise StartFailed(f"initdb failed for {self.name}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")

    def _write_settings(self) -> None:
        values = {**_SETTINGS, **self.settings, "port": str(self.port), "cluster_name": self.name}
        lines = ["# Written by shardctl at each start; put settings of your own into postgresql.conf.\n"]
        path = self.data_dir / "shardbox.conf"
        write_file(path, "".join([*lines, format_settings(values), "\n"]).encode(), mode=PUBLIC)
        self.user.give(path)

    # ---- Running it

    def start(self, mark: str) -> ProcessHandle:
        """Start the server process; it is not ready yet."""
        return spawn(
            self.argv(), mark=mark, env=self.environment(), log=self.log, cwd=self.folder, user=self.user
        )

    def is_ready(self) -> bool:
        """Whether the server takes connections."""
        try:
            self.connect(timeout_s=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def wait_ready(self, handle: ProcessHandle, *, timeout_s: float = 60) -> None:
        """Return when the server takes connections.

        Raises:
            StartFailed: it ended, or is not ready in time; the message quotes its log.
        """
        deadline = time.monotonic() + timeout_s
        while not self.is_ready():
            if handle.wait(0.05) or time.monotonic() > deadline:
                raise StartFailed(f"{self.name} did not start ({handle.exit_text()}):\n{tail(self.log)}")

    def ensure_database(self, name: str) -> bool:
        """Create a database, if it is not there; answers whether it had to."""
        with self.connect() as conn:
            if conn.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name]).fetchone():
                return False
            conn.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
            return True

    def delete(self) -> None:
        """Delete the data of a server that does not run."""
        shutil.rmtree(self.folder, ignore_errors=False)


def format_settings(values: Mapping[str, str]) -> str:
    """Lines for postgresql.conf, where a quote stands twice."""
    return "\n".join("{} = '{}'".format(name, value.replace("'", "''")) for name, value in values.items())


def find_postmaster(data_dir: Path) -> ProcessIdentity | None:
    """The running server process of a data folder; None when there is none, whatever its pid file says."""
    try:
        pid = int((data_dir / "postmaster.pid").read_text().split("\n", 1)[0])
    except (OSError, ValueError):
        return None
    return next((p for p in processes_in(data_dir) if p.pid == pid), None)


def clear_remains(data_dir: Path, *, is_patient: bool) -> bool:
    """Make way for a start after a server process died without cleaning up; whether the way is clear.

    Its backends notice within milliseconds, but for those amid a long statement; while one of them lives, a
    new server refuses to start, as two would write to the same files. The patient caller waits and asks
    again; the other one has them killed, which crash recovery makes good. The pid file that is left may name
    a pid that another process has by now, which PostgreSQL would take for the server.
    """
    if find_postmaster(data_dir) is not None:
        return False
    backends = processes_in(data_dir)
    if backends and is_patient:
        return False
    for identity in backends:
        try:
            handle = ProcessHandle(identity)
        except ProcessLookupError:
            continue
        handle.send(signal.SIGKILL)
        handle.wait(10)
        handle.close()
    (data_dir / "postmaster.pid").unlink(missing_ok=True)
    return True


_PASSWORD_LINE = re.compile(r"^(?P<host>[^:]*):(?P<port>\d+):\*:[^:]*:(?P<password>.*)$")


def make_password() -> str:
    """A password with nothing in it that a password file would need escaped."""
    return secrets.token_urlsafe(24)


def write_passfile(path: Path, passwords: Mapping[int, str]) -> None:
    """Write libpq's password file: a password for each port."""
    lines = [f"{LOOPBACK}:{port}:*:{ROLE}:{password}\n" for port, password in sorted(passwords.items())]
    write_file(path, "".join(lines).encode())


def read_passfile(path: Path) -> dict[int, str]:
    """The passwords by port; empty when there is no file."""
    try:
        matches = [_PASSWORD_LINE.match(line) for line in path.read_text().splitlines()]
    except FileNotFoundError:
        return {}
    return {int(m["port"]): m["password"] for m in matches if m is not None}


def use_passfile(path: Path) -> None:
    """Let every libpq connection of this process and its children find the passwords."""
    os.environ["PGPASSFILE"] = str(path)
