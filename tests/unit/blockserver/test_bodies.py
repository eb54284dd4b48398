"""Taking bodies in over real connections: refused early, bounded, nothing left of what is cut off.

No metaserver answers here, so whatever gets as far as its rows ends with upstream_unavailable.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
import tornado.httpserver
import tornado.netutil
import tornado.web

from blockserver.app import Parts, make_app
from blockserver.services.direct import DirectService
from blockserver.services.download import DownloadService
from blockserver.services.mend import Mender
from blockserver.services.metrics import BlockMetrics
from blockserver.services.upload import UploadService
from blockserver.storage import folder
from blockserver.storage.folder import BlockFolder
from blockserver.storage.index import BlockIndex
from blockserver.storage.sessions import SessionIndex
from blockserver.storage.threads import FolderBackend
from runtime.bodies import MAX_DISCARDED_BYTES, ByteBudget
from runtime.metrics import ServerMetrics
from runtime.process import MAX_HTTP_BODY_BYTES
from runtime.rpc import ServiceClient
from runtime.tokens import TokenIssuer, TokenVerifier, generate_keys
from runtime.web import in_flight
from wire.api import REQUEST_ID_HEADER
from wire.blocks import MAX_PACK_BLOCKS, MAX_PACK_BYTES
from wire.errors import ErrorBody, ErrorInfo
from wire.hashes import BLOCK_BYTES, block_hash
from wire.ids import AccountId, DeviceId
from wire.internal import DeviceCaller
from wire.keys import KeyRing

DEADLINE_S = 20.0
DATA = b"some bytes" * 10_000
BUDGET_BYTES = 48 * 2**20
UNUSED_PORT = 9
"""Nobody listens on the discard port of a test machine."""


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> ErrorInfo:
        return msgspec.json.decode(self.body, type=ErrorBody).error


class Connection:
    """A raw connection, to say what no well-behaved client would."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, token: str):
        self._reader = reader
        self._writer = writer
        self._token = token

    async def head(self, line: str, *headers: str, token: str | None = None) -> None:
        lines = [f"{line} HTTP/1.1", "Host: test", f"Authorization: Bearer {token or self._token}", *headers]
        await self.send("\r\n".join([*lines, "", ""]).encode())

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def answer(self) -> Answer:
        async with asyncio.timeout(DEADLINE_S):
            head = (await self._reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
            body = await self._reader.readexactly(int(headers.get("content-length", 0)))
        return Answer(int(head[0].split()[1]), headers, body)

    async def is_closed(self) -> bool:
        async with asyncio.timeout(DEADLINE_S):
            try:
                return await self._reader.read(1) == b""
            except ConnectionResetError:
                return True

    async def close(self) -> None:
        self._writer.close()
        with suppress(ConnectionError):
            await self._writer.wait_closed()


@dataclass
class Server:
    app: tornado.web.Application
    port: int
    token: str
    folder: Path
    budget: ByteBudget
    open: list[Connection]

    async def connect(self) -> Connection:
        connection = Connection(*await asyncio.open_connection("127.0.0.1", self.port), self.token)
        self.open.append(connection)
        return connection

    def stored(self) -> list[Path]:
        return [p for p in (self.folder / "objects").rglob("*") if p.is_file()]

    async def all_is_over(self) -> None:
        """Nothing is under way or held, or the deadline passes."""
        async with asyncio.timeout(DEADLINE_S):
            await in_flight(self.app).wait_empty()
        assert self.budget.used_bytes == 0


@pytest.fixture
async def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Server]:
    monkeypatch.setattr(folder, "FAN_OUT_DIGITS", 1)  # 16 directories are made sooner than 4,096
    private, public = generate_keys()
    metrics = ServerMetrics()
    block_metrics = BlockMetrics(metrics.registry)
    backend = FolderBackend(BlockFolder(tmp_path / "blocks", min_free_bytes=0))
    keys = KeyRing.parse(KeyRing.generate())
    budget = ByteBudget(BUDGET_BYTES)
    async with ServiceClient([f"http://127.0.0.1:{UNUSED_PORT}"], keys) as metaservers:
        index = BlockIndex(metaservers)
        mender = Mender(index, backend, block_metrics)
        uploads = UploadService(index, backend, mender, block_metrics)
        sessions = SessionIndex(metaservers)
        app = make_app(
            Parts(
                metrics=metrics,
                block_metrics=block_metrics,
                verifier=TokenVerifier(public),
                service_keys=keys,
                backend=backend,
                uploads=uploads,
                downloads=DownloadService(index, backend, block_metrics),
                direct=DirectService(sessions, index, backend, uploads, mender, budget, block_metrics),
                upload_budget=budget,
                download_budget=ByteBudget(BUDGET_BYTES),
            )
        )
        http = tornado.httpserver.HTTPServer(app, max_body_size=MAX_HTTP_BODY_BYTES)
        sockets = tornado.netutil.bind_sockets(0, "127.0.0.1")
        http.add_sockets(sockets)
        token = TokenIssuer(private).issue(DeviceCaller(AccountId("dbid:test"), DeviceId("device:test")))
        found = Server(app, sockets[0].getsockname()[1], token, tmp_path / "blocks", budget, [])
        yield found
        for connection in found.open:
            await connection.close()
        http.stop()
        await http.close_all_connections()
        await found.all_is_over()
        assert found.stored() == []
    await backend.close()


