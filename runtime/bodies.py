"""Request bodies: whoever sends one is identified first; it is bounded, and counted against the memory.

    head ──admit()──► taken in, piece by piece ──► the handler's method
             │                   │
             └──── refused ◄─────┘   the rest is thrown away, then the refusal is answered

A refusal is found as early as can be, and from then on nothing is kept. It is answered when the body has
gone by: closing a connection with unread bytes resets it, and the client would see that instead of the
answer. It is answered at once where the client waits for leave to send (Expect: 100-continue), and where too
much would have to be thrown away.
"""

import asyncio
from collections.abc import Sequence
from typing import ClassVar, TypeVar

import msgspec
import tornado.web

from runtime.rates import rates_of
from wire.errors import BadRequest, BodyTooLarge, Overloaded, ShardboxError, UnsupportedEncoding

_T = TypeVar("_T")

SMALL_BODY_BYTES = 64 * 2**10
"""What an address takes that says nothing else: a few ids, codes and tokens."""
JSON_BODY_BYTES = 2**20
"""A request with two paths of 65,536 characters, each escaped, is 800 kB."""
MAX_DISCARDED_BYTES = 40 * 2**20
"""How much of a refused body is read and thrown away; beyond it we hang up. A second at 300 Mbit/s, and more
than a pack of blocks."""
RETRY_AFTER_S = 1
MAX_SHARE_OF_ONE = 0.75
"""What one account may hold of a budget: four packs of a client's upload fit into it in the blockserver, the
largest batch in the metaserver, and something is left for all the others."""
STRANGERS_BYTES = 16 * 2**20
"""Bodies of requests without a token, apart from all others, so that strangers cannot take their room."""
BODY_MEMORY_BYTES = 256 * 2**20
"""Two batches of the largest size do not fit in: decoded, each takes as much again."""
TURN_BYTES = 256 * 2**10
"""After decoding or parsing so much other requests get their turn: 1.5 ms. (A thread would not help: the
decoder holds the interpreter's lock, and a batch of 128 MiB in a thread stopped the loop for 0.6 s.)"""


class ByteBudget:
    """A bound on memory: of bodies, and of answers that wait for their clients to take them.

    Whoever does not fit in is sent away at once: to wait would hold a connection and help nobody.
    """

    def __init__(self, limit_bytes: int):
        self.limit_bytes = limit_bytes
        self.used_bytes = 0
        self._by_owner: dict[str, int] = {}

    def take(self, byte_count: int, owner: str | None = None) -> "Share":
        """A share of the budget, to be given back by its `release`.

        Args:
            byte_count: How much.
            owner: Who may not have more than MAX_SHARE_OF_ONE of it all; None: no such bound.

        Raises:
            Overloaded: it does not fit in now.
        """
        share = Share(self, owner)
        share.grow(byte_count)
        return share

    def hold(self, byte_count: int, owner: str | None = None) -> "Share":
        """A share of what is in memory already, and so is not refused; what comes next may be."""
        share = Share(self, owner)
        share.grow(byte_count, is_there=True)
        return share

    def add(self, byte_count: int, owner: str | None, *, is_there: bool) -> None:
        """Count more; the share's part of `grow`."""
        held = self._by_owner.get(owner, 0) + byte_count if owner is not None else 0
        is_full = self.used_bytes + byte_count > self.limit_bytes
        if not is_there and (is_full or held > self.limit_bytes * MAX_SHARE_OF_ONE):
            raise Overloaded("too many bytes are under way here", retry_after_s=RETRY_AFTER_S)
        self.used_bytes += byte_count
        if owner is not None:
            self._by_owner[owner] = held

    def subtract(self, byte_count: int, owner: str | None) -> None:
        """Count less; the share's part of `release`."""
        self.used_bytes -= byte_count
        if owner is not None:
            self._by_owner[owner] = self._by_owner.get(owner, 0) - byte_count
            if not self._by_owner[owner]:
                del self._by_owner[owner]


