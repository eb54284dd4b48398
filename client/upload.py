"""Blocks to the server: read, hash, ask which are missing, send those. Committing is commit.py's."""

import asyncio
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from client.calls import Calls
from client.model import Fingerprint
from client.reading import Hashed, OpenFile
from client.transfer import Failed, failure
from wire.blocks import (
    FRAME_OVERHEAD_BYTES,
    MAX_PACK_BLOCKS,
    MAX_PACK_BYTES,
    FrameStatus,
    PutVerdict,
    format_frame_head,
)
from wire.errors import ErrorInfo
from wire.faults import declare, fault_point
from wire.hashes import BLOCK_BYTES, BlockHash, block_hash

declare("client.upload.pack_sent", "client.upload.block_sent", "client.upload.read")

WINDOW_BLOCKS = 2
WINDOWS = 4
"""A big file is read, asked for and sent by 8 MiB, with at most 32 MiB of it in memory: one piece is read
while those before it are sent."""
STREAMED_BLOCK_BYTES = 2**20
"""A block from this size on is sent by itself, smaller ones in packs."""


@dataclass(frozen=True, slots=True)
class UploadJob:
    """A local file whose blocks the server is to have, or which only wants to be hashed."""

    id: int
    path: bytes
    fingerprint: Fingerprint
    is_hash_only: bool = False
    known: frozenset[BlockHash] = frozenset()
    """Blocks that the namespace holds for certain: those of the rev that was read last."""

    @property
    def size(self) -> int:
        """In bytes."""
        return self.fingerprint.size


@dataclass(frozen=True, slots=True)
class Prepared:
    """The file has been read; unless it was only to be hashed the server has all its blocks."""

    job: UploadJob
    hashed: Hashed


