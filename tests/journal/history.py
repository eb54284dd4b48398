"""One random history of one namespace, interleaved with paged readers."""

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tests.journal.operations import Draw
from tests.journal.reader import Asked, Reader, read_walk, shown_of
from tests.journal.truth import FILE, FOLDER, Truth, expect
from tests.journal.world import World
from wire.api import BatchResult, CommitFile, Copy, CreateFolder, Delete, Move, Operation, Restore
from wire.errors import Overloaded, TooManyWriteOperations
from wire.ids import EntryId, NsId, format_file_id, parse_file_id

MAX_ROWS_PER_PAGE = 7
MAX_DEPTH = 50
"""Deeper than any tree that a history makes."""


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
            Difference: a rule does not hold. This, and whatever else is raised, tells the whole history.
        """
        try:
            await self._play()
        except Exception as error:
            error.add_note("\n  ".join([f"seed {self.seed}, namespace {self.ns_id}", *self.log]))
            raise

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
            elif kind < 0.96:
                await self._race()
            elif kind < 0.98:
                await self._walk()
            elif rng.random() < 0.5:
                await self.move_away()
        if not any(reader.folder is None for reader in self.readers):
            self.readers.append(self._new_reader())
        for reader in self.readers:
            await self._read(reader, 10_000)
        await self._walk()
        await self.truth.check_tables(self._conn)
        await self.world.pay_debts(self.ns_id)
        await self.truth.check_tables(self._conn)

    # ---- Steps

    async def write(self, operations: Sequence[Operation]) -> None:
        """A batch, and what it did, held against the rules."""
        self.log.append(f"write {operations}")
        copied = self._expect_copies(operations)
        result = await self.world.user.write(*operations)
        codes = await self.truth.catch_up(self._conn)
        self.log.append(f"  jid {self.truth.head}: {[_brief(result, i) for i in range(len(operations))]}")
        expect(result.head == self.truth.head, "the answer's head is", result.head, "not", self.truth.head)
        self._check_verdicts(result)
        check_costs(operations, result, codes, copied)

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

    async def _walk(self) -> None:
        """A recursive listing of a folder, while nothing changes between its pages."""
        folders = [i for i, shown in self.truth.tree.items() if shown[2] == FOLDER]
        if not folders:
            return
        folder = self.rng.choice(folders)
        self.log.append(f"walk of folder {folder}")
        path = format_file_id(self.ns_id, EntryId(folder))
        is_racing, self.is_racing = self.is_racing, True  # nobody comes between
        told = await read_walk(self.world.user, path, self.rng.randint(1, MAX_ROWS_PER_PAGE))
        self.is_racing = is_racing
        want = {self.truth.path_of(i): self.truth.tree[i] for i in self.truth.below(folder)}
        paths = [entry.path_display for entry in told]
        expect(len(paths) == len(set(paths)), "a walk tells a path twice:", paths)
        have = {str(entry.path_display): shown_of(entry) for entry in told}
        expect(have == want, "a walk tells", have, "the server has", want)
        self.comparisons += 1

    async def _race(self) -> None:
        """Two writers and a reader at once."""
        live = [reader for reader in self.readers if not reader.is_over]
        batches = [self.draw.batch(), self.draw.batch()]
        self.log.append(f"side by side {batches}")
        asked = [Asked(self.truth.head, self.truth.is_live(reader.folder or 0)) for reader in live]
        self.is_racing = True
        results = await asyncio.gather(
            *(self._write_in_turn(batch) for batch in batches),
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

    async def _write_in_turn(self, operations: Sequence[Operation]) -> BatchResult:
        """Beside another writer: who is refused for that has changed nothing, and comes again."""
        while True:
            with contextlib.suppress(TooManyWriteOperations, Overloaded):
                return await self.world.user.write(*operations)

    # ---- Checks

    def _expect_copies(self, operations: Sequence[Operation]) -> dict[int, Counter[str]]:
        """What a copy will write that is alone in its batch: within one, others change what is copied."""
        if len(operations) != 1 or not isinstance(operations[0], Copy):
            return {}
        source = self._find(operations[0].from_path)
        if source is None:
            return {0: Counter()}
        kinds = [self.truth.nodes[i].kind for i in (source, *self.truth.below(source))]
        return {0: Counter({FILE: "c", FOLDER: "f"}[kind] for kind in kinds)}

    def _find(self, path: str) -> int | None:
        """The live entry at a path that the drawer made: of the root's form, or an id."""
        if path.startswith("id:"):
            entry_id = parse_file_id(path)[1]
            return entry_id if self.truth.is_live(entry_id) else None
        return next((i for i in self.truth.tree if path == f"ns:{self.ns_id}{self.truth.path_of(i)}"), None)

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


def check_costs(
    operations: Sequence[Operation], result: BatchResult, codes: list[str], copied: Mapping[int, Counter[str]]
) -> None:
    """Each operation that changed something wrote one row, besides those of parents that it made.

    A copy wrote one for each entry; a restore either a new content or one that revives.

    Args:
        operations: The batch.
        result: Its verdicts.
        codes: The ops of the rows that it wrote.
        copied: By the operation's index: the ops that each copy of a batch of its own had to write.

    Raises:
        Difference: it wrote more, or fewer.
    """
    want: Counter[str] = Counter()
    restores = copies = 0
    for index, (operation, verdict) in enumerate(zip(operations, result.verdicts, strict=True)):
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
                case Restore():
                    restores += 1
                case Copy():
                    copies += 1
                    want += copied.get(index, Counter())
    have = Counter(codes)
    parents = sum(_depth(operation) for operation in operations)
    is_known = copies == len(copied)
    expect(all(have[c] == want[c] for c in "md"), "rows:", have, "operations:", want)
    expect(have["f"] >= want["f"], "rows of folders:", have, "operations:", want)
    expect(have["c"] + have["r"] >= want["c"] + restores, "rows of contents:", have, "operations:", want)
    if is_known:
        expect(have["c"] + have["r"] == want["c"] + restores, "rows of contents:", have, "operations:", want)
        expect(have["f"] - want["f"] <= parents, "rows of parents:", have, "operations:", want)


def _depth(operation: Operation) -> int:
    match operation:
        case CommitFile(path=path) | CreateFolder(path=path) | Move(to_path=path) | Copy(to_path=path):
            return path.count("/")
        case Restore(path=path):  # by its id, a file comes back with all the folders that it was in
            return path.count("/") or MAX_DEPTH
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
