"""What tests do to the surroundings of a client: disks that fill up, shards that hang, busy servers."""

import asyncio
import contextlib
import signal
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import msgspec
import psutil
import psycopg
from aiohttp import web

from client.folder import Folder
from tests.acceptance.client.devices import Accounts, Device
from tests.support.dev import DevCluster
from wire.api import Discovery
from wire.errors import ErrorBody, Overloaded, ShardboxError, TooManyRequests, TooManyWriteOperations


@contextmanager
def small_disk(place: Path, size: str) -> Iterator[bool]:
    """A file system of that size at a path while the body runs; False where mounting is not allowed."""
    place.mkdir(parents=True)
    is_mounted = (
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place], check=False, capture_output=True
        ).returncode
        == 0
    )
    try:
        yield is_mounted
    finally:
        if is_mounted:
            subprocess.run(["umount", "--lazy", place], check=True)


@contextmanager
def stopped_shard(cluster: DevCluster, name: str) -> Iterator[None]:
    """All processes of a shard's PostgreSQL hang while the body runs."""
    postmaster = psutil.Process(cluster.pids()[name])
    stopped = [postmaster, *postmaster.children(recursive=True)]
    for process in stopped:
        process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        for process in stopped:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGCONT)


def home_of(accounts: Accounts, device: Device) -> tuple[int, str]:
    """The device's namespace, and the shard where it lies."""
    found = accounts.ctl("namespace", "locate", device.status().email)
    return int(found["ns_id"]), found["shard"]


def shards_of(cluster: DevCluster) -> list[str]:
    """The names of all shards."""
    with cluster.connect("directory") as conn:
        return [row[0] for row in conn.execute("SELECT name FROM shards ORDER BY name")]


def lose_since(conn: psycopg.Connection, ns_id: int, old_head: int, jump: int = 1000) -> None:
    """What a restore without the newest rows does: they are gone, and the namespace has jumped.

    Of the rows that are lost only those that made an entry may be there: nothing else is undone.
    """
    with conn.transaction():
        conn.execute("DELETE FROM ns.entries WHERE ns_id = %s AND created_jid > %s", [ns_id, old_head])
        conn.execute("DELETE FROM ns.server_file_journal WHERE ns_id = %s AND jid > %s", [ns_id, old_head])
        conn.execute(
            "UPDATE ns.namespaces SET head = head + %(jump)s, next_entry_id = next_entry_id + %(jump)s,"
            " lost_ranges = lost_ranges || ARRAY[%(old)s::bigint, head + %(jump)s] WHERE ns_id = %(ns)s",
            {"jump": jump, "old": old_head, "ns": ns_id},
        )


REFUSALS: dict[str, type[ShardboxError]] = {
    "/v1/files/batch": TooManyWriteOperations,
    "/v1/files/list_folder": TooManyRequests,
}


@dataclass
class BusyFront:
    """Passes requests on to a server, after it has sent each kind of them away once."""

    target: str
    retry_after_s: int
    url: str = ""
    hits: dict[str, list[float]] = field(default_factory=dict)
    refused: Counter[str] = field(default_factory=Counter)

    async def answer(self, request: web.Request) -> web.Response:
        body = await request.read()
        route = "/".join(request.path.split("/")[:4])
        self.hits.setdefault(route, []).append(asyncio.get_running_loop().time())
        if not self.refused[route]:
            self.refused[route] += 1
            error = REFUSALS.get(route, Overloaded)()
            return web.Response(
                status=error.status,
                body=msgspec.json.encode(ErrorBody(error.info())),
                headers={"Retry-After": str(self.retry_after_s)},
            )
        async with (
            aiohttp.ClientSession() as session,
            session.request(
                request.method, self.target + request.path_qs, data=body or None, headers=_passed(request)
            ) as answer,
        ):
            return web.Response(status=answer.status, body=await answer.read())

    def pauses(self) -> dict[str, float]:
        """Per kind of request: seconds from the refusal to the next one."""
        return {route: times[1] - times[0] for route, times in self.hits.items() if len(times) > 1}


def _passed(request: web.Request) -> dict[str, str]:
    return {k: v for k, v in request.headers.items() if k.lower() not in ("host", "content-length")}


@contextmanager
def busy_front(target: str, *, retry_after_s: int) -> Iterator[BusyFront]:
    """A real server in a thread of its own."""
    front = BusyFront(target, retry_after_s)
    loop = asyncio.new_event_loop()
    ready, done = threading.Event(), asyncio.Event()

    async def serve() -> None:
        app = web.Application(client_max_size=2**28)
        app.router.add_route("*", "/{rest:.*}", front.answer)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        front.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        ready.set()
        await done.wait()
        await runner.cleanup()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    try:
        assert ready.wait(10)
        yield front
    finally:
        loop.call_soon_threadsafe(done.set)
        thread.join()
        loop.close()


def lead_through(device: Device, front: BusyFront) -> None:
    """Let the device know no metaserver but the front."""
    with contextlib.closing(Folder(device.folder).open()) as state:
        servers = msgspec.json.decode(state.get_fact("servers"), type=Discovery)
        through = msgspec.structs.replace(servers, metaservers=[front.url])
        with state.tx("token"):
            state.put_fact("servers", msgspec.json.encode(through).decode())
