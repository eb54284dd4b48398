"""Fault points: a client or a server dies at each of them, and what follows must be as if it had not."""

import asyncio
import contextlib
import json
import os
import random
import secrets
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path

import blockserver.main
import blockserver.services.scrub
import client.cli
import metaserver.main
import notifserver.main
import ops.cli
from loadtest.trees import read_tree
from tests.kill.api import ApiDevice, Failed, empty_file, surely
from tests.kill.course import SETTLE_S, Report, check_wakeups, link_folder
from tests.kill.load import SyncClient, are_equal, run_client
from tests.support.commands import CLIENT, run_command
from tests.support.dev import DevCluster
from tests.support.waiting import wait_for
from wire import faults
from wire.api import Copy, Delete
from wire.hashes import BLOCK_BYTES

ENTRY_POINTS = (
    client.cli,
    metaserver.main,
    blockserver.main,
    notifserver.main,
    ops.cli,
    blockserver.services.scrub,
)
"""What declares the points of a process; importing it is enough."""
ELSEWHERE = {
    "metaserver.accounts.": "tests/integration/metaserver/test_accounts.py",
    "metaserver.expiry.": "tests/integration/metaserver/test_expiry.py",
    "sharding.bootstrap.": "tests/integration/ops/test_cluster.py",
    "blockserver.direct.": "tests/integration/blockserver/test_direct_uploads.py",
    "blockserver.mend.": "tests/integration/blockserver/test_faults.py",
    "blockserver.object.before_delete": "tests/integration/blockserver/test_faults.py",
    "scrub.": "tests/integration/ops/test_scrub.py",
    "ops.keys.": "tests/integration/ops/test_rotation.py",
    "ops.passwords.": "tests/integration/ops/test_rotation.py",
    "ops.shard.": "tests/integration/ops/test_shards.py",
}
"""Steps of operators' commands, of expiry, mending, lost races, and stores with addresses of their own, which
nothing here takes, and the tests that cut each of them."""
IN_THE_DRILL = {
    "ops.backup.": "make test-restore",
    "ops.restore.": "make test-restore",
    "reshard.": "make test-moves",
}
"""Cut by suites of their own, which lose servers for good, or move slots."""
MakeCode = Callable[[], str]


def client_points() -> list[str]:
    """Every point of the sync client."""
    return [name for name in faults.declared() if name.startswith("client.")]


def server_points() -> list[str]:
    """Every point of the servers."""
    servers = ("metaserver.", "sharding.", "blockserver.", "notifserver.")
    return [n for n in faults.declared() if n.startswith(servers) and not n.startswith(tuple(ELSEWHERE))]


