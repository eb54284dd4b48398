"""A server of one's own: its data folder is lost, and restored without the embedded cluster's commands."""

import secrets
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ops.backup.archive import archive_settings
from ops.errors import EXIT_CONFLICT
from ops.osuser import ensure_server_user
from ops.ports import reserve_port
from ops.postgres import NO_DURABILITY, PgServer, make_password
from ops.processes import ProcessHandle, stop
from tests.support.commands import OPERATOR, run_command
from tests.support.databases import FreshCluster, PgServers
from tests.support.waiting import wait_for

MARK = "test-restore-pgdata:"


class OwnServer:
    """A PostgreSQL server that archives, and its process."""

    def __init__(self, folder: Path, servers: PgServers):
        held = reserve_port()
        held.close()
        model = servers.directory
        self.backups = folder / "backups"
        self.wal = self.backups / "shard-1" / "wal"
        self.passfile = folder / "pgpass"
        self.password = make_password()
        line = f"127.0.0.1:{held.port}:*:shardbox:{self.password}\n"
        self.passfile.write_text(model.passfile.read_text() + line)
        self.passfile.chmod(0o600)
        self.server = PgServer(
            name="shard-1",
            folder=folder / "server",
            port=held.port,
            log=folder / "log",
            programs=model.programs,
            user=ensure_server_user(),
            passfile=self.passfile,
            settings={**NO_DURABILITY, **archive_settings(folder / "archive-wal", self.wal)},
        )
        self.handle: ProcessHandle | None = None

    def start(self) -> None:
        self.handle = self.server.start(f"{MARK}{self.server.folder}")
        self.server.wait_ready(self.handle)

    def stop(self, number: signal.Signals) -> None:
        if self.handle is not None:
            stop(self.handle, number, grace_s=20)
            self.handle.close()
            self.handle = None


@pytest.fixture
def own(run_folder: Path, pg_servers: PgServers) -> Iterator[OwnServer]:
    folder = run_folder / f"own-{secrets.token_hex(4)}"
    folder.mkdir(mode=0o711)
    folder.chmod(0o711)
    found = OwnServer(folder, pg_servers)
    found.server.ensure_initialised(found.password, sync=False)
    found.start()
    yield found
    found.stop(signal.SIGQUIT)
    shutil.rmtree(folder)


@pytest.mark.long
def test_a_server_of_ones_own_is_backed_up_and_restored(own: OwnServer, fresh_cluster: FreshCluster) -> None:
    env = {"SHARDBOX_DIRECTORY_DSN": fresh_cluster.directory_dsn, "PGPASSFILE": str(own.passfile)}

    def run(*args: str, status: int = 0) -> Any:
        done = run_command(OPERATOR, *args, "--output", "json", env=env)
        assert done.returncode == status, done.stderr
        return msgspec.json.decode(done.stdout) if status == 0 else done.stderr

    own.server.ensure_database("shard_1")
    shards = {"shard-1": own.server.dsn("shard_1"), "shard-2": fresh_cluster.shard_dsns["shard-2"]}
    run("cluster", "create", *(f"--shard={name}={dsn}" for name, dsn in shards.items()), "--slots", "8")
    archiver = own.backups.parent / "archive-wal"
    assert run("backup", "archiver", str(archiver), "--wal", str(own.wal))["archive_mode"] == "on"
    backup = run("backup", "base", "shard-1", "--to", str(own.backups))["backup"]
    own.server.user.give(own.wal)
    emails = [f"user-{n}@example.org" for n in range(3)]
    before = [run("user", "add", email) for email in emails]
    with own.server.connect("shard_1") as conn:
        row = conn.execute("SELECT pg_walfile_name(pg_switch_wal())").fetchone()
    assert row is not None
    wait_for((own.wal / row[0]).exists, "the archive", timeout_s=90)
    restore = ("restore", "shard", "shard-1", "--from", str(own.backups), "--yes")
    restore += ("--pgdata", str(own.server.data_dir))
    assert "data_lost: the server of" in run(*restore, status=EXIT_CONFLICT)  # it runs
    own.stop(signal.SIGKILL)
    shutil.rmtree(own.server.data_dir)

    report = run(*restore)
    own.start()

    assert (report["backup_id"], report["step"], report["former_data"]) == (
        backup["backup_id"],
        "published",
        None,
    )
    assert run("user", "list")["users"] == sorted(before, key=lambda user: int(user["root_ns"]))
    located = [run("namespace", "locate", email) for email in emails]
    assert {x["owner_epoch"] for x in located} <= {1, 2}
    assert all((x["owner_epoch"], x["epoch"]) == (2, 2) for x in located if x["shard"] == "shard-1")
    leftovers = {path.name for path in own.server.folder.iterdir()}
    assert leftovers == {"data"}
    found = run("doctor", "--backups", str(own.backups))["findings"]
    verdicts = {f["check"]: f["verdict"] for f in found if f["subject"] == "shard-1"}
    assert {verdicts[check] for check in ("backup", "archiving", "reachable", "schema")} == {"ok"}
