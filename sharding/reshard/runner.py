"""A move from its state to a goal: by one process at a time, cut off anywhere, gone on with by any other."""

import os
import socket
import threading
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import LiteralString

import msgspec
import psycopg

from sharding.directory import Connection, load_map_sync
from sharding.locks import MIGRATION_LOCK_CLASS, MOVE_LOCK_CLASS
from sharding.reshard.catalog import TablesDiffer, check_tables
from sharding.reshard.context import MoveContext
from sharding.reshard.copy import CopyProgress
from sharding.reshard.errors import (
    FenceHeld,
    Interrupted,
    MoveBusy,
    MoveConflict,
    MoveError,
    Quarantined,
    VerifyFailed,
)
from sharding.reshard.fence import CutoverTimes
from sharding.reshard.model import RESTING, Goal, Move, MoveState, Side, next_state
from sharding.reshard.pacing import Control, Pacer
from sharding.reshard.records import (
    advance_move,
    begin_run,
    find_control,
    get_move,
    set_error,
    set_progress,
)
from sharding.reshard.sites import APPLICATION, CONNECT_TIMEOUT_S, site_of
from sharding.reshard.steps import STEPS, check_move
from sharding.reshard.stream import StreamBroken
from sharding.reshard.switch import check_streams, compare
from sharding.reshard.verify import VerifyReport
from wire import faults

PATIENCE_S = 60.0
"""How long a run waits for a server that went away: PostgreSQL's crash recovery takes some seconds."""
RETRY_S = 0.5
PROGRESS_INTERVAL_S = 1.0

WORKING = tuple(state for state in MoveState if state not in RESTING)
_NOTICE_SOON: LiteralString = (
    "SET tcp_keepalives_idle = 10; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 3"
)
_REFUSALS = (VerifyFailed, FenceHeld, StreamBroken, TablesDiffer, MoveConflict)
faults.declare(
    *(f"reshard.{state}.{when}" for state in WORKING for when in ("before", "after")),
    "reshard.ready.entered",
    "reshard.soaking.entered",
    "reshard.completed.entered",
    "reshard.cancelled.entered",
)


@dataclass(frozen=True, slots=True)
class Entered:
    """A move is in another state."""

    move: Move


@dataclass(frozen=True, slots=True)
class Progressed:
    """The work of a move's state is so far."""

    move: Move
    progress: msgspec.Struct


@dataclass(frozen=True, slots=True)
class Waited:
    """A server does not answer; the run tries again."""

    move_id: int
    because: str


Event = Entered | Progressed | Waited


@dataclass(frozen=True, slots=True)
class RunReport:
    """A move after a run, the cutovers that the run made, and what it copied."""

    move: Move
    cutovers: list[CutoverTimes]
    copied: CopyProgress | None = None


_LOST = (psycopg.OperationalError, psycopg.errors.IdleInTransactionSessionTimeout)
"""A connection that is gone; the second one, an internal error to psycopg, after this process stood still."""


