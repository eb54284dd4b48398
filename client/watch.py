"""Hints from the system that something in the folder has changed; and from the server.

Hints are never believed in detail: they only say where to look.
"""

import asyncio
import contextlib
import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

from watchfiles import Change, awatch, watch
from watchfiles.main import FileChange

from client.account import Account
from client.api import Unreachable, backoff_s
from client.folder import MARKER_DIR, Folder
from client.remote import Remote
from client.rescan import Rescan
from client.state import is_disk_full
from wire.errors import DeviceRevoked, InvalidCursor, InvalidRefreshToken, ShardboxError

STEP_MS = 15
"""A burst of events is over when none comes for so long: an editor's save takes less."""
DEBOUNCE_MS = 60
"""A burst that does not end is looked at after so long."""
MANY_EVENTS = 5_000
"""A burst of this size may have overflowed the system's queue (16,384 on Linux): look at everything."""
LOOK_AGAIN_S = (0.2, 1.5)
"""A folder that has just appeared or been renamed has no watches below it until the watching library has come
round to it; what changes there meanwhile gives no event. So it is looked at again, later too: on a busy
machine the library comes late."""
PROBE_S = 10.0
"""How often to ask for one watch more (half a millisecond): the watching library leaves out folders that get
none, and does not say so. The whole folder is looked at this often then."""
LOOK_S = 600.0
"""The whole folder is looked at this often in any case: events get lost without a word, by a queue that
overflows and on network file systems."""
LOOK_SHARE = 0.02
"""Such looks take at most this share of the time: 100,000 files, which take 5 s, are looked at each 250 s
where not every folder can be watched; where all are only what takes longer than 12 s is looked at less."""


class DiskWatch:
    """Watches the folder for as long as `run` runs."""

    def __init__(self, folder: Folder, rescan: Rescan, wake: Callable[[], None]):
        self._rescan, self._wake = rescan, wake
        self._root = os.fsdecode(folder.root)
        self._private = os.fsdecode(folder.root + b"/" + MARKER_DIR)
        self.trouble: str | None = None

    async def run(self) -> None:
        """Turn events into wishes to look, and look at everything now and then."""
        while True:
            watching = asyncio.create_task(self._watch())
            try:
                # By its first pause it has all its watches; what changed before gave no event.
                await asyncio.sleep(0)
                self._want_all()
                await self._look_beside(watching)
            finally:
                watching.cancel()
                await asyncio.wait([watching])

    async def _look_beside(self, watching: asyncio.Task[None]) -> None:
        """Look at everything now and then, until a watch that is not whole is worth making anew."""
        is_blind, looked_at = False, time.monotonic()
        while True:
            problem = _find_failure(watching) or await asyncio.to_thread(self._find_shortage)
            is_blind = is_blind or problem is not None
            pause_s = max(PROBE_S if is_blind else LOOK_S, self._rescan.whole_s / LOOK_SHARE)
            if problem is not None:
                self._tell(f"cannot watch every folder ({problem}); looking at all every {pause_s:.0f} s")
            elif not is_blind:
                self._tell(None)
            await asyncio.sleep(PROBE_S)
            if time.monotonic() < looked_at + pause_s:
                continue
            if is_blind and (problem is None or watching.done()):
                return
            self._want_all()
            looked_at = time.monotonic()

    def _find_shortage(self) -> str | None:
        """Why the system would not watch one folder more."""
        probe = watch(self._root, step=1, rust_timeout=1, yield_on_timeout=True, recursive=False)
        try:
            next(probe)
        except OSError as error:
            return _reason(error)
        except RuntimeError:
            # There are too many watchers, but ours is one of them.
            return None
        finally:
            probe.close()
        return None

    def _tell(self, trouble: str | None) -> None:
        if trouble != self.trouble:
            self.trouble = trouble
            self._wake()

    def _want_all(self) -> None:
        self._rescan.want_all()
        self._wake()

    async def _watch(self) -> None:
        async for changes in awatch(
            self._root,
            watch_filter=None,
            step=STEP_MS,
            debounce=DEBOUNCE_MS,
            recursive=True,
            ignore_permission_denied=True,
        ):
            folders = {folder for change in changes if (folder := self._folder_of(change)) is not None}
            if len(changes) >= MANY_EVENTS:
                self._rescan.want_all()
            elif folders:
                self._rescan.want(folders)
                self._look_again(changes)
            else:
                continue
            self._wake()

    def _look_again(self, changes: set[FileChange]) -> None:
        """Come back to the folders among what has appeared."""
        appeared = [path for change, path in changes if change is Change.added and Path(path).is_dir()]
        young = {os.fsencode(path)[len(os.fsencode(self._root)) + 1 :] for path in appeared}
        if young:
            for delay_s in LOOK_AGAIN_S:
                asyncio.get_running_loop().call_later(delay_s, self._look_at, young)

    def _look_at(self, folders: set[bytes]) -> None:
        for folder in folders:
            self._rescan.want_below(folder)
        self._wake()

    def _folder_of(self, change: FileChange) -> bytes | None:
        path = change[1]
        if path == self._private or path.startswith(self._private + "/"):
            return None
        if path == self._root:
            return b""
        return os.fsencode(os.path.dirname(path)[len(self._root) + 1 :])


