"""Bodies over real connections, with time-outs of fractions of a second: bounded, ended, given back."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
import tornado.httpserver
import tornado.netutil
import tornado.web

from runtime import web
from runtime.bodies import (
    MAX_DISCARDED_BYTES,
    SMALL_BODY_BYTES,
    Bodies,
    ByteBudget,
    decode_in_turns,
)
from runtime.metrics import ServerMetrics
from runtime.process import make_http_server
from runtime.rates import RateLimiter, Rates
from runtime.web import BaseHandler, InFlight, InternalHandler, NotFoundHandler, in_flight
from tests.support.raw_http import RawConnection
from tests.support.waiting import wait_until
from wire.errors import Overloaded, Unauthenticated
from wire.internal import Published
from wire.keys import KeyRing

TIMEOUT_S = 0.3
BIG = 10 * SMALL_BODY_BYTES
KNOWN_BYTES = 2 * BIG
LARGE_BYTES = 64 * 2**20


class Echo(msgspec.Struct):
    """What was sent."""

    text: str = ""


class EchoHandler(BaseHandler):
    """Sends back what it was sent; `X-User` names the caller, `X-Slow` makes the answer wait."""

    limit_bytes = BIG

    async def admit(self) -> None:
        user = self.request.headers.get("X-User")
        if user == "forged":
            raise Unauthenticated("forged")
        self.owner, self.is_stranger = user or self.request.remote_ip, user is None

    async def post(self) -> None:
        request = self.body_as(Echo)
        if "X-Slow" in self.request.headers:
            await self.settings["released"].wait()
        self.answer(Echo(request.text))


class LargeHandler(EchoHandler):
    """Sends more than a socket's buffers hold."""

    def get(self) -> None:
        self.finish(bytes(LARGE_BYTES))


class PackedHandler(InternalHandler):
    """For servers alone."""

    limit_bytes = SMALL_BODY_BYTES

    def post(self) -> None:
        self.answer_packed(self.packed_as(Published))


@dataclass
class Server:
    """A server of this test's own."""

    app: tornado.web.Application
    http: tornado.httpserver.HTTPServer
    bodies: Bodies
    keys: KeyRing
    port: int
    released: asyncio.Event
    connections: list[RawConnection] = field(default_factory=list)

    async def connect(self) -> RawConnection:
        self.connections.append(await RawConnection.open(self.port))
        return self.connections[-1]

    async def ask(self, body: bytes, *headers: str, path: str = "/echo") -> tuple[int, str]:
        """Status, and the code of the error, of one request on a connection of its own."""
        connection = await self.connect()
        await connection.head(f"POST {path}", f"Content-Length: {len(body)}", *headers)
        await connection.send(body)
        answer = await connection.answer()
        return answer.status, answer.code

    async def all_is_over(self) -> None:
        async def over() -> bool:
            return not (in_flight(self.app).count or self.used_bytes)

        await wait_until(over, "everything to be given back", timeout_s=10)

    @property
    def used_bytes(self) -> int:
        return self.bodies.known.used_bytes + self.bodies.strangers.used_bytes


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    metrics = ServerMetrics()
    keys = KeyRing.parse(KeyRing.generate())
    bodies = Bodies(ByteBudget(KNOWN_BYTES))
    released = asyncio.Event()
    plain: dict[str, Any] = {"metrics": metrics}
    app = tornado.web.Application(
        [
            ("/echo", EchoHandler, plain),
            ("/large", LargeHandler, plain),
            ("/packed", PackedHandler, plain | {"service_keys": keys}),
        ],
        default_handler_class=NotFoundHandler,
        default_handler_args=plain,
        in_flight=InFlight(),
        bodies=bodies,
        rates=Rates(RateLimiter(1_000, 1_000), RateLimiter(0.1, 3)),
        released=released,
    )
    http = make_http_server(app, header_timeout_s=TIMEOUT_S, body_timeout_s=TIMEOUT_S)
    sockets = tornado.netutil.bind_sockets(0, "127.0.0.1")
    http.add_sockets(sockets)
    made = Server(app, http, bodies, keys, sockets[0].getsockname()[1], released)
    yield made
    for connection in made.connections:
        await connection.close()
    http.stop()
    await http.close_all_connections()
    await made.all_is_over()