class Uploader:
    """Carries out upload jobs; `counts` takes what was sent."""

    def __init__(self, calls: Calls, counts: Counter[str]):
        self._calls, self.counts = calls, counts

    async def run_group(self, jobs: list[UploadJob]) -> list[Prepared | Failed]:
        """Small files, one block each at most, in one or two packs."""
        reads = await asyncio.to_thread(_read_group, jobs)
        wanted: dict[BlockHash, bytes] = {}
        for job, result, data in reads:
            if isinstance(result, Prepared) and data and not job.is_hash_only:
                block = result.hashed.blocks[0]
                if block not in job.known:
                    wanted[block] = data
        errors = await self._send_missing(wanted)
        results: list[Prepared | Failed] = []
        for job, result, _ in reads:
            # The blocks that were read, as the file may have another size now than when it was scanned.
            blocks = result.hashed.blocks if isinstance(result, Prepared) else []
            bad = next((errors[block] for block in blocks if block in errors), None)
            results.append(result if bad is None else Failed(job.id, bad.code, bad.message))
        return results

    async def run_big(self, job: UploadJob) -> Prepared | Failed:
        """A file of many blocks, by windows."""
        with await asyncio.to_thread(OpenFile, job.path) as file:
            try:
                blocks = await self._send_windows(job, file)
            except ExceptionGroup as several:
                first = several.exceptions[0]
                if isinstance(first, _BlockRefused):
                    return Failed(job.id, first.info.code, first.info.message)
                raise first from several
            return Prepared(job, await asyncio.to_thread(file.hashed, blocks))

    async def _send_windows(self, job: UploadJob, file: OpenFile) -> list[BlockHash]:
        count = -(-file.fingerprint.size // BLOCK_BYTES)
        blocks: list[BlockHash] = []
        room = asyncio.Semaphore(WINDOWS)
        async with asyncio.TaskGroup() as group:
            for start in range(0, count, WINDOW_BLOCKS):
                await room.acquire()
                window = range(start, min(start + WINDOW_BLOCKS, count))
                hashes, wanted = await asyncio.to_thread(_read_window, file, window, job.known)
                fault_point("client.upload.read")
                blocks += hashes
                if job.is_hash_only or not wanted:
                    room.release()
                else:
                    group.create_task(self._send_all(wanted)).add_done_callback(lambda _: room.release())
                del wanted
        return blocks

    async def _send_all(self, wanted: dict[BlockHash, bytes]) -> None:
        for info in (await self._send_missing(wanted)).values():
            raise _BlockRefused(info)

    async def _send_missing(self, wanted: dict[BlockHash, bytes]) -> dict[BlockHash, ErrorInfo]:
        """Send what the namespace lacks; gives the blocks that were refused, and why."""
        if not wanted:
            return {}
        missing = await self._calls.ask_missing(list(wanted))
        small: dict[BlockHash, bytes] = {}
        verdicts: list[PutVerdict] = []
        big: list[asyncio.Task[PutVerdict]] = []
        for block in missing:
            data = wanted[block]
            if len(data) >= STREAMED_BLOCK_BYTES:
                big.append(asyncio.create_task(self._put(block, data)))
            else:
                small[block] = data
        try:
            # Under a limit a pack takes no longer than a block.
            max_bytes = MAX_PACK_BYTES if self._calls.up.rate is None else BLOCK_BYTES
            for pack in _packs(small, max_bytes):
                verdicts += (await self._calls.put_pack(pack)).blocks
                fault_point("client.upload.pack_sent")
            verdicts += [await task for task in big]
        finally:
            for task in big:
                task.cancel()
            await asyncio.gather(*big, return_exceptions=True)
        errors = {BlockHash(bytes.fromhex(v.hash)): v.error for v in verdicts if v.error is not None}
        for block in missing:
            if block not in errors:
                self.counts["blocks_sent"] += 1
                self.counts["bytes_sent"] += len(wanted[block])
        return errors

    async def _put(self, block: BlockHash, data: bytes) -> PutVerdict:
        verdict = await self._calls.put_block(block, data)
        fault_point("client.upload.block_sent")
        return verdict


class _BlockRefused(Exception):
    def __init__(self, info: ErrorInfo):
        super().__init__(info.message)
        self.info = info


def _packs(blocks: dict[BlockHash, bytes], max_bytes: int) -> Iterable[bytes]:
    """As few packs as the limits allow."""
    parts: list[bytes] = []
    size = 0
    for block, data in blocks.items():
        added = FRAME_OVERHEAD_BYTES + len(data)
        if parts and (len(parts) >= 2 * MAX_PACK_BLOCKS or size + added > max_bytes):
            yield b"".join(parts)
            parts, size = [], 0
        parts += [format_frame_head(block, FrameStatus.OK, len(data)), data]
        size += added
    if parts:
        yield b"".join(parts)


def _read_group(jobs: list[UploadJob]) -> list[tuple[UploadJob, Prepared | Failed, bytes]]:
    """Read and hash small files, in a thread; the data of each comes along."""
    results: list[tuple[UploadJob, Prepared | Failed, bytes]] = []
    for job in jobs:
        try:
            with OpenFile(job.path) as file:
                data = b"".join(file.iter_blocks()) if file.fingerprint.size <= BLOCK_BYTES else None
                if data is None:
                    results.append((job, Failed(job.id, "changing", "the file is growing"), b""))
                    continue
                hashed = file.hashed([block_hash(data)] if data else [])
            results.append((job, Prepared(job, hashed), data))
        except Exception as problem:
            results.append((job, failure(job.id, problem), b""))
    fault_point("client.upload.read")
    return results


def _read_window(
    file: OpenFile, window: range, known: frozenset[BlockHash]
) -> tuple[list[BlockHash], dict[BlockHash, bytes]]:
    """Hash some blocks, in a thread; gives those that may have to be sent with their data."""
    hashes: list[BlockHash] = []
    wanted: dict[BlockHash, bytes] = {}
    for index in window:
        data = file.read_block(index)
        block = block_hash(data)
        hashes.append(block)
        if block not in known:
            wanted[block] = data
    return hashes, wanted
