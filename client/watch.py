"""Hints from the system that something in the folder has changed; and from the server.

Hints are never believed in detail: they only say where to look.
"""

import asyncio
import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from watchfiles import Change, awatch
from watchfiles.main import FileChange

from client.api import Unreachable, backoff_s
from client.calls import Calls
from client.folder import MARKER_DIR, Folder
from client.remote import Remote
from client.rescan import Rescan
from wire.errors import InvalidCursor, ShardboxError

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
POLL_DISK_S = 10.0
"""Where the system gives no (more) watches, the whole folder is looked at this often."""


class DiskWatch:
    """Watches the folder for as long as `run` runs."""

    def __init__(self, folder: Folder, rescan: Rescan, wake: Callable[[], None]):
        self._rescan, self._wake = rescan, wake
        self._root = os.fsdecode(folder.root)
        self._private = os.fsdecode(folder.root + b"/" + MARKER_DIR)
        self.trouble: str | None = None

    async def run(self) -> None:
        """Turn events into wishes to look."""
        while True:
            try:
                await self._watch()
            except OSError as error:
                self.trouble = f"cannot watch the folder ({error}); looking at it every {POLL_DISK_S:.0f} s"
            await asyncio.sleep(POLL_DISK_S)
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
            self.trouble = None
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


class ServerWatch:
    """Holds a long-poll for as long as `run` runs."""

    def __init__(self, remote: Remote, calls: Calls, poll_s: int, want_read: Callable[[], None]):
        self._remote, self._calls, self._poll_s, self._want_read = remote, calls, poll_s, want_read
        self._has_read = asyncio.Event()
        self.trouble: str | None = None

    def note_read(self) -> None:
        """The server's tree has been read up to its head."""
        self._has_read.set()

    async def run(self) -> None:
        """Poll, ask for a read when there is news, wait until it was read, poll again."""
        attempt = 0
        while True:
            cursor = self._remote.cursor
            if cursor is None or not self._remote.is_complete:
                await self._wait_for_read()
                continue
            try:
                result = await self._calls.longpoll(cursor, self._poll_s)
            except (Unreachable, ShardboxError) as problem:
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
