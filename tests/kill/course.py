"""The course: each victim killed under load, then what must hold is checked."""

import asyncio
import contextlib
import itertools
import signal
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from metaserver.services.access import AccessService
from metaserver.services.accounts import AccountService
from metaserver.services.devices import DeviceService
from metaserver.services.identities import IdentityService
from ops.supervisor import SUPERVISOR
from sharding.router import Router
from sharding.tx import Transactions
from tests.kill.api import ApiDevice
from tests.kill.load import Committer, Editor, SyncClient, root_of, wait_until_equal
from tests.support.commands import CLIENT, run_command
from tests.support.dev import DevCluster

SETTLE_S = 60.0
CLIENT_VICTIM = "client"
AWAY_S = 0.5
"""A killed client stays away for so long: edits that it was not told of."""
JOIN_AT_ONCE = 16
"""Accounts made at a time: a pool has as many connections."""


LinkCodes = Callable[[], Coroutine[Any, Any, str]]
"""Makes link codes of one account."""


@dataclass(slots=True)
class Report:
    """What build/test/kill.json holds."""

    accounts: Counter[str] = field(default_factory=Counter)
    """Under load, by shard."""
    kills: Counter[str] = field(default_factory=Counter)
    client_fault_points: int = 0
    client_fault_points_watching: int = 0
    """Of these, also met by a client that watches."""
    server_fault_points: int = 0
    points_elsewhere: int = 0
    """Cut by tests of their own, which passed."""
    cut_elsewhere: dict[str, str] = field(default_factory=dict)
    """Kinds of points and who cuts them; all others are cut in the course."""
    points_missed: list[str] = field(default_factory=list)
    trees_equal: bool = True
    acked: int = 0
    acked_missing: int = 0
    journal_gaps: int = 0
    wakeups_lost: int = 0
    other_shards_errors: int = 0
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"accounts": dict(self.accounts), "kills": dict(self.kills)}

    @property
    def is_clean(self) -> bool:
        """Whether everything held."""
        return self.trees_equal and not (
            self.acked_missing
            or self.journal_gaps
            or self.wakeups_lost
            or self.other_shards_errors
            or self.points_missed
        )


@dataclass(slots=True)
class Course:
    """A cluster under load and the devices in it."""

    cluster: DevCluster
    report: Report
    router: Router
    committers: list[Committer]
    clients: list[SyncClient]
    editors: list[Editor]
    add_account: Callable[[str], Awaitable[LinkCodes]]
    """Makes an account of this name, which makes link codes."""

    async def kill(self, name: str) -> None:
        """kill -9 one process in the midst of the load; it comes back by itself, a client by our hand."""

        async def fault() -> None:
            if name == CLIENT_VICTIM:
                await self._kill_client()
                return
            pid = await asyncio.to_thread(self.cluster.kill, name)
            if name == SUPERVISOR:  # nobody restarts the supervisor but the next `dev up`
                await asyncio.to_thread(self.cluster.up)
            else:
                await asyncio.to_thread(self.cluster.wait_restarted, name, pid)

        await self._round(name, fault)
        self.report.kills[name] += 1

    async def _kill_client(self) -> None:
        """The sync client of one folder, of the other one the next time."""
        client = self.clients[self.report.kills[CLIENT_VICTIM] % len(self.clients)]
        await asyncio.to_thread(client.kill)
        await asyncio.sleep(AWAY_S)
        client.start()

    async def stop_shard(self, name: str, seconds: float) -> None:
        """Stop all processes of a shard's PostgreSQL for a while, then let them go on."""

        async def fault() -> None:
            postmaster = psutil.Process(self.cluster.pids()[name])
            stopped = [postmaster, *postmaster.children(recursive=True)]
            for process in stopped:
                process.send_signal(signal.SIGSTOP)
            try:
                await asyncio.sleep(seconds)  # the fault itself: a server that hangs this long
            finally:
                for process in stopped:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        process.send_signal(signal.SIGCONT)

        await self._round(name, fault)
        self.report.kills[f"{name} stopped"] += 1

    async def _round(self, victim: str, fault: Callable[[], Any]) -> None:
        for committer in self.committers:
            # A shard's or the directory's fault is nobody else's.
            is_database = victim == "directory" or victim in self.router.map.shards
            committer.must_not_fail = is_database and committer.shard != victim
        load = [asyncio.create_task(committer.run()) for committer in self.committers]
        for editor in self.editors:
            editor.start()
        try:
            await self._progress(10, load)
            await fault()
            await self._progress(10, load)
        finally:
            for editor in self.editors:
                await asyncio.to_thread(editor.stop)
            for task in load:
                task.cancel()
            await asyncio.gather(*load, return_exceptions=True)
        await self._check(victim)

    async def _progress(self, commits: int, load: "list[asyncio.Task[None]]") -> None:
        """Until every shard's accounts have had so many more commits acknowledged."""
        goals = [committer.acked_count + commits for committer in self.committers]
        deadline = asyncio.get_running_loop().time() + SETTLE_S
        while any(c.acked_count < goal for c, goal in zip(self.committers, goals, strict=True)):
            for task in load:
                if task.done():  # it never ends by itself
                    task.result()
            assert asyncio.get_running_loop().time() < deadline, "commits are not acknowledged any more"
            await asyncio.sleep(0.02)

    async def _check(self, victim: str) -> None:
        for committer in self.committers:
            await check_wakeups(self.report, committer.devices, f"{victim}: {committer.shard}")
            self.report.other_shards_errors += len(committer.errors)
            self.report.notes += [f"{victim}: {committer.shard}: {error}" for error in committer.errors[:3]]
            committer.errors.clear()
        a, b = (client.folder for client in self.clients)
        for client in self.clients:
            if not client.is_running:
                self.report.trees_equal = False
                self.report.notes.append(f"{victim}: the client of {client.folder} ended")
                client.start()
        if not await asyncio.to_thread(wait_until_equal, a, b, SETTLE_S):
            self.report.trees_equal = False
            self.report.notes.append(f"{victim}: the trees differ")

    def check_journals(self) -> None:
        """Look into the databases: are all acknowledged commits there, and no jid missing?"""
        for name in self.router.map.shards:
            with self.cluster.connect(name) as conn:
                gaps = conn.execute(
                    "SELECT count(*) FROM ns.namespaces n WHERE n.head <> (SELECT count(*) FROM"
                    " ns.server_file_journal j WHERE j.ns_id = n.ns_id AND j.jid BETWEEN 1 AND n.head)"
                ).fetchone()
                assert gaps is not None
                self.report.journal_gaps += gaps[0]
                for device in (d for c in self.committers if c.shard == name for d in c.devices):
                    found = dict(
                        conn.execute(
                            "SELECT jid, name FROM ns.server_file_journal WHERE ns_id = %s",
                            [root_of(device)],
                        ).fetchall()
                    )
                    self.report.acked += len(device.acked)
                    self.report.acked_missing += sum(
                        found.get(jid) != path.rpartition("/")[2] for path, jid in device.acked.items()
                    )


