"""/v1/account/…: the caller's account."""

from typing import Any

from metaserver.handlers.base import UserHandler
from metaserver.services.usage import UsageService
from runtime.openapi import endpoint
from wire.api import AccountUsage, Empty


class UsageHandler(UserHandler):
    """POST /v1/account/usage"""

    route = "account/usage"

    def initialize(self, *, usage: UsageService, **rest: Any) -> None:  # type: ignore[override]
        """Wired by the route table."""
        super().initialize(**rest)
        self._usage = usage

    @endpoint(Empty, AccountUsage)
    async def post(self) -> None:
        """Used and allowed bytes."""
        caller = self.caller()
        self.body_as(Empty)
        self.answer(await self._usage.get_own(caller))
