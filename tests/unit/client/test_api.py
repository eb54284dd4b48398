"""Requests that are retried, moved to another server, or given up. Against servers of the test's own."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable

import aiohttp
import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from client.api import Api, Request, Servers, Unreachable, backoff_s, parse_error
from client.transfer import failure
from wire.errors import ErrorBody, NotFound, Overloaded, ShardboxError, ShardUnavailable, Unauthenticated

Handler = Callable[[web.Request], Awaitable[web.Response]]


def refusal(error: ShardboxError) -> web.Response:
    headers = {} if error.retry_after_s is None else {"Retry-After": str(error.retry_after_s)}
    body = msgspec.json.encode(ErrorBody(error.info()))
    return web.Response(status=error.status, body=body, headers=headers)


class Script:
    """Answers in turn what the test wrote down; the last one for ever."""

    def __init__(self, *answers: web.Response | ShardboxError):
        self.answers = list(answers)
        self.tokens: list[str | None] = []

    async def answer(self, request: web.Request) -> web.Response:
        await request.read()
        self.tokens.append(request.headers.get("Authorization"))
        given = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return refusal(given) if isinstance(given, ShardboxError) else web.Response(body=given.body)


@pytest.fixture
async def serve() -> AsyncIterator[Callable[[Script], Awaitable[str]]]:
    servers: list[TestServer] = []

    async def start(script: Script) -> str:
        app = web.Application(client_max_size=2**26)
        app.router.add_post("/x", script.answer)
        server = TestServer(app)
        await server.start_server()
        servers.append(server)
        return str(server.make_url("")).rstrip("/")

    yield start
    for server in servers:
        await server.close()


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as opened:
        yield opened


POST = Request(method="POST", path="/x", body=b"{}")


async def test_a_retryable_error_is_retried(
    serve: Callable[[Script], Awaitable[str]], session: aiohttp.ClientSession
) -> None:
    url = await serve(Script(ShardUnavailable(), ShardUnavailable(), web.Response(body=b"at last")))
    assert await Api(session).send(Servers([url]), POST, patience_s=30) == b"at last"


async def test_a_server_is_left_alone_for_as_long_as_it_asks(
    serve: Callable[[Script], Awaitable[str]], session: aiohttp.ClientSession
) -> None:
    url = await serve(Script(Overloaded(retry_after_s=1), web.Response(body=b"ok")))
    since = time.monotonic()
    assert await Api(session).send(Servers([url]), POST, patience_s=30) == b"ok"
    assert time.monotonic() - since >= 1


async def test_longer_than_patience_is_told_to_the_caller(
    serve: Callable[[Script], Awaitable[str]], session: aiohttp.ClientSession
) -> None:
    script = Script(Overloaded(retry_after_s=60))
    with pytest.raises(Unreachable) as caught:
        await Api(session).send(Servers([await serve(script)]), POST, patience_s=20)
    assert caught.value.retry_after_s == 60
    assert len(script.tokens) == 1
    assert failure(1, caught.value).retry_after_s == 60


async def test_what_no_retry_can_help_is_raised(
    serve: Callable[[Script], Awaitable[str]], session: aiohttp.ClientSession
) -> None:
    url = await serve(Script(NotFound()))
    with pytest.raises(NotFound):
        await Api(session).send(Servers([url]), POST, patience_s=30)


async def test_a_dead_server_is_passed_over(
    serve: Callable[[Script], Awaitable[str]], session: aiohttp.ClientSession
) -> None:
    url = await serve(Script(web.Response(body=b"alive")))
    servers = Servers(["http://127.0.0.1:1", url])
    assert await Api(session).send(servers, POST, patience_s=30) == b"alive"
    assert servers.best() == url


async def test_an_answer_that_is_not_ours_is_passed_over(
    serve: Callable[[Script], Awaitable[str]], session: aiohttp.ClientSession
) -> None:
    page, url = [await serve(Script(web.Response(body=body))) for body in (b"<p>Log in!</p>", b'{"a": 1}')]
    servers = Servers([page, url])
    assert await Api(session).ask(servers, POST, dict[str, int], patience_s=30) == {"a": 1}
    with pytest.raises(Unreachable):
        await Api(session).ask(Servers([page]), POST, dict[str, int], patience_s=0.2)


async def test_patience_comes_to_an_end(session: aiohttp.ClientSession) -> None:
    with pytest.raises(Unreachable):
        await Api(session).send(Servers(["http://127.0.0.1:1"]), POST, patience_s=0.2)


async def test_a_refused_token_is_replaced_once(
    serve: Callable[[Script], Awaitable[str]], session: aiohttp.ClientSession
) -> None:
    async def tokens(refused: str | None) -> str:
        return "fresh" if refused == "stale" else "stale"

    script = Script(Unauthenticated(), web.Response(body=b"ok"))
    assert await Api(session, tokens).send(Servers([await serve(script)]), POST, patience_s=30) == b"ok"
    assert script.tokens == ["Bearer stale", "Bearer fresh"]
    with pytest.raises(Unauthenticated):
        await Api(session, tokens).send(
            Servers([await serve(Script(Unauthenticated()))]), POST, patience_s=30
        )


async def test_a_large_body_arrives_whole(
    serve: Callable[[Script], Awaitable[str]], session: aiohttp.ClientSession
) -> None:
    sizes: list[int] = []

    class Measure(Script):
        async def answer(self, request: web.Request) -> web.Response:
            sizes.append(len(await request.read()))
            assert request.headers["Content-Length"] == str(sizes[-1])
            return web.Response(body=b"ok")

    request = Request(method="POST", path="/x", body=b"x" * 4_000_001)
    await Api(session).send(Servers([await serve(Measure(web.Response()))]), request, patience_s=30)
    assert sizes == [4_000_001]


def test_a_page_that_is_not_ours_is_judged_by_its_status() -> None:
    assert parse_error(502, b"<html>", "7").retryable
    assert parse_error(502, b"<html>", "7").retry_after_s == 7
    assert not parse_error(404, b"<html>", None).retryable


def test_pauses_grow_and_honour_what_was_asked_for() -> None:
    assert all(0 <= backoff_s(n) <= 15 for n in range(100))
    assert backoff_s(0, at_least_s=3) >= 3
