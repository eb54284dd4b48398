"""A sync from the lock to the end: what the command line runs, and what tests run in their own process."""

import asyncio
import contextlib
import signal
import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager

import aiohttp

from client.account import Account
from client.folder import Folder
from client.recover import recover
from client.steps import empty_trash
from client.sync import Options, Sync

CONNECTIONS = 16
"""Four groups each way, each with a few requests: as many connections as are ever useful at once."""

Display = Callable[[Sync], AbstractAsyncContextManager[None]]


@contextlib.asynccontextmanager
async def open_session() -> AsyncIterator[aiohttp.ClientSession]:
    """Connections to all servers; proxies as the environment says."""
    connector = aiohttp.TCPConnector(limit=0, limit_per_host=CONNECTIONS)
    async with aiohttp.ClientSession(connector=connector, trust_env=True) as session:
        yield session


async def sync_folder(place: Folder, options: Options, display: Display | None = None) -> None:
    """Sync one linked folder; raises what Sync.run, Folder.open and Folder.lock raise."""
    with contextlib.closing(place.open()) as state:
        place.lock()
        try:
            with contextlib.suppress(sqlite3.OperationalError), state.tx("report"):
                # What a run before this one was doing is past.
                state.put_fact("activity", "starting")
            recover(place, state)
            empty_trash(place.trash, time.time())
            async with open_session() as session:
                runner = Sync(place, state, Account(state, session), options)
                async with display(runner) if display is not None else contextlib.nullcontext():
                    await runner.run()
        finally:
            place.unlock()


def stop_on_signals(note: Callable[[signal.Signals], None]) -> None:
    """End the current task in good order on SIGTERM and SIGINT; `note` is told which it was."""
    task = asyncio.current_task()
    assert task is not None, "called in a task"

    def stop(number: signal.Signals) -> None:
        note(number)
        task.cancel()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop, number)
