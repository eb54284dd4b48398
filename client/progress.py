"""A progress bar, on a terminal only."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from client.sync import Sync

REFRESH_S = 0.2


@contextlib.asynccontextmanager
async def show_progress(sync: Sync, console: Console) -> AsyncIterator[None]:
    """Shows what is under way while the body runs; nothing at all where nobody is looking."""
    if not console.is_terminal:
        yield
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        watcher = asyncio.create_task(_follow(sync, progress))
        try:
            yield
        finally:
            watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watcher


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