async def check_wakeups(report: Report, devices: Iterable[ApiDevice], when: str) -> None:
    """Every device comes to see all that was acknowledged to it."""
    for device in devices:
        if not await device.sees_all():
            report.wakeups_lost += 1
            report.notes.append(f"{when}: seen {device.seen_jid} of {device.last_acked}")


@asynccontextmanager
async def running_course(
    cluster: DevCluster, folder: Path, report: Report, account_count: int
) -> AsyncIterator[Course]:
    """Accounts on every shard that commit and poll over HTTP, and one account with two sync clients."""
    status = cluster.status()
    async with AsyncExitStack() as stack:
        router = Router(status.directory_dsn, None, "kill")
        stack.push_async_callback(router.close)
        await router.open()
        tx = Transactions(router)
        accounts, devices = (
            AccountService(tx),
            DeviceService(tx, AccessService(tx, IdentityService(tx)), None),
        )
        session = await stack.enter_async_context(
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, force_close=False))
        )

        async def add_account(name: str) -> LinkCodes:
            account = await accounts.create_account(f"{name}@kill.example", name)
            return lambda: devices.make_code(account.account_id)

        committers = {name: Committer(name, router.map) for name in router.map.shards}
        numbers, turns = itertools.count(1), asyncio.Semaphore(JOIN_AT_ONCE)

        async def join() -> None:
            async with turns:
                make_code = await add_account(f"load{next(numbers)}")
                device = await ApiDevice.link(
                    session,
                    status.metaserver_urls,
                    status.blockserver_url,
                    status.notifserver_url,
                    await make_code(),
                )
            shard = router.placement(root_of(device)).shard
            committers[shard].devices.append(device)
            report.accounts[shard] += 1

        await asyncio.gather(*(join() for _ in range(account_count)))
        while not all(committer.devices for committer in committers.values()):
            await join()
        clients = await _link_clients(await add_account("sync"), status.metaserver_urls[0], folder)
        for client in clients:
            client.start()
            stack.callback(client.stop)
        for device in (device for committer in committers.values() for device in committer.devices):
            follower = asyncio.create_task(device.follow())
            stack.push_async_callback(_cancel, follower)
        editors = [Editor(client.folder, client.folder.name, seed) for seed, client in enumerate(clients)]
        yield Course(cluster, report, router, list(committers.values()), clients, editors, add_account)


async def _link_clients(make_code: LinkCodes, url: str, folder: Path) -> list[SyncClient]:
    clients: list[SyncClient] = []
    for name in ("a", "b"):
        await asyncio.to_thread(link_folder, url, await make_code(), folder / name)
        clients.append(SyncClient(folder / name, folder / f"{name}.log"))
    return clients


def link_folder(url: str, code: str, folder: Path) -> None:
    """`shardbox link`."""
    folder.mkdir(parents=True, exist_ok=True)
    done = run_command(CLIENT, "link", url, "--code", code, "--name", folder.name, str(folder))
    done.check_returncode()


async def _cancel(task: "asyncio.Task[None]") -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
