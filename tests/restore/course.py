"""The drill in order: lose a shard under commits, bring it back; go back in time; lose the directory."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp

from tests.acceptance.client.devices import Accounts, Device
from tests.kill.api import ApiDevice
from tests.restore.drill import (
    Report,
    Stopwatch,
    Writer,
    archive_now,
    archived_bytes,
    ctl,
    judge,
    list_paths,
    lose,
)
from tests.support.dev import DevCluster
from tests.support.waiting import wait_until

LOST, OTHER = "shard-1", "shard-2"
FILE_POINTS = (
    "ops.restore.noted",
    "ops.restore.half_copied",
    "ops.restore.copied",
    "ops.restore.recovered",
)
STEP_POINTS = (
    "ops.restore.fenced",
    "ops.restore.reconciled",
    "ops.restore.pending_deleted",
    "ops.restore.half_claimed",
    "ops.restore.claimed",
    "ops.restore.listed",
    "ops.restore.jumped",
    "ops.restore.active",
    "ops.restore.published",
)
LAST_POINTS = ("ops.restore.let_in", "ops.restore.placed")
SOME_POINTS = ("ops.restore.recovered", "ops.restore.placed")
TO_TIME_POINTS = ("ops.restore.former_set_aside",)
DIRECTORY_POINTS = ("ops.restore.directory_written", "ops.restore.directory_committed")
BACKUP_POINTS = ("ops.backup.copied", "ops.backup.recorded")


@dataclass(frozen=True, slots=True)
class Plan:
    """How much of it."""

    load_s: float
    """Of commits before the loss; half of them before the last segment that is archived."""
    points: tuple[str, ...]
    has_return: bool
    """Whether the shard is taken back to a moment as well."""


SHORT = Plan(load_s=0.6, points=SOME_POINTS, has_return=False)
LONG = Plan(load_s=20.0, points=FILE_POINTS + STEP_POINTS + LAST_POINTS, has_return=True)
POINTS = LONG.points + TO_TIME_POINTS + DIRECTORY_POINTS + BACKUP_POINTS
"""All that the long form cuts."""


@dataclass(slots=True)
class Course:
    """A cluster under commits."""

    cluster: DevCluster
    report: Report
    plan: Plan
    session: aiohttp.ClientSession
    folder: Path
    writers: dict[str, Writer] = field(default_factory=dict)
    """By shard."""
    devices: list[Device] = field(default_factory=list)

    async def ctl(self, *args: str, fault: str = "", error: str = "") -> Any:
        """A shardctl command, beside the load."""
        return await asyncio.to_thread(ctl, self.cluster, *args, fault=fault, error=error)

    async def email_on(self, shard: str, stem: str) -> str:
        """A new account whose root lies on a shard."""
        for n in range(50):
            email = f"{stem}-{n}@example.org"
            added = await self.ctl("user", "add", email)
            if added["shard"] == shard:
                return email
        raise AssertionError(f"no account on {shard}")

    async def prepare(self) -> None:
        """Accounts, devices and a folder with files, on both shards."""
        status = self.cluster.status()
        for shard in (LOST, OTHER):
            email = await self.email_on(shard, f"writer-{shard}")
            code = (await self.ctl("device", "code", email))["code"]
            device = await ApiDevice.link(
                self.session, status.metaserver_urls, status.blockserver_url, status.notifserver_url, code
            )
            self.writers[shard] = Writer(device, self.cluster.dsn(shard))
        email = await self.email_on(LOST, "synced")
        accounts = Accounts(self.cluster)
        for name in ("a", "b"):
            self.devices.append(await asyncio.to_thread(accounts.link, email, self.folder / name))
        self.devices[0].write("before/the backup.txt", "kept by the server")
        await self.sync()

    async def sync(self) -> None:
        """Both devices, until they hold the same."""
        for device in (*self.devices, self.devices[0]):
            await asyncio.to_thread(device.sync, allow_mass_delete=True)

    @asynccontextmanager
    async def under_load(self) -> AsyncIterator[None]:
        """Commits on both shards while the body runs."""
        tasks = [asyncio.create_task(writer.run()) for writer in self.writers.values()]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
        for result in results:
            if not isinstance(result, asyncio.CancelledError):
                raise AssertionError("a writer ended") from result if isinstance(result, Exception) else None

    async def backup(self) -> None:
        """A base backup of the shard that will be lost."""
        for point in BACKUP_POINTS if self.plan.has_return else ():
            await self.ctl("backup", "base", LOST, fault=point)
            self.report.fault_points_cut.append(point)
        made = await self.ctl("backup", "base", LOST)
        self.report.backup_bytes = made["backup"]["total_bytes"]
        await self.ctl("backup", "verify", LOST)

    async def lose_the_shard(self) -> None:
        """Its server and its disk, amid commits; then bring it back."""
        writer, other = self.writers[LOST], self.writers[OTHER]
        device = self.devices[0]
        async with self.under_load():
            await asyncio.sleep(self.plan.load_s / 2)
            await self.backup()
            await asyncio.sleep(self.plan.load_s / 2)
            await asyncio.to_thread(archive_now, self.cluster, LOST)
            # From here on the server alone has it, and this device's disk.
            lost_files = [device.write(f"after/{n}.txt", f"brought back {n}") for n in range(5)]
            device.write("before/the backup.txt", "edited after the backup")
            await asyncio.to_thread(device.sync)
            await asyncio.sleep(self.plan.load_s / 4)
            before = dict(writer.written_by)
            await asyncio.to_thread(lose, self.cluster, LOST)
            watch = Stopwatch()
            acked = {path: writer.written_by[path] for path in set(writer.written_by) | set(before)}
            archived = archived_bytes(self.cluster, LOST)
            revs = set(writer.device.acked.values())
            for point in self.plan.points:
                await self.ctl("restore", "shard", LOST, "--yes", fault=point)
                self.report.fault_points_cut.append(point)
            back = await self.ctl("restore", "shard", LOST, "--yes")
            self.report.restored_seconds = watch.seconds
            assert back["step"] == "published", back
            count = len(writer.written_by)
            await wait_until(lambda: len(writer.written_by) > count + 5, "commits going on")
        there = await list_paths(writer.device)
        judge(self.report, acked, there, archived)
        since = set(writer.device.acked.values()) - revs
        self.report.reused_revs = len([jid for jid in since if jid <= max(revs)])
        self.report.other_shards_errors = len(other.errors)
        self.report.notes += [f"on {OTHER}: {text}" for text in other.errors[:5]]
        self.report.other_shards_acked = len(other.written_by)
        await self._compare(lost_files, b"edited after the backup")

    async def _compare(self, lost_files: list[Path], edited: bytes) -> None:
        """What only a device's disk had left is on the other device afterwards."""
        await self.sync()
        one, two = (device.tree() for device in self.devices)
        if one != two:
            self.report.trees_equal = False
            self.report.notes.append(f"only in one of the folders: {sorted(one.keys() ^ two.keys())[:5]}")
        texts = set(two.values())
        back = [path for path in lost_files if path.read_bytes() in texts]
        self.report.came_back_from_disk += len(back)
        if len(back) < len(lost_files) or edited not in texts:
            self.report.trees_equal = False
            self.report.notes.append(f"{len(lost_files) - len(back)} files did not come back from the disk")

    async def go_back(self) -> None:
        """To a moment before something that should not have happened; the server is stopped for it."""
        device = self.devices[0]
        await asyncio.to_thread(archive_now, self.cluster, LOST)
        await self.ctl("backup", "base", LOST)
        moment = datetime.now(UTC).isoformat()
        lost_files = [device.write(f"later/{n}.txt", f"later {n}") for n in range(5)]
        await asyncio.to_thread(device.sync)
        device.write("before/the backup.txt", "edited after the backup, and again")
        await asyncio.to_thread(device.sync)
        await asyncio.to_thread(archive_now, self.cluster, LOST)
        for point in TO_TIME_POINTS:
            await self.ctl("restore", "shard", LOST, "--to-time", moment, "--yes", fault=point)
            self.report.fault_points_cut.append(point)
        watch = Stopwatch()
        await self.ctl("restore", "shard", LOST, "--to-time", moment, "--yes")
        self.report.restored_to_time_seconds = watch.seconds
        await self._compare(lost_files, b"edited after the backup, and again")

    async def lose_the_directory(self) -> None:
        """Metaservers go on with the map that they know; it is made again of what the shards say."""
        before = await self.ctl("map", "show")
        for writer in self.writers.values():
            writer.errors.clear()
        async with self.under_load():
            await asyncio.to_thread(lose, self.cluster, "directory")
            watch = Stopwatch()
            for point in DIRECTORY_POINTS:
                await self.ctl("restore", "directory", "--yes", fault=point)
                self.report.fault_points_cut.append(point)
            # Past the last point it is there: only an empty one is written.
            await self.ctl("restore", "directory", "--yes", error="directory_there")
            self.report.directory_seconds = watch.seconds
        after = await self.ctl("map", "show")
        assert after["version"] > before["version"]
        for name in ("cluster_id", "slot_count", "slots", "overrides"):
            assert after[name] == before[name], name
        errors = [text for writer in self.writers.values() for text in writer.errors]
        self.report.other_shards_errors += len(errors)
        self.report.notes += [f"without the directory: {text}" for text in errors[:5]]


async def run_course(cluster: DevCluster, folder: Path, report: Report, plan: Plan) -> None:
    """All of it."""
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession())
        course = Course(cluster, report, plan, session, folder)
        await course.prepare()
        await course.lose_the_shard()
        if plan.has_return:
            await course.go_back()
        await course.lose_the_directory()
    with contextlib.suppress(ValueError):
        found = await asyncio.to_thread(ctl, cluster, "doctor")
        report.notes += [
            f"doctor: {f['check']}: {f['detail']}" for f in found["findings"] if f["verdict"] == "fail"
        ]
