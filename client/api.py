"""HTTP to the servers: fail-over among those of a kind, retries with back-off, errors as objects.

Every request of the client may be sent twice (writes carry an idempotency key), so any failure that a retry
can help is retried here, until the patience of the call is at an end.
"""

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import TypeVar

import aiohttp
import msgspec

from client.limits import Bucket
from wire.blocks import MAX_PACK_BYTES
from wire.errors import ErrorBody, InternalError, ShardboxError, Unauthenticated, error_from_info
from wire.faults import declare, fault_point

T = TypeVar("T")

declare("client.api.send_before", "client.api.send_after")

FIRST_BACKOFF_S = 0.1
MAX_BACKOFF_S = 15.0
"""With full jitter: 8 s on average is soon enough after an outage, and no load during it."""
CONNECT_TIMEOUT_S = 5.0
REQUEST_TIMEOUT_S = 60.0
"""A batch of 1,000 commits or a pack of 32 MiB over a slow line; servers answer for a hung shard in 2 s."""
PIECE_BYTES = 256 * 2**10
"""A body goes out by so much at a time, so that other requests have their turn in between."""
AVOID_S = 10.0
"""How long a server that failed is asked last."""


class Unreachable(Exception):
    """No server of the kind gave a useful answer while patience lasted; a later try may succeed.

    `retry_after_s`: how long they asked to be left alone, from now on; None if they did not.
    """

    def __init__(self, message: str, *, retry_after_s: float | None = None):
        super().__init__(message)
        self.retry_after_s = retry_after_s


class NoShardbox(Unreachable):
    """Somebody answers, but nobody that tells of servers."""


@dataclass(slots=True)
class Servers:
    """The servers of one kind, any of which may be asked."""

    urls: list[str]
    _avoid_until: dict[str, float] = field(default_factory=dict)

    def best(self) -> str:
        """The first that has not failed lately, else the one whose failure is longest ago."""
        now = time.monotonic()
        for url in self.urls:
            if self._avoid_until.get(url, 0) <= now:
                return url
        return min(self.urls, key=lambda url: self._avoid_until[url])

    def avoid(self, url: str) -> None:
        """It failed: ask others first for a while."""
        self._avoid_until[url] = time.monotonic() + AVOID_S

    @property
    def has_fresh(self) -> bool:
        """Whether one is left that has not failed lately."""
        now = time.monotonic()
        return any(self._avoid_until.get(url, 0) <= now for url in self.urls)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request, fit for being sent again."""

    method: str
    path: str
    body: bytes = b""
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)
    needs_token: bool = True
    timeout_s: float = REQUEST_TIMEOUT_S
    up: Bucket | None = None
    """What the body's bytes are taken from, piece by piece."""
    down: Bucket | None = None
    """The same for the answer's."""


TokenSource = Callable[[str | None], Awaitable[str]]
"""Gives an access token; called with one that was refused it gives another."""


