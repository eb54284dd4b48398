"""`shardctl rebalance`: the plan, carried out."""

import sys
from typing import Annotated

import typer

from ops.cluster import find_directory_dsn
from ops.commands.dev import DataDirOption
from ops.commands.plan import ByOption
from ops.errors import EXIT_FAILURE
from ops.moves import MAX_COMMIT_MS, MAX_LAG_MB, MAX_QUARANTINE_S, MoveDisplay, stop_on_signals
from ops.output import OutputFormat, OutputOption, print_table, show
from ops.planning import print_plan, report_plan
from ops.rebalance import Rebalance, RebalanceReport
from ops.survey import Weighing, survey
from sharding.reshard.model import Goal, MoveOptions, Throttle
from sharding.reshard.planner import plan_moves

_DEFAULT = MoveOptions()
MAX_PARALLEL = 16


def rebalance(
    auto: Annotated[
        bool,
        typer.Option(
            "--auto",
            help="Switch and complete each move when it is ready; else they are left ready to be switched.",
        ),
    ] = False,
    max_parallel: Annotated[
        int, typer.Option(min=1, max=MAX_PARALLEL, help="Moves at once, each between two other shards.")
    ] = 2,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan, and do nothing.")] = False,
    by: ByOption = Weighing.SLOTS,
    quarantine: Annotated[
        float,
        typer.Option(
            min=0,
            max=MAX_QUARANTINE_S,
            help="Seconds that old rows stay after the point of no return; for moves that it begins.",
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
    data_dir: DataDirOption = None,
    output: OutputOption = OutputFormat.TEXT,
) -> None:
    """Carry out the plan: bring every shard within its bounds, empty those that drain, heed the pins.

    Goes on with moves that were begun before, unless they are paused; with --auto also with those that are
    ready. Exit status 1 when a move failed, or something is left.
    """
    directory = find_directory_dsn(data_dir)
    surveyed = survey(directory, by)
    planned = report_plan(plan_moves(surveyed.situation), is_exact=surveyed.is_exact)
    if dry_run:
        show(planned, output, lambda: print_plan(planned))
        return
    if output is OutputFormat.TEXT:
        print_plan(planned)
        sys.stdout.flush()  # what comes next goes to stderr, which may be the same file
    options = MoveOptions(
        quarantine_s=quarantine,
        throttle=Throttle(max_lag_bytes=max_lag_mb << 20, max_commit_ms=max_commit_ms),
    )
    goal = Goal.COMPLETED if auto else Goal.READY
    with stop_on_signals() as stop, MoveDisplay() as display:
        report = Rebalance(
            directory_dsn=directory,
            look=lambda: survey(directory, by).situation,
            options=options,
            goal=goal,
            max_parallel=max_parallel,
            on_event=display.show,
            tell=display.tell,
            stop=stop,
        ).run()
    show(report, output, lambda: _print(report, is_auto=auto))
    if not report.is_done:
        raise typer.Exit(EXIT_FAILURE)


def _print(report: RebalanceReport, *, is_auto: bool) -> None:
    if report.moves:
        print()
        print_table(
            ["move", "state", "from", "to", "units", "rows copied", "longest cutover ms", "error"],
            [
                (
                    m.move_id,
                    m.state,
                    m.source,
                    m.target,
                    len(m.units),
                    None if m.copied is None else f"{m.copied.rows:,}",
                    max((c.total_ms for c in m.cutovers), default=None),
                    m.error,
                )
                for m in report.moves
            ],
        )
        print()
    if report.left:
        print(f"{report.left} moves are left: see the errors, and run it again")
    elif not is_auto and report.moves:
        print(
            f"{report.moved_share:.1%} of the data is on both shards; nothing has switched."
            " Go on by `shardctl rebalance --auto`, or by `shardctl move switch ID` and `complete ID`"
        )
    elif report.moves:
        print(f"{report.moved_share:.1%} of the data moved")
