"""The matrix on real processes, one cell after another."""

import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.reshard.cell import Outcome, play_cell, play_uncut
from tests.reshard.matrix import Cell, Course, Passing, Victim, merge_passings, read_passings
from tests.reshard.world import World, peopled
from tests.support.dev import DevCluster, running_cluster

PLAYED_PER_WORLD = 20
"""Then come other accounts in other slots: the listings of their histories stay short."""
METASERVERS = 2
"""One of them answers while the other one is dead."""


@dataclass(slots=True)
class Report:
    """What build/test/moves.json holds, and what became of the cells that failed."""

    fault_points: int = 0
    victims: int = len(Victim)
    cells: int = 0
    passed: int = 0
    leftovers: int = 0
    acked: int = 0
    acked_lost: int = 0
    acked_doubled: int = 0
    stale_reads: int = 0
    points_missed: int = 0
    """Those that no command of a move's life comes by."""
    seed: int = 0
    seconds: int = 0
    failures: dict[str, list[str]] = field(default_factory=dict)
    """By cell."""

    @property
    def is_clean(self) -> bool:
        """Whether everything held."""
        return 0 < self.cells == self.passed and not self.points_missed

    def add(self, name: str, outcome: Outcome) -> list[str]:
        """Count a cell; what it complains of."""
        complaints = outcome.complaints()
        if complaints:
            self.failures[name] = complaints
        self.passed += not complaints
        self.acked += outcome.acked
        self.leftovers += len(outcome.leftovers)
        self.acked_lost += len(outcome.findings.lost)
        self.acked_doubled += len(outcome.findings.doubled)
        self.stale_reads += outcome.findings.stale_reads
        return complaints

    def as_dict(self) -> dict[str, Any]:
        """For JSON: the numbers."""
        return {name: value for name, value in asdict(self).items() if name != "failures"}


class Stage:
    """A cluster with accounts: the accounts serve some cells, the cluster until a cell fails in it."""

    def __init__(self) -> None:
        self._cluster_stack = AsyncExitStack()
        self._world_stack = AsyncExitStack()
        self._cluster: DevCluster | None = None
        self._world: World | None = None
        self._played = 0

    async def __aenter__(self) -> "Stage":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.strike()

    async def world(self) -> World:
        """Where the next cell is played."""
        if self._cluster is None:
            running = running_cluster(metaservers=METASERVERS)
            self._cluster = self._cluster_stack.enter_context(running)
        if self._world is None or self._played == PLAYED_PER_WORLD:
            await self._world_stack.aclose()
            self._world = await self._world_stack.enter_async_context(peopled(self._cluster))
            self._played = 0
        self._played += 1
        return self._world

    async def strike(self) -> None:
        """Have the next cell played in a cluster of its own."""
        self._cluster = self._world = None
        await self._world_stack.aclose()
        await self._cluster_stack.aclose()


class Suite:
    """Finds the passings and plays the cells."""

    def __init__(
        self,
        stage: Stage,
        folder: Path,
        report: Report,
        say: Callable[[str], None],
        *,
        is_verbose: bool = False,
    ):
        self._stage = stage
        self._folder = folder
        self._report = report
        self._say = say
        self._is_verbose = is_verbose

    async def find_passings(self) -> list[Passing]:
        """What a move's life comes by: each course once, uncut.

        Raises:
            AssertionError: not even these moves held.
        """
        passings: dict[Course, Sequence[Passing]] = {}
        for course in Course:
            outcome, trace = await play_uncut(await self._stage.world(), self._folder, course)
            complaints = outcome.complaints()
            assert not complaints, "\n".join([f"{course}, uncut:", *complaints])
            passings[course] = read_passings(course, trace)
            self._say(f"{course}: comes by {len(passings[course])} points")
        return merge_passings(passings)

    async def play(self, cells: Sequence[Cell]) -> None:
        """Play cells, whatever comes of each."""
        self._report.cells += len(cells)
        for number, cell in enumerate(cells, start=1):
            world, began = await self._stage.world(), time.monotonic()
            outcome = await play_cell(world, self._folder, cell)
            complaints = self._report.add(cell.name, outcome)
            word = "FAILED" if complaints else "held"
            self._say(f"[{number}/{len(cells)}] {cell.name}: {word} ({time.monotonic() - began:.1f} s)")
            for line in complaints or (outcome.notes if self._is_verbose else ()):
                self._say("    " + line.strip().replace("\n", "\n    "))
            if complaints:
                await self._stage.strike()
