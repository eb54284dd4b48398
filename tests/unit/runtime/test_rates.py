"""Token buckets: so many at once, so many a second, in bounded memory."""

import pytest

from runtime import rates
from runtime.rates import RateLimiter
from wire.errors import TooManyRequests


class Clock:
    now = 1_000.0

    def __call__(self) -> float:
        return self.now


def count_allowed(limiter: RateLimiter, key: str = "a") -> tuple[int, int]:
    """How many are let through at once, and the Retry-After of the next one."""
    for count in range(10_000):
        try:
            limiter.take(key)
        except TooManyRequests as refused:
            return count, refused.retry_after_s or 0
    pytest.fail("nobody is ever refused")


def test_a_burst_is_let_through_and_then_the_rate():
    clock = Clock()
    limiter = RateLimiter(10, 30, clock)
    assert count_allowed(limiter) == (30, 1)
    assert count_allowed(limiter) == (0, 1)  # who was refused has taken nothing
    clock.now += 0.1
    assert count_allowed(limiter) == (1, 1)
    clock.now += 1
    assert count_allowed(limiter) == (10, 1)
    clock.now += 3_600
    assert count_allowed(limiter) == (30, 1)
    assert count_allowed(limiter, "b") == (30, 1)


def test_retry_after_is_when_there_will_be_something():
    clock = Clock()
    limiter = RateLimiter(0.1, 3, clock)
    assert count_allowed(limiter) == (3, 10)
    clock.now += 4.5
    assert count_allowed(limiter) == (0, 6)
    clock.now += 6
    assert count_allowed(limiter)[0] == 1


def test_to_check_takes_nothing():
    limiter = RateLimiter(0.1, 3, Clock())
    for _ in range(10):
        limiter.check("a")
    assert count_allowed(limiter) == (3, 10)
    with pytest.raises(TooManyRequests) as refused:
        limiter.check("a")
    assert refused.value.retry_after_s == 10
    limiter.check("b")


def test_only_so_many_are_remembered(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(rates, "MAX_BUCKETS", 3)
    limiter = RateLimiter(1, 1, Clock())
    for key in "abc":
        limiter.take(key)
    with pytest.raises(TooManyRequests):
        limiter.take("a")  # and so is used later than b
    limiter.take("d")
    assert len(limiter) == 3
    limiter.take("b")  # forgotten, the first of all
    with pytest.raises(TooManyRequests):
        limiter.take("a")