class Share:
    """A part of a budget; given back once, however often `release` is called."""

    def __init__(self, budget: ByteBudget, owner: str | None = None):
        self._budget = budget
        self._owner = owner
        self._byte_count = 0

    def grow(self, byte_count: int, *, is_there: bool = False) -> None:
        """Take more; `is_there`: it is in memory already.

        Raises:
            Overloaded: it does not fit in now; what was taken before is kept.
        """
        self._budget.add(byte_count, self._owner, is_there=is_there)
        self._byte_count += byte_count

    def release(self) -> None:
        """Give it back."""
        self._budget.subtract(self._byte_count, self._owner)
        self._byte_count = 0

    def __enter__(self) -> "Share":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class Bodies:
    """The memory of a process for bodies: of those who are known, and of strangers."""

    def __init__(self, known: ByteBudget | None = None):
        self.known = known or ByteBudget(BODY_MEMORY_BYTES)
        self.strangers = ByteBudget(STRANGERS_BYTES)


def bodies_of(app: tornado.web.Application) -> Bodies:
    """The application's memory for bodies."""
    found: Bodies = app.settings["bodies"]
    return found


@tornado.web.stream_request_body
class BodyHandler(tornado.web.RequestHandler):
    """A request whose body is kept in `body`, up to `limit_bytes`. A refused one reaches no method."""

    limit_bytes: ClassVar[int] = SMALL_BODY_BYTES
    owner: str | None = None
    """Whose memory and rate the request takes, as `admit` finds out; None: nobody's in particular."""
    is_stranger = True
    """Whether nobody has vouched for the caller."""

    def begin_body(self) -> None:
        """Nothing has come yet."""
        self.body = bytearray()
        self._refusal: ShardboxError | None = None
        self._share: Share | None = None
        self._is_open_ended = False
        self._discarded_bytes = 0

    async def admit(self) -> None:
        """What can be told from the head alone, and may need time: who asks, and for what.

        Raises:
            ShardboxError: the refusal.
        """

    async def take_in(self) -> None:
        """Refuse what can be refused by the head alone; set memory aside for the rest."""
        try:
            await self.admit()
            if self.owner is not None:
                rates = rates_of(self.application)
                (rates.strangers if self.is_stranger else rates.accounts).take(self.owner)
            if self.request.headers.get("Content-Encoding", "identity").strip().lower() != "identity":
                raise UnsupportedEncoding()
            declared = self._declared_bytes()
            if declared is not None and declared > self.limit_bytes:
                raise self.too_large()
            self._is_open_ended = declared is None
            bodies = bodies_of(self.application)
            budget = bodies.strangers if self.is_stranger else bodies.known
            self._share = budget.take(declared or 0, self.owner)
        except ShardboxError as error:
            if self._is_answered_at_once():
                raise
            self._refuse(error)

    def too_large(self) -> BodyTooLarge:
        """The refusal of a body beyond the limit."""
        return BodyTooLarge(f"the body has at most {self.limit_bytes} bytes here")

    def data_received(self, chunk: bytes) -> None:
        """Keep the next piece, or throw it away if the request is refused."""
        if self._refusal is None:
            try:
                self._keep(chunk)
                return
            except ShardboxError as error:
                self._refuse(error)
        assert self._refusal is not None
        self._discarded_bytes += len(chunk)
        if self._discarded_bytes > MAX_DISCARDED_BYTES and not self._finished:
            self.send_error(self._refusal.status, exc_info=(type(self._refusal), self._refusal, None))

    def release_body(self) -> None:
        """Give the memory back; may be called twice."""
        if self._share is not None:
            self._share.release()
        self.body = bytearray()

    def _keep(self, chunk: bytes) -> None:
        if len(self.body) + len(chunk) > self.limit_bytes:
            raise self.too_large()
        if self._is_open_ended and self._share is not None:
            self._share.grow(len(chunk))
        self.body += chunk

    def _refuse(self, error: ShardboxError) -> None:
        self._refusal = error
        self._discarded_bytes += len(self.body)
        self.release_body()
        # Tornado calls the method by its name once the body is complete.
        setattr(self, (self.request.method or "").lower(), self._answer_refusal)

    def _answer_refusal(self, *_: object, **__: object) -> None:
        assert self._refusal is not None
        raise self._refusal

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


async def decode_in_turns(items: Sequence[msgspec.Raw], decoder: msgspec.json.Decoder[_T]) -> list[_T]:
    """Many items decoded, with turns for other requests between them.

    Raises:
        msgspec.MsgspecError: one is not what it should be.
    """
    decoded: list[_T] = []
    byte_count = 0
    for item in items:
        decoded.append(decoder.decode(item))
        byte_count += len(memoryview(item))
        if byte_count > TURN_BYTES:
            byte_count = 0
            await asyncio.sleep(0)
    return decoded
