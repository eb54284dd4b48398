"""How fast blocks may go up and down: one bucket each way, shared by all transfers."""

import asyncio
import time
from collections.abc import Awaitable, Callable

BURST_S = 0.5
"""What was not used for so long may be used at once: small files are not slowed down by a generous limit."""
MIN_RATE = 8 * 2**10
"""Bytes per second; below that a request for a few blocks would outlive every server's patience."""
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
        self._paid_until = 0.0
        self.granted = 0
        """Bytes so far, limited or not."""

    @property
    def rate(self) -> int | None:
        """Bytes per second; None: no limit."""
        return self._rate

    def set_rate(self, rate: int | None) -> None:
        """From now on; who waits already waits as before."""
        self._rate = rate

    async def take(self, count: int) -> None:
        """Return when so many bytes may pass."""
        if self._rate is not None:
            now = self._clock()
            # Everybody is given the stretch of time after the last one's.
            self._paid_until = max(self._paid_until, now - BURST_S) + count / self._rate
            if self._paid_until > now:
                await self._sleep(self._paid_until - now)
        self.granted += count

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
