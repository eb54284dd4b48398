"""Blocks from the server, or from elsewhere on this disk, into temporary files (apply.py places them)."""

import asyncio
import contextlib
import errno
import os
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from client.calls import Calls
from client.disk import fingerprint_of
from client.model import Fingerprint
from client.transfer import Failed, failure
from wire.blocks import MAX_PACK_BLOCKS, FrameStatus, iter_frames
from wire.errors import BlockCorrupt, BlockNotFound, ContentMismatch, UpstreamUnavailable
from wire.faults import declare, fault_point
from wire.hashes import BLOCK_BYTES, BlockHash, block_hash, block_size, content_hash

declare("client.download.fetched", "client.download.block_written", "client.download.temp_written")

FETCH_BLOCKS = 2
"""Blocks of a big file per request: 8 MiB, with four requests under way."""
FETCHES = 4
RESERVE_BYTES = 8 * 2**20
"""A download leaves so much of the disk free: the state needs room, and so does the person at work."""
MAX_ROUNDS = 5
"""How often what a pack could not carry is asked for again before the transfer rests."""

LocalPlaces = Callable[[Iterable[BlockHash]], dict[BlockHash, list[tuple[bytes, int]]]]
"""Where on this disk blocks may be found: paths and positions."""


@dataclass(frozen=True, slots=True)
class DownloadJob:
    """A remote file that is wanted on the disk."""

    id: int
    rev: str
    size: int
    content: bytes
    modified: str
    blocks: list[BlockHash] | None
    temp: bytes


@dataclass(frozen=True, slots=True)
class Fetched:
    """The whole content lies in the temporary file, flushed and verified."""

    job: DownloadJob
    blocks: list[BlockHash]
    fingerprint: Fingerprint


