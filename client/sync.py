"""The sync itself: one loop that reads, looks, plans and acts until nothing is left to do.

Only this loop changes the trees, one step at a time. What takes long (reading, hashing, sending, fetching)
runs beside it in upload.py and download.py, and comes back as results that the next plan takes into account.
"""

import asyncio
import contextlib
import itertools
import sqlite3
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from client.account import Account
from client.api import Unreachable, backoff_s
from client.apply import Applier, Result
from client.commit import Committer
from client.control import ControlWatch, find_limit, is_paused
from client.download import Downloader, DownloadJob, Fetched
from client.folder import Folder
from client.guard import Ask, DeletionGuard
from client.match import has_same_stat
from client.model import (
    Action,
    Fetch,
    Hash,
    Kind,
    SendAction,
    SendDelete,
    SendFile,
)
from client.plan import ENOUGH_ACTIONS, Plan, make_plan
from client.recover import judge_intents, temp_name
from client.remote import PAGE_ENTRIES, Remote
from client.report import Reporter
from client.rescan import Rescan
from client.rests import Rests
from client.selection import carry_out_orders
from client.settle import detach, settle
from client.state import State, is_disk_full
from client.steps import Outcome, StepKind
from client.transfer import Failed, Transfers
from client.upload import Prepared, Uploader, UploadJob
from client.watch import DiskWatch, ServerWatch
from wire.errors import DeviceRevoked
from wire.hashes import BlockHash

GIVE_UP_S = 60.0
"""How long a sync that is to end goes on without any answer from the servers."""
FULL_DISK_S = 3.0
"""How often to see whether the state can be written again."""
NO_LIMIT = 0
MAX_JOBS = 4_000
"""Transfers queued or under way, each way: four workers with two groups of 400 each, and as many again."""
SMALL_WORKERS = 4
BIG_WORKERS = 1


class GaveUp(Exception):
    """The servers did not answer for too long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to sync."""

    is_watching: bool = False
    allow_mass_delete: bool = False
    ask_mass_delete: Ask | None = None
    """None: there is nobody to ask."""
    poll_s: int = 480
    page_entries: int = PAGE_ENTRIES
    give_up_s: float = GIVE_UP_S
    limit_up: int | None = None
    limit_down: int | None = None
    """Bytes of blocks per second, NO_LIMIT for any; None: as stored (`shardbox config`)."""