async def test_a_body_is_taken_up_to_its_limit(server: Server):
    text = b"x" * (BIG - len(b'{"text":""}'))
    assert await server.ask(b'{"text":"%b"}' % text, "X-User: a") == (200, "")
    assert await server.ask(b'{"text":"%bx"}' % text, "X-User: a") == (413, "body_too_large")
    assert await server.ask(b"{}", path="/nowhere") == (404, "not_found")
    assert await server.ask(bytes(2 * SMALL_BODY_BYTES), path="/nowhere") == (404, "not_found")


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate, gzip", "x"])
async def test_a_compressed_body_is_refused(server: Server, encoding: str):
    refused = (415, "unsupported_encoding")
    assert await server.ask(b"\x1f\x8b", "X-User: a", f"Content-Encoding: {encoding}") == refused
    assert await server.ask(b"{}", "X-User: a", "Content-Encoding: identity") == (200, "")


async def test_a_head_that_does_not_end_is_hung_up_on(server: Server):
    connection = await server.connect()
    await connection.send(b"POST /echo HTTP/1.1\r\nHost: x\r\nX-A: ")
    assert await connection.is_closed()
    idle = await server.connect()
    assert await idle.is_closed()


@pytest.mark.parametrize("header", [f"Content-Length: {BIG}", "Transfer-Encoding: chunked"])
async def test_a_body_that_does_not_end_is_hung_up_on(server: Server, header: str):
    connection = await server.connect()
    await connection.head("POST /echo", header, "X-User: a")
    await connection.send(b"ffff\r\n" + bytes(1_000))

    async def held() -> bool:
        return server.used_bytes > 0

    await wait_until(held, "the body's share", timeout_s=10)
    assert await connection.is_closed()
    await server.all_is_over()


@pytest.mark.parametrize("header", [f"Content-Length: {BIG}", "Transfer-Encoding: chunked"])
async def test_a_body_that_is_cut_off_gives_its_memory_back(server: Server, header: str):
    connection = await server.connect()
    await connection.head("POST /echo", header, "X-User: a")
    await connection.send(b"ffff\r\n" + bytes(1_000))

    async def held() -> bool:
        return server.used_bytes > 0

    await wait_until(held, "the body's share", timeout_s=10)
    await connection.close()
    await server.all_is_over()


async def test_a_flood_of_headers_and_a_line_without_end_are_hung_up_on(server: Server):
    for start in (b"GET /" + b"a" * 100_000, b"GET / HTTP/1.1\r\n" + b"X-A: b\r\n" * 10_000):
        connection = await server.connect()
        await connection.send(start)
        assert await connection.is_closed(or_status=400)


async def test_a_refusal_is_read_after_a_whole_body(server: Server):
    connection = await server.connect()
    for _ in range(2):
        await connection.head("POST /echo", f"Content-Length: {BIG}", "X-User: forged")
        await connection.send(bytes(BIG))
        answer = await connection.answer()
        assert (answer.status, answer.code) == (401, "invalid_access_token")
    assert server.used_bytes == 0


async def test_who_waits_for_leave_gets_it_or_the_refusal(server: Server):
    connection = await server.connect()
    await connection.head("POST /echo", "Content-Length: 2", "X-User: a", "Expect: 100-continue")
    assert (await connection.answer()).status == 100
    await connection.send(b"{}")
    assert (await connection.answer()).status == 200
    await connection.head("POST /echo", f"Content-Length: {BIG + 1}", "X-User: a", "Expect: 100-continue")
    assert (await connection.answer()).code == "body_too_large"
    assert await connection.is_closed()


async def test_much_too_much_is_refused_before_it_comes(server: Server):
    connection = await server.connect()
    await connection.head("POST /echo", f"Content-Length: {MAX_DISCARDED_BYTES + 1}", "X-User: a")
    assert (await connection.answer()).code == "body_too_large"
    assert await connection.is_closed()


async def test_one_account_does_not_take_all_the_memory(server: Server):
    """Two bodies fit in; the same account's second one does not, another account's does, and then none."""
    half = b'{"text":"%b"}' % (b"x" * (BIG - 20))
    for user, code in (("a", ""), ("a", "overloaded"), ("b", ""), ("c", "overloaded")):
        connection, before = await server.connect(), server.used_bytes
        await connection.head("POST /echo", f"Content-Length: {len(half)}", f"X-User: {user}", "X-Slow: 1")
        await connection.send(half)
        if code:
            answer = await connection.answer()
            assert (answer.status, answer.code, answer.headers["retry-after"]) == (503, code, "1")
        else:

            async def taken(before: int = before) -> bool:
                return server.used_bytes > before

            await wait_until(taken, "its share", timeout_s=10)
    assert await server.ask(b"{}") == (200, "")  # strangers have room of their own
    server.released.set()
    await server.all_is_over()