def put_line(data: bytes = DATA) -> str:
    return f"PUT /v1/blocks/{block_hash(data).hex()}?ns=1"


async def test_the_bytes_are_checked_before_anything_is_asked(server: Server):
    connection = await server.connect()
    await connection.head(put_line(), f"Content-Length: {len(DATA)}")
    await connection.send(DATA[:-1] + b"x")
    assert (await connection.answer()).error.code == "hash_mismatch"
    await connection.head(put_line(b""), "Content-Length: 0")
    assert (await connection.answer()).error.code == "hash_mismatch"


@pytest.mark.parametrize("is_chunked", [False, True])
async def test_without_a_metaserver_nothing_is_written(server: Server, is_chunked: bool):
    connection = await server.connect()
    if is_chunked:
        await connection.head(put_line(), "Transfer-Encoding: chunked")
        for at in range(0, len(DATA), 7_001):
            piece = DATA[at : at + 7_001]
            await connection.send(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
        await connection.send(b"0\r\n\r\n")
    else:
        await connection.head(put_line(), f"Content-Length: {len(DATA)}")
        await connection.send(DATA)
    answer = await connection.answer()
    assert (answer.status, answer.error.code) == (503, "upstream_unavailable")
    assert answer.error.retryable
    assert "retry-after" in answer.headers


async def test_a_stranger_is_told_so_and_the_connection_lives_on(server: Server):
    connection = await server.connect()
    await connection.head(put_line(), f"Content-Length: {BLOCK_BYTES}", token="forged")
    await connection.send(bytes(BLOCK_BYTES // 2))
    assert server.budget.used_bytes == 0
    await connection.send(bytes(BLOCK_BYTES // 2))
    answer = await connection.answer()
    assert (answer.status, answer.error.code) == (401, "invalid_access_token")
    await connection.head("GET /healthz")
    assert (await connection.answer()).status == 200


async def test_who_asks_first_is_refused_first(server: Server):
    connection = await server.connect()
    await connection.head(
        put_line(), f"Content-Length: {BLOCK_BYTES}", "Expect: 100-continue", token="forged"
    )
    assert (await connection.answer()).status == 401
    assert await connection.is_closed()


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("PUT /v1/blocks/abc?ns=1", "malformed_id"),
        (put_line().removesuffix("?ns=1"), "bad_request"),
        (put_line() + "&ns=2", "bad_request"),
        (put_line().replace("ns=1", "ns=-1"), "malformed_id"),
        ("POST /v1/blocks/put_pack", "bad_request"),
        ("POST /v1/blocks/put_pack?ns=1", "bad_request"),
        ("POST /v1/blocks/missing", "bad_request"),
        ("POST /v1/blocks/get_pack", "bad_request"),
        ("DELETE " + put_line().removeprefix("PUT "), "method_not_allowed"),
        ("GET /v1/blocks/put_pack?ns=1", "method_not_allowed"),
        ("PUT /v1/block", "not_found"),
    ],
)
async def test_what_cannot_be_understood(server: Server, line: str, code: str):
    connection = await server.connect()
    await connection.head(line, "Content-Length: 5")
    await connection.send(b"[1,2]")
    answer = await connection.answer()
    assert answer.error.code == code
    allowed = "post" if "put_pack" in line else "get, put"
    assert answer.headers.get("allow") == (allowed if code == "method_not_allowed" else None)


@pytest.mark.parametrize("is_chunked", [False, True])
async def test_a_block_has_at_most_4_mib(server: Server, is_chunked: bool):
    connection = await server.connect()
    size = BLOCK_BYTES + 1
    if is_chunked:
        await connection.head(put_line(), "Transfer-Encoding: chunked")
        await connection.send(f"{size:x}\r\n".encode() + bytes(size) + b"\r\n0\r\n\r\n")
    else:
        await connection.head(put_line(), f"Content-Length: {size}")
        await connection.send(bytes(size))
    answer = await connection.answer()
    assert (answer.status, answer.error.code) == (413, "body_too_large")
    whole = bytes(BLOCK_BYTES)
    await connection.head(put_line(whole), f"Content-Length: {BLOCK_BYTES}")
    await connection.send(whole)
    assert (await connection.answer()).error.code == "upstream_unavailable"


async def test_too_much_is_refused_before_it_is_sent(server: Server):
    connection = await server.connect()
    await connection.head(put_line(), f"Content-Length: {10**12}")
    assert (await connection.answer()).status == 413
    assert await connection.is_closed()


async def test_a_body_without_end_is_hung_up_on(server: Server):
    connection = await server.connect()
    await connection.head("POST /v1/blocks/missing", "Transfer-Encoding: chunked")
    chunk = b"10000\r\n" + bytes(65_536) + b"\r\n"
    with pytest.raises(ConnectionError):  # noqa: PT012
        for _ in range(3 * MAX_DISCARDED_BYTES // 65_536):
            await connection.send(chunk)


@pytest.mark.parametrize("header", ["Content-Length: 1000000", "Transfer-Encoding: chunked"])
@pytest.mark.parametrize("line", [put_line(), "POST /v1/blocks/put_pack?ns=1"])
async def test_a_body_that_is_cut_off_leaves_nothing(server: Server, line: str, header: str):
    connection = await server.connect()
    await connection.head(line, header)
    await connection.send(b"ffff\r\n" + bytes(50_000))
    async with asyncio.timeout(DEADLINE_S):
        while not server.budget.used_bytes:
            await asyncio.sleep(0)
    await connection.close()
    await server.all_is_over()


async def test_more_than_fits_into_memory_is_sent_away(server: Server):
    waiting = await server.connect()
    await waiting.head("POST /v1/blocks/put_pack?ns=1", f"Content-Length: {MAX_PACK_BYTES}")
    await waiting.send(bytes(1_000))
    async with asyncio.timeout(DEADLINE_S):
        while not server.budget.used_bytes:
            await asyncio.sleep(0)
    refused = await server.connect()
    await refused.head("POST /v1/blocks/put_pack?ns=1", "Transfer-Encoding: chunked")
    await refused.send(b"%x\r\n" % MAX_PACK_BYTES + bytes(MAX_PACK_BYTES) + b"\r\n0\r\n\r\n")
    answer = await refused.answer()
    assert (answer.status, answer.error.code) == (503, "overloaded")
    assert int(answer.headers["retry-after"]) >= 1
    assert server.budget.used_bytes == MAX_PACK_BYTES


async def test_hashes_of_a_request_are_bounded(server: Server):
    connection = await server.connect()
    body = msgspec.json.encode({"ns_id": "1", "hashes": ["0" * 64] * (MAX_PACK_BLOCKS + 1)})
    await connection.head("POST /v1/blocks/get_pack", f"Content-Length: {len(body)}")
    await connection.send(body)
    assert (await connection.answer()).error.code == "too_many_entries"


async def test_ready_tells_the_room_left(server: Server):
    connection = await server.connect()
    await connection.head("GET /readyz")
    answer = await connection.answer()
    assert answer.status == 200
    assert msgspec.json.decode(answer.body)["free_bytes"] > 0
    in_flight(server.app).is_draining = True
    await connection.head("GET /readyz")
    answer = await connection.answer()
    assert (answer.status, answer.headers["connection"]) == (503, "close")
    assert answer.headers[REQUEST_ID_HEADER.lower()]