def _find_failure(watching: asyncio.Task[None]) -> str | None:
    """Why the watching library has given up; what it never raises is raised."""
    error = watching.exception() if watching.done() else None
    if error is not None and not isinstance(error, OSError | RuntimeError | ExceptionGroup):
        raise error
    return None if error is None else _reason(error)


def _reason(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    # The rest is the library's own notation of path and kind.
    return str(error).partition(" about [")[0].rstrip(".")


class ServerWatch:
    """Holds a long-poll for as long as `run` runs."""

    def __init__(self, remote: Remote, account: Account, poll_s: int, want_read: Callable[[], None]):
        self._remote, self._account, self._poll_s, self._want_read = remote, account, poll_s, want_read
        self._has_read = asyncio.Event()
        self.trouble: str | None = None

    def note_read(self) -> None:
        """The server's tree has been read up to its head."""
        self._has_read.set()

    async def run(self) -> None:
        """Poll, ask for a read when there is news, wait until it was read, poll again.

        Raises:
            DeviceRevoked, InvalidRefreshToken: the device was unlinked on the server.
        """
        attempt = 0
        while True:
            cursor = self._remote.cursor
            if cursor is None or not self._remote.is_complete:
                await self._wait_for_read()
                continue
            try:
                result = await self._account.calls.longpoll(cursor, self._poll_s)
                if not result.changes:
                    # A poll carries no login: where nothing happens only this tells that it is good no more.
                    await self._account.get_token(None)
            except (DeviceRevoked, InvalidRefreshToken):
                raise
            except (Unreachable, ShardboxError, OSError, sqlite3.OperationalError) as problem:
                if isinstance(problem, sqlite3.OperationalError) and not is_disk_full(problem):
                    raise
                # A full disk has no room for a new token, nor perhaps for the file that locks it.
                self.trouble = str(problem)
                if isinstance(problem, InvalidCursor):
                    self._want_read()
                asked_s = problem.retry_after_s if isinstance(problem, Unreachable) else None
                await asyncio.sleep(backoff_s(attempt, at_least_s=asked_s))
                attempt += 1
                continue
            self.trouble, attempt = None, 0
            if result.backoff:
                await asyncio.sleep(result.backoff)
            if result.changes and cursor == self._remote.cursor:
                self._want_read()
                await self._wait_for_read()

    async def _wait_for_read(self) -> None:
        self._has_read.clear()
        with contextlib.suppress(TimeoutError):
            # A read that takes longer is not waited for: polling once too often does no harm.
            async with asyncio.timeout(60):
                await self._has_read.wait()
