"""/v1/files/list_revisions: the past of single files."""

from typing import Any

from metaserver.handlers.base import UserHandler
from metaserver.handlers.files import PATH_ERRORS
from metaserver.services.history import HistoryService
from runtime.openapi import endpoint
from wire.api import ListRevisions, ListRevisionsResult
from wire.errors import NotAFile, NotFound


class ListRevisionsHandler(UserHandler):
    """POST /v1/files/list_revisions"""

    route = "files/list_revisions"

    def initialize(self, *, history: HistoryService, **rest: Any) -> None:  # type: ignore[override]
        """Wired by the route table."""
        super().initialize(**rest)
        self._history = history

    @endpoint(ListRevisions, ListRevisionsResult, *PATH_ERRORS, NotFound, NotAFile)
    async def post(self) -> None:
        """The versions of a file, live or deleted, from the newest one on."""
        caller = self.caller()
        self.answer(await self._history.list_revisions(caller, self.body_as(ListRevisions)))
