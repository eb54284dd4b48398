"""`shardctl migrate`."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from ops.cluster import find_directory_dsn
from ops.commands.dev import DataDirOption
from ops.migrate import (
    LOCK_TIMEOUT_MS,
    PARALLEL,
    STATEMENT_TIMEOUT_MS,
    DatabaseResult,
    MigrationOptions,
    MigrationReport,
    migrate_databases,
)
from ops.migrate_messages import Applied, Message
from ops.output import OutputFormat, OutputOption, print_table, say, show


def migrate(
    data_dir: DataDirOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell which steps are ahead.")] = False,
    lock_timeout_ms: Annotated[int, typer.Option(min=1, help="For each lock.")] = LOCK_TIMEOUT_MS,
    statement_timeout_ms: Annotated[
        int, typer.Option(min=1, help="For each statement.")
    ] = STATEMENT_TIMEOUT_MS,
    parallel: Annotated[int, typer.Option(min=1, max=64, help="Shards at a time.")] = PARALLEL,
    output: OutputOption = OutputFormat.TEXT,
) -> None:
    """Bring the directory, then all shards side by side, to the newest schema.

    Refuses (exit status 5) while another migration or a move is under way. A shard that fails leaves the
    others migrated (exit status 1); run it again and it takes up where each stands.
    """
    options = MigrationOptions(
        lock_timeout_ms=lock_timeout_ms,
        statement_timeout_ms=statement_timeout_ms,
        is_dry_run=dry_run,
        parallel=parallel,
    )
    with _progress() as progress:
        report = migrate_databases(find_directory_dsn(data_dir), options=options, progress=progress)
    show(report, output, lambda: _print_report(report))
    if not dry_run or not report.is_ok:
        report.raise_for_failures()


@contextmanager
def _progress() -> Iterator[Callable[[DatabaseResult, Message | None], None]]:
    if not sys.stderr.isatty():
        yield _say_line
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        tasks: dict[str, TaskID] = {}

        def update(result: DatabaseResult, message: Message | None) -> None:
            task = tasks.get(result.name)
            if task is None:
                task = tasks[result.name] = bar.add_task(result.name, total=None)
            total = max(1, len(result.planned or []))
            done = len(result.applied or []) if message is not None else total
            bar.update(task, total=total, completed=done)

        yield update


def _say_line(result: DatabaseResult, message: Message | None) -> None:
    if isinstance(message, Applied):
        say(f"{result.name}: {message.revision} applied")
    elif message is None:
        say(f"{result.name}: {result.status} ({result.elapsed_s:.1f} s)")


def _print_report(report: MigrationReport) -> None:
    print_table(
        ["database", "status", "was at", "head", "steps", "error"],
        [
            (r.name, r.status, r.before, r.head, ", ".join(r.planned or []) or None, r.error)
            for r in report.databases
        ],
    )
