"""How fast blocks may go up and down: one bucket each way, shared by all transfers."""

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable

BURST_S = 0.5
"""What was not used for so long may be used at once: small files are not slowed down by a generous limit."""
EXACT_S = 1e-4
"""A wait shorter than this is none: sums of floats are not exact."""
MIN_RATE = 48 * 2**10
"""Bytes per second: a block of 4 MiB takes 85 s, and a server gives a body 120 (runtime/settings.py)."""
SHARED_BY = 16
"""Requests that may share the line (session.CONNECTIONS): each is given the time that all of them need."""

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}


class Bucket:
    """Grants bytes at a bounded rate, in the order of asking; all at once while there is no rate."""

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ):
        self._clock, self._sleep = clock, sleep
        self._rate: int | None = None
        self._passed, self._passed_at = 0.0, 0.0
        """Bytes that could have passed until a moment."""
        self._promised = -math.inf
        """How many must have passed for all that were asked for to be through."""
        self._changed = asyncio.Event()
        self._is_taken, self._freed = False, asyncio.Event()
        self.granted = 0
        """Bytes so far, limited or not."""

    @property
    def rate(self) -> int | None:
        """Bytes per second; None: no limit."""
        return self._rate

    def set_rate(self, rate: int | None) -> None:
        """From now on, for who waits already too."""
        if rate == self._rate:
            return
        self._advance()
        self._rate = rate
        if rate is None:
            self._promised = -math.inf
        self._changed.set()
        self._changed = asyncio.Event()
        self._free()

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """While there is a rate one body at a time: sharing it, each would outlive the server's patience."""
        while self._rate is not None and self._is_taken:
            await self._freed.wait()
        is_mine = self._rate is not None
        self._is_taken = self._is_taken or is_mine
        try:
            yield
        finally:
            if is_mine:
                self._is_taken = False
                self._free()

    async def take(self, count: int) -> None:
        """Return when so many bytes may pass."""
        if self._rate is not None:
            # Everybody is given the stretch after the last one's.
            self._promised = max(self._promised, self._advance() - BURST_S * self._rate) + count
            due = self._promised
            while (wait_s := self._wait_s(due)) > EXACT_S:
                await self._pause(wait_s)
        self.granted += count

    def _free(self) -> None:
        self._freed.set()
        self._freed = asyncio.Event()

    def _advance(self) -> float:
        """Bytes that could have passed until now."""
        now = self._clock()
        self._passed += (now - self._passed_at) * (self._rate or 0)
        self._passed_at = now
        return self._passed

    def _wait_s(self, due: float) -> float:
        return 0.0 if self._rate is None else (due - self._advance()) / self._rate

    async def _pause(self, seconds: float) -> None:
        """Sleep, until the rate changes at the longest."""
        tasks = [asyncio.ensure_future(self._sleep(seconds)), asyncio.ensure_future(self._changed.wait())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()

    def extra_s(self, count: int) -> float:
        """How much longer than without a limit a request with so many bytes may take."""
        return 0.0 if self._rate is None else SHARED_BY * count / self._rate


def parse_rate(text: str) -> int | None:
    """Bytes per second of `500k`, `2M`, `1.5m`, `none`; k, M and G are powers of 1,000.

    Raises:
        ValueError: it is none of these, or too slow.
    """
    stripped = text.strip().lower().removesuffix("b/s").removesuffix("/s")
    if stripped in ("none", "off", "0"):
        return None
    unit = stripped[-1:] if stripped[-1:] in ("k", "m", "g") else ""
    try:
        rate = int(float(stripped.removesuffix(unit)) * _UNITS[unit])
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{text!r} is no rate: write 500k, 2M or none (bytes per second)") from error
    if rate < MIN_RATE:
        raise ValueError(f"a limit is at least {MIN_RATE} bytes per second")
    return rate


def format_rate(rate: int | None) -> str:
    """As short as `parse_rate` takes it."""
    if rate is None:
        return "none"
    for unit in ("G", "M", "k"):
        if rate % _UNITS[unit.lower()] == 0:
            return f"{rate // _UNITS[unit.lower()]}{unit}"
    return str(rate)
