"""The token bucket, by a clock that only moves when somebody sleeps; and requests that go through it."""

import asyncio
import contextlib
import functools
import heapq
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from aiohttp import ClientSession, web

from client.api import PIECE_BYTES, Api, Request, Servers
from client.control import find_limit, put_setting
from client.folder import Folder
from client.limits import BURST_S, MIN_RATE, Bucket, format_rate, parse_rate
from runtime.settings import ServerSettings
from wire.hashes import BLOCK_BYTES


class Time:
    """Virtual seconds: whoever sleeps is woken in order, and the clock then shows that moment."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self._sleepers: list[tuple[float, int, asyncio.Event]] = []
        self._count = itertools.count()

    def clock(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        woken = asyncio.Event()
        sleeper = (self.now + seconds, next(self._count), woken)
        heapq.heappush(self._sleepers, sleeper)
        try:
            await woken.wait()
        except asyncio.CancelledError:
            if sleeper in self._sleepers:
                self._sleepers.remove(sleeper)
                heapq.heapify(self._sleepers)
            raise

    def wake_next(self) -> bool:
        if not self._sleepers:
            return False
        self.now, _, woken = heapq.heappop(self._sleepers)
        woken.set()
        return True


@pytest.fixture
def clock() -> Time:
    return Time()


@pytest.fixture
def bucket(clock: Time) -> Bucket:
    return Bucket(clock=clock.clock, sleep=clock.sleep)


async def run_to_end(clock: Time, *works: asyncio.Task[None]) -> None:
    while not all(work.done() for work in works):
        for _ in range(20):
            await asyncio.sleep(0)
        clock.wake_next()
    await asyncio.gather(*works)


@contextlib.asynccontextmanager
async def serving(
    clock: Time, answer: Callable[[web.Request], Awaitable[web.Response]]
) -> AsyncIterator[Callable[[Request], Awaitable[bytes]]]:
    """A server that answers so, and what sends requests to it, while the clock goes on by itself."""
    app = web.Application(client_max_size=2**26)
    app.router.add_route("*", "/", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    servers = Servers([f"http://127.0.0.1:{runner.addresses[0][1]}"])

    async def drive() -> None:
        while True:
            await asyncio.sleep(0.001)
            clock.wake_next()

    driver = asyncio.create_task(drive())
    try:
        async with ClientSession() as session:
            yield functools.partial(Api(session).send, servers, patience_s=20)
    finally:
        driver.cancel()
        await runner.cleanup()


async def test_parallel_takers_share_one_rate(clock: Time, bucket: Bucket) -> None:
    rate, start = 100_000, clock.now
    bucket.set_rate(rate)
    granted: list[tuple[float, int]] = []

    async def take(count: int, size: int) -> None:
        for _ in range(count):
            await bucket.take(size)
            granted.append((clock.now, size))

    works = [asyncio.create_task(take(25, size)) for size in (1_000, 4_000, 15_000, 0)]
    await run_to_end(clock, *works)
    assert bucket.granted == 25 * 20_000
    for moment, _ in granted:
        so_far = sum(size for when, size in granted if when <= moment)
        assert so_far <= rate * (moment - start + BURST_S) + 1
    assert clock.now - start == pytest.approx(25 * 20_000 / rate - BURST_S), "and the line is kept busy"


async def test_what_was_not_used_is_good_for_a_short_burst_only(clock: Time, bucket: Bucket) -> None:
    bucket.set_rate(100_000)
    clock.now += 3600
    started = clock.now
    await bucket.take(int(100_000 * BURST_S))
    assert clock.now == started
    work = asyncio.create_task(bucket.take(100_000))
    await run_to_end(clock, work)
    assert clock.now - started == pytest.approx(1.0)


async def test_without_a_rate_nobody_waits(clock: Time, bucket: Bucket) -> None:
    await bucket.take(10**12)
    bucket.set_rate(MIN_RATE)
    bucket.set_rate(None)
    await bucket.take(10**12)
    assert clock.now == 1_000.0
    assert bucket.granted == 2 * 10**12


@pytest.mark.parametrize(("rate", "until_s"), [(None, 0), (1_000_000, 1), (50_000, 20)])
async def test_a_changed_rate_holds_for_who_waits_too(
    clock: Time, bucket: Bucket, rate: int | None, until_s: int
) -> None:
    start = clock.now
    bucket.set_rate(10_000)
    sizes = (500_000 + int(10_000 * BURST_S), 500_000)
    works = [asyncio.create_task(bucket.take(size)) for size in sizes]
    await asyncio.sleep(0)
    bucket.set_rate(rate)
    async with asyncio.timeout(20):
        await run_to_end(clock, *works)
    assert clock.now - start == pytest.approx(until_s)
    await bucket.take(0)
    assert clock.now - start == pytest.approx(until_s), "and nobody pays for it later"


async def test_bodies_and_answers_pass_piece_by_piece(clock: Time) -> None:
    up, down = (Bucket(clock=clock.clock, sleep=clock.sleep) for _ in range(2))
    up.set_rate(1_000_000)
    down.set_rate(500_000)

    async def echo(request: web.Request) -> web.Response:
        return web.Response(body=await request.read())

    body = bytes(3 * PIECE_BYTES + 5)
    async with serving(clock, echo) as send:
        assert (
            await send(Request(method="POST", path="/", body=body, needs_token=False, up=up, down=down))
            == body
        )
    assert up.granted == down.granted == len(body)
    assert clock.now - 1_000.0 >= len(body) / 500_000 - BURST_S


async def test_a_body_has_the_whole_rate_to_itself(clock: Time) -> None:
    up = Bucket(clock=clock.clock, sleep=clock.sleep)
    up.set_rate(MIN_RATE)
    lasted_s: list[float] = []

    async def put(request: web.Request) -> web.Response:
        began = clock.now
        await request.read()
        lasted_s.append(clock.now - began)
        return web.Response()

    request = Request(method="PUT", path="/", body=bytes(BLOCK_BYTES), needs_token=False, up=up)
    async with serving(clock, put) as send:
        await asyncio.gather(*(send(request) for _ in range(5)))
    assert len(lasted_s) == 5
    assert max(lasted_s) < 0.8 * ServerSettings.model_fields["body_timeout_s"].default


async def test_who_waits_for_a_turn_goes_when_the_limit_is_lifted(bucket: Bucket) -> None:
    bucket.set_rate(MIN_RATE)
    has_gone = asyncio.Event()

    async def go() -> None:
        async with bucket.turn():
            has_gone.set()

    async with bucket.turn():
        waiting = asyncio.create_task(go())
        await asyncio.sleep(0)
        assert not has_gone.is_set()
        bucket.set_rate(None)
        async with asyncio.timeout(20):
            await waiting


def test_a_limit_that_was_stored_when_less_was_allowed_is_raised(tmp_path: Path) -> None:
    with contextlib.closing(Folder(tmp_path).create()) as state:
        put_setting(state, "limit-up", "9000")
        assert find_limit(state, "limit-up") == MIN_RATE


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("500k", 500_000),
        ("2M", 2_000_000),
        ("1.5m", 1_500_000),
        ("49152", 49_152),
        ("none", None),
        ("2MB/s", 2_000_000),
    ],
)
def test_rates_are_read(text: str, rate: int | None) -> None:
    assert parse_rate(text) == rate
    assert parse_rate(format_rate(rate)) == rate


@pytest.mark.parametrize("text", ["fast", "", "49151", "-5M", "1T", "nan", "infm"])
def test_what_is_no_rate_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"rate|at least"):
        parse_rate(text)