class Sync:
    """Keeps one folder in sync."""

    def __init__(self, folder: Folder, state: State, account: Account, options: Options):
        self._folder, self._state, self._account, self._options = folder, state, account, options
        calls = account.calls
        self._wake = asyncio.Event()
        self._remote = Remote(state, calls, options.page_entries)
        self._rescan = Rescan(folder, state)
        self._applier = Applier(folder, state)
        self._committer = Committer(state, calls, account.ns_id)
        self._rests = Rests()
        self.uploads: Transfers[UploadJob, Prepared]
        self.downloads: Transfers[DownloadJob, Fetched]
        self._prepared: dict[int, Prepared] = {}
        self._fetched: dict[int, Fetched] = {}
        self._doubted: set[int] = set()
        """Files with known blocks that the server may not have: ask about all of them."""
        self._must_read = True
        self._has_sent = False
        self._has_lost_notes = False
        """A disk step may have been done whose confirmation could not be written."""
        self._guard = DeletionGuard(
            state.trees, is_allowed=options.allow_mass_delete, ask=options.ask_mass_delete
        )
        self._last_answer = time.monotonic()
        self._outages = 0
        self._disk_watch = DiskWatch(folder, self._rescan, self._wake.set)
        self._server_watch = ServerWatch(self._remote, account, options.poll_s, self._want_read)
        self._control_watch = ControlWatch(state, self._wake.set)
        self._is_resting = False
        """Paused: there are no transfers."""
        self.reporter = Reporter(state, self._rests)

    async def run(self) -> None:
        """Sync until nothing is left to do, or for ever when watching.

        Raises:
            FolderProblem: the folder is gone or not itself; nothing was deleted for that.
            DeviceRevoked: the device was unlinked on the server.
            GaveUp: no answer from the servers (never when watching).
        """
        self._start_transfers()
        works = [self._loop(), self._control_watch.run()]
        if self._options.is_watching:
            works += [self._disk_watch.run(), self._server_watch.run()]
        tasks = [asyncio.create_task(work) for work in works]
        try:
            # What can pass the watches sit out themselves. One that ends takes the sync with it: whoever
            # started it sees that, but nobody would miss a change that is not noticed any more.
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done():
                    task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._close_transfers()
            with contextlib.suppress(sqlite3.OperationalError):
                # On a full disk it stays unsaid; what ended the sync is what counts.
                self._report("stopped")

    def _start_transfers(self) -> None:
        calls = self._account.calls
        uploader = Uploader(calls, self.reporter.counts)
        downloader = Downloader(calls, self._local_places, self.reporter.counts)
        self.uploads = Transfers(
            small=uploader.run_group,
            big=uploader.run_big,
            wake=self._wake.set,
            small_workers=SMALL_WORKERS,
            big_workers=BIG_WORKERS,
        )
        self.downloads = Transfers(
            small=downloader.run_group,
            big=downloader.run_big,
            wake=self._wake.set,
            small_workers=SMALL_WORKERS,
            big_workers=BIG_WORKERS,
        )

    async def _loop(self) -> None:
        while True:
            self._wake.clear()
            began = time.monotonic()
            try:
                if await self._is_paused():
                    if not self._options.is_watching:
                        return
                    await self._wake.wait()
                    continue
                if await self._round():
                    continue
            except Unreachable as problem:
                await self._sit_out(problem)
                continue
            except sqlite3.OperationalError as problem:
                if not (self._options.is_watching and is_disk_full(problem)):
                    raise
                # The disk under the state is full: nothing can be noted, so nothing may be done.
                self._has_lost_notes = True
                await asyncio.sleep(FULL_DISK_S)
                continue
            if not self._options.is_watching and not self._is_anything_left(began):
                if not self._has_sent:
                    return
                # Others may have written since: the last look is at the server's head.
                self._must_read, self._has_sent = True, False
                continue
            with contextlib.suppress(sqlite3.OperationalError):
                self._report("idle" if self._is_idle() else "syncing")
            with contextlib.suppress(TimeoutError):
                # Not wait_for: in Python 3.11 that forgets a cancellation that comes with the wake-up.
                async with asyncio.timeout(self._rests.next_s(began)):
                    await self._wake.wait()

    async def _is_paused(self) -> bool:
        """Take up what the command line has left; whether to rest. Transfers are broken off then."""
        calls, given = self._account.calls, self._options
        up = find_limit(self._state, "limit-up") if given.limit_up is None else given.limit_up
        down = find_limit(self._state, "limit-down") if given.limit_down is None else given.limit_down
        calls.up.set_rate(up or None)
        calls.down.set_rate(down or None)
        if is_paused(self._state):
            if not self._is_resting:
                self._take_results()
                await self._close_transfers()
                self._is_resting = True
            self._report("paused")
        elif self._is_resting:
            self._is_resting = False
            self._start_transfers()
            self._rescan.want_all()
            self._must_read = True
        return self._is_resting

    async def _close_transfers(self) -> None:
        await self.uploads.close()
        await self.downloads.close()

    async def _round(self) -> bool:
        """One turn; False when nothing could be done."""
        if self._has_lost_notes:
            judge_intents(self._folder, self._state)
            self._rescan.want_all()
            self._has_lost_notes = False
        if not self._is_idle() and not self._outages:
            self._report("syncing")
        if await self._committer.send_again():
            self._must_read = True
        is_fresh = False
        if self._must_read:
            self._must_read = False
            try:
                await self._remote.read()
            except BaseException:
                self._must_read = True
                raise
            self._committer.drop_stale()
            self._server_watch.note_read()
            is_fresh = True
        if self._rescan.is_due:
            await self._rescan.run()
            is_fresh = True
        has_results = self._take_results()
        self._last_answer, self._outages = time.monotonic(), 0
        if not self._remote.is_complete:
            self._must_read = True
            return True
        if carry_out_orders(self._state):
            return True
        plan = self._plan()
        has_acted = await self._act(plan)
        if not has_acted and not plan.is_whole and self.uploads.is_idle and self.downloads.is_idle:
            # All that the plan holds is waiting for what it does not hold.
            has_acted = await self._act(self._plan(enough=sys.maxsize))
        return has_acted or has_results or is_fresh

    # ---- Planning

    def _plan(self, enough: int = ENOUGH_ACTIONS) -> Plan:
        trees = self._state.trees
        self._rests.forget_except(trees.dirty)
        return make_plan(trees, self._plannable(), enough=enough)

    def _plannable(self) -> Iterator[int]:
        """What is out of step and neither busy nor resting; first of all what a transfer is done with."""
        dirty = self._state.trees.dirty
        done = [x for x in (*self._prepared, *self._fetched) if x in dirty]
        for node_id in itertools.chain(done, dirty):
            is_busy = node_id in self.uploads.jobs or node_id in self.downloads.jobs
            if not is_busy and not self._rests.is_resting(node_id, self._state_of):
                yield node_id

    def _state_of(self, node_id: int) -> object:
        """What an entry's trouble depends on: when this changes it is tried again at once."""
        trees = self._state.trees
        r, here = trees.remote.get(node_id), trees.local.get(node_id)
        there = r and (r.place, r.rev)
        local = here and (here.place, here.fingerprint[:2], here.fingerprint.inode)
        # A transfer that has come in is to be made use of, whatever else the entry is in trouble for.
        return there, local, node_id in self._prepared, node_id in self._fetched

    async def _act(self, plan: Plan) -> bool:
        trees = self._state.trees
        if plan.settle:
            with self._state.tx("settle"):
                for action in plan.settle:
                    settle(trees, action)
            return True
        sends = await self._guard.filter(plan.send)
        self._start_jobs([*sends, *plan.hash, *plan.disk])
        has_acted = False
        ready = [x for x in plan.disk if not isinstance(x, Fetch) or x.id in self._fetched]
        if ready:
            self._take_applied(await self._applier.run(ready, self._fetched))
            has_acted = True
        batch = [x for x in sends if not isinstance(x, SendFile) or (x.is_ready and self._prepared_for(x.id))]
        # What the disk steps have changed may have made an action pointless: each is checked once more.
        batch = [x for x in batch if x.id in trees.dirty]
        if batch:
            await self._send(batch)
            has_acted = True
        return has_acted

    # ---- Transfers

    def _start_jobs(self, actions: Iterable[Action]) -> None:
        for action in actions:
            if isinstance(action, SendFile | Hash):
                if not self._prepared_for(action.id):
                    self._start_upload(action.id, is_hash_only=isinstance(action, Hash))
            elif isinstance(action, Fetch):
                self._start_download(action.id)

    def _prepared_for(self, node_id: int) -> bool:
        """Whether the file as it is now has been read and its blocks are on the server."""
        ready, here = self._prepared.get(node_id), self._state.trees.local.get(node_id)
        if ready is None or here is None:
            return False
        return has_same_stat(here, ready.hashed.fingerprint) and here.content == ready.hashed.content

    def _start_upload(self, node_id: int, *, is_hash_only: bool) -> None:
        trees = self._state.trees
        here = trees.local.get(node_id)
        if here is None or here.kind is not Kind.FILE or node_id in self.uploads.jobs:
            return
        if len(self.uploads.jobs) >= MAX_JOBS:
            return
        self._prepared.pop(node_id, None)
        known: frozenset[BlockHash] = frozenset()
        if node_id not in self._doubted:
            known = frozenset(self._state.list_local_blocks(node_id))
        path = self._folder.disk_path(trees.local_path(node_id))
        self.uploads.submit(UploadJob(node_id, path, here.fingerprint, is_hash_only, known))

    def _start_download(self, node_id: int) -> None:
        r = self._state.trees.remote.get(node_id)
        if r is None or node_id in self.downloads.jobs:
            return
        ready = self._fetched.get(node_id)
        if ready is not None and ready.job.content == r.content:
            if ready.job.rev != r.rev:
                self._fetched[node_id] = replace(ready, job=replace(ready.job, rev=r.rev))
            return
        self._fetched.pop(node_id, None)
        if len(self.downloads.jobs) >= MAX_JOBS:
            return
        blocks = self._state.find_remote_blocks(node_id, r.rev)
        temp = self._folder.tmp + b"/" + temp_name(node_id, r.content)
        self.downloads.submit(DownloadJob(node_id, r.rev, r.size, r.content, r.modified, blocks, temp))

    def _local_places(self, hashes: Iterable[BlockHash]) -> dict[BlockHash, list[tuple[bytes, int]]]:
        trees = self._state.trees
        found: dict[BlockHash, list[tuple[bytes, int]]] = {}
        for block, places in self._state.find_local_blocks(hashes).items():
            here = [(node_id, at) for node_id, at in places if node_id in trees.local]
            if here:
                found[block] = [
                    (self._folder.disk_path(trees.local_path(node_id)), at) for node_id, at in here
                ]
        return found

    def _take_results(self) -> bool:
        """Note what transfers have brought; False if nothing."""
        up, down = self.uploads.take(), self.downloads.take()
        if not up and not down:
            return False
        trees = self._state.trees
        with self._state.tx("hashed"):
            for result in up:
                if isinstance(result, Prepared):
                    self._take_prepared(result)
        for fetched in down:
            if isinstance(fetched, Fetched):
                self._fetched[fetched.job.id] = fetched
        for failed in [*up, *down]:
            if isinstance(failed, Failed):
                if failed.is_fatal:
                    raise DeviceRevoked(failed.detail)
                self._fail(failed)
                if failed.reason == "changing" and failed.id in trees.local:
                    self._rescan.want_around(self._folder.disk_path(trees.local_path(failed.id)))
                if failed.reason == "block_not_found":
                    self._must_read = True
        return True

    def _take_prepared(self, result: Prepared) -> None:
        trees = self._state.trees
        node_id, hashed = result.job.id, result.hashed
        here = trees.local.get(node_id)
        if here is None:
            return
        if not (has_same_stat(here, result.job.fingerprint) or has_same_stat(here, hashed.fingerprint)):
            # It was looked at again while it was being read: what was read is past.
            return
        has_new_content = here.content != hashed.content
        trees.put_local(
            replace(here, fingerprint=hashed.fingerprint, content=hashed.content, is_racy=hashed.is_racy)
        )
        if has_new_content:
            self._state.put_local_blocks(node_id, hashed.blocks)
        if result.job.is_hash_only:
            # Its blocks need not be on the server.
            self._doubted.add(node_id)
        else:
            self._prepared[node_id] = result

    # ---- Outcomes

    def _take_applied(self, results: Iterable[Result]) -> None:
        for result in results:
            node_id, outcome = result.step.id, result.outcome
            if outcome is Outcome.DONE:
                self._rests.clear(node_id)
                self._fetched.pop(node_id, None)
                continue
            for path in filter(None, (result.step.source, result.step.target)):
                if not path.startswith(self._folder.private):
                    self._rescan.want_around(path)
            if isinstance(outcome, Failed):
                self._fail(outcome)
            elif outcome is Outcome.CHANGED:
                self._fail(Failed(node_id, "changed", "it changed on the disk meanwhile"))
            elif result.step.kind is StepKind.RMDIR:
                self._keep_folder(node_id)
            else:
                self._fail(Failed(node_id, "occupied", "something that is not synced is in its place"))

    def _keep_folder(self, node_id: int) -> None:
        """A folder deleted on the server that has something unsynced in it stays."""
        trees = self._state.trees
        if node_id in trees.synced:
            self._rescan.want([trees.local_path(node_id)])
            with self._state.tx("settle"):
                node_id = detach(trees, node_id, is_kept=True)
        self._fail(Failed(node_id, "not_empty", "deleted on the server; kept for what is not synced in it"))

    async def _send(self, batch: list[SendAction]) -> None:
        deletes = any(isinstance(x, SendDelete) for x in batch)
        if deletes:
            await asyncio.to_thread(self._folder.check)
        refused = await self._committer.send(batch, self._prepared)
        self._has_sent = True
        if deletes:
            # Only the listing tells what has gone with a folder.
            self._must_read = True
        for action in batch:
            if action.id not in self._state.trees.dirty:
                self._prepared.pop(action.id, None)
                self._doubted.discard(action.id)
        for failed in refused:
            if failed.reason == "look_again":
                self._must_read = True
            else:
                # It may rest for long; the blocks that it had sent are there when it is read once more.
                self._prepared.pop(failed.id, None)
            if failed.reason == "plan_again":
                self._doubted.add(failed.id)
            self._fail(failed)

    def _fail(self, failed: Failed) -> None:
        trees = self._state.trees
        path = b""
        if failed.id in trees.local:
            path = trees.local_path(failed.id)
        elif (r := trees.remote.get(failed.id)) is not None:
            parent = trees.local_path(r.parent) + b"/" if r.parent in trees.local else b""
            path = parent + r.name.encode()
        self._rests.add(failed, path, self._state_of(failed.id))

    async def _sit_out(self, problem: Unreachable) -> None:
        """Wait a while for the servers."""
        self.reporter.last_error = str(problem)
        self._report("offline")
        pause_s = backoff_s(self._outages, at_least_s=problem.retry_after_s)
        end = self._last_answer + self._options.give_up_s
        asked_until = time.monotonic() + (problem.retry_after_s or 0.0)
        if not self._options.is_watching and asked_until > end:
            raise GaveUp(str(problem))
        await self._account.rediscover()
        await asyncio.sleep(pause_s)
        self._outages += 1

    # ---- What is left

    def _want_read(self) -> None:
        self._must_read = True
        self._wake.set()

    def _is_idle(self) -> bool:
        return (
            self.uploads.is_idle
            and self.downloads.is_idle
            and not self._must_read
            and not self._rescan.is_due
        )

    def _is_anything_left(self, since: float) -> bool:
        return not self._is_idle() or self._rests.is_worth_waiting(since)

    def _report(self, activity: str) -> None:
        self.reporter.report(
            activity,
            held_deletions=self._guard.held,
            troubles=[x for x in (self._disk_watch.trouble, self._server_watch.trouble) if x],
        )
