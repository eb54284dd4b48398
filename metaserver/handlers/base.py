"""What the metaserver's handlers share."""

import re
from typing import Annotated

from msgspec import Meta

from runtime.bodies import JSON_BODY_BYTES
from runtime.metrics import ServerMetrics
from runtime.openapi import Kind, Parameter
from runtime.proxies import find_household
from runtime.tokens import TokenVerifier
from runtime.web import BaseHandler
from wire.api import IDEMPOTENCY_HEADER, MAX_IDEMPOTENCY_KEY_CHARS
from wire.errors import BadRequest, NotReady, Overloaded, ShardUnavailable, TooManyRequests
from wire.internal import Caller

_KEY = re.compile(rf"[\x21-\x7e]{{1,{MAX_IDEMPOTENCY_KEY_CHARS}}}")


IDEMPOTENCY_KEY = Parameter(
    IDEMPOTENCY_HEADER,
    "header",
    Annotated[str, Meta(pattern=f"^[!-~]{{1,{MAX_IDEMPOTENCY_KEY_CHARS}}}$")],
    "The write acts once under this key, for 24 hours; a repeat gets the first answer, also that"
    " of a write that found nothing to change. Where all operations were refused, no answer is kept.",
)


class UserHandler(BaseHandler):
    """An address for the holder of an access token."""

    needs_token = True
    limit_bytes = JSON_BODY_BYTES
    kind = Kind((ShardUnavailable, Overloaded, NotReady, TooManyRequests))

    def initialize(self, *, metrics: ServerMetrics, verifier: TokenVerifier) -> None:  # type: ignore[override]
        """Wired by the route table."""
        super().initialize(metrics=metrics)
        self._verifier = verifier

    async def admit(self) -> None:
        """Find out whose token came with the request; where none is needed, the address is all that we know.

        Raises:
            Unauthenticated: none, expired, or not ours.
        """
        if not self.needs_token:
            self.owner = find_household(self.request.remote_ip or "")
            return
        self._caller = await self._verifier.verify(
            self.request.headers.get("Authorization"), self.request.remote_ip
        )
        self.owner, self.is_stranger = self.owner_of(self._caller), False

    def caller(self) -> Caller:
        """Whose token came with the request."""
        return self._caller

    def idempotency_key(self) -> str | None:
        """The key of a write; None if it has none.

        Raises:
            BadRequest: too long, or with characters that are not printable ASCII.
        """
        key = self.request.headers.get(IDEMPOTENCY_HEADER)
        if key is not None and not _KEY.fullmatch(key):
            raise BadRequest(
                f"{IDEMPOTENCY_HEADER} has 1 to {MAX_IDEMPOTENCY_KEY_CHARS} printable characters"
            )
        return key
