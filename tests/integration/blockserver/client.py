"""A user's side of the block API."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import aiohttp
import msgspec

from tests.integration.blockserver.servers import Stack
from tests.support.services import User
from wire.blocks import (
    MAX_PACK_BYTES,
    Frame,
    FrameStatus,
    MissingResult,
    PutPackResult,
    PutVerdict,
    format_frame_head,
    iter_frames,
)
from wire.errors import ErrorBody, ErrorInfo
from wire.hashes import block_hash
from wire.ids import format_ns_id


class BlockClient:
    """What a user does with blocks."""

    def __init__(self, stack: Stack, user: User):
        self.stack = stack
        self.user = user
        self.ns = format_ns_id(user.root_ns)
        self.auth = stack.auth(user)

    def url(self, data: bytes) -> str:
        return f"{self.stack.blockserver.url}/v1/blocks/{block_hash(data).hex()}?ns={self.ns}"

    async def put(self, data: bytes, body: object = None) -> ErrorInfo | None:
        sent = BytesIO(data) if body is None else BytesIO(body) if isinstance(body, bytes) else body
        async with self.stack.http.put(self.url(data), data=sent, headers=self.auth) as answer:
            text = await answer.read()
        if answer.status != 200:
            return msgspec.json.decode(text, type=ErrorBody).error
        return msgspec.json.decode(text, type=PutVerdict).error

    async def get(self, data: bytes, **headers: str) -> tuple[int, bytes, aiohttp.ClientResponse]:
        async with self.stack.http.get(self.url(data), headers=self.auth | headers) as answer:
            return answer.status, await answer.read(), answer

    async def missing(self, *blocks: bytes) -> list[str]:
        body = {"ns_id": self.ns, "hashes": [block_hash(b).hex() for b in blocks]}
        url = f"{self.stack.blockserver.url}/v1/blocks/missing"
        async with self.stack.http.post(url, json=body, headers=self.auth) as answer:
            assert answer.status == 200, await answer.text()
            return msgspec.json.decode(await answer.read(), type=MissingResult).missing

    async def metrics(self) -> str:
        """What Prometheus would scrape."""
        async with self.stack.http.get(f"{self.stack.blockserver.url}/metrics") as answer:
            return await answer.text()

    async def count(self, sample: str) -> float:
        """One number of them."""
        lines = [x for x in (await self.metrics()).splitlines() if x.startswith(sample + " ")]
        return float(lines[0].rpartition(" ")[2])

    async def put_pack(self, pack: bytes) -> list[PutVerdict]:
        url = f"{self.stack.blockserver.url}/v1/blocks/put_pack?ns={self.ns}"
        async with self.stack.http.post(url, data=BytesIO(pack), headers=self.auth) as answer:
            assert answer.status == 200, await answer.text()
            return msgspec.json.decode(await answer.read(), type=PutPackResult).blocks

    async def get_pack(self, blocks: Sequence[bytes]) -> list[Frame]:
        body = {"ns_id": self.ns, "hashes": [block_hash(b).hex() for b in blocks]}
        url = f"{self.stack.blockserver.url}/v1/blocks/get_pack"
        async with self.stack.http.post(url, json=body, headers=self.auth) as answer:
            assert answer.status == 200, await answer.text()
            pack = await answer.read()
        assert len(pack) <= MAX_PACK_BYTES
        return list(iter_frames(pack))


def pack_of(*blocks: bytes) -> bytes:
    return b"".join(format_frame_head(block_hash(b), FrameStatus.OK, len(b)) + b for b in blocks)


def object_paths(stack: Stack, data: bytes) -> list[Path]:
    """The files that hold a block: one for each generation."""
    digits = block_hash(data).hex()
    place = stack.object_dir if stack.s3 else stack.object_dir / digits[:3]
    return [p for p in place.iterdir() if p.name.startswith(digits)] if place.is_dir() else []


def object_names(stack: Stack, data: bytes) -> list[str]:
    """The objects that hold a block."""
    return [p.name for p in object_paths(stack, data)]