class Downloader:
    """Carries out download jobs; `counts` takes what was fetched and what was copied."""

    def __init__(self, calls: Calls, places: LocalPlaces, counts: Counter[str]):
        self._calls, self._places, self.counts = calls, places, counts

    async def run_group(self, jobs: list[DownloadJob]) -> list[Fetched | Failed]:
        """Small files: all their blocks in memory, then all files in one go."""
        _check_room(jobs[0].temp, sum(job.size for job in jobs))
        lists = [await self._block_list(job) for job in jobs]
        sizes = {
            b: block_size(j.size, n) for j, bs in zip(jobs, lists, strict=True) for n, b in enumerate(bs)
        }
        data = await asyncio.to_thread(_read_local, self._places(sizes), sizes)
        self.counts["blocks_copied"] += len(data)
        errors = await self._fetch([block for block in sizes if block not in data], data)
        fault_point("client.download.fetched")
        good: list[tuple[DownloadJob, list[BlockHash]]] = []
        results: list[Fetched | Failed] = []
        for job, blocks in zip(jobs, lists, strict=True):
            bad = next((errors[block] for block in blocks if block in errors), None)
            if bad is not None:
                results.append(failure(job.id, bad))
            else:
                good.append((job, blocks))
        return results + await asyncio.to_thread(_write_group, good, data)

    async def run_big(self, job: DownloadJob) -> Fetched | Failed:
        """A file of many blocks: what a temporary file or the disk has is kept, the rest is fetched."""
        _check_room(job.temp, job.size)
        blocks = await self._block_list(job)
        handle = os.open(job.temp, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            places = self._places(set(blocks))
            wanted, copied = await asyncio.to_thread(_fill_locally, job, blocks, handle, places)
            self.counts["blocks_copied"] += copied
            limit = asyncio.Semaphore(FETCHES)
            async with asyncio.TaskGroup() as group:
                for at in range(0, len(wanted), FETCH_BLOCKS):
                    some = wanted[at : at + FETCH_BLOCKS]
                    await limit.acquire()
                    task = group.create_task(self._fetch_into(handle, blocks, some))
                    task.add_done_callback(lambda _: limit.release())
            found = await asyncio.to_thread(_seal, handle, job, blocks)
        except ExceptionGroup as several:
            _give_room_back(job.temp, several.exceptions[0])
            raise several.exceptions[0] from several
        except OSError as problem:
            _give_room_back(job.temp, problem)
            raise
        finally:
            os.close(handle)
        fault_point("client.download.temp_written")
        return Fetched(job, blocks, found)

    async def _block_list(self, job: DownloadJob) -> list[BlockHash]:
        blocks = job.blocks
        if blocks is None:
            blocks = await self._calls.get_blocks(job.rev)
        if content_hash(blocks) != job.content:
            raise ContentMismatch("the block list is not that of the content hash")
        return blocks

    async def _fetch(
        self, wanted: list[BlockHash], data: dict[BlockHash, bytes]
    ) -> dict[BlockHash, Exception]:
        """Fetch blocks into `data`; gives those that could not be had."""
        errors: dict[BlockHash, Exception] = {}
        for _ in range(MAX_ROUNDS):
            again: list[BlockHash] = []
            for at in range(0, len(wanted), MAX_PACK_BLOCKS):
                pack = await self._calls.get_pack(wanted[at : at + MAX_PACK_BLOCKS])
                for frame in iter_frames(pack):
                    if frame.status is FrameStatus.OK and block_hash(frame.data) == frame.hash:
                        data[frame.hash] = bytes(frame.data)
                        self.counts["blocks_fetched"] += 1
                        self.counts["bytes_fetched"] += len(frame.data)
                    elif frame.status is FrameStatus.OVER_LIMIT:
                        again.append(frame.hash)
                    else:
                        errors[frame.hash] = _FRAME_ERRORS.get(frame.status, BlockCorrupt)()
            wanted = again
            if not wanted:
                return errors
        return errors | {block: UpstreamUnavailable("packs stay full") for block in wanted}

    async def _fetch_into(self, handle: int, blocks: list[BlockHash], positions: list[int]) -> None:
        data: dict[BlockHash, bytes] = {}
        errors = await self._fetch(list({blocks[n]: None for n in positions}), data)
        for error in errors.values():
            raise error
        for n in positions:
            await asyncio.to_thread(_write_at, handle, data[blocks[n]], n * BLOCK_BYTES)
            fault_point("client.download.block_written")


_FRAME_ERRORS: dict[FrameStatus, type[BlockNotFound] | type[UpstreamUnavailable] | type[BlockCorrupt]] = {
    FrameStatus.NOT_FOUND: BlockNotFound,
    FrameStatus.UNAVAILABLE: UpstreamUnavailable,
    FrameStatus.CORRUPT: BlockCorrupt,
}


def parse_modified(text: str) -> int | None:
    """Nanoseconds of a client_modified, None if it is not one."""
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        return None
    return int(when.replace(tzinfo=when.tzinfo or UTC).timestamp()) * 1_000_000_000


def format_modified(mtime_ns: int) -> str:
    """A client_modified in whole seconds UTC."""
    seconds = min(max(mtime_ns // 1_000_000_000, 0), 253_402_300_799)  # up to the year 9999
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _check_room(path: bytes, size: int) -> None:
    found = os.statvfs(os.path.dirname(path))
    if size > found.f_bavail * found.f_frsize - RESERVE_BYTES:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _give_room_back(path: bytes, problem: Exception) -> None:
    """What was fetched is worth keeping, but not on a disk that is full."""
    if isinstance(problem, OSError) and problem.errno in (errno.ENOSPC, errno.EDQUOT):
        with contextlib.suppress(OSError):
            os.unlink(path)


def _read_local(
    places: dict[BlockHash, list[tuple[bytes, int]]], sizes: dict[BlockHash, int]
) -> dict[BlockHash, bytes]:
    found = {block: _read_one(where, block, sizes[block]) for block, where in places.items()}
    return {block: data for block, data in found.items() if data is not None}


def _read_one(places: Iterable[tuple[bytes, int]], block: BlockHash, size: int) -> bytes | None:
    """The block from the first place that still has it."""
    for path, position in places:
        with contextlib.suppress(OSError):
            handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                data = os.pread(handle, size, position * BLOCK_BYTES)
            finally:
                os.close(handle)
            if block_hash(data) == block:
                return data
    return None


def _fill_locally(
    job: DownloadJob,
    blocks: list[BlockHash],
    handle: int,
    places: dict[BlockHash, list[tuple[bytes, int]]],
) -> tuple[list[int], int]:
    """Copy what the disk has; gives the positions that have to be fetched, and how many were copied."""
    had = os.fstat(handle).st_size
    os.ftruncate(handle, job.size)
    wanted: list[int] = []
    copied = 0
    for n, block in enumerate(blocks):
        size = block_size(job.size, n)
        if had > n * BLOCK_BYTES and block_hash(os.pread(handle, size, n * BLOCK_BYTES)) == block:
            continue
        data = _read_one(places.get(block, ()), block, size)
        if data is None:
            wanted.append(n)
        else:
            _write_at(handle, data, n * BLOCK_BYTES)
            copied += 1
    return wanted, copied


def _write_at(handle: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(handle, view, offset)
        view, offset = view[written:], offset + written


def _seal(handle: int, job: DownloadJob, blocks: list[BlockHash]) -> Fingerprint:
    """Flush a temporary file; every block of it was verified as it was written."""
    assert content_hash(blocks) == job.content, "checked with the block list"
    os.ftruncate(handle, job.size)
    modified = parse_modified(job.modified)
    if modified is not None:
        os.utime(handle, ns=(modified, modified))
    os.fsync(handle)
    return fingerprint_of(os.fstat(handle))


def _write_group(
    jobs: list[tuple[DownloadJob, list[BlockHash]]], data: dict[BlockHash, bytes]
) -> list[Fetched | Failed]:
    """Write small files, in a thread."""
    results: list[Fetched | Failed] = []
    for job, blocks in jobs:
        try:
            handle = os.open(job.temp, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
            try:
                for n, block in enumerate(blocks):
                    _write_at(handle, data[block], n * BLOCK_BYTES)
                results.append(Fetched(job, blocks, _seal(handle, job, blocks)))
            finally:
                os.close(handle)
        except OSError as problem:
            with contextlib.suppress(OSError):
                os.unlink(job.temp)
            results.append(failure(job.id, problem))
    fault_point("client.download.temp_written")
    return results
