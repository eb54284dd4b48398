"""The block API (routes and bodies: wire/blocks.py)."""

import asyncio
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, cast

import tornado.iostream
import tornado.web
from msgspec import Meta
from tornado.http1connection import HTTP1Connection

from blockserver.handlers.base import CallerHandler
from blockserver.model.packs import MAX_UPLOAD_BYTES, PlannedFrame, parse_upload
from blockserver.model.ranges import parse_range
from blockserver.services.download import READ_AHEAD_BYTES, DownloadService
from blockserver.services.upload import UploadService
from runtime.bodies import JSON_BODY_BYTES, ByteBudget
from runtime.metrics import ServerMetrics
from runtime.openapi import Parameter, Raw, endpoint
from runtime.tokens import TokenVerifier
from wire.blocks import (
    MAX_MISSING_HASHES,
    MAX_PACK_BLOCKS,
    PACK_CONTENT_TYPE,
    GetPack,
    MissingBlocks,
    MissingResult,
    PutPackResult,
    PutVerdict,
    format_frame_head,
)
from wire.errors import (
    BadRequest,
    BlockCorrupt,
    BlockNotFound,
    Forbidden,
    HashMismatch,
    RangeNotSatisfiable,
    StorageFull,
    TooManyEntries,
    UploadExpired,
    error_from_info,
)
from wire.hashes import BLOCK_BYTES, BlockHash, parse_hash
from wire.ids import parse_ns_id
from wire.internal import BlockPlace

WRITE_BYTES = 2**20
"""What is handed to a connection at a time; the next piece waits until the client has taken it."""
STALL_TIMEOUT_S = 60.0
"""A client that takes less than 1 MiB in a minute is hung up on: it holds memory that others wait for."""
_HASH = Parameter(
    "hash",
    "path",
    Annotated[str, Meta(pattern="^[0-9a-f]{64}$")],
    "SHA-256 of the block's bytes.",
    is_required=True,
)
_NS = Parameter(
    "ns",
    "query",
    Annotated[str, Meta(pattern="^(0|[1-9][0-9]{0,18})$")],
    "The namespace that the block is in, or goes into.",
    is_required=True,
)
_RANGE = Parameter("Range", "header", str, "One range of bytes; anything else means the whole block.")
_IF_RANGE = Parameter("If-Range", "header", str, "The ETag for which alone the range is meant.")
_REDIRECT = Parameter(
    "redirect",
    "query",
    Annotated[str, Meta(pattern="^[01]$")],
    "1: if the store can hand the block out itself, its address there is the answer. "
    "What comes from there has been checked by nobody: compare its SHA-256.",
)
_ELSEWHERE = Raw(
    "application/octet-stream",
    "Nothing: GET the block from Location within a quarter of an hour, without a token.",
    0,
    (Parameter("Location", "header", str, "A signed address in the store."),),
)
_BLOCK = Raw(
    "application/octet-stream",
    "The block's bytes.",
    BLOCK_BYTES,
    (
        Parameter("ETag", "header", str, "The block's hash, in quotes."),
        Parameter("Accept-Ranges", "header", str, "bytes"),
    ),
)
_PART = Raw(
    "application/octet-stream",
    "The bytes of the range.",
    BLOCK_BYTES,
    (*_BLOCK.headers, Parameter("Content-Range", "header", str, "Which bytes of how many.")),
)
_PACK = Raw(
    PACK_CONTENT_TYPE,
    "A run of frames: hash (32 bytes), status (1), length (4, big-endian), and so many bytes.",
    MAX_UPLOAD_BYTES,
)


class _SendingHandler(CallerHandler):
    """Sends large answers in pieces."""

    async def send(self, piece: bytearray | memoryview) -> None:
        """Hand a piece over and wait until it is on its way.

        Raises:
            tornado.web.Finish: the client has gone or does not read.
        """
        self.write(bytes(piece))
        try:
            async with asyncio.timeout(STALL_TIMEOUT_S):
                await self.flush()
        except (TimeoutError, tornado.iostream.StreamClosedError):
            cast(HTTP1Connection, self.request.connection).close()
            raise tornado.web.Finish from None


