"""A plan carried out: several moves at once, no shard in two of them; gone on with after any interruption."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

import msgspec
import psycopg

from ops.moves import MoveReport, one_namespace, report_move, slot_units
from ops.session import connect_directory, load_map
from sharding.directory import list_pins
from sharding.reshard.alone import come_home, keep_here
from sharding.reshard.errors import Interrupted, MoveBusy, MoveConflict, MoveError
from sharding.reshard.model import Goal, Move, MoveOptions, MoveState
from sharding.reshard.planner import Plan, ProposedMove
from sharding.reshard.records import find_clock, insert_move, list_moves
from sharding.reshard.runner import Event, MoveRunner, RunReport, is_running

MAX_ROUNDS = 10
"""Of planning: what one round could not begin, since a slot was still on its way, the next one does."""


class RebalanceReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a rebalance did."""

    moves: list[MoveReport]
    moved_share: float
    """The part of all data that its moves carried, by the sizes before them."""
    left: int
    """Moves that the plan still has."""

    @property
    def is_done(self) -> bool:
        """Whether nothing failed, and nothing is left."""
        return not self.left and all(move.error is None for move in self.moves)


@dataclass(slots=True)
class Rebalance:
    """One run of a rebalance."""

    directory_dsn: str
    make_plan: Callable[[], Plan]
    options: MoveOptions
    goal: Goal
    max_parallel: int
    on_event: Callable[[Event], None]
    stop: threading.Event
    _reports: dict[int, MoveReport] = field(default_factory=dict[int, MoveReport])
    _shares: list[float] = field(default_factory=list[float])

    def run(self) -> RebalanceReport:
        """Finish the moves that were begun, then carry out plans until nothing is left to be done.

        Raises:
            Interrupted: the operator stopped it; what was begun can be gone on with.
        """
        with ThreadPoolExecutor(self.max_parallel) as pool:
            for _ in range(MAX_ROUNDS):
                self._settle_namespaces()
                begun = [self._resume(move) for move in self._unfinished()]
                plan = self.make_plan()
                if not begun and not plan.moves:
                    break
                if not self._carry_out(pool, [*begun, *(self._begin(plan, move) for move in plan.moves)]):
                    break
            self._delete_when_due()
        return RebalanceReport(
            moves=[self._reports[move_id] for move_id in sorted(self._reports)],
            moved_share=round(sum(self._shares), 6),
            left=len(self.make_plan().moves),
        )

    def _settle_namespaces(self) -> None:
        """Let pinned namespaces stay where they belong, and others that are home live with their slots."""
        shard_map = load_map(self.directory_dsn)
        with connect_directory(self.directory_dsn) as conn:
            pins = list_pins(conn)
            for ns_id in sorted({*shard_map.overrides, *pins}):
                try:
                    (keep_here if ns_id in pins else come_home)(conn, ns_id)
                except MoveConflict:
                    continue  # amid a move; the next round looks again

    def _unfinished(self) -> list[Move]:
        """Moves that somebody began towards the same goal, or further, and that nobody runs."""
        with connect_directory(self.directory_dsn) as conn:
            return [
                move
                for move in list_moves(conn, is_live_only=True)
                if move.goal in (Goal.COMPLETED, self.goal)
                and not move.is_paused
                and move.state.value != move.goal.value
                and move.state is not MoveState.DELETING
                and not is_running(conn, move.move_id)
            ]

    def _resume(self, move: Move) -> "_Job":
        return _Job(move.source, move.target, lambda: move.move_id)

    def _begin(self, plan: Plan, proposed: ProposedMove) -> "_Job":
        def begin() -> int:
            shard_map = load_map(self.directory_dsn)
            if proposed.ns_id is not None:
                units = one_namespace(shard_map, proposed.ns_id)
            else:
                units = slot_units(shard_map, proposed.slots)
            with connect_directory(self.directory_dsn) as conn:
                move = insert_move(conn, proposed.source, proposed.target, units, self.options, self.goal)
            self._shares.append(plan.share_of([proposed]))
            return move.move_id

        return _Job(proposed.source, proposed.target, begin)

    def _carry_out(self, pool: ThreadPoolExecutor, jobs: Sequence["_Job"]) -> bool:
        """Run the jobs, each as soon as its two shards are free; whether any of them got anywhere."""
        waiting, running, is_progress = list(jobs), dict[Future[bool], _Job](), False
        while waiting or running:
            busy = {shard for job in running.values() for shard in job.shards}
            for job in list(waiting):
                if len(running) < self.max_parallel and not busy.intersection(job.shards):
                    waiting.remove(job)
                    busy.update(job.shards)
                    running[pool.submit(self._run, job)] = job
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                del running[future]
                is_progress |= future.result()
            if self.stop.is_set():
                waiting.clear()
        if self.stop.is_set():
            raise Interrupted("stopped; run it again, and it goes on with the moves that it began")
        return is_progress

    def _run(self, job: "_Job") -> bool:
        try:
            move_id = job.begin()
        except MoveConflict:
            return False  # its slot is on its way, or the map has changed: the next plan knows
        try:
            report = MoveRunner(self.directory_dsn, self.on_event, self.stop).run(move_id)
        except (MoveBusy, Interrupted):
            return False
        except (MoveError, psycopg.Error) as error:
            self._note_failure(move_id, error)
            return False
        self._note(report)
        return True

    def _note(self, report: RunReport) -> None:
        self._reports[report.move.move_id] = report_move(report.move, report.cutovers)

    def _note_failure(self, move_id: int, error: Exception) -> None:
        with connect_directory(self.directory_dsn) as conn:
            move = next(m for m in list_moves(conn) if m.move_id == move_id)
        failed = report_move(move)
        self._reports[move_id] = msgspec.structs.replace(failed, error=failed.error or str(error).strip())

    def _delete_when_due(self) -> None:
        """Wait for the quarantines, and delete the old rows."""
        while not self.stop.is_set():
            with connect_directory(self.directory_dsn) as conn:
                due = [
                    move
                    for move in list_moves(conn, is_live_only=True)
                    if move.state is MoveState.DELETING
                    and not move.is_paused
                    and not is_running(conn, move.move_id)
                ]
                now_s = find_clock(conn)
            if not due or self.goal is not Goal.COMPLETED:
                return
            first = min(due, key=_due_s)
            if self.stop.wait(max(0.0, _due_s(first) - now_s)):
                raise Interrupted("stopped before the old rows were deleted; run it again when you like")
            if not self._run(self._resume(first)):
                return


def _due_s(move: Move) -> float:
    return (move.retired_at_s or 0.0) + move.options.quarantine_s


@dataclass(frozen=True, slots=True)
class _Job:
    source: str
    target: str
    begin: Callable[[], int]
    """Records the move, if it is not yet; its number."""

    @property
    def shards(self) -> tuple[str, str]:
        """Which no other move may use meanwhile."""
        return self.source, self.target
