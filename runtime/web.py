"""The web base: parse into a typed request, map errors to answers, log and count each request once."""

import asyncio
import re
import secrets
from collections.abc import Sequence
from typing import Any, Literal, TypeVar, cast

import msgspec
import structlog
import tornado.web
from tornado.http1connection import HTTP1Connection

from runtime.bodies import BodyHandler, Share, bodies_of, decode_in_turns
from runtime.logs import get_log
from runtime.metrics import CONTENT_TYPE, ServerMetrics
from runtime.openapi import Raw, endpoint
from runtime.proxies import find_client_address
from runtime.rates import rates_of
from wire.api import REQUEST_ID_HEADER
from wire.errors import (
    BadRequest,
    ErrorBody,
    Forbidden,
    InternalError,
    MethodNotAllowed,
    NotFound,
    ShardboxError,
    Unauthenticated,
)
from wire.internal import INTERNAL_CONTENT_TYPE, Caller
from wire.keys import KeyRing

_log = get_log(__name__)
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_T = TypeVar("_T")
_decoders: dict[Any, msgspec.json.Decoder[Any]] = {}


REFUSALS = (413, 415, 429, 503, 507)
"""What is counted by its code: too much, too often, or no room."""
MAX_INTERNAL_BODY_BYTES = 64 * 2**20
"""The targets of a whole upload session, 524,287 blocks of 80 bytes; all others are far smaller."""
BETWEEN_REQUESTS_S = 0.05
"""Who has had an answer and sends the next request at once, from the same network, is here by then."""
LOOK_S = 1.0
"""How soon it is seen that the client of an unfinished answer has gone."""
ANSWER_TIMEOUT_S = 120.0
"""How long the end of an answer may be on its way: 2 MB at 133 kbit/s. Who does not read it holds memory."""


class InFlight:
    """How many requests are under way, and whether the server is about to stop."""

    def __init__(self) -> None:
        self.count = 0
        self.left = 0
        self.is_draining = False
        self._empty = asyncio.Event()
        self._empty.set()

    def enter(self) -> None:
        """One more."""
        self.count += 1
        self._empty.clear()

    def leave(self) -> None:
        """One less."""
        self.count -= 1
        self.left += 1
        if self.count == 0:
            self._empty.set()

    async def wait_empty(self) -> None:
        """Return once none is left, and none has come meanwhile on a connection that was between two."""
        seen = -1
        while self.count or self.left != seen:
            seen = self.left
            await self._empty.wait()
            await asyncio.sleep(BETWEEN_REQUESTS_S)


def in_flight(app: tornado.web.Application) -> InFlight:
    """The application's count of requests, kept by its handlers."""
    found: InFlight = app.settings["in_flight"]
    return found


