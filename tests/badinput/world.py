"""What bad input is thrown at: servers of their own over a cluster's databases, and two accounts with files.

The servers differ from those of production by their time-outs and rates alone, which are short and low.
"""

import asyncio
import os
import secrets
import subprocess
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import psycopg

from metaserver.storage.tables import metadata
from ops.dev_setup import read_record
from ops.ports import reserve_port
from ops.session import OperatorSession, open_session
from ops.specs import cursor_keys_file, server_specs, service_keys_file, token_keys_file
from tests.support.dev import DevCluster
from tests.support.raw_http import RawAnswer, RawConnection
from tests.support.waiting import wait_until
from wire.api import CommitFile, LinkDevice, LinkedDevice, ListFolder, ListFolderResult, Metadata
from wire.blocks import PACK_CONTENT_TYPE, FrameStatus, format_frame_head
from wire.hashes import BlockHash, block_hash, content_hash
from wire.ids import NsId, parse_ns_id
from wire.internal import BeginBlock, BeginUpload, DeviceCaller
from wire.keys import KeyRing
from wire.sessions import OpenUpload, UploadSession

SLOW_S = 3
"""The time-outs of heads and bodies: long enough for every body here, on a busy machine too."""
BURST = 1_000
UPLOAD_BYTES = 5_000
TIME = "2026-01-02T03:04:05Z"
SERVERS = ("metaserver", "blockserver", "notifserver")

Json = dict[str, Any]


@dataclass(slots=True)
class Person:
    """An account with one device, a file of one block, and what names them."""

    device: LinkedDevice
    refresh_token: str
    data: bytes = b""
    file: Metadata | None = None
    cursor: str = ""
    upload_id: str = ""
    upload_path: str = ""
    """Signed, for a block of UPLOAD_BYTES that is never sent whole."""

    @property
    def ns_id(self) -> str:
        """The root namespace."""
        return self.device.root_ns

    @property
    def block(self) -> BlockHash:
        """Of the file."""
        return block_hash(self.data)


@dataclass(slots=True)
class World:
    """Servers, people and databases."""

    ports: Mapping[str, int]
    logs: Mapping[str, Path]
    dsns: list[str]
    service_keys: KeyRing
    cursor_keys: KeyRing
    token_keys: bytes
    pending: bytes = b"a block that was begun and never finished"
    people: dict[str, Person] = field(default_factory=dict)

    @property
    def alice(self) -> Person:
        """Who asks."""
        return self.people["alice"]

    @property
    def bob(self) -> Person:
        """Whose things must stay unknown."""
        return self.people["bob"]

    async def ask(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        *headers: str,
        server: str = "metaserver",
        token: str | None = None,
    ) -> RawAnswer:
        """One request on a connection of its own."""
        connection = await self.connect(server)
        try:
            lines = [*headers, f"Content-Length: {len(body)}"]
            if token is not None:
                lines.append(f"Authorization: Bearer {token}")
            await connection.head(f"{method} {path}", *lines)
            await connection.send(body)
            return await connection.answer()
        finally:
            await connection.close()

    async def connect(self, server: str) -> RawConnection:
        """A connection to one of the servers."""
        return await RawConnection.open(self.ports[server])

    async def call(self, person: Person, path: str, body: msgspec.Struct, answer: type[Any]) -> Any:
        """A request of a person's that must succeed."""
        found = await self.ask("POST", path, msgspec.json.encode(body), token=person.device.access_token)
        assert found.status == 200, found
        return msgspec.json.decode(found.body, type=answer)

    async def link(self, code: str) -> Person:
        """A new device."""
        token = secrets.token_hex(16)
        request = LinkDevice(code=code, request_id="r" * 32, refresh_token=token, device_name="bad")
        answer = await self.ask("POST", "/v1/devices/link", msgspec.json.encode(request))
        assert answer.status == 200, answer
        return Person(msgspec.json.decode(answer.body, type=LinkedDevice), token)

    async def fill(self, name: str, code: str) -> None:
        """A person with a file."""
        person = self.people[name] = await self.link(code)
        person.data = f"what only {name} has {secrets.token_hex(8)}".encode()
        pack = format_frame_head(person.block, FrameStatus.OK, len(person.data)) + person.data
        answer = await self.ask(
            "POST",
            f"/v1/blocks/put_pack?ns={person.ns_id}",
            pack,
            f"Content-Type: {PACK_CONTENT_TYPE}",
            server="blockserver",
            token=person.device.access_token,
        )
        assert answer.status == 200, answer
        operation = commit_of(f"/of {name}/file.txt", person.data)
        person.file = await self.call(person, "/v1/files/commit", operation, Metadata)
        listing = await self.call(
            person, "/v1/files/list_folder", ListFolder(recursive=True), ListFolderResult
        )
        person.cursor = listing.cursor
        upload = OpenUpload(file_name="x", file_size=0, checksum=content_hash([]).hex())
        session = await self.call(person, "/files/upload_session", upload, UploadSession)
        person.upload_id = session.upload_id
        block = block_hash(secrets.token_bytes(UPLOAD_BYTES))
        upload = OpenUpload(
            file_name="y",
            file_size=UPLOAD_BYTES,
            checksum=content_hash([block]).hex(),
            block_list=[block.hex()],
        )
        session = await self.call(person, "/files/upload_session", upload, UploadSession)
        person.upload_path = urlsplit(session.targets[0].url).path

    async def begin_pending(self) -> None:
        """A block of Alice's that stays pending."""
        device = self.alice.device
        request = BeginUpload(
            DeviceCaller(device.account_id, device.device_id),  # type: ignore[arg-type]
            parse_ns_id(self.alice.ns_id),
            [BeginBlock(block_hash(self.pending), len(self.pending))],
        )
        body = msgspec.msgpack.encode(request)
        credential = f"Authorization: {self.service_keys.credential()}"
        answer = await self.ask("POST", "/internal/blocks/begin", body, credential)
        assert answer.status == 200, answer

    def list_errors(self) -> list[str]:
        """Lines in the servers' logs that tell of a failure of their own."""
        lines = [line for log in self.logs.values() for line in log.read_bytes().splitlines()]
        return [line.decode() for line in lines if _is_server_error(line)]


