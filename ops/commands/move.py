"""`shardctl move`: slots, or one namespace, to another shard while clients keep syncing."""

from collections.abc import Sequence
from typing import Annotated

import msgspec
import typer

from ops.cluster import find_directory_dsn
from ops.commands.dev import DataDirOption
from ops.errors import EXIT_CONFLICT, OpsError, UsageError
from ops.moves import (
    MAX_COMMIT_MS,
    MAX_LAG_MB,
    MAX_QUARANTINE_S,
    MAX_ROWS_PER_S,
    MoveReport,
    ProgressReport,
    check_exists,
    one_namespace,
    parse_slots,
    report_move,
    report_progress,
    run_move,
    slot_units,
    source_of,
    stop_on_signals,
)
from ops.output import OutputFormat, OutputOption, print_table, say, show
from ops.session import connect_directory, load_map
from sharding.directory import Connection
from sharding.reshard.model import ENDED, Goal, Move, MoveOptions, MoveState, Throttle
from sharding.reshard.records import (
    check_units,
    find_progress,
    find_verified,
    get_move,
    insert_move,
    list_moves,
    set_options,
    set_paused,
)
from sharding.reshard.runner import MoveRunner, is_running
from wire.ids import parse_ns_id

app = typer.Typer(no_args_is_help=True, help="Move slots or a namespace to another shard, online.")
MoveArgument = Annotated[int, typer.Argument(metavar="ID", help="The move's number.")]
_DEFAULT = MoveOptions()


class DryRunReport(msgspec.Struct, frozen=True):
    """What a move would do."""

    steps: list[str]


@app.command()
def start(
    to: Annotated[str, typer.Option(help="The shard that takes over.")],
    slots: Annotated[str | None, typer.Option(help="What moves: slots, such as 3,8-11.")] = None,
    namespace: Annotated[str | None, typer.Option(help="What moves: one namespace, by its id.")] = None,
    until: Annotated[
        Goal,
        typer.Option(
            help="Where to stop: ready (copied and streaming), soaking (switched, with the way back open) or "
            "completed."
        ),
    ] = Goal.READY,
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Compare both shards before every switch.")
    ] = True,
    quarantine: Annotated[
        float,
        typer.Option(
            min=0, max=MAX_QUARANTINE_S, help="Seconds that the old rows stay after the point of no return."
        ),
    ] = _DEFAULT.quarantine_s,
    max_lag_mb: Annotated[
        int,
        typer.Option(min=1, max=MAX_LAG_MB, help="Slow down while a standby or stream lags by more."),
    ] = _DEFAULT.throttle.max_lag_bytes >> 20,
    max_commit_ms: Annotated[
        float,
        typer.Option(min=0.1, max=MAX_COMMIT_MS, help="Slow down while a commit on the source takes longer."),
    ] = _DEFAULT.throttle.max_commit_ms,
    max_rows_per_s: Annotated[
        int, typer.Option(min=0, max=MAX_ROWS_PER_S, help="0: as fast as it goes.")
    ] = 0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check, tell the steps, and do nothing.")
    ] = False,
    data_dir: DataDirOption = None,
    output: OutputOption = OutputFormat.TEXT,
) -> None:
    """Begin a move; by default until it is ready to be switched."""
    if (slots is None) == (namespace is None):
        raise UsageError("say either --slots or --namespace")
    if until is Goal.CANCELLED:
        raise UsageError("a move that is to be cancelled need not be begun")
    directory = find_directory_dsn(data_dir)
    shard_map = load_map(directory)
    if slots is not None:
        units = slot_units(shard_map, parse_slots(slots))
    else:
        units = one_namespace(shard_map, parse_ns_id(namespace or ""))
        check_exists(shard_map, units[0].key)
    source = source_of(shard_map, units)
    options = MoveOptions(
        is_verified=verify,
        quarantine_s=quarantine,
        throttle=Throttle(
            max_lag_bytes=max_lag_mb << 20, max_commit_ms=max_commit_ms, max_rows_per_s=max_rows_per_s
        ),
    )
    if dry_run:
        with connect_directory(directory) as conn:
            check_units(conn, source, to, units)
        planned = Move(0, source, to, MoveState.PLANNED, until, options, tuple(units))
        with stop_on_signals() as stop:
            steps = MoveRunner(directory, lambda _: None, stop).dry_run(planned, until)
        show(DryRunReport(steps), output, lambda: print("\n".join(steps)))
        return
    with connect_directory(directory) as conn:
        move = insert_move(conn, source, to, units, options, until)
    say(f"move {move.move_id}: {len(units)} of {source} to {to}")
    show_run(directory, move.move_id, until, output)


