"""A notifserver on a real port, and a small real peer that speaks a metaserver's side: heads and publish."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp
import msgspec
import tornado.httpserver
import tornado.netutil
import tornado.web

from notifserver.app import make_app
from notifserver.services.heads import HeadsUpstream
from notifserver.services.metrics import NotifMetrics
from notifserver.services.polls import PollLimits, PollService
from runtime.bodies import Bodies
from runtime.metrics import ServerMetrics
from runtime.rates import Rates
from runtime.rpc import ServiceClient
from runtime.web import InFlight, InternalHandler, in_flight
from wire.api import LongpollResult
from wire.cursors import Cursor, Following, Position, Scanning, format_cursor
from wire.errors import ErrorBody, ErrorInfo
from wire.ids import AccountId, EntryId, Jid, NsId
from wire.internal import AskHeads, Heads, Publish, Published
from wire.keys import KeyRing

DEADLINE_S = 20.0
LIMITS = PollLimits(polls=3_000, polls_per_account=2_500)


async def until(condition: Callable[[], bool]) -> None:
    """Return when the condition holds, or fail at the deadline."""
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0.001)


class _HeadsHandler(InternalHandler):
    def initialize(  # type: ignore[override]
        self, *, peer: "Peer", metrics: ServerMetrics, service_keys: KeyRing
    ) -> None:
        super().initialize(metrics=metrics, service_keys=service_keys)
        self.peer = peer

    async def post(self) -> None:
        asked = self.packed_as(AskHeads).ns_ids
        self.peer.asked.append(asked)
        heads = [self.peer.heads.get(ns_id, 0) for ns_id in asked]
        await self.peer.before_answer(asked)
        self.answer_packed(Heads(heads))


class Peer:
    """A metaserver's side. Heads are read when the question comes; the answer may be held back."""

    def __init__(self, keys: KeyRing):
        self.keys = keys
        self.heads: dict[NsId, int] = {}
        self.asked: list[list[NsId]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self._app = tornado.web.Application(
            [
                (
                    r"/internal/heads",
                    _HeadsHandler,
                    {"peer": self, "metrics": ServerMetrics(), "service_keys": keys},
                )
            ],
            in_flight=InFlight(),
            bodies=Bodies(),
            rates=Rates(),
        )
        self._http: tornado.httpserver.HTTPServer | None = None
        self.port = 0

    async def before_answer(self, asked: list[NsId]) -> None:
        """What an answer waits for."""
        await self.gate.wait()

    def start(self) -> None:
        """Listen, at the same port each time."""
        sockets = tornado.netutil.bind_sockets(self.port, "127.0.0.1")
        self.port = sockets[0].getsockname()[1]
        self._http = tornado.httpserver.HTTPServer(self._app)
        self._http.add_sockets(sockets)

    async def stop(self) -> None:
        """Be gone."""
        if self._http is not None:
            self._http.stop()
            await self._http.close_all_connections()
            self._http = None


@dataclass
class Notifserver:
    """The server under test, its peer, and a client."""

    peer: Peer
    service_keys: KeyRing
    cursor_keys: KeyRing
    app: tornado.web.Application
    polls: PollService
    url: str
    http: aiohttp.ClientSession
    tasks: list["asyncio.Task[LongpollResult]"] = field(default_factory=list)

    def cursor(self, seen: dict[int, int], *, account: str = "dbid:a", keys: KeyRing | None = None) -> str:
        """A cursor that follows these namespaces; -1: still scanning."""
        positions = tuple(
            Position(NsId(ns), Following(Jid(jid)) if jid >= 0 else Scanning(Jid(3), EntryId(1)))
            for ns, jid in seen.items()
        )
        return format_cursor(Cursor(AccountId(account), positions, 100), keys or self.cursor_keys)

    async def post(self, cursor: str, timeout: int = 480) -> tuple[int, bytes, dict[str, str]]:
        """A poll's raw answer."""
        body = {"cursor": cursor, "timeout": timeout}
        url = f"{self.url}/v1/files/list_folder/longpoll"
        async with self.http.post(url, json=body) as answer:
            return answer.status, await answer.read(), dict(answer.headers)

    async def poll(self, seen: dict[int, int], *, account: str = "dbid:a") -> LongpollResult:
        """A poll's answer, within the tests' deadline."""
        async with asyncio.timeout(DEADLINE_S):
            status, body, _ = await self.post(self.cursor(seen, account=account))
        assert status == 200, body
        return msgspec.json.decode(body, type=LongpollResult)

    def start_poll(self, seen: dict[int, int]) -> "asyncio.Task[LongpollResult]":
        """A poll under way."""
        task = asyncio.create_task(self.poll(seen))
        self.tasks.append(task)
        return task

    async def refused(self, cursor: str, timeout: int = 480) -> tuple[int, ErrorInfo, dict[str, str]]:
        """A poll's error."""
        status, body, headers = await self.post(cursor, timeout)
        return status, msgspec.json.decode(body, type=ErrorBody).error, headers

    async def publish(self, hints: Iterable[tuple[int, int]], authorization: str | None = None) -> int:
        """Send hints; the status of the answer."""
        body = msgspec.msgpack.encode(Publish([(NsId(ns), Jid(jid)) for ns, jid in hints]))
        headers = {"Authorization": authorization or self.service_keys.credential()}
        async with self.http.post(f"{self.url}/internal/publish", data=body, headers=headers) as answer:
            text = await answer.read()
            if answer.status == 200:
                msgspec.msgpack.decode(text, type=Published)
            return answer.status

    @property
    def waiting(self) -> int:
        """How many polls are in the interest table."""
        return self.polls.table.waiter_count

    async def all_is_over(self) -> None:
        """No poll is held and nothing is remembered of any."""
        await until(lambda: self.waiting == 0 and in_flight(self.app).count == 0)
        assert self.polls.table.namespace_count == 0


@asynccontextmanager
async def running_notifserver(limits: PollLimits = LIMITS) -> AsyncIterator[Notifserver]:
    """A notifserver and its peer."""
    service_keys, cursor_keys = (KeyRing.parse(KeyRing.generate()) for _ in range(2))
    peer = Peer(service_keys)
    peer.start()
    metrics = ServerMetrics()
    notif_metrics = NotifMetrics(metrics.registry)
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with (
        ServiceClient([f"http://127.0.0.1:{peer.port}"], service_keys) as client,
        aiohttp.ClientSession(connector=connector) as http,
    ):
        upstream = HeadsUpstream(client, notif_metrics)
        polls = PollService(cursor_keys, upstream, limits, notif_metrics)
        upstream.connect(polls)
        app = make_app(polls, service_keys, metrics)
        server = tornado.httpserver.HTTPServer(app)
        sockets = tornado.netutil.bind_sockets(0, "127.0.0.1")
        server.add_sockets(sockets)
        url = f"http://127.0.0.1:{sockets[0].getsockname()[1]}"
        found = Notifserver(peer, service_keys, cursor_keys, app, polls, url, http)
        try:
            yield found
        finally:
            peer.gate.set()
            for task in found.tasks:
                task.cancel()
            await asyncio.gather(*found.tasks, return_exceptions=True)
            server.stop()
            await server.close_all_connections()
            await upstream.close()
            await peer.stop()
