"""Files up and down, by pieces, with calls of the test's own."""

import asyncio
import errno
import os
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from client import download
from client.calls import Calls
from client.disk import fingerprint_of
from client.download import DownloadJob, Fetched
from client.limits import MIN_RATE, Bucket
from client.transfer import Failed, Transfers, failure
from client.upload import WINDOW_BLOCKS, WINDOWS, Prepared, Uploader, UploadJob
from wire.blocks import PutPackResult, PutVerdict
from wire.errors import ShardUnavailable
from wire.hashes import BLOCK_BYTES, BlockHash, block_hash, content_hash

BLOCKS = 3 * WINDOWS * WINDOW_BLOCKS + 1


class Slow:
    """Takes blocks when it is told to, and counts those under way."""

    def __init__(self) -> None:
        self.up = Bucket()
        self.gate = asyncio.Event()
        self.taken: set[BlockHash] = set()
        self.held = self.held_max = 0
        self.refused: BlockHash | None = None

    async def ask_missing(self, hashes: list[BlockHash]) -> set[BlockHash]:
        return set(hashes)

    async def put_block(self, block: BlockHash, data: bytes) -> PutVerdict:
        self.held += 1
        self.held_max = max(self.held, self.held_max)
        await self.gate.wait()
        self.held -= 1
        self.taken.add(block)
        error = ShardUnavailable().info() if block == self.refused else None
        return PutVerdict(hash=block.hex(), error=error)


def big_job(tmp_path: Path) -> tuple[UploadJob, list[BlockHash]]:
    path = tmp_path / "big"
    with path.open("wb") as file:
        for n in range(BLOCKS):
            file.seek(n * BLOCK_BYTES)
            file.write(n.to_bytes(8, "big"))
        file.truncate(BLOCKS * BLOCK_BYTES)
    with path.open("rb") as file:
        blocks = [block_hash(file.read(BLOCK_BYTES)) for _ in range(BLOCKS)]
    return UploadJob(1, os.fsencode(path), fingerprint_of(path.stat())), blocks


async def test_a_big_file_is_read_on_while_a_bounded_part_of_it_is_sent(tmp_path: Path) -> None:
    job, blocks = big_job(tmp_path)
    slow = Slow()
    running = asyncio.create_task(Uploader(cast("Calls", slow), Counter()).run_big(job))
    async with asyncio.timeout(20):
        while slow.held < WINDOWS * WINDOW_BLOCKS:
            await asyncio.sleep(0.01)
        slow.gate.set()
        result = await running
    assert isinstance(result, Prepared)
    assert result.hashed.blocks == blocks
    assert slow.taken == set(blocks)
    assert slow.held_max <= WINDOWS * WINDOW_BLOCKS


async def test_a_refused_block_is_the_files_failure(tmp_path: Path) -> None:
    job, blocks = big_job(tmp_path)
    slow = Slow()
    slow.refused = blocks[3]
    slow.gate.set()
    result = await Uploader(cast("Calls", slow), Counter()).run_big(job)
    assert isinstance(result, Failed)
    assert result.reason == "shard_unavailable"


class Packed:
    """Lacks all blocks; takes packs, and refuses one block."""

    def __init__(self, refused: BlockHash | None = None):
        self.refused = refused
        self.up = Bucket()
        self.sizes: list[int] = []

    async def ask_missing(self, hashes: list[BlockHash]) -> set[BlockHash]:
        return set(hashes)

    async def put_pack(self, pack: bytes) -> PutPackResult:
        self.sizes.append(len(pack))
        if self.refused is None:
            return PutPackResult([])
        return PutPackResult([PutVerdict(hash=self.refused.hex(), error=ShardUnavailable().info())])


async def test_under_a_limit_a_pack_is_no_larger_than_a_block(tmp_path: Path) -> None:
    jobs: list[UploadJob] = []
    for n in range(11):
        path = tmp_path / f"f{n}"
        path.write_bytes(bytes([n]) * 600_000)
        jobs.append(UploadJob(n, os.fsencode(path), fingerprint_of(path.stat())))
    calls = Packed()
    uploader = Uploader(cast("Calls", calls), Counter())
    await uploader.run_group(jobs)
    assert len(calls.sizes) == 1
    calls.up.set_rate(MIN_RATE)
    await uploader.run_group(jobs)
    assert len(calls.sizes) == 3
    assert max(calls.sizes[1:]) <= BLOCK_BYTES


async def test_files_that_were_emptied_or_filled_since_the_scan_are_judged_by_what_was_read(
    tmp_path: Path,
) -> None:
    jobs: list[UploadJob] = []
    for n, (before, after) in enumerate([("kept", "kept"), ("emptied", ""), ("", "filled")]):
        path = tmp_path / f"f{n}"
        path.write_text(before)
        jobs.append(UploadJob(n, os.fsencode(path), fingerprint_of(path.stat())))
        path.write_text(after)
    calls = Packed(block_hash(b"filled"))
    kept, emptied, filled = await Uploader(cast("Calls", calls), Counter()).run_group(jobs)
    assert isinstance(kept, Prepared)
    assert isinstance(emptied, Prepared)
    assert emptied.hashed.blocks == []
    assert isinstance(filled, Failed)
    assert filled.reason == "shard_unavailable"


async def test_a_file_that_shrinks_meanwhile_is_changing(tmp_path: Path) -> None:
    job, _ = big_job(tmp_path)
    slow = Slow()
    running = asyncio.create_task(Uploader(cast("Calls", slow), Counter()).run_big(job))
    async with asyncio.timeout(20):
        while not slow.held:
            await asyncio.sleep(0.01)
        os.truncate(job.path, 5)
        slow.gate.set()
        with pytest.raises(Exception) as caught:
            await running
    assert failure(1, caught.value).reason == "changing"


def test_a_disk_that_fills_up_between_two_files_keeps_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = [b"one", b"two"]
    jobs: list[tuple[DownloadJob, list[BlockHash]]] = []
    for n, data in enumerate(contents):
        blocks = [block_hash(data)]
        temp = os.fsencode(tmp_path / f"temp {n}")
        jobs.append((DownloadJob(n, "", 3, content_hash(blocks), "", blocks, temp), blocks))
    written = os.pwrite

    def pwrite(handle: int, data: memoryview, offset: int) -> int:
        if bytes(data) == b"two":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return written(handle, data, offset)

    monkeypatch.setattr(download, "os", SimpleNamespace(**vars(os) | {"pwrite": pwrite}))
    first, second = download._write_group(jobs, {block_hash(data): data for data in contents})
    assert isinstance(first, Fetched)
    assert isinstance(second, Failed)
    assert second.reason == "disk_full"
    assert [path.name for path in tmp_path.iterdir()] == ["temp 0"]


async def test_a_worker_that_ends_is_noticed(tmp_path: Path):
    """Its entries would stay under way for ever, and the sync would wait for them."""
    job, _ = big_job(tmp_path)

    async def never(_: object) -> Failed:
        raise asyncio.CancelledError

    async def none(_: object) -> list[Failed | Prepared]:
        return []

    woken = asyncio.Event()
    transfers = Transfers[UploadJob, Prepared](
        small=none, big=never, wake=woken.set, small_workers=1, big_workers=1
    )
    transfers.submit(job)
    await asyncio.wait_for(woken.wait(), 5)
    assert not transfers.is_idle
    with pytest.raises(RuntimeError, match="a worker has ended"):
        transfers.take()
    await transfers.close()
