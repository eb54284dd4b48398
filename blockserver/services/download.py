"""Handing blocks out. A block leaves only after its whole hash has been checked, also for a range of it."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Sequence

from blockserver.model.packs import PlannedFrame, plan_download
from blockserver.services.metrics import BlockMetrics
from blockserver.storage.backend import Backend, ObjectMissing, ObjectName
from blockserver.storage.index import BlockIndex
from runtime.logs import get_log
from wire.blocks import FrameStatus
from wire.errors import BlockCorrupt, BlockNotFound, ShardboxError
from wire.hashes import BLOCK_BYTES, BlockHash, block_hash
from wire.ids import NsId
from wire.internal import BlockPlace, Caller

_log = get_log(__name__)

READ_AHEAD_BYTES = 2 * BLOCK_BYTES
READ_AHEAD_BLOCKS = 16
"""What is read of a pack before the client has taken what comes earlier: both store threads and network are
busy, and a pack needs no more memory than this and the block before it."""
_INLINE_HASH_BYTES = 64 * 1024
"""40 µs of hashing; a hop to a thread costs as much."""


class DownloadService:
    """Reads blocks of a namespace."""

    def __init__(
        self,
        index: BlockIndex,
        backend: Backend,
        metrics: BlockMetrics,
        *,
        url_expires_s: int | None = None,
    ):
        """`url_expires_s`: how long an address in the store holds; None: none are handed out."""
        self._index = index
        self._backend = backend
        self._metrics = metrics
        self._url_expires_s = url_expires_s

    async def list_missing(self, caller: Caller, ns_id: NsId, hashes: Sequence[BlockHash]) -> list[BlockHash]:
        """Those that the namespace has not got ready, each once, in their order."""
        distinct = list(dict.fromkeys(hashes))
        places = await self._index.locate(caller, ns_id, distinct) if distinct else []
        return [name for name, place in zip(distinct, places, strict=True) if place is None]

    async def get_place(self, caller: Caller, ns_id: NsId, name: BlockHash) -> BlockPlace:
        """Where a block of the namespace lies.

        Raises:
            BlockNotFound: the namespace has not got it.
        """
        (place,) = await self._index.locate(caller, ns_id, [name])
        if place is None:
            self._metrics.downloaded.labels("not_found").inc()
            raise BlockNotFound
        return place

    async def find_url(self, name: BlockHash, place: BlockPlace) -> str | None:
        """A signed address of the block in the store itself; None: it has none, or none may be handed out.

        Raises:
            UpstreamUnavailable: there are no credentials to sign with now.
        """
        if self._url_expires_s is None:
            return None
        object_name = ObjectName(name, place.generation)
        signed = await self._backend.presign_get(object_name, expires_s=self._url_expires_s)
        if signed is None:
            return None
        self._metrics.downloaded.labels("redirected").inc()
        return signed.url

    async def read_block(self, name: BlockHash, place: BlockPlace) -> bytes:
        """The whole block, checked.

        Raises:
            BlockCorrupt: the object is missing or no longer what was written.
            UpstreamUnavailable: the store cannot read it now.
        """
        try:
            data = await self._read_checked(name, place.generation, place.size)
        except ShardboxError as error:
            outcome = "corrupt" if isinstance(error, BlockCorrupt) else "unavailable"
            self._metrics.downloaded.labels(outcome).inc()
            raise
        self._metrics.downloaded.labels("sent").inc()
        return data

    async def plan_pack(self, caller: Caller, ns_id: NsId, hashes: Sequence[BlockHash]) -> list[PlannedFrame]:
        """One frame per hash, in their order, of which `iter_pack` makes the pack."""
        distinct = list(dict.fromkeys(hashes))
        places = await self._index.locate(caller, ns_id, distinct) if distinct else []
        by_hash = dict(zip(distinct, places, strict=True))
        found = [by_hash[name] for name in hashes]
        return plan_download(hashes, [(place.generation, place.size) if place else None for place in found])

    async def iter_pack(
        self, frames: Sequence[PlannedFrame]
    ) -> AsyncGenerator[tuple[BlockHash, FrameStatus, bytes], None]:
        """The frames in their order, with bytes where the status is OK; close it when the client leaves."""
        ahead: deque[tuple[PlannedFrame, asyncio.Task[tuple[FrameStatus, bytes]]]] = deque()
        ahead_bytes = 0
        todo = deque(frames)
        try:
            while todo or ahead:
                while (
                    todo
                    and len(ahead) < READ_AHEAD_BLOCKS
                    and (not ahead or ahead_bytes + todo[0].size <= READ_AHEAD_BYTES)
                ):
                    frame = todo.popleft()
                    ahead.append((frame, asyncio.create_task(self._read_frame(frame))))
                    ahead_bytes += frame.size
                frame, task = ahead.popleft()
                status, data = await task
                ahead_bytes -= frame.size
                self._metrics.downloaded.labels(_OUTCOMES[status]).inc()
                yield frame.hash, status, data
        finally:
            for _, task in ahead:
                task.cancel()

    async def _read_frame(self, frame: PlannedFrame) -> tuple[FrameStatus, bytes]:
        if frame.status is not FrameStatus.OK:
            return frame.status, b""
        try:
            return FrameStatus.OK, await self._read_checked(frame.hash, frame.generation, frame.size)
        except BlockCorrupt:
            return FrameStatus.CORRUPT, b""
        except ShardboxError:
            return FrameStatus.UNAVAILABLE, b""

    async def _read_checked(self, name: BlockHash, generation: bytes, size: int) -> bytes:
        where = f"{name.hex()}.{generation.hex()}"
        try:
            with self._metrics.store_seconds.labels("get").time():
                data = await self._backend.get(ObjectName(name, generation))
        except ObjectMissing:
            self._metrics.damaged.labels("missing").inc()
            _log.error("object_missing", object=where)
            raise BlockCorrupt("the stored block is gone") from None
        except ShardboxError as error:
            _log.warning("object_unreadable", object=where, error=str(error))
            raise
        if len(data) != size or await _hash_of(data) != name:
            self._metrics.damaged.labels("corrupt").inc()
            _log.error("object_corrupt", object=where, size_bytes=len(data), expected_bytes=size)
            raise BlockCorrupt
        self._metrics.downloaded_bytes.inc(len(data))
        return data


_OUTCOMES = {
    FrameStatus.OK: "sent",
    FrameStatus.NOT_FOUND: "not_found",
    FrameStatus.UNAVAILABLE: "unavailable",
    FrameStatus.CORRUPT: "corrupt",
    FrameStatus.OVER_LIMIT: "over_limit",
}


async def _hash_of(data: bytes) -> BlockHash:
    if len(data) <= _INLINE_HASH_BYTES:
        return block_hash(data)
    return await asyncio.to_thread(block_hash, data)
