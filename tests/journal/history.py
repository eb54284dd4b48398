"""One random history of one namespace, interleaved with paged readers."""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.journal.operations import Draw
from tests.journal.reader import Asked, Reader
from tests.journal.truth import FOLDER, Difference, Truth, expect
from tests.journal.world import World
from wire.api import BatchResult, CommitFile, CreateFolder, Delete, Move, Operation
from wire.ids import NsId, parse_file_id

MAX_ROWS_PER_PAGE = 7


@dataclass
class History:
    """A history under way. `seed` determines it, but for what runs side by side."""

    world: World
    ns_id: NsId
    seed: int
    reader_class: type[Reader] = Reader
    comparisons: int = 0
    log: list[str] = field(default_factory=list)
    is_racing: bool = False

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.truth = Truth(self.ns_id, self.world.device)
        self.draw = Draw(self.rng, self.ns_id, self.truth)
        self.readers: list[Reader] = []

    async def run(self) -> None:
        """Play it.

        Raises:
            Difference: a rule does not hold; the message tells the whole history.
        """
        try:
            await self._play()
        except Exception as error:
            what = "\n  ".join([f"seed {self.seed}, namespace {self.ns_id}", *self.log])
            raise Difference(f"{type(error).__name__}: {error}\n  {what}") from error

    async def _play(self) -> None:
        rng = self.rng
        self.world.between[self.ns_id] = self._interfere
        if rng.random() < 0.8:
            await self.write(self.draw.batch())
        for _ in range(rng.randint(8, 18)):
            kind = rng.random()
            if kind < 0.45:
                await self.write(self.draw.batch())
            elif kind < 0.55 or not self.readers:
                self.readers.append(self._new_reader())
                await self._read(self.readers[-1], rng.randint(1, 2))
            elif kind < 0.93:
                await self._read(rng.choice(self.readers), rng.randint(1, 3))
            elif kind < 0.98:
                await self._race()
            elif rng.random() < 0.5:
                await self.move_away()
        if not any(reader.folder is None for reader in self.readers):
            self.readers.append(self._new_reader())
        for reader in self.readers:
            await self._read(reader, 10_000)
        await self.truth.check_tables(self._conn)
        await self.world.pay_debts(self.ns_id)
        await self.truth.check_tables(self._conn)

    # ---- Steps

    async def write(self, operations: Sequence[Operation]) -> None:
        """A batch, and what it did, held against the rules."""
        self.log.append(f"write {operations}")
        result = await self.world.user.write(*operations)
        codes = await self.truth.catch_up(self._conn)
        self.log.append(f"  jid {self.truth.head}: {[_brief(result, i) for i in range(len(operations))]}")
        expect(result.head == self.truth.head, "the answer's head is", result.head, "not", self.truth.head)
        self._check_verdicts(result)
        check_costs(operations, result, codes)

    async def move_away(self) -> None:
        """The namespace moves to another shard."""
        self.log.append("move to another shard")
        await self.world.move(
            self.ns_id, is_published=self.rng.random() < 0.5, is_deleted=self.rng.random() < 0.5
        )

    async def _interfere(self) -> None:
        """Something that comes between, if a rule that forbids it has been switched off."""
        if not self.is_racing and self.rng.random() < 0.5:
            await (self.write(self.draw.batch()) if self.rng.random() < 0.8 else self.move_away())

    async def _read(self, reader: Reader, pages: int) -> None:
        for _ in range(pages):
            if reader.is_over:
                return
            self.comparisons += await reader.read_page(self.truth)
            self._log_read(reader)
            if not reader.has_more:
                return

    async def _race(self) -> None:
        """Two writers and a reader at once."""
        live = [reader for reader in self.readers if not reader.is_over]
        batches = [self.draw.batch(), self.draw.batch()]
        self.log.append(f"side by side {batches}")
        asked = [Asked(self.truth.head, self.truth.is_live(reader.folder or 0)) for reader in live]
        self.is_racing = True
        results = await asyncio.gather(
            *(self.world.user.write(*batch) for batch in batches),
            *(reader.ask(self.truth) for reader in live),
        )
        self.is_racing = False
        await self.truth.catch_up(self._conn)
        self.log.append(f"  jid {self.truth.head}")
        heads = {result.head for result in results if isinstance(result, BatchResult)}
        expect(self.truth.head == max(heads), "heads", heads, "are answered at", self.truth.head)
        for reader, page, then in zip(live, results[2:], asked, strict=True):
            assert not isinstance(page, BatchResult)
            self.comparisons += reader.digest(page, then, self.truth)
            self._log_read(reader)

    # ---- Checks

    def _check_verdicts(self, result: BatchResult) -> None:
        for verdict in result.verdicts:
            expect((verdict.metadata is None) != (verdict.error is None), "a verdict:", verdict)
            if verdict.metadata is not None:
                ns_id, entry_id = parse_file_id(verdict.metadata.id)
                expect(ns_id == self.ns_id and entry_id in self.truth.nodes, "a verdict names", entry_id)

    def _new_reader(self) -> Reader:
        rng = self.rng
        folder: int | None = None
        if rng.random() < 0.4:
            folders = [i for i, shown in self.truth.tree.items() if shown[2] == FOLDER]
            folder = rng.choice([0, *folders])
        limit = rng.randint(1, MAX_ROWS_PER_PAGE)
        reader = self.reader_class(self.world.user, self.ns_id, folder, limit, rng.random() < 0.2)
        self.log.append(f"reader {len(self.readers)} of folder {folder}, {limit} rows a page")
        return reader

    def _log_read(self, reader: Reader) -> None:
        number = next((i for i, r in enumerate(self.readers) if r is reader), -1)
        self.log.append(f"  reader {number} at {reader.at}, has_more {reader.has_more}: {reader.stage}")

    @property
    def _conn(self):  # type: ignore[no-untyped-def]
        return self.world.conn_of(self.ns_id)