class ClientPoints:
    """Two folders of one account, cut at one point after another while both sides change things."""

    def __init__(self, url: str, make_code: MakeCode, folder: Path, report: Report):
        self._url = url
        self._make_code = make_code
        self._folder = folder
        self._report = report
        self._number = 0
        self._a, self._b = folder / "point a", folder / "point b"
        for device in (self._a, self._b):
            link_folder(url, make_code(), device)
        (self._a / "left out").mkdir()
        (self._a / "left out" / "f").write_text("left out on b while a point is cut\n")
        self._change()
        self._settle()

    def cut(self, point: str) -> None:
        """Kill a client at a point, let everything go on, and compare the trees."""
        token = self._folder / "token"
        token.touch()
        fault = f"{point}@{token}"
        self._change()
        self._tell_b("exclude", "add", "left out", fault=fault)
        self._tell_b("config", "set", "limit-up", "none", fault=fault)
        for device in (self._a, self._b, self._a):
            if token.exists():
                _expire_access(device)
                run_client(device, fault=fault)
        if token.exists():
            self._cut_new_device(fault)
        if token.exists():
            self._report.points_missed.append(point)
            token.unlink()
        else:
            self._report.client_fault_points += 1
        self._tell_b("exclude", "remove", "left out")
        self._settle()
        _compare(self._report, self._a, self._b, point)
        self._cut_watching(point, token)

    def _cut_watching(self, point: str, token: Path) -> None:
        """The same to two clients that watch: the first one to meet the point dies, and is started again."""
        token.touch()
        watches = [SyncClient(device, device.with_suffix(".log")) for device in (self._a, self._b)]
        for watch in watches:
            _expire_access(watch.folder)
            watch.start(fault=f"{point}@{token}")
        try:
            self._wait_until_idle(watches)
            self._change()
            self._wait_until_idle(watches)
        except AssertionError as error:
            self._report.trees_equal = False
            self._report.notes.append(f"{point}, watching: {error}")
        finally:
            for watch in watches:
                watch.stop()
        self._report.client_fault_points_watching += not token.exists()
        token.unlink(missing_ok=True)

    def _wait_until_idle(self, watches: list[SyncClient]) -> None:
        def are_idle() -> bool:
            for watch in watches:
                watch.revive()
            is_idle = all(_find_activity(watch.folder) == "idle" for watch in watches)
            return is_idle and are_equal(self._a, self._b)

        wait_for(are_idle, "both clients being idle and the trees equal", timeout_s=SETTLE_S)

    def _cut_new_device(self, fault: str) -> None:
        """Linking and the first listing come once in a device's life."""
        new, code = self._folder / f"new {self._number}", self._make_code()
        new.mkdir()
        link = ("link", self._url, "--code", code, "--name", "new", str(new))
        for env in ({"SHARDBOX_FAULT": fault}, {}):
            done = run_command(CLIENT, *link, env=env)
            # A link that was cut after its last step is there already.
            if done.returncode >= 0 and (new / ".shardbox").is_dir():
                break
        run_client(new, fault=fault)
        run_client(new)
        _compare(self._report, self._a, new, f"{fault}, a new device")
        shutil.rmtree(new)

    def _tell_b(self, *args: str, fault: str = "") -> None:
        """A command beside the sync of b; given again if it was cut."""
        for env in ({"SHARDBOX_FAULT": fault} if fault else {}, {}):
            done = run_command(CLIENT, *args, "--folder", str(self._b), env=env)
            if done.returncode == 0:
                return
            assert done.returncode < 0, done.stderr

    def _settle(self) -> None:
        for device in (self._a, self._b) * 2:
            run_client(device)

    def _change(self) -> None:
        """Something of every kind on both sides: adds, edits, renames, moves, deletes, and a conflict."""
        self._number += 1
        n, rng = self._number, random.Random(self._number)
        a, b = self._a, self._b
        (a / f"dir {n}" / "deep").mkdir(parents=True)
        for name in ("one.txt", "deep/two.txt"):
            (a / f"dir {n}" / name).write_bytes(rng.randbytes(3_000))
        (a / "edited.txt").write_text(f"edited {n}\n")
        (a / "big.bin").write_bytes(rng.randbytes(BLOCK_BYTES + 5_000))
        (b / f"from b {n}.txt").write_text(f"b {n}\n")
        (b / f"folder of b {n}").mkdir()
        if n > 1:
            (a / f"dir {n - 1}").rename(a / f"renamed {n - 1}")
            (a / f"renamed {n - 1}" / "one.txt").rename(a / f"moved {n - 1}.txt")
            (a / f"from b {n - 1}.txt").unlink()
            (b / f"folder of b {n - 1}").rmdir()
            (a / "both.txt").write_text(f"a's {n}\n")
            (b / "both.txt").write_text(f"b's {n}\n")
        if n > 2:
            shutil.rmtree(a / f"renamed {n - 2}")


