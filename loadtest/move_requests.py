"""Single requests of `make bench-move`."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar

import msgspec

from loadtest.connection import Connection

T = TypeVar("T")

REQUEST_DEADLINE_S = 10.0
"""Whoever waits for longer counts as not answered."""
MAX_IDLE_S = 30.0
"""Servers hang up on a connection that idles for 75 s, perhaps just when the next request is on its way."""


class Failed(Exception):
    """A request was not answered as it should be."""


class Asker:
    """Requests to some servers of a kind, each sent once and never again."""

    def __init__(self, urls: Sequence[str]):
        self.urls = urls
        self._idle: dict[str, list[tuple[float, Connection]]] = {url: [] for url in urls}

    async def ask(
        self,
        path: str,
        body: msgspec.Struct,
        answer: type[T],
        *,
        token: str = "",
        key: str = "",
        server: int = 0,
        deadline_s: float = REQUEST_DEADLINE_S,
    ) -> T:
        """The decoded answer of the server of that number, counted around.

        Raises:
            Failed: it was not 200, was none, or came too late.
        """
        url = self.urls[server % len(self.urls)]
        try:
            async with asyncio.timeout(deadline_s), self._connection(url) as connection:
                got = await connection.post(path, msgspec.json.encode(body), token, key)
        except (OSError, EOFError, TimeoutError, ValueError) as error:
            raise Failed(f"{path}: {error!r}") from error
        if got.status != 200:
            raise Failed(f"{path}: {got.status} {got.body[:300]!r}")
        return msgspec.json.decode(got.body, type=answer)

    @asynccontextmanager
    async def _connection(self, url: str) -> AsyncIterator[Connection]:
        """One that nobody else uses; hung up if anything goes wrong with it."""
        connection = self._take_idle(url) or await Connection.open(url)
        try:
            yield connection
        except BaseException:
            connection.close()
            raise
        self._idle[url].append((time.monotonic(), connection))

    def _take_idle(self, url: str) -> Connection | None:
        """The one that was used last, unless that is too long ago; then all the others go, too."""
        idle = self._idle[url]
        if idle and idle[-1][0] > time.monotonic() - MAX_IDLE_S:
            return idle.pop()[1]
        while idle:
            idle.pop()[1].close()
        return None

    def close(self) -> None:
        """Hang up."""
        for connections in self._idle.values():
            while connections:
                connections.pop()[1].close()
