"""The process that holds a test run's PostgreSQL servers and ends them with the run, however that ends.

`python -m tests.support.keeper FOLDER OWNER_PID`
"""

import contextlib
import os
import shutil
import signal
import sys
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ops import dev
from ops.errors import OpsError
from ops.files import write_file, write_json
from ops.layout import DevLayout
from ops.osuser import ensure_server_user
from ops.ports import reserve_port
from ops.postgres import NO_DURABILITY, PgServer, make_password, write_passfile
from ops.processes import ProcessHandle, ProcessIdentity, spawn, stop
from ops.programs import find_programs

DIRECTORY = "directory"
SHARDS = ("shard-1", "shard-2")
KEEPER_FILE = "keeper.json"
READY_FILE = "ready.json"
FAILED_FILE = "failed"
LOG_FILE = "keeper.log"
CLUSTERS = "clusters"
"""The folder of the embedded clusters that tests start."""
MARK = "test-server:"
_CHECK_S = 3600.0


def server_at(folder: Path, name: str, port: int) -> PgServer:
    """The description of one of a run's servers; whoever knows its port can make it."""
    user = ensure_server_user()
    return PgServer(
        name=name,
        folder=folder / name,
        port=port,
        log=folder / f"{name}.log",
        programs=find_programs(user),
        user=user,
        passfile=folder / "pgpass",
        settings=NO_DURABILITY,
    )


def start_keeper(folder: Path, owner_pid: int) -> ProcessHandle:
    """Start the keeper; READY_FILE or FAILED_FILE appears when its work is done."""
    return spawn(
        [sys.executable, "-m", "tests.support.keeper", str(folder), str(owner_pid)],
        mark=f"test-keeper:{folder}",
        env=os.environ,
        log=folder / LOG_FILE,
        cwd=Path(__file__).parents[2],
    )


def main() -> None:
    """Start the servers, wait for the run's end, stop them and delete the folder."""
    folder, owner_pid = Path(sys.argv[1]), int(sys.argv[2])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    identity = ProcessIdentity.own()
    write_json(folder / KEEPER_FILE, [identity.pid, identity.start_ticks, identity.boot_id])
    owner_identity = ProcessIdentity.find(owner_pid)
    handles: list[ProcessHandle] = []
    try:
        if owner_identity is None:
            return
        owner = ProcessHandle(owner_identity)
        try:
            write_json(folder / READY_FILE, _start_all(folder, handles))
        except Exception:
            write_file(folder / FAILED_FILE, traceback.format_exc().encode())
        while not owner.wait(_CHECK_S):
            pass
    finally:
        for handle in handles:
            handle.send(signal.SIGQUIT)  # the immediate end: nobody wants the data
        for handle in handles:
            stop(handle, signal.SIGQUIT, grace_s=5)
        for root in (folder / CLUSTERS).glob("*"):
            with contextlib.suppress(OpsError):
                dev.down(DevLayout(root), print)
        shutil.rmtree(folder, ignore_errors=True)


def _start_all(folder: Path, handles: list[ProcessHandle]) -> dict[str, int]:
    reservations = {name: reserve_port() for name in (DIRECTORY, *SHARDS)}
    servers = [server_at(folder, name, held.port) for name, held in reservations.items()]
    passwords = {server.port: make_password() for server in servers}
    write_passfile(folder / "pgpass", passwords)

    def start(server: PgServer) -> None:
        server.ensure_initialised(passwords[server.port], sync=False)
        handle = server.start(f"{MARK}{folder}:{server.name}")
        handles.append(handle)
        server.wait_ready(handle)

    with ThreadPoolExecutor() as pool:
        list(pool.map(start, servers))
    for held in reservations.values():
        held.close()
    return {server.name: server.port for server in servers}


if __name__ == "__main__":
    main()