class ServerPoints:
    """A server that dies at a point while a client syncs and a device writes."""

    def __init__(
        self, cluster: DevCluster, make_code: MakeCode, device: ApiDevice, folder: Path, report: Report
    ):
        self._cluster = cluster
        self._device = device
        self._report = report
        self._folder, self._other = folder / "server points", folder / "other server points"
        self._make_code = make_code
        self._url = cluster.status().metaserver_urls[0]
        for place in (self._folder, self._other):
            link_folder(self._url, make_code(), place)

    async def cut(self, point: str) -> None:
        """Kill a server at a point; the request that met it is retried, and nothing is lost or doubled."""
        token = self._folder.parent / "server token"
        token.touch()
        names = [n for n in self._cluster.pids() if n.startswith(_servers_of(point))]
        config = self._cluster.layout.config_file
        config.write_text(
            json.dumps({"env": {name: {"SHARDBOX_FAULT": f"{point}@{token}"} for name in names}})
        )
        try:
            killed = {name: await asyncio.to_thread(self._cluster.kill, name) for name in names}
            for name, pid in killed.items():
                await asyncio.to_thread(self._cluster.wait_restarted, name, pid)
            await self._drive(token, point)
        finally:
            config.unlink()
        if token.exists():
            token.unlink()
            self._report.points_missed.append(point)
        else:
            self._report.server_fault_points += 1
        await check_wakeups(self._report, [self._device], point)
        for place in (self._folder, self._other):
            await asyncio.to_thread(run_client, place)
        await asyncio.to_thread(_compare, self._report, self._folder, self._other, point)

    async def _drive(self, token: Path, point: str) -> None:
        """Do everything that has a point until one of the servers has died of it."""
        for _ in range(5):
            data = os.urandom(2_000)
            (self._folder / f"{secrets.token_hex(8)}.bin").write_bytes(data)
            await asyncio.to_thread(run_client, self._folder)
            await surely(lambda data=data: self._device.put_block(data))  # another account has it already
            await self._write()
            new = self._folder.parent / f"linked {secrets.token_hex(4)}"
            with contextlib.suppress(subprocess.CalledProcessError):
                code = await asyncio.to_thread(self._make_code)
                await asyncio.to_thread(link_folder, self._url, code, new)
                _expire_access(new)
                await asyncio.to_thread(run_client, new)
                await asyncio.to_thread(_compare, self._report, self._folder, new, f"{point}, a new device")
            shutil.rmtree(new, ignore_errors=True)
            with contextlib.suppress(AssertionError):
                await asyncio.to_thread(
                    wait_for, lambda: not token.exists(), "the server's death", timeout_s=1.5
                )
                break
        with contextlib.suppress(Failed):
            await self._device.commit(empty_file(f"/points/{secrets.token_hex(8)}"))

    async def _write(self) -> None:
        """A file by itself, one by an upload session, a copy, and a folder's end, which is paid for later."""
        name = secrets.token_hex(8)
        folder = f"/points/{name}"
        await self._device.commit(empty_file(f"{folder}/file"))
        await self._device.upload(name, os.urandom(2_000))
        await self._device.commit(Copy(from_path=f"/{name}", to_path=f"{folder}/copy"))
        await self._device.commit(Delete(path=folder))


def _expire_access(device: Path) -> None:
    """Have the client renew its access token."""
    with contextlib.closing(sqlite3.connect(device / ".shardbox" / "state.db")) as state, state:
        state.execute("UPDATE facts SET value = '0' WHERE name = 'access_until'")


def _find_activity(device: Path) -> str | None:
    """What the client says that it does: "stopped" when it has ended, unless it was killed."""
    with contextlib.closing(sqlite3.connect(device / ".shardbox" / "state.db")) as state:
        row = state.execute("SELECT value FROM facts WHERE name = 'activity'").fetchone()
    return row[0] if row else None


def _compare(report: Report, one: Path, other: Path, when: str) -> None:
    if read_tree(one) != read_tree(other):
        report.trees_equal = False
        report.notes.append(f"{when}: the trees of {one.name} and {other.name} differ")


def _servers_of(point: str) -> str:
    return "blockserver" if point.startswith("blockserver.") else "metaserver"


def spread(points: Iterable[str], count: int | None) -> list[str]:
    """All points, or `count` of them from one end to the other."""
    found = list(points)
    if count is None or count >= len(found):
        return found
    return [found[(i + 1) * len(found) // count - 1] for i in range(count)]
