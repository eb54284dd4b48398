"""Questions on a terminal of the test's own, beside the bar."""

import asyncio
import contextlib
import os
import pty
import signal
from collections.abc import Iterator
from types import SimpleNamespace
from typing import cast

import pytest
from rich.console import Console
from rich.progress import Progress

from client.progress import Terminal
from client.session import stop_on_signals
from client.sync import Sync

IDLE = cast(
    "Sync",
    SimpleNamespace(
        **{name: SimpleNamespace(submitted_count=0, jobs={}) for name in ("uploads", "downloads")}
    ),
)


class Person:
    """Sits before a terminal."""

    def __init__(self, hands: int, keyboard: int, screen: Console):
        self.hands, self.terminal = hands, Terminal(screen, keyboard)

    def type(self, text: str) -> None:
        os.write(self.hands, text.encode())

    async def seen(self, text: str) -> None:
        """Wait until this is on the screen."""
        shown = ""
        os.set_blocking(self.hands, False)
        async with asyncio.timeout(20):
            while text not in shown:
                with contextlib.suppress(BlockingIOError):
                    shown += os.read(self.hands, 65536).decode()
                await asyncio.sleep(0.01)

    def bar(self) -> Progress:
        assert self.terminal._progress is not None
        return self.terminal._progress


@pytest.fixture
def person() -> Iterator[Person]:
    hands, keyboard = pty.openpty()
    with open(keyboard, "w", closefd=False) as screen:
        yield Person(hands, keyboard, Console(file=screen, width=200, force_terminal=True))
    os.close(keyboard)
    os.close(hands)


@pytest.mark.parametrize(("typed", "expected"), [("y\n", True), ("what\nYes\n", True), ("\n", False)])
async def test_the_bar_is_away_while_a_question_waits(person: Person, typed: str, expected: bool) -> None:
    assert person.terminal.can_ask
    async with person.terminal.show_progress(IDLE):
        assert person.bar().live.is_started
        asking = asyncio.create_task(person.terminal.ask_mass_delete(30, 40))
        await person.seen("30 of 40 entries were deleted here. Delete them on the server too? [y/N]: ")
        assert not person.bar().live.is_started
        person.type(typed)
        async with asyncio.timeout(20):
            assert await asking is expected
        assert person.bar().live.is_started


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_ends_a_question(person: Person, number: signal.Signals) -> None:
    noted: list[signal.Signals] = []

    async def work() -> None:
        stop_on_signals(noted.append)
        async with person.terminal.show_progress(IDLE):
            await person.terminal.ask("Really?")

    working = asyncio.create_task(work())
    await person.seen("Really?")
    os.kill(os.getpid(), number)
    async with asyncio.timeout(20):
        with pytest.raises(asyncio.CancelledError):
            await working
    assert noted == [number]
    for used in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().remove_signal_handler(used)


async def test_a_terminal_that_is_closed_says_no(person: Person) -> None:
    asking = asyncio.create_task(person.terminal.ask("Really?"))
    await person.seen("Really?")
    person.type("\x04")
    async with asyncio.timeout(20):
        assert await asking is False
