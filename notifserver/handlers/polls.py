"""The notifserver's addresses."""

from typing import Literal

import msgspec

from notifserver.services.polls import Ending, Poll, PollService
from runtime.bodies import SMALL_BODY_BYTES
from runtime.metrics import ServerMetrics
from runtime.openapi import endpoint
from runtime.web import BaseHandler, InternalHandler, in_flight
from wire.api import Longpoll, LongpollResult
from wire.errors import InvalidCursor, NotReady, Overloaded, TooManyEntries
from wire.internal import MAX_HINTS, Publish, Published
from wire.keys import KeyRing

CLIENT_LEFT_STATUS = 499
"""Seen in metrics alone: nobody is there to read it."""


class LongpollHandler(BaseHandler):
    """POST /v1/files/list_folder/longpoll: Longpoll -> LongpollResult."""

    route = "longpoll"
    limit_bytes = 2 * SMALL_BODY_BYTES
    """A cursor that is too long is still told so by its own error."""

    def initialize(self, *, metrics: ServerMetrics, polls: PollService) -> None:  # type: ignore[override]
        """Wired by the route table."""
        super().initialize(metrics=metrics)
        self.polls = polls
        self._poll: Poll | None = None

    @endpoint(Longpoll, LongpollResult, InvalidCursor, Overloaded)
    async def post(self) -> None:
        """Wait until the cursor is behind."""
        request = self.body_as(Longpoll)
        answer = self.polls.start(request.cursor)
        if isinstance(answer, Poll):
            self._poll = answer
            answer = await self.polls.finish(answer, request.timeout)
        if answer.ending is Ending.LEFT:
            self.set_status(CLIENT_LEFT_STATUS, "client has left")
            self.finish()
            return
        self.answer(LongpollResult(changes=answer.has_changes, backoff=answer.backoff_s))

    def on_connection_close(self) -> None:
        """Free what is held for a client that has left."""
        super().on_connection_close()
        if self._poll is not None:
            self._poll.leave()


class PublishHandler(InternalHandler):
    """POST /internal/publish: Publish -> Published."""

    route = "internal/publish"

    def initialize(  # type: ignore[override]
        self, *, metrics: ServerMetrics, service_keys: KeyRing, polls: PollService
    ) -> None:
        """Wired by the route table."""
        super().initialize(metrics=metrics, service_keys=service_keys)
        self.polls = polls

    def post(self) -> None:
        """Take hints; when this is answered, whoever waits for them is woken."""
        hints = self.packed_as(Publish).hints
        if len(hints) > MAX_HINTS:
            raise TooManyEntries(f"at most {MAX_HINTS} hints at once")
        self.polls.take_hints(hints)
        self.answer_packed(Published(len(hints)))


class Readiness(msgspec.Struct, frozen=True):
    """The server takes polls."""

    status: Literal["ready"] = "ready"


class ReadyHandler(BaseHandler):
    """GET /readyz: ready until it stops, as polls are held without metaservers too."""

    route = "readyz"

    @endpoint(None, Readiness, NotReady)
    def get(self) -> None:
        """Answer ready.

        Raises:
            NotReady: this server is stopping.
        """
        if in_flight(self.application).is_draining:
            raise NotReady("this server is stopping")
        self.answer(Readiness())
