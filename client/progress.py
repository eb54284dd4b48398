"""The person in front of a terminal: is shown what is under way, and asked. Elsewhere nothing is shown."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from client.sync import Sync

REFRESH_S = 0.2
LINE_BYTES = 4096
"""What a terminal gives at once at the most: a line."""


class Terminal:
    """A progress bar and questions, which take turns; `keyboard` is a file descriptor."""

    def __init__(self, console: Console, keyboard: int):
        self._console, self._keyboard = console, keyboard
        self._progress: Progress | None = None

    @property
    def can_ask(self) -> bool:
        """Whether there is somebody to answer."""
        return self._console.is_terminal and os.isatty(self._keyboard)

    @contextlib.asynccontextmanager
    async def show_progress(self, sync: Sync) -> AsyncIterator[None]:
        """Shows what is under way while the body runs."""
        if not self._console.is_terminal:
            yield
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, console=self._console, transient=True) as self._progress:
            watcher = asyncio.create_task(_follow(sync, self._progress))
            try:
                yield
            finally:
                watcher.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await watcher
        self._progress = None

    async def ask_mass_delete(self, count: int, total: int) -> bool:
        """Whether so many of so many entries may be deleted."""
        question = f"{count} of {total} entries were deleted here. Delete them on the server too?"
        return await self.ask(question)

    async def ask(self, question: str) -> bool:
        """Yes or no, no unless told; the bar is away meanwhile, and signals are heeded."""
        if self._progress is not None:
            self._progress.stop()
        try:
            while True:
                self._console.out(f"{question} [y/N]: ", end="", highlight=False)
                answer = (await self._read_line()).strip().lower()
                if answer in ("", "n", "no", "y", "yes"):
                    return answer.startswith("y")
        except asyncio.CancelledError:
            self._console.out()
            raise
        finally:
            if self._progress is not None:
                self._progress.start()

    async def _read_line(self) -> str:
        # Not in a thread: one that waits for a key cannot be ended.
        loop = asyncio.get_running_loop()
        line: asyncio.Future[bytes] = loop.create_future()

        def read() -> None:
            loop.remove_reader(self._keyboard)
            try:
                line.set_result(os.read(self._keyboard, LINE_BYTES))
            except OSError:
                # The terminal was closed.
                line.set_result(b"")

        loop.add_reader(self._keyboard, read)
        try:
            return (await line).decode(errors="replace")
        finally:
            loop.remove_reader(self._keyboard)


async def _follow(sync: Sync, progress: Progress) -> None:
    up = progress.add_task("sending", total=0, visible=False)
    down = progress.add_task("fetching", total=0, visible=False)
    while True:
        for task, transfers in ((up, sync.uploads), (down, sync.downloads)):
            total = transfers.submitted_count
            progress.update(
                task, total=total, completed=total - len(transfers.jobs), visible=bool(transfers.jobs)
            )
        await asyncio.sleep(REFRESH_S)
