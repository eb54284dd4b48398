"""Moves as an operator makes them: by `shardctl`, which may be killed, or held while others are."""

import itertools
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sharding.reshard.model import ENDED, Goal, MoveState
from tests.reshard.matrix import Cell, Course, Ending, Kind, Victim
from tests.reshard.world import DIRECTORY, World
from tests.support.commands import OPERATOR, Program
from tests.support.waiting import wait_for

COMMAND_TIMEOUT_S = 150.0
"""A runner waits a minute for a server that went away."""
GOALS = {Ending.ROLLBACK: Goal.READY, Ending.CANCEL: Goal.CANCELLED}
REFUSED = {
    Ending.RESUME: frozenset[MoveState](),
    Ending.ROLLBACK: frozenset(MoveState)
    - {MoveState.READY, MoveState.SWITCHING, MoveState.SOAKING, MoveState.ROLLING_BACK},
    Ending.CANCEL: frozenset({MoveState.SOAKING, MoveState.RETIRING, MoveState.DELETING}),
}
"""States with which an ending does not go: there is nothing to roll back yet, or no way back any more."""
NEXT = {
    (True, MoveState.READY): "switch",
    (True, MoveState.SOAKING): "complete",
    (False, MoveState.SOAKING): "rollback",
    (False, MoveState.READY): "cancel",
}
"""The command for a move that rests, by whether it is to be completed."""
APART = (Course.PIN, Course.UNPIN)
TO_READY = ("--until", "ready", "--quarantine", "0")
FENCED = "reshard.cutover.fenced"
"""Where the runner dies whose cutover is then called off."""


class Wrong(AssertionError):
    """A command did not do what it must."""


class NotMet(Wrong):
    """A command did not come by the point at which it was to be cut."""


@dataclass(frozen=True, slots=True)
class Ended:
    """A command that has ended."""

    args: Sequence[str]
    status: int
    out: str
    err: str
    seconds: float

    def expect_done(self) -> None:
        """Pass when it succeeded."""
        if self.status != 0:
            raise Wrong(f"{self}: it failed")

    def expect_clear(self) -> None:
        """Pass when it succeeded, or told in words why it did not."""
        has_told = any(line.startswith("shardctl: ") for line in self.err.splitlines())
        if self.status != 0 and (not has_told or "Traceback" in self.err):
            raise Wrong(f"{self}: it ended in no clear error")

    def __str__(self) -> str:
        how = f"ended with {self.status} after {self.seconds:.1f} s"
        return f"shardctl {' '.join(self.args)} {how}: {self.err[-3000:]}"


@dataclass(frozen=True, slots=True)
class Found:
    """The newest move by the directory."""

    move_id: int
    state: MoveState
    goal: Goal