class MoveRunner:
    """Runs moves of one cluster; each in the thread that calls it."""

    def __init__(self, directory_dsn: str, on_event: Callable[[Event], None], stop: threading.Event):
        self._directory_dsn = directory_dsn
        self._on_event = on_event
        self._stop = stop

    def run(self, move_id: int, goal: Goal | None = None) -> RunReport:
        """Bring a move to a goal, by default to the one that it has.

        A lost connection is made anew for a minute; the work of the state that it was lost in is repeated.

        Raises:
            MoveError: it cannot go on; the reason is recorded with the move.
            psycopg.OperationalError: a server stays away.
        """
        cutovers: list[CutoverTimes] = []
        deadline = time.monotonic() + PATIENCE_S
        seen: MoveState | None = None
        while True:
            try:
                return self._run_once(move_id, goal, cutovers)
            except _LOST as error:
                state = self._find_state(move_id)
                if state is not None and state is not seen:
                    seen, deadline = state, time.monotonic() + PATIENCE_S
                if time.monotonic() > deadline or self._stop.is_set():
                    self._note_loss(move_id, error)
                    raise
                self._on_event(Waited(move_id, str(error).strip()))
                self._stop.wait(RETRY_S)

    def verify(self, move_id: int) -> VerifyReport:
        """What a comparison of both shards finds, now; differences are no error.

        Raises:
            MoveError: the move is not at rest with its streams running, or the comparison could not be made.
        """
        with self._context(move_id) as ctx:
            _lock(ctx.directory, move_id)
            ctx.move = get_move(ctx.directory, move_id)
            if ctx.move.state not in (MoveState.READY, MoveState.SOAKING):
                raise MoveConflict(f"move {move_id} is {ctx.move.state}; there is nothing to compare")
            check_streams(ctx)
            owner = Side.SOURCE if ctx.move.state is MoveState.READY else Side.TARGET
            tables = check_tables(ctx.conn(Side.SOURCE), ctx.conn(Side.TARGET))
            return compare(ctx, tables, ctx.move.units, owner, is_new=True)

    def dry_run(self, move: Move, goal: Goal) -> list[str]:
        """What a run would do, step by step, after the checks that it would begin with."""
        with self._context(move.move_id, move) as ctx:
            if move.state in (MoveState.PLANNED, MoveState.PREPARING):
                check_move(ctx)
            lines: list[str] = []
            state, is_done = move.state, False
            while (following := next_state(state, goal, is_done=is_done)) is not None:
                if following in STEPS:
                    lines.append(f"{following}: {STEPS[following].describe(ctx)}")
                state, is_done = following, True
            return lines

    def _find_state(self, move_id: int) -> MoveState | None:
        try:
            with self._connect() as directory:
                return get_move(directory, move_id).state
        except psycopg.OperationalError:
            return None

    def _note_loss(self, move_id: int, error: psycopg.Error) -> None:
        """Record what the run gave up for, unless it was the directory."""
        with suppress(psycopg.OperationalError), self._connect() as directory:
            set_error(directory, move_id, f"database_unavailable: {str(error).strip()}")

    def _run_once(self, move_id: int, goal: Goal | None, cutovers: list[CutoverTimes]) -> RunReport:
        with self._context(move_id) as ctx:
            ctx.cutovers = cutovers
            _lock(ctx.directory, move_id)
            ctx.move = get_move(ctx.directory, move_id)
            goal = goal or ctx.move.goal
            next_state(ctx.move.state, goal, is_done=False)  # a goal that cannot be is not to be kept
            begin_run(ctx.directory, move_id, goal, f"{socket.gethostname()}:{os.getpid()}")
            ctx.move = get_move(ctx.directory, move_id)
            try:
                self._advance(ctx, goal)
            except Quarantined as error:
                self._on_event(Waited(move_id, str(error)))
            except MoveError as error:
                self._take_back(ctx, error)
                set_error(ctx.directory, move_id, f"{error.code}: {error}")
                raise
            return RunReport(ctx.move, cutovers, ctx.copied)

    def _advance(self, ctx: MoveContext, goal: Goal) -> None:
        is_done = ctx.move.state in RESTING
        while (following := next_state(ctx.move.state, goal, is_done=is_done)) is not None:
            self._wait_while_paused(ctx)
            if following is not ctx.move.state:
                ctx.move = advance_move(ctx.directory, ctx.move, following)
            self._on_event(Entered(ctx.move))
            if following in STEPS:
                faults.fault_point(f"reshard.{following}.before")
                STEPS[following].run(ctx)
                faults.fault_point(f"reshard.{following}.after")
            else:
                faults.fault_point(f"reshard.{following}.entered")
            is_done = True

    def _take_back(self, ctx: MoveContext, error: MoveError) -> None:
        """A switch or rollback that was refused before anything changed hands leaves the move at rest.

        One that was interrupted, or cannot compare just now, is gone on with by the next run.
        """
        rest = {MoveState.SWITCHING: MoveState.READY, MoveState.ROLLING_BACK: MoveState.SOAKING}
        if not isinstance(error, _REFUSALS) or ctx.move.state not in rest:
            return
        holder = Side.SOURCE if ctx.move.state is MoveState.SWITCHING else Side.TARGET
        if all(unit.holder is holder and not unit.is_cutting for unit in ctx.move.units):
            ctx.move = advance_move(ctx.directory, ctx.move, rest[ctx.move.state])

    def _wait_while_paused(self, ctx: MoveContext) -> None:
        while True:
            if self._stop.is_set():
                raise Interrupted(f"move {ctx.move.move_id} rests {ctx.move.state}; resume it when you like")
            if not self._control(ctx).is_paused:
                return
            self._stop.wait(RETRY_S)

    def _control(self, ctx: MoveContext) -> Control:
        throttle, is_paused = find_control(ctx.directory, ctx.move.move_id)
        return Control(throttle, is_paused, self._stop.is_set())

    def _connect(self) -> Connection:
        conn = psycopg.connect(
            self._directory_dsn,
            autocommit=True,
            connect_timeout=CONNECT_TIMEOUT_S,
            application_name=APPLICATION,
            keepalives_idle=5,
        )
        # The move is locked as long as the server believes in this session: for two hours by default after
        # the machine is gone.
        conn.execute(_NOTICE_SOON)
        return conn

    @contextmanager
    def _context(self, move_id: int, move: Move | None = None) -> Generator[MoveContext]:
        with ExitStack() as closing:
            directory = closing.enter_context(self._connect())
            move = move or get_move(directory, move_id)
            shard_map = load_map_sync(directory)
            for name in (move.source, move.target):
                if name not in shard_map.shards:
                    raise MoveConflict(f"{name}, which move {move_id} is about, is no shard any more")
            sites = {side: site_of(shard_map, move.shard(side)) for side in Side}
            ctx = MoveContext(directory, move, sites, closing)
            ctx.pacer = closing.enter_context(Pacer(lambda: self._control(ctx), *sites.values()))
            ctx.tell = self._teller(ctx)
            yield ctx

    def _teller(self, ctx: MoveContext) -> Callable[[msgspec.Struct], None]:
        told_at = 0.0

        def tell(progress: msgspec.Struct) -> None:
            nonlocal told_at
            self._on_event(Progressed(ctx.move, progress))
            if time.monotonic() >= told_at + PROGRESS_INTERVAL_S:
                told_at = time.monotonic()
                set_progress(ctx.directory, ctx.move.move_id, progress)

        return tell


def _lock(directory: Connection, move_id: int) -> None:
    """Be the only runner of a move, and keep migrations away, until the session ends.

    Raises:
        MoveBusy: somebody is at work.
    """
    if not _try(directory, "SELECT pg_try_advisory_lock(%s, %s)", [MOVE_LOCK_CLASS, move_id]):
        raise MoveBusy(f"another process runs move {move_id}; `shardctl move status {move_id}` shows it")
    if not _try(directory, "SELECT pg_try_advisory_lock_shared(%s, 0)", [MIGRATION_LOCK_CLASS]):
        raise MoveBusy("a migration is under way; resume the move when it has ended")


def is_running(directory: Connection, move_id: int) -> bool:
    """Whether a process is at work on a move."""
    return _try(
        directory,
        "SELECT EXISTS (SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND classid = %s AND objid = %s"
        " AND objsubid = 2 AND granted AND database = (SELECT oid FROM pg_database"
        " WHERE datname = current_database()))",
        [MOVE_LOCK_CLASS, move_id],
    )


def _try(conn: Connection, query: LiteralString, params: list[object]) -> bool:
    row = conn.execute(query, params).fetchone()
    return row is not None and bool(row[0])