def _is_server_error(line: bytes) -> bool:
    try:
        entry = msgspec.json.decode(line, type=Json)
    except msgspec.MsgspecError:
        return True  # a traceback outside the log
    return entry.get("level") in ("error", "critical") or int(entry.get("status", 0)) >= 500


def commit_of(path: str, data: bytes, **how: Any) -> CommitFile:
    """The operation that writes a file of one block."""
    block = block_hash(data)
    fields: Json = {
        "path": path,
        "blocks": [block.hex()],
        "size": len(data),
        "content_hash": content_hash([block]).hex(),
        "client_modified": TIME,
    }
    return CommitFile(**fields | how)


# ---- The rows of all shards, summed up

_SUMS = " UNION ALL ".join(
    f"SELECT '{table.name}', count(*), coalesce(sum(hashtextextended(t::text, 0)), 0)::text"
    f" FROM ns.{table.name} t"
    for table in metadata.sorted_tables
)
Rows = tuple[tuple[object, ...], ...]


class Shards:
    """Looks at all rows of schema `ns`, set by set: how many, and the sum of their hashes."""

    def __init__(self, conns: list[psycopg.AsyncConnection]):
        self._conns = conns

    async def read(self) -> Rows:
        """The sums of every table on every shard."""
        found = await asyncio.gather(*(conn.execute(_SUMS) for conn in self._conns))  # type: ignore[arg-type]
        return tuple([row for cursor in found for row in await cursor.fetchall()])

    async def rest(self) -> None:
        """Wait until nothing is told any more: the outboxes are empty."""

        async def is_empty() -> bool:
            for conn in self._conns:
                row = await (await conn.execute("SELECT count(*) FROM ns.outbox")).fetchone()
                if row != (0,):
                    return False
            return True

        await wait_until(is_empty, "the outboxes to be swept")


@asynccontextmanager
async def open_shards(dsns: list[str]) -> AsyncIterator[Shards]:
    """Connections of the test's own."""
    conns = [await psycopg.AsyncConnection.connect(dsn, autocommit=True) for dsn in dsns]
    try:
        yield Shards(conns)
    finally:
        for conn in conns:
            await conn.close()


# ---- The servers


@contextmanager
def run_servers(cluster: DevCluster, folder: Path) -> Iterator[World]:
    """One server of each kind, with short time-outs, over the databases of a cluster."""
    layout = cluster.layout
    record = read_record(layout)
    held = {kind: reserve_port() for kind in SERVERS}
    ports = {kind: port.port for kind, port in held.items()}
    urls = {f"SHARDBOX_{kind.upper()}_URLS": f"http://127.0.0.1:{port}" for kind, port in ports.items()}
    specs = {spec.kind.value: spec for spec in server_specs(layout, record, cluster.status().directory_dsn)}
    logs = {kind: folder / f"{kind}.log" for kind in SERVERS}
    running: list[subprocess.Popen[bytes]] = []
    try:
        for kind in SERVERS:
            held[kind].close()
            own = {
                **urls,
                "SHARDBOX_LISTEN_PORT": str(ports[kind]),
                "SHARDBOX_HEADER_TIMEOUT_S": str(SLOW_S),
                "SHARDBOX_BODY_TIMEOUT_S": str(SLOW_S),
                "SHARDBOX_REQUESTS_PER_ACCOUNT_S": "1",
                "SHARDBOX_REQUEST_BURST_PER_ACCOUNT": str(BURST),
                "SHARDBOX_MAP_FILE": str(folder / "map.json"),
            }
            with logs[kind].open("wb") as log:
                argv, cwd = specs[kind].argv, specs[kind].cwd
                environment = os.environ | specs[kind].env | own
                running.append(subprocess.Popen(argv, cwd=cwd, env=environment, stdout=log, stderr=log))
        yield World(
            ports=ports,
            logs=logs,
            dsns=[cluster.dsn(name) for name in record.shard_names],
            service_keys=KeyRing.parse(service_keys_file(layout).read_bytes()),
            cursor_keys=KeyRing.parse(cursor_keys_file(layout).read_bytes()),
            token_keys=token_keys_file(layout).read_bytes(),
        )
    finally:
        for process in running:
            process.kill()
            process.wait()


async def settle_world(world: World, directory_dsn: str) -> None:
    """People with files, once the servers answer."""
    for server in SERVERS:
        await wait_until(lambda server=server: _is_ready(world, server), f"the {server}")  # type: ignore[misc]

    async def make(session: OperatorSession, who: str) -> str:
        account = await session.accounts.create_account(f"{who}.{secrets.token_hex(4)}@example.org", who)
        return await session.devices.make_code(account.account_id)

    async with open_session(directory_dsn) as session:
        codes = {who: await make(session, who) for who in ("alice", "bob", "carol")}
    for who, code in codes.items():
        await world.fill(who, code)
    await world.begin_pending()


async def _is_ready(world: World, server: str) -> bool:
    try:
        return (await world.ask("GET", "/readyz", server=server)).status == 200
    except (OSError, asyncio.IncompleteReadError):
        return False


def other_ns(ns_id: str) -> NsId:
    """A namespace that nobody has, on the same shard."""
    return NsId(parse_ns_id(ns_id) + 2**40)