async def test_strangers_are_held_to_their_rate(server: Server):
    for _ in range(3):
        assert await server.ask(b"{}") == (200, "")
    connection = await server.connect()
    await connection.head("POST /echo", "Content-Length: 2")
    await connection.send(b"{}")
    answer = await connection.answer()
    assert (answer.status, answer.code, answer.headers["retry-after"]) == (429, "too_many_requests", "10")
    assert await server.ask(b"{}", "X-User: a") == (200, "")


async def test_servers_are_held_to_the_same(server: Server):
    good = f"Authorization: {server.keys.credential()}"
    packed = msgspec.msgpack.encode(Published(1))
    assert await server.ask(packed, good, path="/packed") == (200, "")
    assert await server.ask(packed, path="/packed") == (401, "invalid_access_token")
    assert await server.ask(packed, "Authorization: Bearer x", path="/packed") == (403, "forbidden")
    too_large = bytes(SMALL_BODY_BYTES + 1)
    assert await server.ask(too_large, good, path="/packed") == (413, "body_too_large")
    assert await server.ask(packed, good, "Content-Encoding: gzip", path="/packed") == (
        415,
        "unsupported_encoding",
    )


async def test_who_does_not_read_the_answer_is_hung_up_on(server: Server, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(web, "ANSWER_TIMEOUT_S", TIMEOUT_S)
    connection = await server.connect()
    await connection.head("GET /large")

    async def closed() -> bool:
        return not server.http._connections

    await wait_until(closed, "the connection's end", timeout_s=10)


async def test_an_answer_that_is_not_read_is_memory_of_its_account(server: Server):
    known = server.bodies.known
    known.limit_bytes = int(1.1 * LARGE_BYTES)
    connection = await server.connect()
    await connection.head("GET /large", "X-User: a")

    async def counted() -> bool:
        return known.used_bytes == LARGE_BYTES

    await wait_until(counted, "the answer to be counted", timeout_s=10)
    assert await server.ask(b"{}", "X-User: a") == (503, "overloaded")
    assert await server.ask(b"{}", "X-User: b") == (200, "")
    await connection.close()
    await server.all_is_over()
    assert await server.ask(b"{}", "X-User: a") == (200, "")


async def test_a_stranger_s_answer_takes_nobody_s_memory(server: Server):
    connection = await server.connect()
    await connection.head("GET /large")
    await server.all_is_over()
    assert await server.ask(b"{}", "X-User: a") == (200, "")


async def test_draining_waits_for_who_comes_back_at_once():
    counted = InFlight()
    counted.enter()
    waiting = asyncio.create_task(counted.wait_empty())
    for _ in range(3):
        counted.leave()
        await asyncio.sleep(0)
        counted.enter()
    await asyncio.sleep(0)
    assert not waiting.done()
    counted.leave()
    await asyncio.wait_for(waiting, 5)


async def test_long_lists_leave_turns_to_others():
    item = msgspec.Raw(msgspec.json.encode(Echo("x" * 10_000)))
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    decoded = await decode_in_turns([item] * 200, msgspec.json.Decoder(Echo))
    task.cancel()
    assert decoded == [Echo("x" * 10_000)] * 200
    assert turns >= 7
    with pytest.raises(msgspec.MsgspecError):
        await decode_in_turns([item, msgspec.Raw(b"[]")], msgspec.json.Decoder(Echo))


def test_a_budget_is_kept_and_given_back():
    budget = ByteBudget(10)
    first, second = budget.take(6), budget.take(4)
    with pytest.raises(Overloaded) as refused:
        budget.take(1)
    assert refused.value.retry_after_s is not None
    first.release()
    first.release()
    assert budget.used_bytes == 4
    with budget.take(6):
        assert budget.used_bytes == 10
    second.release()
    assert budget.used_bytes == 0
    mine = budget.take(7, "me")
    with pytest.raises(Overloaded):
        mine.grow(1)
    with budget.take(3, "you"):
        assert budget.used_bytes == 10
    mine.release()
    assert budget.used_bytes == 0
    assert not budget._by_owner
