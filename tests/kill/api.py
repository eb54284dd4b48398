"""A device that speaks HTTP only and remembers every answer: what was acknowledged must never be missing."""

import asyncio
import hashlib
import random
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import aiohttp
import msgspec

from wire.api import (
    Batch,
    BatchResult,
    CommitFile,
    LinkDevice,
    LinkedDevice,
    ListFolder,
    ListFolderContinue,
    ListFolderResult,
    Longpoll,
    LongpollResult,
    Operation,
)
from wire.blocks import PACK_CONTENT_TYPE, FrameStatus, PutPackResult, format_frame_head
from wire.hashes import BlockHash, block_hash, content_hash
from wire.ids import parse_rev
from wire.sessions import (
    CommittedFile,
    CommitUpload,
    CompleteBlocks,
    CompleteResult,
    OpenUpload,
    UploadSession,
    UploadTarget,
)

T = TypeVar("T")
TIME = "2026-01-02T03:04:05Z"
EMPTY_HASH = hashlib.sha256(b"").hexdigest()
DEADLINE_S = 90.0
"""Longer than a shard is stopped for."""
REQUEST_TIMEOUT_S = 5.0
POLL_S = 480
RETRY_S = (0.1, 0.5)
"""Between these: hundreds of polls come back at once when their server has died."""
WAKE_S = 20.0
"""A wake-up may wait for a lease to lapse (2 s), a server to come back and a sweep; not for a poll's end."""


class Failed(Exception):
    """A request that was not answered with 200; `status` is None when there was no answer at all."""

    def __init__(self, status: int | None, text: str):
        super().__init__(f"{status}: {text}")
        self.status = status


@dataclass(slots=True)
class ApiDevice:
    """One device; any of several equal servers is asked, in turn."""

    session: aiohttp.ClientSession
    metaservers: list[str]
    blockserver: str
    notifserver: str
    linked: LinkedDevice
    acked: dict[str, int] = field(default_factory=dict)
    """Path → jid of every commit that was acknowledged."""
    seen_jid: int = 0
    _turn: int = 0

    @classmethod
    async def link(
        cls,
        session: aiohttp.ClientSession,
        metaservers: list[str],
        blockserver: str,
        notifserver: str,
        code: str,
    ) -> "ApiDevice":
        """A new device."""
        request = LinkDevice(
            code=code,
            request_id=secrets.token_hex(16),
            refresh_token=secrets.token_hex(16),
            device_name="api",
        )
        linked = await post_to(session, metaservers[0] + "/v1/devices/link", request, LinkedDevice, {})
        return cls(session, metaservers, blockserver, notifserver, linked)

    async def post(self, path: str, body: msgspec.Struct, answer: type[Any], key: str | None = None) -> Any:
        """One request to the next metaserver.

        Raises:
            Failed: anything but 200.
        """
        self._turn += 1
        url = self.metaservers[self._turn % len(self.metaservers)]
        headers = self._authorization
        if key is not None:
            headers["Idempotency-Key"] = key
        return await post_to(self.session, url + path, body, answer, headers)

    @property
    def _authorization(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.linked.access_token}"}

    async def post_surely(
        self, path: str, body: msgspec.Struct, answer: type[Any], key: str | None = None
    ) -> Any:
        """The same, tried until it succeeds: what a device does."""
        return await surely(lambda: self.post(path, body, answer, key))

    async def commit(self, operation: Operation, *, surely: bool = True) -> BatchResult:
        """Write, and remember what was acknowledged."""
        send = self.post_surely if surely else self.post
        result: BatchResult = await send(
            "/v1/files/batch", Batch([operation]), BatchResult, secrets.token_hex(16)
        )
        metadata = result.verdicts[0].metadata
        assert metadata is not None, result
        assert isinstance(metadata.path_display, str)
        assert isinstance(metadata.jid, int)
        self.acked[metadata.path_display] = metadata.jid
        return result

    async def put_block(self, data: bytes) -> BlockHash:
        """Store one block in the device's root.

        Raises:
            Failed: it was refused.
        """
        name = block_hash(data)
        url = f"{self.blockserver}/v1/blocks/put_pack?ns={self.linked.root_ns}"
        headers = self._authorization | {"Content-Type": PACK_CONTENT_TYPE}
        pack = format_frame_head(name, FrameStatus.OK, len(data)) + data
        result: PutPackResult = await post_to(self.session, url, pack, PutPackResult, headers)
        error = result.blocks[0].error
        if error is not None:
            raise Failed(503 if error.retryable else 400, error.message)
        return name

    async def upload(self, name: str, data: bytes) -> None:
        """A file of one block in the root, by an upload session: each step until it succeeds."""
        block = block_hash(data)
        opening = OpenUpload(
            file_name=name,
            file_size=len(data),
            checksum=content_hash([block]).hex(),
            block_list=[block.hex()],
        )
        session: UploadSession = await self.post_surely("/files/upload_session", opening, UploadSession)
        (target,) = session.targets
        complete = CompleteBlocks(upload_id=session.upload_id, hashes=[block.hex()])

        async def send() -> None:
            await put_to(self.session, target, data)
            url, headers = self.blockserver + "/blocks/complete", self._authorization
            found: CompleteResult = await post_to(self.session, url, complete, CompleteResult, headers)
            error = found.blocks[0].error
            if error is not None:
                raise Failed(503 if error.retryable else 400, error.message)

        await surely(send)
        commit = CommitUpload(upload_id=session.upload_id, block_list=[block.hex()])
        done: CommittedFile = await self.post_surely("/files/commit", commit, CommittedFile)
        self.acked[f"/{name}"] = parse_rev(done.version)[1]

    async def follow(self) -> None:
        """Keep `seen_jid` up to date, for ever, by long-polls alone: no delta without a wake-up."""
        page: ListFolderResult = await self.post_surely(
            "/v1/files/list_folder", ListFolder(recursive=True, limit=2000), ListFolderResult
        )
        while True:
            while page.has_more:
                page = await self.post_surely(
                    "/v1/files/list_folder/continue", ListFolderContinue(page.cursor), ListFolderResult
                )
            self.seen_jid = page.jid
            while not await self._is_woken(page.cursor):
                pass
            page = await self.post_surely(
                "/v1/files/list_folder/continue", ListFolderContinue(page.cursor), ListFolderResult
            )

    async def _is_woken(self, cursor: str) -> bool:
        url = self.notifserver + "/v1/files/list_folder/longpoll"
        try:
            result: LongpollResult = await post_to(
                self.session, url, Longpoll(cursor, POLL_S), LongpollResult, {}, timeout_s=POLL_S + 100
            )
        except Failed:
            await asyncio.sleep(random.uniform(*RETRY_S))
            return False
        return result.changes

    @property
    def last_acked(self) -> int:
        """The newest jid that was acknowledged."""
        return max(self.acked.values(), default=0)

    async def sees_all(self) -> bool:
        """Whether all that was acknowledged is seen in time, for which `follow` must run."""
        deadline = asyncio.get_running_loop().time() + WAKE_S
        while self.seen_jid < self.last_acked:
            if asyncio.get_running_loop().time() > deadline:
                return False
            await asyncio.sleep(0.02)
        return True