class BlockHandler(_SendingHandler):
    """One block: PUT and GET /v1/blocks/<hash>?ns=<ns_id>."""

    route = "block"
    limit_bytes: ClassVar[int] = BLOCK_BYTES

    def initialize(  # type: ignore[override]
        self,
        *,
        metrics: ServerMetrics,
        verifier: TokenVerifier,
        read_budget: ByteBudget,
        uploads: UploadService,
        downloads: DownloadService,
    ) -> None:
        """Wired by the route table."""
        super().initialize(metrics=metrics, verifier=verifier)
        self.read_budget = read_budget
        self.uploads = uploads
        self.downloads = downloads
        self._size_told: int | None = None

    def check_head(self) -> None:
        """Hash and namespace are well formed."""
        self.hash = parse_hash(self.path_args[0])
        self.ns_id = self.ns_argument()

    @endpoint(
        Raw("application/octet-stream", "The block's bytes.", BLOCK_BYTES),
        PutVerdict,
        HashMismatch,
        Forbidden,
        UploadExpired,
        StorageFull,
        parameters=(_HASH, _NS),
    )
    async def put(self, _hash: str) -> None:
        """Take a block in."""
        verdict = await self.uploads.put_block(self.caller, self.ns_id, self.hash, self.body)
        if verdict.error is not None:
            raise error_from_info(verdict.error, status=500)
        self.answer(verdict)

    @endpoint(
        None,
        _BLOCK,
        BlockNotFound,
        BlockCorrupt,
        RangeNotSatisfiable,
        parameters=(_HASH, _NS, _REDIRECT, _RANGE, _IF_RANGE),
        also={206: _PART, 307: _ELSEWHERE},
    )
    async def get(self, _hash: str) -> None:
        """Hand a block out, whole or one range of it, or say where it is to be had."""
        is_direct = self._wants_redirect()
        place = await self.downloads.get_place(self.caller, self.ns_id, self.hash)
        if is_direct and (url := await self.downloads.find_url(self.hash, place)) is not None:
            self.clear_header("Content-Type")
            self.redirect(url, status=307)
            return
        await self._send_block(place)

    def _wants_redirect(self) -> bool:
        given = self.request.query_arguments.get("redirect", [b"0"])
        if given not in ([b"0"], [b"1"]):
            raise BadRequest("redirect is 0 or 1")
        return given == [b"1"]

    async def _send_block(self, place: BlockPlace) -> None:
        etag = f'"{self.hash.hex()}"'
        if_range = self.request.headers.get("If-Range")
        wanted = self.request.headers.get("Range") if if_range in (None, etag) else None
        try:
            part = parse_range(wanted, place.size)
        except RangeNotSatisfiable:
            self._size_told = place.size
            raise
        with self.read_budget.take(place.size, self.owner):
            view = memoryview(await self.downloads.read_block(self.hash, place))
            if part is not None:
                view = view[part.start : part.end]
                self.set_status(206)
                self.set_header("Content-Range", part.format_content_range(place.size))
            self.set_header("Content-Type", "application/octet-stream")
            self.set_header("Content-Length", str(len(view)))
            self.set_header("Accept-Ranges", "bytes")
            self.set_header("ETag", etag)
            for at in range(0, len(view), WRITE_BYTES):
                await self.send(view[at : at + WRITE_BYTES])
            self.finish()

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """The error; for a range beyond the end, with the block's size."""
        if self._size_told is not None:
            self.set_header("Content-Range", f"bytes */{self._size_told}")
        super().write_error(status_code, **kwargs)