def check_costs(operations: Sequence[Operation], result: BatchResult, codes: list[str]) -> None:
    """Each operation that changed something wrote one row, besides those of parents that it made.

    Raises:
        Difference: it wrote more, or fewer.
    """
    want = {"c": 0, "m": 0, "d": 0, "f": 0}
    for operation, verdict in zip(operations, result.verdicts, strict=True):
        if verdict.error is None and verdict.changed:
            match operation:
                case CommitFile():
                    want["c"] += 1
                case CreateFolder():
                    want["f"] += 1
                case Move():
                    want["m"] += 1
                case Delete():
                    want["d"] += 1
    have = {code: codes.count(code) for code in want}
    expect(have["f"] >= want["f"], "rows of folders:", have, "operations:", want)
    expect(all(have[c] == want[c] for c in "cmd"), "rows:", have, "operations:", want)
    parents = sum(_depth(operation) for operation in operations)
    expect(have["f"] - want["f"] <= parents, "rows of parents:", have, "operations:", want)


def _depth(operation: Operation) -> int:
    match operation:
        case CommitFile(path=path) | CreateFolder(path=path) | Move(to_path=path):
            return path.count("/")
    return 0


def _brief(result: BatchResult, index: int) -> str:
    verdict = result.verdicts[index]
    if verdict.error is not None:
        return verdict.error.code
    assert verdict.metadata is not None
    entry_id = parse_file_id(verdict.metadata.id)[1]
    return f"{entry_id}{'' if verdict.changed else ' unchanged'}"


async def run_histories(
    world: World, seeds: Sequence[int], *, at_once: int = 4, reader_class: type[Reader] = Reader
) -> int:
    """Play histories, some side by side; how many comparisons they made.

    Raises:
        Difference: the first one found.
    """
    ns_ids = await world.make_namespaces(len(seeds))
    todo = list(zip(ns_ids, seeds, strict=True))
    comparisons = 0

    async def play() -> None:
        nonlocal comparisons
        while todo:
            ns_id, seed = todo.pop(0)
            history = History(world, ns_id, seed, reader_class)
            await history.run()
            comparisons += history.comparisons

    tasks = [asyncio.create_task(play()) for _ in range(at_once)]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return comparisons