def empty_file(path: str) -> CommitFile:
    """The operation that makes an empty file, which needs no block."""
    return CommitFile(path=path, blocks=[], size=0, content_hash=EMPTY_HASH, client_modified=TIME)


def one_block_file(path: str, block: BlockHash, size: int) -> CommitFile:
    """The operation that makes a file of one block."""
    return CommitFile(
        path=path,
        blocks=[block.hex()],
        size=size,
        content_hash=content_hash([block]).hex(),
        client_modified=TIME,
    )


async def surely(call: Callable[[], Awaitable[T]]) -> T:
    """What a call answers once it succeeds.

    Raises:
        Failed: it was refused for good, or for too long.
    """
    deadline = asyncio.get_running_loop().time() + DEADLINE_S
    while True:
        try:
            return await call()
        except Failed as error:
            is_final = error.status is not None and error.status < 500 and error.status != 429
            if is_final or asyncio.get_running_loop().time() > deadline:
                raise
            await asyncio.sleep(0.05)


async def put_to(session: aiohttp.ClientSession, target: UploadTarget, data: bytes) -> None:
    """Send a block to its target.

    Raises:
        Failed: anything but 200.
    """
    timeout = aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S)
    try:
        async with session.put(target.url, data=data, headers=target.headers, timeout=timeout) as response:
            text = await response.text(errors="replace")
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise Failed(None, repr(error)) from error
    if response.status != 200:
        raise Failed(response.status, text)


async def post_to(
    session: aiohttp.ClientSession,
    url: str,
    body: msgspec.Struct | bytes,
    answer: type[Any],
    headers: dict[str, str],
    timeout_s: float = REQUEST_TIMEOUT_S,
) -> Any:
    """One POST and its decoded answer.

    Raises:
        Failed: anything but 200.
    """
    data = body if isinstance(body, bytes) else msgspec.json.encode(body)
    timeout = aiohttp.ClientTimeout(total=timeout_s)
    try:
        async with session.post(url, data=data, headers=headers, timeout=timeout) as response:
            text = await response.read()
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise Failed(None, repr(error)) from error
    if response.status != 200:
        raise Failed(response.status, text.decode(errors="replace"))
    return msgspec.json.decode(text, type=answer)
