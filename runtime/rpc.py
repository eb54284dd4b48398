"""Calls from server to server: msgpack over kept connections, failed over among the servers of a kind."""

import asyncio
import itertools
import time
from pathlib import Path
from typing import TypeVar

import aiohttp
import msgspec

from runtime.tls import open_client_context
from wire.errors import ErrorBody, ShardboxError, UpstreamUnavailable, error_from_info
from wire.internal import INTERNAL_CONTENT_TYPE
from wire.keys import KeyRing

_T = TypeVar("_T")

CONNECT_TIMEOUT_S = 1.0
"""A server on the same network that does not take a connection within a second is tried no longer."""
AVOID_S = 2.0
"""How long a server that did not answer is asked last: a hung one costs its time-out once, not every time."""
_TELLS_OF_THE_SERVER = {"not_ready", "overloaded", "upstream_unavailable"}
"""What another server of the kind may do better. A shard that is down is down for all of them, and asking
each in turn would only add up their time-outs."""


class ServiceClient:
    """Calls any one of several equal servers; the next one when one does not answer.

    A call that was sent and not answered is sent to the next server: every internal endpoint is idempotent.
    """

    def __init__(
        self,
        urls: list[str],
        service_keys: KeyRing,
        *,
        max_connections: int = 64,
        ca_file: Path | None = None,
    ):
        """`ca_file`: certificates that the servers are verified by, instead of the system's."""
        self._urls = [url.rstrip("/") for url in urls]
        self._next = itertools.count()
        self._keys = service_keys
        self._max_connections = max_connections
        self._tls = open_client_context(ca_file)
        self._session: aiohttp.ClientSession | None = None
        self._avoid_until_s: dict[str, float] = {}

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def call(
        self,
        path: str,
        request: msgspec.Struct,
        answer: type[_T],
        *,
        timeout_s: float,
        only_url: str | None = None,
    ) -> _T:
        """The answer of one server, of `only_url` if that is given.

        Raises:
            UpstreamUnavailable: none answered within `timeout_s` each.
            ShardboxError: what the server refused with.
        """
        body = msgspec.msgpack.encode(request)
        urls = [only_url] if only_url else self._in_order()
        failure: Exception | None = None
        for url in urls:
            try:
                return msgspec.msgpack.decode(await self._post(url + path, body, timeout_s), type=answer)
            except (aiohttp.ServerDisconnectedError, ConnectionResetError) as error:
                # Mostly a kept connection to a server that has been restarted since: one more try, last.
                failure = error
                if urls.count(url) == 1:
                    urls.append(url)
            except (aiohttp.ClientError, TimeoutError, OSError, msgspec.MsgspecError) as error:
                failure = error  # an answer that cannot be read is none
                self._avoid_until_s[url] = time.monotonic() + AVOID_S
            except ShardboxError as error:
                if error.code not in _TELLS_OF_THE_SERVER:
                    raise
                failure = error
        if isinstance(failure, ShardboxError):
            raise failure
        raise UpstreamUnavailable(f"no server answered {path}: {failure!r}") from failure

    def _in_order(self) -> list[str]:
        """All servers, from another one on each time; those that just failed come last."""
        start = next(self._next) % max(1, len(self._urls))
        urls = self._urls[start:] + self._urls[:start]
        now_s = time.monotonic()
        return sorted(urls, key=lambda url: self._avoid_until_s.get(url, 0.0) > now_s)

    async def _post(self, url: str, body: bytes, timeout_s: float) -> bytes:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=self._max_connections, ssl=self._tls),
                auto_decompress=False,
            )
        headers = {"Authorization": self._keys.credential(), "Content-Type": INTERNAL_CONTENT_TYPE}
        timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=CONNECT_TIMEOUT_S)
        async with self._session.post(url, data=body, headers=headers, timeout=timeout) as response:
            answer = await response.read()
            if response.status == 200:
                return answer
            try:
                info = msgspec.json.decode(answer, type=ErrorBody).error
            except msgspec.MsgspecError as error:
                raise UpstreamUnavailable(f"{url} answered {response.status}") from error
            raise error_from_info(info, status=response.status)

    async def __aenter__(self) -> "ServiceClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
        await asyncio.sleep(0)
