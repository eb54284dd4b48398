"""What goes on during a move: accounts that commit, and readers that follow them."""

import asyncio
import random
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from tests.kill.api import ApiDevice, Failed, empty_file, one_block_file, surely
from wire.api import (
    Batch,
    BatchResult,
    CreateFolder,
    ListFolder,
    ListFolderContinue,
    ListFolderResult,
    Metadata,
    Operation,
)
from wire.ids import NsId, parse_ns_id

COMMIT_INTERVAL_S = 0.05
"""Enough for a commit within most of a cutover's steps, and few enough for a listing of all to stay short."""
READ_INTERVAL_S = 0.05
BLOCK_EVERY = 8
SEED_BATCH = 500
"""Half of what a batch may have: below any bound on its size."""


@dataclass(frozen=True, slots=True)
class Note:
    """What was answered to a commit."""

    jid: int
    rev: str | None
    """None of a folder."""


@dataclass(slots=True)
class Writer:
    """One account's commits, one after another, each until it is acknowledged: none is left in doubt.

    Every second one makes a folder with `autorename`, which, done twice, would be there twice.
    """

    device: ApiDevice
    notes: dict[str, Note] = field(default_factory=dict)
    """By name, which is new for each commit and lies in the root."""
    complaints: list[str] = field(default_factory=list)

    @property
    def root(self) -> NsId:
        """Where it writes."""
        return parse_ns_id(self.device.linked.root_ns)

    @property
    def newest(self) -> int:
        """The newest jid that was acknowledged."""
        return max((note.jid for note in self.notes.values()), default=0)

    async def run(self, stopping: asyncio.Event) -> None:
        """Commit until told to stop; what was begun is ended."""
        while not stopping.is_set():
            await self.commit()
            await asyncio.sleep(COMMIT_INTERVAL_S)

    async def commit(self) -> None:
        """One commit, noted."""
        number = len(self.notes) + len(self.complaints)
        name = f"{secrets.token_hex(4)}-{number}"
        try:
            operation = await self._draw(name, number)
            result: BatchResult = await self.device.post_surely(
                "/v1/files/batch", Batch([operation]), BatchResult, secrets.token_hex(16)
            )
        except Failed as error:
            self.complaints.append(f"refused: {name}: {error}")
            return
        verdict = result.verdicts[0]
        made = verdict.metadata
        if made is None or not isinstance(made.jid, int):
            self.complaints.append(f"refused: {name}: {verdict.error}")
        elif made.name != name or not verdict.changed:
            self.complaints.append(f"doubled: {name} was made before, the answer is {made.name}")
        else:
            self.notes[name] = Note(made.jid, made.rev if isinstance(made.rev, str) else None)

    async def _draw(self, name: str, number: int) -> Operation:
        if number % BLOCK_EVERY == 0:
            data = random.randbytes(100)
            block = await surely(lambda: self.device.put_block(data))
            return one_block_file(f"/{name}", block, len(data))
        return empty_file(f"/{name}") if number % 2 else CreateFolder(path=f"/{name}", autorename=True)


@dataclass(slots=True)
class Reader:
    """Follows a writer by deltas, from the beginning, with one cursor through all moves."""

    writer: Writer
    told: Counter[tuple[str, int]] = field(default_factory=Counter)
    """How often each name was told, with its jid."""
    stale_reads: int = 0
    _cursor: str | None = None

    async def run(self, stopping: asyncio.Event) -> None:
        """Read until told to stop."""
        while not stopping.is_set():
            await self.read()
            await asyncio.sleep(READ_INTERVAL_S)

    async def read(self) -> None:
        """All that there is. What was acknowledged before the question must be in its answer."""
        newest = self.writer.newest
        async for page in self._pages():
            self.told.update(names_of(page.entries))
            self._cursor = page.cursor
            if not page.has_more and page.jid < newest:
                self.stale_reads += 1

    def _pages(self) -> "AsyncIterator[ListFolderResult]":
        return read_pages(self.writer.device, self._cursor)


async def read_pages(device: ApiDevice, cursor: str | None) -> AsyncIterator[ListFolderResult]:
    """What there is from a cursor on, or from the beginning."""
    while True:
        page: ListFolderResult = await (
            device.post_surely(
                "/v1/files/list_folder", ListFolder(recursive=True, limit=2000), ListFolderResult
            )
            if cursor is None
            else device.post_surely(
                "/v1/files/list_folder/continue", ListFolderContinue(cursor), ListFolderResult
            )
        )
        yield page
        cursor = page.cursor
        if not page.has_more:
            return


def names_of(entries: Sequence[Metadata]) -> Iterator[tuple[str, int]]:
    """Name and jid of what is there."""
    for entry in entries:
        assert isinstance(entry.name, str)
        assert isinstance(entry.jid, int)
        yield entry.name, entry.jid


async def seed(device: ApiDevice, count: int) -> None:
    """Give an account that stays as it is so many files, in folders."""
    for first in range(0, count, SEED_BATCH):
        entries: list[Operation] = [
            empty_file(f"/seed {number % 20}/{number}.txt")
            for number in range(first, min(first + SEED_BATCH, count))
        ]
        result: BatchResult = await device.post_surely(
            "/v1/files/batch", Batch(entries), BatchResult, secrets.token_hex(16)
        )
        assert all(verdict.error is None for verdict in result.verdicts)


@asynccontextmanager
async def under_load(writers: Sequence[Writer], readers: Sequence[Reader]) -> AsyncIterator[None]:
    """Commits and reads while the body runs; afterwards each commit is acknowledged, and read."""
    stopping = asyncio.Event()
    runs = [writer.run(stopping) for writer in writers] + [reader.run(stopping) for reader in readers]
    tasks = [asyncio.create_task(run) for run in runs]
    try:
        yield
        stopping.set()
        await asyncio.gather(*tasks)
    finally:
        # What a failed move has left may never be acknowledged.
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for reader in readers:
        await reader.read()