class MissingHandler(CallerHandler):
    """POST /v1/blocks/missing: MissingBlocks -> MissingResult."""

    route = "blocks_missing"
    limit_bytes: ClassVar[int] = JSON_BODY_BYTES

    def initialize(  # type: ignore[override]
        self,
        *,
        metrics: ServerMetrics,
        verifier: TokenVerifier,
        downloads: DownloadService,
    ) -> None:
        """Wired by the route table."""
        super().initialize(metrics=metrics, verifier=verifier)
        self.downloads = downloads

    @endpoint(MissingBlocks, MissingResult, TooManyEntries)
    async def post(self) -> None:
        """Say what the namespace has not got."""
        request = self.body_as(MissingBlocks)
        hashes = _parse_hashes(request.hashes, MAX_MISSING_HASHES)
        missing = await self.downloads.list_missing(self.caller, parse_ns_id(request.ns_id), hashes)
        self.answer(MissingResult([name.hex() for name in missing]))


class PutPackHandler(CallerHandler):
    """POST /v1/blocks/put_pack?ns=<ns_id>: a pack -> PutPackResult."""

    route = "blocks_put_pack"
    limit_bytes: ClassVar[int] = MAX_UPLOAD_BYTES

    def initialize(  # type: ignore[override]
        self,
        *,
        metrics: ServerMetrics,
        verifier: TokenVerifier,
        uploads: UploadService,
    ) -> None:
        """Wired by the route table."""
        super().initialize(metrics=metrics, verifier=verifier)
        self.uploads = uploads

    def check_head(self) -> None:
        """The namespace is well formed."""
        self.ns_id = self.ns_argument()

    @endpoint(_PACK, PutPackResult, TooManyEntries, Forbidden, parameters=(_NS,))
    async def post(self) -> None:
        """Take the blocks in, each with its verdict."""
        frames = parse_upload(self.body)
        self.answer(PutPackResult(await self.uploads.put_pack(self.caller, self.ns_id, frames)))


class GetPackHandler(_SendingHandler):
    """POST /v1/blocks/get_pack: GetPack -> a pack."""

    route = "blocks_get_pack"
    limit_bytes: ClassVar[int] = JSON_BODY_BYTES

    def initialize(  # type: ignore[override]
        self,
        *,
        metrics: ServerMetrics,
        verifier: TokenVerifier,
        read_budget: ByteBudget,
        downloads: DownloadService,
    ) -> None:
        """Wired by the route table."""
        super().initialize(metrics=metrics, verifier=verifier)
        self.read_budget = read_budget
        self.downloads = downloads

    @endpoint(GetPack, Raw(PACK_CONTENT_TYPE, _PACK.description), TooManyEntries)
    async def post(self) -> None:
        """Send the blocks in the order in which they were asked for."""
        request = self.body_as(GetPack)
        hashes = _parse_hashes(request.hashes, MAX_PACK_BLOCKS)
        frames = await self.downloads.plan_pack(self.caller, parse_ns_id(request.ns_id), hashes)
        with self.read_budget.take(_held_bytes(frames), self.owner):
            await self._send_frames(frames)

    async def _send_frames(self, frames: Sequence[PlannedFrame]) -> None:
        self.set_header("Content-Type", PACK_CONTENT_TYPE)
        pending = bytearray()
        pack = self.downloads.iter_pack(frames)
        try:
            async for name, status, data in pack:
                pending += format_frame_head(name, status, len(data))
                pending += data
                if len(pending) >= WRITE_BYTES:
                    await self.send(pending)
                    pending = bytearray()
        finally:
            await pack.aclose()
        self.finish(bytes(pending))


def _held_bytes(frames: Sequence[PlannedFrame]) -> int:
    """The memory that sending takes at most: read ahead, the block at hand and its copy on the way out."""
    return min(sum(frame.byte_count for frame in frames), READ_AHEAD_BYTES + 2 * (BLOCK_BYTES + WRITE_BYTES))


def _parse_hashes(texts: Sequence[str], limit: int) -> list[BlockHash]:
    if len(texts) > limit:
        raise TooManyEntries(f"at most {limit} hashes a request")
    return [parse_hash(text) for text in texts]
