"""One cell: a move under load, a death in it, what the operator makes of it, and whether all held."""

import asyncio
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.reshard.history import Findings, Picture
from tests.reshard.load import Writer, under_load
from tests.reshard.matrix import Cell, Course, Kind
from tests.reshard.operator import Operator
from tests.reshard.world import World
from tests.support.waiting import wait_until

COMMITS_AFTERWARDS = 3
"""Of each account, acknowledged when the move has ended: whoever is served again has his commits taken."""


@dataclass(slots=True)
class Outcome:
    """What a cell came to."""

    acked: int = 0
    wrong: list[str] = field(default_factory=list)
    findings: Findings = field(default_factory=Findings)
    leftovers: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """The commands and how they ended."""

    def complaints(self) -> list[str]:
        """Everything that did not hold, for people; empty when all did."""
        left = [f"left: {line}" for line in self.leftovers]
        complaints = [*self.wrong, *self.findings.lines(), *left]
        return complaints and [*complaints, *(f"ran: {note}" for note in self.notes)]


async def play_cell(world: World, folder: Path, cell: Cell) -> Outcome:
    """Play it; never raises for what it finds."""
    operator = Operator(world, folder, cell.kind)

    def operate(outcome: Outcome) -> None:
        operator.cut(cell)
        outcome.wrong += world.find_doubled()
        operator.end(cell.ending)
        outcome.wrong += world.complain_of_owners()
        operator.settle(cell.ending)

    return await _play(world, operator, operate)


async def play_uncut(world: World, folder: Path, course: Course) -> tuple[Outcome, list[str]]:
    """A course without a death: what held, and the points that its command passed."""
    operator = Operator(world, folder, Kind.SLOTS)
    trace: list[str] = []

    def operate(outcome: Outcome) -> None:
        trace.extend(operator.trace(course))

    return await _play(world, operator, operate), trace


async def _play(world: World, operator: Operator, operate: Callable[[Outcome], None]) -> Outcome:
    outcome = Outcome(notes=operator.notes)
    try:
        before = await _take_picture(world)
        async with under_load(world.writers, world.readers):
            acked = _count_acked(world.writers)
            await asyncio.to_thread(operate, outcome)
            await _wait_for_commits(world.writers)
        outcome.acked = _count_acked(world.writers) - acked
        outcome.leftovers = await asyncio.to_thread(world.leftovers)
        outcome.findings = await world.judge(before)
        outcome.wrong += await asyncio.to_thread(operator.doctor)
    except Exception:
        outcome.wrong.append(traceback.format_exc())
    return outcome


async def _take_picture(world: World) -> Picture:
    return await asyncio.to_thread(world.take_picture, world.heads())


def _count_acked(writers: Sequence[Writer]) -> int:
    return sum(len(writer.notes) for writer in writers)


async def _wait_for_commits(writers: Sequence[Writer]) -> None:
    goals = [(writer, len(writer.notes) + COMMITS_AFTERWARDS) for writer in writers]
    await wait_until(
        lambda: all(len(writer.notes) >= goal for writer, goal in goals), "commits of every account"
    )
