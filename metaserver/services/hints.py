"""Hints to the notification servers: sent right after a commit, without anybody waiting for them.

What gets lost here is found by the outbox sweep (`services/relay.py`).
"""

import asyncio

from runtime.logs import get_log
from runtime.rpc import ServiceClient
from runtime.tasks import end
from wire.errors import ShardboxError
from wire.ids import Jid, NsId
from wire.internal import MAX_HINTS, Publish, Published

_log = get_log(__name__)

PUBLISH_TIMEOUT_S = 1.0
"""A notification server takes a hint in well under a millisecond; later the sweep is as good."""


class Publisher:
    """Sends hints to every notification server."""

    def __init__(self, urls: list[str], client: ServiceClient):
        self.urls = urls
        self._client = client

    async def publish(self, hints: list[tuple[NsId, Jid]]) -> bool:
        """Whether every notification server took the hints."""
        taken = await asyncio.gather(*(self.send(url, hints) for url in self.urls))
        return all(taken)

    async def send(self, url: str, hints: list[tuple[NsId, Jid]]) -> bool:
        """Whether one notification server took the hints."""
        try:
            await self._client.call(
                "/internal/publish", Publish(hints), Published, timeout_s=PUBLISH_TIMEOUT_S, only_url=url
            )
        except ShardboxError as error:
            _log.info("publish_failed", url=url, error=str(error))
            return False
        return True


class HintQueue:
    """Hints waiting to be sent, a lane for each notification server: a slow one holds up no other."""

    def __init__(self, publisher: Publisher):
        self._lanes = [_Lane(publisher, url) for url in publisher.urls]

    def start(self) -> None:
        """Begin sending."""
        for lane in self._lanes:
            lane.start()

    async def stop(self) -> None:
        """Send what is waiting, once, and end."""
        await asyncio.gather(*(lane.stop() for lane in self._lanes))

    def put(self, ns_id: NsId, jid: Jid) -> None:
        """A namespace has reached a jid."""
        for lane in self._lanes:
            lane.put(ns_id, jid)


class _Lane:
    """The newest jid of each namespace; while a request is out, others coalesce."""

    def __init__(self, publisher: Publisher, url: str):
        self._publisher = publisher
        self._url = url
        self._waiting: dict[NsId, Jid] = {}
        self._something = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name=f"hints {self._url}")

    async def stop(self) -> None:
        await end(self._task)
        await self._flush()

    def put(self, ns_id: NsId, jid: Jid) -> None:
        if self._waiting.get(ns_id, 0) < jid:
            self._waiting[ns_id] = jid
            self._something.set()

    async def _run(self) -> None:
        while True:
            await self._something.wait()
            await self._flush()

    async def _flush(self) -> None:
        self._something.clear()
        while self._waiting:
            taken, self._waiting = self._waiting, {}
            hints = list(taken.items())
            for i in range(0, len(hints), MAX_HINTS):
                await self._publisher.send(self._url, hints[i : i + MAX_HINTS])
