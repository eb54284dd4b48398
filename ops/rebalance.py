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
from sharding.reshard.planner import Plan, ProposedMove, plan_moves
from sharding.reshard.records import find_clock, get_move, insert_move, list_moves
from sharding.reshard.runner import Event, MoveRunner, RunReport, is_running
from sharding.reshard.situation import Situation, Size
from wire.ids import slot_of

MAX_ROUNDS = 10
"""Of planning: what one round could not begin, since a slot was still on its way, the next one does."""
_UNSWITCHED = (
    MoveState.PLANNED,
    MoveState.PREPARING,
    MoveState.COPYING,
    MoveState.STREAMING,
    MoveState.REVERSING,
    MoveState.READY,
)
"""States in which a move can still be left ready, or be switched, as this run is told to."""


class RebalanceReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a rebalance did."""

    moves: list[MoveReport]
    moved_share: float
    """The part of all data in the moves that it brought where they were to be, by the sizes before them."""
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
    look: Callable[[], Situation]
    """How things are now."""
    options: MoveOptions
    goal: Goal
    """READY or COMPLETED."""
    max_parallel: int
    on_event: Callable[[Event], None]
    tell: Callable[[str], None]
    """Told what is not an event of one move."""
    stop: threading.Event
    _reports: dict[int, MoveReport] = field(default_factory=dict[int, MoveReport])
    _shares: dict[int, float] = field(default_factory=dict[int, float])

    def run(self) -> RebalanceReport:
        """Carry out plans, and moves that were begun before, until nothing is left to be done.

        Raises:
            Interrupted: the operator stopped it; what was begun can be gone on with.
        """
        with ThreadPoolExecutor(self.max_parallel) as pool:
            for number in range(MAX_ROUNDS):
                self._settle_namespaces()
                situation = self.look()
                plan = plan_moves(situation)
                begun = self._begun(tell_of_others=number == 0)
                jobs = [
                    *(self._resume(plan, situation, move) for move in begun),
                    *(self._begin(plan, move) for move in plan.moves),
                ]
                # What a quarantine still holds on to can be moved again when that has ended.
                if not (self._carry_out(pool, jobs) if jobs else self._delete_when_due()):
                    break
        return RebalanceReport(
            moves=[self._reports[move_id] for move_id in sorted(self._reports)],
            moved_share=round(sum(self._shares.values()), 6),
            left=len(plan_moves(self.look()).moves),
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
                except MoveError as error:
                    self.tell(f"namespace {ns_id}: {error}")

    def _begun(self, *, tell_of_others: bool) -> list[Move]:
        """Moves to go on with: those that nobody runs, on the way to where this brings moves, or halfway."""
        found: list[Move] = []
        for move in self._idle_moves():
            if move.state is MoveState.DELETING or move.state.value == self.goal.value:
                continue
            is_ours = move.goal is Goal.COMPLETED or (move.goal is Goal.READY and move.state in _UNSWITCHED)
            if is_ours and not move.is_paused:
                found.append(move)
            elif tell_of_others:
                self.tell(
                    f"move {move.move_id} is left {move.state}{', paused' * move.is_paused}:"
                    f" `shardctl move status {move.move_id}` shows it"
                )
        return found

    def _idle_moves(self) -> list[Move]:
        """Those that have not ended, and that nobody runs."""
        with connect_directory(self.directory_dsn) as conn:
            return [
                move for move in list_moves(conn, is_live_only=True) if not is_running(conn, move.move_id)
            ]

    def _resume(self, plan: Plan, situation: Situation, move: Move) -> "_Job":
        goal = self.goal if move.state in _UNSWITCHED else move.goal
        return _job_of(move, goal, plan.share_of([_as_proposed(situation, move)]))

    def _begin(self, plan: Plan, proposed: ProposedMove) -> "_Job":
        def begin() -> int:
            shard_map = load_map(self.directory_dsn)
            if proposed.ns_id is not None:
                units = one_namespace(shard_map, proposed.ns_id)
            else:
                units = slot_units(shard_map, proposed.slots)
            with connect_directory(self.directory_dsn) as conn:
                move = insert_move(conn, proposed.source, proposed.target, units, self.options, self.goal)
            return move.move_id

        share = plan.share_of([proposed])
        return _Job(proposed.source, proposed.target, self.goal, share, begin)

    def _carry_out(self, pool: ThreadPoolExecutor, jobs: Sequence["_Job"]) -> bool:
        """Run the jobs, each as soon as its two shards are free; whether any of them got anywhere."""
        waiting, running, is_progress = list(jobs), dict[Future[bool], _Job](), False
        while running or (waiting and not self.stop.is_set()):
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
            report = MoveRunner(self.directory_dsn, self.on_event, self.stop).run(move_id, job.goal)
        except (MoveBusy, Interrupted):
            return False
        except (MoveError, psycopg.Error) as error:
            self._note_failure(move_id, error)
            return False
        self._note(report)
        self._shares.setdefault(move_id, job.share)
        return True

    def _note(self, report: RunReport) -> None:
        """Keep what a run did, beside what earlier ones of the same move did."""
        now = report_move(report.move, report.cutovers, report.copied)
        former = self._reports.get(report.move.move_id)
        if former is not None:
            cutovers = former.cutovers + now.cutovers
            now = msgspec.structs.replace(now, cutovers=cutovers, copied=now.copied or former.copied)
        self._reports[report.move.move_id] = now

    def _note_failure(self, move_id: int, error: Exception) -> None:
        with connect_directory(self.directory_dsn) as conn:
            failed = report_move(get_move(conn, move_id))
        because = failed.error or str(error).strip()
        self._reports[move_id] = msgspec.structs.replace(failed, error=because)
        self.tell(f"move {move_id} stopped {failed.state}: {because}")

    def _delete_when_due(self) -> bool:
        """Wait for the quarantines, and delete the old rows; whether there were any."""
        if self.goal is not Goal.COMPLETED:
            return False
        is_progress, told = False, set[int]()
        while due := [m for m in self._idle_moves() if m.state is MoveState.DELETING and not m.is_paused]:
            first = min(due, key=_due_s)
            self._wait_until(_due_s(first), due, told)
            if not self._run(_job_of(first, Goal.COMPLETED, share=0.0)):
                break
            is_progress = True
        return is_progress

    def _wait_until(self, due_s: float, moves: Sequence[Move], told: set[int]) -> None:
        with connect_directory(self.directory_dsn) as conn:
            left_s = due_s - find_clock(conn)
        if left_s > 0 and not told.issuperset(numbers := {move.move_id for move in moves}):
            told |= numbers
            self.tell(
                f"all is where it is to be; in {left_s:.0f} s the old rows of the first of {len(moves)} moves"
                " are deleted (Ctrl-C is safe: run it again then)"
            )
        if self.stop.wait(max(0.0, left_s)):
            raise Interrupted("stopped before the old rows were deleted; run it again when you like")


def _due_s(move: Move) -> float:
    return (move.retired_at_s or 0.0) + move.options.quarantine_s


def _as_proposed(situation: Situation, move: Move) -> ProposedMove:
    """A move that was begun, as a plan would have it."""
    slots = tuple(slot_of(unit.key) for unit in move.units if unit.is_slot)
    alone = [unit.key for unit in move.units if not unit.is_slot]
    sizes = [situation.slot_sizes.get(slot, Size()) for slot in slots]
    sizes += [situation.namespace_sizes.get(ns_id, Size()) for ns_id in alone]
    return ProposedMove(
        move.source, move.target, slots, alone[0] if alone else None, sum(sizes, Size()), "was begun before"
    )


@dataclass(frozen=True, slots=True)
class _Job:
    source: str
    target: str
    goal: Goal
    share: float
    """Of all data."""
    begin: Callable[[], int]
    """Records the move, if it is not yet; its number."""

    @property
    def shards(self) -> tuple[str, str]:
        """Which no other move may use meanwhile."""
        return self.source, self.target


def _job_of(move: Move, goal: Goal, share: float) -> _Job:
    return _Job(move.source, move.target, goal, share, lambda: move.move_id)