class Api:
    """Sends requests until they are answered."""

    def __init__(self, session: aiohttp.ClientSession, token_source: TokenSource | None = None):
        self._session = session
        self._token_source = token_source

    async def send(self, servers: Servers, request: Request, *, patience_s: float) -> bytes:
        """The body of the answer; raises as `ask`."""
        return await self._send(servers, request, bytes, patience_s)

    async def ask(self, servers: Servers, request: Request, answer: type[T], *, patience_s: float) -> T:
        """The answer. A body that is none (a proxy's page) is a failure of the server like any other.

        Raises:
            ShardboxError: a server answered with an error that no retry can help.
            Unreachable: patience is at an end.
        """
        decoder = msgspec.json.Decoder(answer)
        return await self._send(servers, request, decoder.decode, patience_s)

    async def _send(
        self, servers: Servers, request: Request, decode: Callable[[bytes], T], patience_s: float
    ) -> T:
        deadline = time.monotonic() + patience_s
        attempt, refused = 0, None
        while True:
            waiting_since = time.monotonic()
            async with _turn(request):
                deadline += time.monotonic() - waiting_since
                token = await self._token(request, refused)
                url = servers.best()
                wait_s: float | None = None
                try:
                    return decode(await self._send_once(url, request, token))
                except Unauthenticated:
                    if token is None or refused is not None:
                        raise
                    refused = token
                    continue
                except ShardboxError as error:
                    if not error.retryable:
                        raise
                    if error.status >= 500 and error.code in ("not_ready", "overloaded", "internal_error"):
                        servers.avoid(url)
                    wait_s = None if error.retry_after_s is None else float(error.retry_after_s)
                    problem: Exception = error
                except (TimeoutError, aiohttp.ClientError, OSError, msgspec.DecodeError) as error:
                    servers.avoid(url)
                    problem = error
            refused = None
            is_free = (
                wait_s is None and servers.has_fresh and isinstance(problem, aiohttp.ClientError | OSError)
            )
            pause_s = 0.0 if is_free else backoff_s(attempt, at_least_s=wait_s)
            attempt += 1
            if time.monotonic() + pause_s > deadline:
                raise Unreachable(f"{request.path}: {_describe(problem)}", retry_after_s=wait_s) from problem
            await asyncio.sleep(pause_s)

    async def _token(self, request: Request, refused: str | None) -> str | None:
        if not request.needs_token or self._token_source is None:
            return None
        return await self._token_source(refused)

    async def _send_once(self, url: str, request: Request, token: str | None) -> bytes:
        headers = dict(request.headers)
        if request.body:
            headers["Content-Type"] = request.content_type
            headers["Content-Length"] = str(len(request.body))
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        timeout_s = request.timeout_s
        for bucket, count in ((request.up, len(request.body)), (request.down, MAX_PACK_BYTES)):
            timeout_s += 0.0 if bucket is None else bucket.extra_s(count)
        timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=CONNECT_TIMEOUT_S)
        if request.method != "GET":
            fault_point("client.api.send_before")
        async with self._session.request(
            request.method,
            url.rstrip("/") + request.path,
            data=_body_of(request),
            headers=headers,
            timeout=timeout,
        ) as answer:
            body = await _read(answer, request.down)
            if request.method != "GET":
                fault_point("client.api.send_after")
            if answer.status < 400:
                return body
            raise parse_error(answer.status, body, answer.headers.get("Retry-After"))


def _turn(request: Request) -> AbstractAsyncContextManager[None]:
    # Before the head goes out: from then on the server's patience counts.
    return contextlib.nullcontext() if request.up is None else request.up.turn()


def _body_of(request: Request) -> bytes | AsyncIterator[bytes] | None:
    if len(request.body) > PIECE_BYTES or (request.up is not None and request.body):
        return _in_pieces(request.body, request.up)
    return request.body or None


async def _in_pieces(body: bytes, bucket: Bucket | None) -> AsyncIterator[bytes]:
    for at in range(0, len(body), PIECE_BYTES):
        piece = body[at : at + PIECE_BYTES]
        if bucket is not None:
            await bucket.take(len(piece))
        yield piece


async def _read(answer: aiohttp.ClientResponse, bucket: Bucket | None) -> bytes:
    if bucket is None or bucket.rate is None:
        body = await answer.read()
        if bucket is not None:
            await bucket.take(len(body))
        return body
    pieces: list[bytes] = []
    # What is not read stays with the server: the line is slowed down, not only the program.
    async for piece in answer.content.iter_chunked(PIECE_BYTES):
        await bucket.take(len(piece))
        pieces.append(piece)
    return b"".join(pieces)


def backoff_s(attempt: int, *, at_least_s: float | None = None) -> float:
    """How long to wait before try number `attempt` + 2: exponential, with full jitter."""
    ceiling = min(MAX_BACKOFF_S, FIRST_BACKOFF_S * 2 ** min(attempt, 20))
    return (at_least_s or 0.0) + random.uniform(0, ceiling)  # noqa: S311


def parse_error(status: int, body: bytes, retry_after: str | None) -> ShardboxError:
    """The error object of an answer; one that is not ours (a proxy's page) is judged by its status."""
    wait_s = int(retry_after) if retry_after and retry_after.isdigit() else None
    try:
        info = msgspec.json.decode(body, type=ErrorBody).error
    except msgspec.DecodeError:
        error = InternalError(f"HTTP status {status}", retry_after_s=wait_s)
        error.__dict__.update(status=status, retryable=status in (408, 429) or status >= 500)
        return error
    return error_from_info(info, status=status, retry_after_s=wait_s)


def _describe(problem: Exception) -> str:
    return f"{type(problem).__name__}: {problem}" if str(problem) else type(problem).__name__