class Operator:
    """Gives the commands of courses, cuts them, and ends the moves."""

    def __init__(self, world: World, folder: Path, kind: Kind):
        self._world = world
        self._folder = folder
        self._kind = kind
        self._course = Course.START
        self._numbers = itertools.count(1)
        self._began = 0.0
        self.notes: list[str] = []
        """What was seen of the last cell, for a complaint."""

    # ---- Courses

    def trace(self, course: Course) -> list[str]:
        """The points that a course's command passes, uncut; the move is ended afterwards."""
        self._course = course
        self._lead()
        path = self._folder / "trace"
        path.write_text("")
        self._run(self._command(), trace=path).expect_done()
        self.settle(Ending.RESUME)
        return path.read_text().split()

    def cut(self, cell: Cell) -> None:
        """Kill the cell's victim while the runner is at the point, and see the runner end."""
        source, target = self._world.sides(self._kind)
        self._course = cell.passing.course
        self._lead()
        command, point = self._command(), f"{cell.passing.point}:{cell.passing.number}"
        if cell.victim is Victim.RUNNER:
            ended = self._run(command, fault=point)
            if ended.status != -signal.SIGKILL:
                raise NotMet(f"{ended}: {point} was not met")
            return
        metaservers = sorted(self._world.urls)
        names = {
            Victim.SOURCE: source,
            Victim.TARGET: target,
            Victim.DIRECTORY: DIRECTORY,
            Victim.METASERVER: metaservers[next(self._numbers) % len(metaservers)],
        }
        self._run_without(names[cell.victim], command, point)

    def _run_without(self, victim: str, command: Sequence[str], point: str) -> None:
        """Run a command, and kill a server while it stands at a point."""
        meeting = self._folder / f"meeting {next(self._numbers)}"
        with self._start(command, fault=f"{point}!{meeting}") as program:
            wait_for(
                lambda: meeting.exists() or program.poll() is not None, point, timeout_s=COMMAND_TIMEOUT_S
            )
            if not meeting.exists():
                raise NotMet(f"{self._ended(command, program)}: {point} was not met")
            self._world.kill(victim)
            meeting.unlink()
            program.wait(COMMAND_TIMEOUT_S)
            ended = self._ended(command, program)
        ended.expect_clear()
        self._world.wait_back(victim)

    def _lead(self) -> None:
        """Bring a move, or a namespace, to where the course's command is given."""
        if self._course is Course.UNPIN:
            self._run(self._pin_command(Course.PIN)).expect_done()
        if self._course in (Course.START, *APART):
            return
        self._run(self._start_command()).expect_done()
        if self._course in (Course.ROLLBACK, Course.COMPLETE):
            self._run(self._move_command("switch")).expect_done()
        if self._course is Course.ABORT:
            ended = self._run(self._move_command("switch"), fault=FENCED)
            if ended.status != -signal.SIGKILL:
                raise Wrong(f"{ended}: it was to be killed")

    def _command(self) -> list[str]:
        match self._course:
            case Course.START:
                return self._start_command()
            case Course.PIN | Course.UNPIN:
                return self._pin_command(self._course)
            case Course.ABORT:
                return self._move_command("rollback")
            case _:
                return self._move_command(self._course.value)

    def _start_command(self) -> list[str]:
        target = self._world.sides(self._kind)[1]
        return ["move", "start", "--to", target, *self._what(), *TO_READY]

    def _move_command(self, verb: str) -> list[str]:
        found = self.find_move()
        assert found is not None
        return ["move", verb, str(found.move_id)]

    def _pin_command(self, course: Course) -> list[str]:
        ns_id, shard = self._world.homebody
        where = ["--shard", shard] if course is Course.PIN else []
        return ["namespace", course.value, str(ns_id), *where]

    def _what(self) -> list[str]:
        if self._kind is Kind.NAMESPACE:
            return ["--namespace", str(self._world.loner)]
        return ["--slots", ",".join(map(str, self._world.slots))]

    # ---- Endings

    def end(self, ending: Ending) -> None:
        """Resume, roll back or cancel the move that was cut, and see that this is what becomes of it.

        Where there is no move, the command is given again.
        """
        if self._course in APART:
            self._run(self._command()).expect_done()
            return
        found = self.find_move()
        if found is None or found.state in ENDED:
            return  # it was not recorded yet, or the runner had recovered
        goal = GOALS.get(ending, found.goal)
        ended = self._run(["move", ending.value, str(found.move_id)])
        ended.expect_clear()
        after = self.find_move()
        assert after is not None
        if after.state.value == goal.value:
            return
        if found.state not in REFUSED[ending] or ended.status == 0 or after.state is not found.state:
            raise Wrong(f"{ended}: the move was {found.state} and is {after.state}, not {goal}")
        # What was asked for does not go with the state, was refused, and has changed nothing.
        self._resume(found)

    def _resume(self, found: Found) -> None:
        self._run(["move", "resume", str(found.move_id)]).expect_done()
        after = self.find_move()
        if after is None or after.state.value != found.goal.value:
            raise Wrong(f"move {found.move_id} was resumed from {found.state} to {found.goal} and is {after}")

    def settle(self, ending: Ending) -> None:
        """End a move that rests: what was resumed goes on to its end, what was rolled back is cancelled."""
        if self._course is Course.PIN:
            self._run(self._pin_command(Course.UNPIN)).expect_done()
        while (found := self.find_move()) is not None and found.state not in ENDED:
            verb = NEXT[ending is Ending.RESUME, found.state]
            ended = self._run(["move", verb, str(found.move_id)])
            ended.expect_done()
            if self.find_move() == found:
                raise Wrong(f"{ended}: the move is still {found.state}")

    def find_move(self) -> Found | None:
        """The newest move."""
        with self._world.connect(DIRECTORY) as conn:
            row = conn.execute(
                "SELECT move_id, state, goal FROM moves ORDER BY move_id DESC LIMIT 1"
            ).fetchone()
        return None if row is None else Found(row[0], MoveState(row[1]), Goal(row[2]))

    def doctor(self) -> list[str]:
        """What the doctor complains of."""
        ended = self._run(["doctor"])
        return [] if ended.status == 0 else [f"doctor: {ended.out[-3000:]}{ended.err[-1000:]}"]

    # ---- Running

    def _run(self, args: Sequence[str], *, fault: str = "", trace: Path | None = None) -> Ended:
        with self._start(args, fault=fault, trace=trace) as program:
            program.wait(COMMAND_TIMEOUT_S)
            return self._ended(args, program)

    def _start(self, args: Sequence[str], *, fault: str = "", trace: Path | None = None) -> Program:
        out, err = self._folder / "out", self._folder / "err"
        for path in (out, err):
            path.write_text("")
        env = {
            "SHARDBOX_DEV_DIR": str(self._world.cluster.layout.root),
            "SHARDBOX_FAULT": fault,
            "SHARDBOX_FAULT_TRACE": str(trace or ""),
        }
        self._began = time.monotonic()
        return Program(OPERATOR, *args, "--output", "json", out=out, err=err, env=env)

    def _ended(self, args: Sequence[str], program: Program) -> Ended:
        status = program.poll()
        assert status is not None
        out, err = ((self._folder / name).read_text(errors="replace") for name in ("out", "err"))
        ended = Ended(args, status, out, err, time.monotonic() - self._began)
        self.notes.append(str(ended))
        return ended