class BaseHandler(BodyHandler):
    """What every handler has: request id, bounded and typed bodies, one error shape, no ETag."""

    route = "unknown"

    def initialize(self, *, metrics: ServerMetrics) -> None:
        """Wired by the route table of each server."""
        self.metrics = metrics
        self.request_id = ""
        self._is_counted = False
        self.begin_body()

    async def prepare(self) -> None:
        """Begin: the request's id, then whatever `admit` refuses, then memory for the body."""
        self._begin()
        await self.take_in()
        if not self._is_counted:
            self.release_body()  # the client left meanwhile

    def _begin(self) -> None:
        """Count the request; take over or draw its id."""
        in_flight(self.application).enter()
        self._is_counted = True
        if trusted := self.settings.get("trusted_proxies"):
            self.request.remote_ip = find_client_address(
                self.request.remote_ip or "", self.request.headers.get_list("X-Forwarded-For"), trusted
            )
        given = self.request.headers.get(REQUEST_ID_HEADER, "")
        self.request_id = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
        structlog.contextvars.bind_contextvars(request_id=self.request_id)
        self.set_header(REQUEST_ID_HEADER, self.request_id)

    def owner_of(self, caller: Caller) -> str:
        """Whose rate and memory a caller's request takes."""
        return rates_of(self.application).owners.find(caller)

    def set_default_headers(self) -> None:
        """No banner, no sniffing, no caching of anything that is somebody's."""
        self.clear_header("Server")
        self.set_header("Content-Type", "application/json")
        self.set_header("Cache-Control", "no-store")
        self.set_header("X-Content-Type-Options", "nosniff")
        if in_flight(self.application).is_draining:
            # The client's next request belongs on a connection to another server.
            self.set_header("Connection", "close")

    def compute_etag(self) -> None:
        """Answers are never conditional; hashing them would be wasted."""

    def body_as(self, cls: type[_T]) -> _T:
        """The JSON body, decoded and validated.

        Raises:
            BadRequest: not JSON of this shape.
        """
        decoder = _decoders.get(cls)
        if decoder is None:
            decoder = _decoders[cls] = msgspec.json.Decoder(cls)
        try:
            result: _T = decoder.decode(self.body or b"{}")
        except UNREADABLE as error:
            raise _not_readable(error) from error
        return result

    async def list_as(self, items: Sequence[msgspec.Raw], kind: Any) -> list[Any]:
        """The items of a long list in the body, decoded and validated with turns for other requests.

        Raises:
            BadRequest: one is not of this shape.
        """
        try:
            return await decode_in_turns(items, msgspec.json.Decoder(kind))
        except UNREADABLE as error:
            raise _not_readable(error) from error

    def answer(self, value: msgspec.Struct, status: int = 200) -> None:
        """Finish with a JSON body."""
        self.set_status(status)
        self.finish(msgspec.json.encode(value))

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Every failure as `{"error": …}`: domain errors as they are, Tornado's by status, others as 500."""
        error = (kwargs.get("exc_info") or (None, None, None))[1]
        if not isinstance(error, ShardboxError):
            error = _from_tornado(status_code, error)
        self.set_status(error.status)
        if error.status in REFUSALS:
            self.metrics.refusals.labels(error.code).inc()
        if self.request_id:  # Tornado has cleared the headers
            self.set_header(REQUEST_ID_HEADER, self.request_id)
        if error.status == 405:
            self.set_header("Allow", ", ".join(self._list_methods()))
        if error.retry_after_s is not None:
            self.set_header("Retry-After", str(error.retry_after_s))
        elif error.status in (429, 503, 507):
            self.set_header("Retry-After", "1")
        self.finish(msgspec.json.encode(ErrorBody(error=error.info())))

    def _list_methods(self) -> list[str]:
        missing = tornado.web.RequestHandler._unimplemented_method
        return [m for m in self.SUPPORTED_METHODS if getattr(type(self), m.lower()) is not missing]

    def log_exception(self, typ: Any, value: BaseException | None, tb: Any) -> None:
        """Known errors are told by the request's own line; unknown ones get a traceback, once."""
        if not isinstance(value, ShardboxError | tornado.web.HTTPError) and value is not None:
            _log.error("unhandled", exc_info=(typ, value, tb))

    def on_connection_close(self) -> None:
        """The client has gone. While its body was still being read, nothing else will end the request."""
        is_cut_off = not self.request._body_future.done()
        super().on_connection_close()
        if is_cut_off:
            self.on_end()

    def finish(self, chunk: str | bytes | dict[str, Any] | None = None) -> "asyncio.Future[None]":
        """Finish; hang up on whoever does not take the answer."""
        sent = super().finish(chunk)
        if not sent.done():
            # Of a stranger's answers none is long.
            byte_count = len(chunk) if isinstance(chunk, bytes) and not self.is_stranger else 0
            share = bodies_of(self.application).known.hold(byte_count, self.owner)
            self._leaving = asyncio.create_task(self._see_off(sent, share))
        return sent

    async def _see_off(self, sent: "asyncio.Future[None]", share: Share) -> None:
        """Give the memory of an answer back once it has left; whoever does not take it is hung up on."""
        stream = cast(HTTP1Connection, self.request.connection).stream
        with share:
            try:
                async with asyncio.timeout(ANSWER_TIMEOUT_S):
                    while not (sent.done() or stream.closed()):
                        await asyncio.wait({sent}, timeout=LOOK_S)  # a connection that closes ends no wait
            except TimeoutError:
                stream.close()

    def on_end(self) -> None:
        """Called once or more when the request is over, answered or not."""
        self.release_body()
        if self._is_counted:
            self._is_counted = False
            in_flight(self.application).leave()

    def on_finish(self) -> None:
        """Count the request and log it: a warning when it failed on our side, info when it was refused."""
        status = self.get_status()
        elapsed_s = self.request.request_time()
        self.metrics.requests.labels(self.route, str(status)).inc()
        self.metrics.request_seconds.labels(self.route).observe(elapsed_s)
        level = "warning" if status >= 500 else "info" if status >= 400 else "debug"
        self.on_end()
        ms, remote = round(elapsed_s * 1e3, 2), self.request.remote_ip
        getattr(_log, level)("request", route=self.route, status=status, ms=ms, remote=remote)


UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What decoding a body may raise."""


def _not_readable(error: Exception) -> BadRequest:
    return BadRequest(f"the body is not what this address takes: {error}")


def _from_tornado(status_code: int, cause: BaseException | None) -> ShardboxError:
    if status_code == 404:
        return NotFound("there is no such address")
    if status_code == 405:
        return MethodNotAllowed()
    if 400 <= status_code < 500:
        return BadRequest(str(cause) if cause else "the request cannot be understood")
    return InternalError("something unforeseen happened; the request id finds it in the logs")


class InternalHandler(BaseHandler):
    """An address for servers alone: a service credential, msgpack bodies."""

    limit_bytes = MAX_INTERNAL_BODY_BYTES

    def initialize(self, *, metrics: ServerMetrics, service_keys: KeyRing) -> None:  # type: ignore[override]
        """Wired by the route table."""
        super().initialize(metrics=metrics)
        self.service_keys = service_keys

    async def admit(self) -> None:
        """Refuse whoever is not a server of this cluster.

        Raises:
            Unauthenticated, Forbidden: no credential, or a user's token.
        """
        header = self.request.headers.get("Authorization", "")
        if header.lower().startswith("bearer "):
            raise Forbidden("this address is for the cluster's own servers")
        if not self.service_keys.accepts(header):
            raise Unauthenticated("a service credential is needed")
        self.is_stranger = False

    def packed_as(self, cls: type[_T]) -> _T:
        """The msgpack body, decoded and validated."""
        try:
            return msgspec.msgpack.decode(self.body, type=cls)
        except UNREADABLE as error:
            raise _not_readable(error) from error

    def answer_packed(self, value: msgspec.Struct) -> None:
        """Finish with a msgpack body."""
        self.set_header("Content-Type", INTERNAL_CONTENT_TYPE)
        self.finish(msgspec.msgpack.encode(value))


class NotFoundHandler(BaseHandler):
    """Whatever is not in the route table."""

    route = "not_found"

    async def admit(self) -> None:
        """Say so.

        Raises:
            NotFound: always.
        """
        raise NotFound("there is no such address")


class Alive(msgspec.Struct, frozen=True):
    """The process runs and its loop turns."""

    status: Literal["ok"] = "ok"


class HealthHandler(BaseHandler):
    """GET /healthz: the process runs and its loop turns."""

    route = "healthz"

    @endpoint(None, Alive)
    def get(self) -> None:
        """Answer ok."""
        self.answer(Alive())


class MetricsHandler(BaseHandler):
    """GET /metrics, for Prometheus."""

    route = "metrics"

    @endpoint(None, Raw(CONTENT_TYPE, "Prometheus's text format."))
    def get(self) -> None:
        """Answer the registry's text."""
        self.set_header("Content-Type", CONTENT_TYPE)
        self.finish(self.metrics.expose())