def show_run(directory: str, move_id: int, goal: Goal | None, output: OutputFormat) -> None:
    """Bring a move to a goal, and show how it ended."""
    report = run_move(directory, move_id, goal)
    shown = report_move(report.move, report.cutovers, report.copied)
    show(shown, output, lambda: _print_move(shown))


@app.command("list")
def list_all(
    everything: Annotated[bool, typer.Option("--all", help="Ended ones as well.")] = False,
    data_dir: DataDirOption = None,
    output: OutputOption = OutputFormat.TEXT,
) -> None:
    """List the moves that have not ended."""
    with connect_directory(find_directory_dsn(data_dir)) as conn:
        reports = [report_move(move) for move in list_moves(conn, is_live_only=not everything)]
    columns = ["move", "state", "goal", "from", "to", "units", "error"]
    rows = [(r.move_id, r.state, r.goal, r.source, r.target, len(r.units), r.error) for r in reports]
    show({"moves": reports}, output, lambda: print_table(columns, rows))


@app.command()
def status(
    move_id: MoveArgument, data_dir: DataDirOption = None, output: OutputOption = OutputFormat.TEXT
) -> None:
    """Show one move: its state, who owns what, how far it is, and what can be done."""
    with connect_directory(find_directory_dsn(data_dir)) as conn:
        move = get_move(conn, move_id)
        progress, runner = find_progress(conn, move_id)
        report = msgspec.structs.replace(
            report_move(move),
            runner=runner if is_running(conn, move_id) else None,
            progress=report_progress(move.state, progress, find_verified(conn, move_id)),
        )
    show(report, output, lambda: _print_move(report))


@app.command()
def verify(
    move_id: MoveArgument, data_dir: DataDirOption = None, output: OutputOption = OutputFormat.TEXT
) -> None:
    """Compare what both shards have, exactly, while clients write. Exit status 1 when they differ."""
    with stop_on_signals() as stop:
        report = MoveRunner(find_directory_dsn(data_dir), lambda _: None, stop).verify(move_id)
    rows = [(d.table, d.key, d.kind) for d in report.differences]
    show(report, output, lambda: _print_verified(report.rows, rows))
    if rows:
        raise typer.Exit(1)


@app.command()
def switch(
    move_id: MoveArgument, data_dir: DataDirOption = None, output: OutputOption = OutputFormat.TEXT
) -> None:
    """Let the target take over, after a comparison. It can be rolled back until `complete`."""
    _go(
        move_id,
        Goal.SOAKING,
        {MoveState.READY, MoveState.SWITCHING, MoveState.ROLLING_BACK},
        data_dir,
        output,
    )


@app.command()
def rollback(
    move_id: MoveArgument, data_dir: DataDirOption = None, output: OutputOption = OutputFormat.TEXT
) -> None:
    """Let the source take over again, with all that was written on the target."""
    _go(
        move_id,
        Goal.READY,
        {MoveState.SOAKING, MoveState.SWITCHING, MoveState.ROLLING_BACK},
        data_dir,
        output,
    )


@app.command()
def complete(
    move_id: MoveArgument, data_dir: DataDirOption = None, output: OutputOption = OutputFormat.TEXT
) -> None:
    """End a switched move. NO WAY BACK: the streams are dropped and, after the quarantine, the old rows."""
    _go(
        move_id, Goal.COMPLETED, {MoveState.SOAKING, MoveState.RETIRING, MoveState.DELETING}, data_dir, output
    )


@app.command()
def cancel(
    move_id: MoveArgument, data_dir: DataDirOption = None, output: OutputOption = OutputFormat.TEXT
) -> None:
    """Give a move up: all stays on, or goes back to, the source, and the target's rows are deleted."""
    allowed = set(MoveState) - {
        MoveState.SOAKING,
        MoveState.RETIRING,
        MoveState.DELETING,
        MoveState.COMPLETED,
    }
    _go(move_id, Goal.CANCELLED, allowed, data_dir, output)


@app.command()
def resume(
    move_id: MoveArgument, data_dir: DataDirOption = None, output: OutputOption = OutputFormat.TEXT
) -> None:
    """Go on with a move that was paused, or whose command ended, towards the goal that it had."""
    directory = find_directory_dsn(data_dir)
    with connect_directory(directory) as conn:
        get_move(conn, move_id)
        set_paused(conn, move_id, is_paused=False)
        if is_running(conn, move_id):
            say(f"move {move_id} goes on in the process that runs it")
            report = report_move(get_move(conn, move_id))
            show(report, output, lambda: _print_move(report))
            return
    show_run(directory, move_id, None, output)


