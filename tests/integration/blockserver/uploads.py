"""A user's side of upload sessions, over any metaserver."""

import os
import urllib.error
import urllib.request
from io import BytesIO
from typing import Any, TypeVar

import msgspec

from tests.integration.blockserver.servers import ServerProcess, Stack
from tests.support.services import User
from wire.blocks import PutVerdict
from wire.errors import ErrorBody, ErrorInfo
from wire.hashes import BLOCK_BYTES, BlockHash, block_hash, content_hash
from wire.sessions import (
    CommittedFile,
    CompleteResult,
    FileMetadata,
    UploadSession,
    UploadTarget,
)

T = TypeVar("T")


class Refused(Exception):
    """An answer with an error in it."""

    def __init__(self, status: int, info: ErrorInfo):
        super().__init__(status, info)
        self.status = status
        self.info = info
        self.code = info.code


class Draft:
    """A file that is to be uploaded."""

    def __init__(self, data: bytes, name: str | None = None):
        self.name = name or f"{os.urandom(6).hex()}.bin"
        self.blocks = [data[i : i + BLOCK_BYTES] for i in range(0, len(data), BLOCK_BYTES)]
        self.hashes = [block_hash(block) for block in self.blocks]
        self.size = len(data)
        self.checksum = content_hash(self.hashes).hex()

    @property
    def block_list(self) -> list[str]:
        return [block.hex() for block in self.hashes]

    def block(self, name: str) -> bytes:
        return self.blocks[self.block_list.index(name)]

    def opening(self, *, told: bool = True, **fields: Any) -> dict[str, Any]:
        body = {"file_name": self.name, "file_size": self.size, "checksum": self.checksum}
        return body | ({"block_list": self.block_list} if told else {}) | fields

    @classmethod
    def random(cls, size: int = 5_000, name: str | None = None) -> "Draft":
        return cls(os.urandom(size), name)

    @classmethod
    def of_hashes(cls, count: int) -> "Draft":
        """A large file of which only the hashes are known."""
        draft = cls(b"")
        draft.hashes = [BlockHash(os.urandom(32)) for _ in range(count)]
        draft.size = count * BLOCK_BYTES
        draft.checksum = content_hash(draft.hashes).hex()
        return draft


class Uploader:
    """What a user does with upload sessions."""

    def __init__(self, stack: Stack, user: User, metaserver: ServerProcess | None = None):
        self.stack = stack
        self.user = user
        self.auth = stack.auth(user)
        self.metaserver = metaserver or stack.metaserver

    def over(self, metaserver: ServerProcess) -> "Uploader":
        return Uploader(self.stack, self.user, metaserver)

    async def open(self, body: dict[str, Any]) -> UploadSession:
        return await self._post(self.metaserver, "/files/upload_session", body, UploadSession)

    async def commit(self, body: dict[str, Any]) -> CommittedFile:
        return await self._post(self.metaserver, "/files/commit", body, CommittedFile)

    async def complete(self, upload_id: str, *hashes: str) -> list[PutVerdict]:
        body = {"upload_id": upload_id, "hashes": list(hashes)}
        return (await self._post(self.stack.blockserver, "/blocks/complete", body, CompleteResult)).blocks

    async def completed(self, upload_id: str, *hashes: str) -> list[str | None]:
        """The codes of the verdicts; None: ready."""
        verdicts = await self.complete(upload_id, *hashes)
        assert [verdict.hash for verdict in verdicts] == list(hashes)
        return [verdict.error.code if verdict.error else None for verdict in verdicts]

    async def metadata(self, file_id: str) -> FileMetadata:
        url = f"{self.metaserver.url}/files/metadata"
        async with self.stack.http.get(url, params={"file_id": file_id}, headers=self.auth) as answer:
            return _read(answer.status, await answer.read(), FileMetadata)

    async def put(self, target: UploadTarget, data: bytes) -> None:
        """Send a block to its target, as any HTTP client would."""
        assert (target.method, target.size) == ("PUT", len(data))
        await self.put_to(target.url, data, target.headers)

    async def put_to(self, url: str, data: bytes, headers: dict[str, str] | None = None) -> None:
        async with self.stack.http.put(url, data=BytesIO(data), headers=headers) as answer:
            if answer.status != 200:
                raise _refused(answer.status, await answer.read())

    async def send(self, draft: Draft, session: UploadSession) -> None:
        """Put all absent blocks to their targets and complete them."""
        for target in session.targets:
            await self.put(target, draft.block(target.hash))
        if session.targets:
            hashes = [target.hash for target in session.targets]
            assert await self.completed(session.upload_id, *hashes) == [None] * len(hashes)

    async def upload(self, draft: Draft, **fields: Any) -> CommittedFile:
        """A whole upload."""
        session = await self.open(draft.opening())
        await self.send(draft, session)
        return await self.commit({"upload_id": session.upload_id, "block_list": draft.block_list} | fields)

    async def _post(self, server: ServerProcess, path: str, body: dict[str, Any], answers: type[T]) -> T:
        async with self.stack.http.post(server.url + path, json=body, headers=self.auth) as answer:
            return _read(answer.status, await answer.read(), answers)


def put_plainly(target: UploadTarget, data: bytes) -> int:
    """The status of a PUT by a client that knows nothing of S3."""
    request = urllib.request.Request(target.url, data, target.headers, method=target.method)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def _read(status: int, text: bytes, answers: type[T]) -> T:
    if status != 200:
        raise _refused(status, text)
    return msgspec.json.decode(text, type=answers)


def _refused(status: int, text: bytes) -> Exception:
    try:
        return Refused(status, msgspec.json.decode(text, type=ErrorBody).error)
    except msgspec.MsgspecError:
        return AssertionError(f"{status}: {text[:500]!r}")
