"""/v1/files/search: entries by a part of their names."""

from typing import Any

from metaserver.handlers.base import UserHandler
from metaserver.handlers.files import PATH_ERRORS
from metaserver.services.search import SearchService
from runtime.openapi import endpoint
from wire.api import Search, SearchContinue, SearchResult
from wire.errors import InvalidCursor, NotAFolder, NotFound


class SearchBase(UserHandler):
    """The base of the addresses that search."""

    def initialize(self, *, search: SearchService, **rest: Any) -> None:  # type: ignore[override]
        """Wired by the route table."""
        super().initialize(**rest)
        self._search = search


class SearchHandler(SearchBase):
    """POST /v1/files/search"""

    route = "files/search"

    @endpoint(Search, SearchResult, *PATH_ERRORS, NotFound, NotAFolder)
    async def post(self) -> None:
        """The first page of the live entries whose names hold something."""
        caller = self.caller()
        self.answer(await self._search.search(caller, self.body_as(Search)))


class SearchContinueHandler(SearchBase):
    """POST /v1/files/search/continue"""

    route = "files/search/continue"

    @endpoint(SearchContinue, SearchResult, InvalidCursor, NotFound)
    async def post(self) -> None:
        """The next page of a search."""
        caller = self.caller()
        self.answer(await self._search.search_continue(caller, self.body_as(SearchContinue).cursor))
