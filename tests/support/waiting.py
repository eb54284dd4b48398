"""Waiting for a condition with a deadline, instead of sleeping and hoping."""

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

POLL_S = 0.02
PATIENCE_S = 90.0
"""Far beyond what anything takes here: a test that waits for so long has failed, and no other does."""


def wait_for(condition: Callable[[], T | None], what: str, *, timeout_s: float = PATIENCE_S) -> T:
    """The first true value of the condition.

    Raises:
        AssertionError: it did not come true in time.
    """
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"in {timeout_s} s not seen: {what}"
        time.sleep(POLL_S)
    return value


async def wait_until(
    condition: Callable[[], T | Awaitable[T | None] | None], what: str, *, timeout_s: float = PATIENCE_S
) -> T:
    """The same in an event loop; the condition may be a coroutine function.

    Raises:
        AssertionError: it did not come true in time.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        found = await value if inspect.isawaitable(value) else value
        if found:
            return found
        assert time.monotonic() < deadline, f"in {timeout_s} s not seen: {what}"
        await asyncio.sleep(POLL_S)
