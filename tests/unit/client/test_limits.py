"""The token bucket, by a clock that only moves when somebody sleeps; and requests that go through it."""

import asyncio
import heapq
import itertools

import pytest
from aiohttp import ClientSession, web

from client.api import PIECE_BYTES, Api, Request, Servers
from client.limits import BURST_S, MIN_RATE, Bucket, format_rate, parse_rate


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

    app = web.Application(client_max_size=2**26)
    app.router.add_post("/echo", echo)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    servers = Servers([f"http://127.0.0.1:{runner.addresses[0][1]}"])
    body = bytes(3 * PIECE_BYTES + 5)

    async def drive() -> None:
        while True:
            await asyncio.sleep(0.001)
            clock.wake_next()

    driver = asyncio.create_task(drive())
    try:
        async with ClientSession() as session:
            sent = Request(method="POST", path="/echo", body=body, needs_token=False, up=up, down=down)
            assert await Api(session).send(servers, sent, patience_s=20) == body
    finally:
        driver.cancel()
        await runner.cleanup()
    assert up.granted == down.granted == len(body)
    assert clock.now - 1_000.0 >= len(body) / 500_000 - BURST_S


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("500k", 500_000),
        ("2M", 2_000_000),
        ("1.5m", 1_500_000),
        ("8192", 8192),
        ("none", None),
        ("2MB/s", 2_000_000),
    ],
)
def test_rates_are_read(text: str, rate: int | None) -> None:
    assert parse_rate(text) == rate
    assert parse_rate(format_rate(rate)) == rate


@pytest.mark.parametrize("text", ["fast", "", "8191", "-5M", "1T", "nan", "infm"])
def test_what_is_no_rate_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"rate|at least"):
        parse_rate(text)
