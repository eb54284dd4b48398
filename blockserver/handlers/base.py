"""Requests with a body: refused early, taken in piece by piece, bounded, and counted against the memory."""

from typing import ClassVar, TypeVar

import msgspec
import tornado.web

from blockserver.model.budget import ByteBudget, Share
from runtime.metrics import ServerMetrics
from runtime.openapi import Kind
from runtime.tokens import TokenVerifier
from runtime.web import BaseHandler
from wire.errors import (
    BadRequest,
    BodyTooLarge,
    MalformedId,
    NotFound,
    NotReady,
    Overloaded,
    ShardboxError,
    ShardUnavailable,
    TooManyRequests,
    UpstreamUnavailable,
)
from wire.ids import NsId, parse_ns_id
from wire.internal import Caller

_T = TypeVar("_T")

MAX_DISCARDED_BYTES = 40 * 2**20
"""How much of a refused body is read and thrown away, so that the client gets to see the answer: closing a
connection with unread bytes resets it. More than any body that would be taken; beyond it we hang up."""
MAX_BODY_BYTES = MAX_DISCARDED_BYTES + 2**20
"""Where Tornado itself hangs up, with an answer that has no error body."""


class CallerHandler(BaseHandler):
    """An address for users: the access token is looked at before anything else."""

    needs_token = True
    kind = Kind(
        (
            MalformedId,
            NotFound,
            NotReady,
            Overloaded,
            ShardUnavailable,
            TooManyRequests,
            UpstreamUnavailable,
        )
    )

    def initialize(self, *, metrics: ServerMetrics, verifier: TokenVerifier) -> None:  # type: ignore[override]
        """Wired by the route table."""
        super().initialize(metrics=metrics)
        self.verifier = verifier

    async def prepare(self) -> None:
        """Find out who calls.

        Raises:
            Unauthenticated: no access token, or one that is expired or not ours.
        """
        super().prepare()
        self.caller: Caller = await self.verifier.verify(self.request.headers.get("Authorization"))

    def ns_argument(self) -> NsId:
        """The namespace of the query.

        Raises:
            BadRequest, MalformedId: none, or not a namespace id.
        """
        given = self.request.query_arguments.get("ns", [])
        if len(given) != 1:
            raise BadRequest("the query names one namespace (?ns=…)")
        return parse_ns_id(given[0].decode("latin-1"))


@tornado.web.stream_request_body
class BodyHandler(CallerHandler):
    """A request whose body is kept in memory, up to `limit_bytes`.

    A refusal is found as early as can be, and then nothing is kept; it is answered at once where the client
    waits for leave to send (Expect: 100-continue), else when the body has gone by.
    """

    limit_bytes: ClassVar[int]

    def initialize(  # type: ignore[override]
        self, *, metrics: ServerMetrics, verifier: TokenVerifier, budget: ByteBudget
    ) -> None:
        """Wired by the route table."""
        super().initialize(metrics=metrics, verifier=verifier)
        self.budget = budget
        self.body = bytearray()
        self._refusal: ShardboxError | None = None
        self._share: Share | None = None
        self._discarded_bytes = 0

    async def prepare(self) -> None:
        """Refuse what can be refused by the head alone; set memory aside for the rest."""
        try:
            await super().prepare()
            if not self._is_counted:
                return  # the client left meanwhile: what is taken now would never be given back
            self.check_head()
            declared = self._declared_bytes()
            if declared is not None and declared > self.limit_bytes:
                raise self.too_large()
            self._share = self.budget.take(self.limit_bytes if declared is None else declared)
        except ShardboxError as error:
            if self._is_answered_at_once():
                raise
            self._refusal = error

    def check_head(self) -> None:
        """What a subclass can tell before the body; raises domain errors."""

    def too_large(self) -> BodyTooLarge:
        """The refusal of a body beyond the limit."""
        return BodyTooLarge(f"the body has at most {self.limit_bytes} bytes here")

    def data_received(self, chunk: bytes) -> None:
        """Keep the next piece, or throw it away if the request is refused."""
        if self._refusal is None and len(self.body) + len(chunk) > self.limit_bytes:
            self._refuse(self.too_large())
        if self._refusal is None:
            self.body += chunk
            return
        self._discarded_bytes += len(chunk)
        if self._discarded_bytes > MAX_DISCARDED_BYTES and not self._finished:
            self.send_error(self._refusal.status, exc_info=(type(self._refusal), self._refusal, None))

    def check_refusal(self) -> None:
        """Called first when the body is complete; raises what the request was refused with."""
        if self._refusal is not None:
            raise self._refusal

    def json_as(self, cls: type[_T]) -> _T:
        """The body, decoded and validated.

        Raises:
            BadRequest: not JSON of this shape.
        """
        self.check_refusal()
        try:
            return msgspec.json.decode(self.body, type=cls)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise BadRequest(f"the body is not what this address takes: {error}") from error

    def on_end(self) -> None:
        """Give the memory back."""
        super().on_end()
        if self._share is not None:
            self._share.release()
            self.body = bytearray()

    def _refuse(self, error: ShardboxError) -> None:
        self._refusal = error
        self._discarded_bytes += len(self.body)
        self.body = bytearray()
        if self._share is not None:
            self._share.release()

    def _declared_bytes(self) -> int | None:
        """Content-Length; None for chunked bodies. (Tornado refuses two lengths, and both at once.)"""
        text = self.request.headers.get("Content-Length")
        if text is None:
            return None if "Transfer-Encoding" in self.request.headers else 0
        first = text.split(",")[0]
        if not (first.isascii() and first.isdigit() and len(first) <= 18):
            raise BadRequest("Content-Length is not a number")
        return int(first)

    def _is_answered_at_once(self) -> bool:
        waits = self.request.headers.get("Expect", "").lower() == "100-continue"
        try:
            return waits or (self._declared_bytes() or 0) > MAX_DISCARDED_BYTES
        except BadRequest:
            return True
