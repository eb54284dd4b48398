"""What the handlers share."""

from runtime.metrics import ServerMetrics
from runtime.openapi import Kind
from runtime.tokens import TokenVerifier
from runtime.web import BaseHandler
from wire.errors import (
    BadRequest,
    MalformedId,
    NotFound,
    NotReady,
    Overloaded,
    ShardUnavailable,
    TooManyRequests,
    UpstreamUnavailable,
)
from wire.ids import NsId, parse_ns_id
from wire.internal import Caller


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

    async def admit(self) -> None:
        """Find out who calls, and whether the address makes sense."""
        self.caller = await self.identify()
        self.owner, self.is_stranger = self.owner_of(self.caller), False
        self.check_head()

    async def identify(self) -> Caller:
        """Whose request it is.

        Raises:
            Unauthenticated: no access token, or one that is expired or not ours.
        """
        return await self.verifier.verify(self.request.headers.get("Authorization"), self.request.remote_ip)

    def check_head(self) -> None:
        """What a subclass can tell before the body; raises domain errors."""

    def ns_argument(self) -> NsId:
        """The namespace of the query.

        Raises:
            BadRequest, MalformedId: none, or not a namespace id.
        """
        given = self.request.query_arguments.get("ns", [])
        if len(given) != 1:
            raise BadRequest("the query names one namespace (?ns=…)")
        return parse_ns_id(given[0].decode("latin-1"))