@app.command()
def pause(
    move_id: MoveArgument, data_dir: DataDirOption = None, output: OutputOption = OutputFormat.TEXT
) -> None:
    """Let a running move stand still, between two steps or in mid copy; `resume` lets it go on.

    Its streams keep running. A paused copy holds back vacuum on the source.
    """
    with connect_directory(find_directory_dsn(data_dir)) as conn:
        _get_live_move(conn, move_id)
        set_paused(conn, move_id, is_paused=True)
        report = report_move(get_move(conn, move_id))
    show(report, output, lambda: _print_move(report))


@app.command()
def throttle(
    move_id: MoveArgument,
    max_lag_mb: Annotated[int | None, typer.Option(min=1, max=MAX_LAG_MB, help="As in `move start`.")] = None,
    max_commit_ms: Annotated[
        float | None, typer.Option(min=0.1, max=MAX_COMMIT_MS, help="As in `move start`.")
    ] = None,
    max_rows_per_s: Annotated[
        int | None, typer.Option(min=0, max=MAX_ROWS_PER_S, help="As in `move start`.")
    ] = None,
    data_dir: DataDirOption = None,
    output: OutputOption = OutputFormat.TEXT,
) -> None:
    """Change what a move's copy and deletions keep below; a running one follows within a second."""
    with connect_directory(find_directory_dsn(data_dir)) as conn:
        options = _get_live_move(conn, move_id).options
        old = options.throttle
        changed = Throttle(
            max_lag_bytes=old.max_lag_bytes if max_lag_mb is None else max_lag_mb << 20,
            max_commit_ms=old.max_commit_ms if max_commit_ms is None else max_commit_ms,
            max_rows_per_s=old.max_rows_per_s if max_rows_per_s is None else max_rows_per_s,
        )
        set_options(conn, move_id, msgspec.structs.replace(options, throttle=changed))
    pairs = [(name.replace("_", " "), value) for name, value in msgspec.structs.asdict(changed).items()]
    show(changed, output, lambda: print_table(["", ""], pairs))


def _go(
    move_id: int, goal: Goal, allowed: set[MoveState], data_dir: DataDirOption, output: OutputFormat
) -> None:
    directory = find_directory_dsn(data_dir)
    with connect_directory(directory) as conn:
        move = get_move(conn, move_id)
        if move.state not in allowed and move.state.value != goal.value:
            raise MoveStateError(f"move {move_id} is {move.state}: {_REMEDIES[goal]}")
        if move.is_paused and not is_running(conn, move_id):
            set_paused(conn, move_id, is_paused=False)
            say(f"move {move_id} was paused, and goes on")
    show_run(directory, move_id, goal, output)


def _get_live_move(conn: Connection, move_id: int) -> Move:
    move = get_move(conn, move_id)
    if move.state in ENDED:
        raise MoveStateError(f"move {move_id} is {move.state}: it does nothing more")
    return move


class MoveStateError(OpsError):
    """A command that does not go with the state that a move is in."""

    code, exit_status = "move_state", EXIT_CONFLICT


_REMEDIES = {
    Goal.SOAKING: "only one that is ready can be switched; `resume` brings it there",
    Goal.READY: "only one that is switched, and not completed, can be rolled back",
    Goal.COMPLETED: "only one that is switched can be completed",
    Goal.CANCELLED: "one that is switched is to be rolled back first, and a completed one is over",
}


def _print_move(report: MoveReport) -> None:
    state = f"{report.state}{', paused' if report.is_paused else ''}"
    goal = "" if report.state == report.goal else f", on the way to {report.goal}"
    print(f"move {report.move_id}: {state}{goal}; {report.source} → {report.target}")
    if report.error is not None:
        print(f"stopped: {report.error}")
    if report.runner is not None:
        print(f"run by {report.runner}")
    rows = [(u.name, u.holder, "yes" if u.is_cutting else "no") for u in report.units]
    print_table(["unit", "on", "amid a cutover"], rows)
    if report.cutovers:
        print()
        print_table(
            ["cut over", "fence ms", "drain ms", "activate ms", "total ms"],
            [(c.key, c.fence_ms, c.drain_ms, c.activate_ms, c.total_ms) for c in report.cutovers],
        )
    if report.progress is not None:
        print(f"\n{_describe(report.progress)}")


def _describe(progress: ProgressReport) -> str:
    of = "" if progress.rows_expected is None else f" of about {progress.rows_expected:,}"
    rate = "" if progress.rows_per_s is None else f", {progress.rows_per_s:,.0f} rows/s"
    eta = "" if progress.eta_s is None else f", {progress.eta_s:.0f} s to go"
    held = "" if progress.held_back_by is None else f"; {progress.held_back_by}"
    return f"{progress.what}: {progress.rows:,}{of} rows{rate}{eta}{held}"


def _print_verified(rows: int, differences: Sequence[Sequence[object]]) -> None:
    print(f"{rows:,} rows compared, {len(differences)} differences")
    if differences:
        print_table(["table", "key", "on the follower"], differences)
