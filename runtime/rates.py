"""How often somebody may ask: a bucket per account, and one per address of those without a token, and of
tokens that turn out not to be good.

Each process keeps its own buckets: a cluster of n servers lets an account have n times the rate. That bounds
what one account can do to a process, which is what it is for, and costs no look-up elsewhere.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import tornado.web

from runtime.owners import Owners
from wire.errors import TooManyRequests

REQUESTS_PER_ACCOUNT_S = 500.0
"""A device that syncs flat out sends batches of up to 1,000 operations and packs of up to 1,000 blocks: some
tens of requests a second. One process answers some 1,000 requests a second in all."""
BURST_PER_ACCOUNT = 2_000
STRANGERS_PER_ADDRESS_S = 50.0
"""A device refreshes its token once an hour: enough for 180,000 devices behind one address, or one proxy."""
STRANGERS_BURST = 500
FORGED_PER_ADDRESS_S = 50.0
"""Tokens that were verified in vain: half a percent of a processor. A device that was away shows one that has
expired, then refreshes it."""
FORGED_BURST = 500
MAX_BUCKETS = 100_000
"""Of some 200 bytes; beyond it whoever asked least recently is forgotten, and begins with a full bucket."""


class RateLimiter:
    """Token buckets by key: `burst` at once, `rate_s` a second on average.

    Each is kept as one number, the time when it will be full again (GCRA: ITU-T I.371).
    """

    def __init__(
        self, rate_s: float, burst: int, clock: Callable[[], float] = time.monotonic, *, refusal: str = ""
    ):
        """`refusal`: what is said to whom asks too often."""
        self._interval_s = 1 / rate_s
        self._burst_s = burst / rate_s
        self._clock = clock
        self._refusal = refusal
        self._full_at: dict[str, float] = {}
        """In the order of last use."""

    def __len__(self) -> int:
        return len(self._full_at)

    def take(self, key: str) -> None:
        """Count one request.

        Raises:
            TooManyRequests: the bucket is empty; `retry_after_s` is when there will be something in it.
        """
        self._take(key, self._interval_s)

    def check(self, key: str) -> None:
        """Refuse as `take` would; count nothing."""
        self._take(key, 0)

    def _take(self, key: str, cost_s: float) -> None:
        now = self._clock()
        full_at = max(self._full_at.pop(key, now), now)
        wait_s = full_at + self._interval_s - self._burst_s - now
        is_allowed = wait_s <= 1e-9  # sums of fractions of a second are not exact
        self._full_at[key] = full_at + cost_s if is_allowed else full_at
        if len(self._full_at) > MAX_BUCKETS:
            del self._full_at[next(iter(self._full_at))]
        if not is_allowed:
            raise TooManyRequests(self._refusal, retry_after_s=max(1, math.ceil(wait_s)))


def forged_tokens() -> RateLimiter:
    """For verifying tokens."""
    refusal = "too many tokens that are not good have come from this address"
    return RateLimiter(FORGED_PER_ADDRESS_S, FORGED_BURST, refusal=refusal)


def _accounts() -> RateLimiter:
    return RateLimiter(REQUESTS_PER_ACCOUNT_S, BURST_PER_ACCOUNT)


def _strangers() -> RateLimiter:
    return RateLimiter(STRANGERS_PER_ADDRESS_S, STRANGERS_BURST)


@dataclass(frozen=True, slots=True)
class Rates:
    """The limiters of a process, and whose bucket is taken from."""

    accounts: RateLimiter = field(default_factory=_accounts)
    strangers: RateLimiter = field(default_factory=_strangers)
    owners: Owners = field(default_factory=Owners)


def rates_of(app: tornado.web.Application) -> Rates:
    """The application's limiters."""
    found: Rates = app.settings["rates"]
    return found
