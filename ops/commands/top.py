"""`shardctl top`: where the load is."""

import sys
import time
from collections.abc import Callable
from typing import Annotated

import msgspec
import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live

from ops.cluster import find_directory_dsn
from ops.commands.dev import DataDirOption
from ops.errors import EXIT_UNAVAILABLE
from ops.output import OutputFormat, OutputOption, make_console, make_table, say, show
from ops.session import load_map
from ops.top import Order, TopEntry, TopReport, gather_top

_STEP = 1000


def top(
    by: Annotated[
        Order,
        typer.Option(help="What comes first. Bytes are those of contents that clients commit, per second."),
    ] = Order.WRITES,
    limit: Annotated[int, typer.Option(min=1, max=1_000, help="How many of each.")] = 10,
    slots: Annotated[
        bool | None, typer.Option("--slots/--namespaces", help="Only these. Default: both.")
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Again and again, until interrupted; as JSON, a line each time.")
    ] = False,
    interval: Annotated[float, typer.Option(min=1, help="Seconds between two looks of --watch.")] = 5.0,
    data_dir: DataDirOption = None,
    output: OutputOption = OutputFormat.TEXT,
) -> None:
    """Show the busiest or the largest slots and namespaces, and the shard that each is on.

    Rates are of about the last two minutes, as the metaservers tell every ten seconds. Exit status 6 when a
    shard does not answer; the others are shown.
    """
    dsn = find_directory_dsn(data_dir)

    def gather() -> TopReport:
        return gather_top(
            load_map(dsn), by, limit, has_slots=slots is not False, has_namespaces=slots is not True
        )

    if watch:
        _watch(gather, output, interval)
        return
    report = gather()
    show(report, output, lambda: make_console().print(_render(report)))
    if report.shards_out:
        say(_tell_out(report))
        raise typer.Exit(EXIT_UNAVAILABLE)


def _watch(gather: Callable[[], TopReport], output: OutputFormat, interval_s: float) -> None:
    """Show one report after another, in place where that can be."""

    def repeat(tell: Callable[[TopReport], None]) -> None:
        while True:
            tell(gather())
            time.sleep(interval_s)

    console = make_console()
    try:
        if output is OutputFormat.JSON:
            repeat(lambda report: print(msgspec.json.encode(report).decode(), flush=True))
        elif console.is_terminal:
            with Live(console=console, screen=True, auto_refresh=False) as live:
                repeat(lambda report: live.update(_render(report, has_out=True), refresh=True))
        else:
            repeat(lambda report: _print_lines(console, report))
    except KeyboardInterrupt:
        return


def _print_lines(console: Console, report: TopReport) -> None:
    console.print(time.strftime("%H:%M:%S"), _render(report, has_out=True), sep="\n")
    sys.stdout.flush()


def _render(report: TopReport, *, has_out: bool = False) -> RenderableType:
    parts: list[RenderableType] = []
    if report.slots is not None:
        parts.append(make_table(["slot", *_COLUMNS], [(e.slot, *_cells(e)) for e in report.slots]))
    if report.namespaces is not None:
        rows = [(f"{e.ns_id}{' *' if e.is_alone else ''}", e.slot, *_cells(e)) for e in report.namespaces]
        parts.append(make_table(["namespace", "slot", *_COLUMNS], rows))
        if any(entry.is_alone for entry in report.namespaces):
            parts.append("* placed by itself")
    if has_out and report.shards_out:
        parts.append(_tell_out(report))
    spaced = [part for found in parts for part in (found, "")]
    return Group(*spaced[:-1])


_COLUMNS = ["shard", "writes/s", "reads/s", "content/s", "size", "rows"]


def _cells(entry: TopEntry) -> tuple[object, ...]:
    return (
        entry.shard,
        f"{entry.writes_per_s:.1f}",
        f"{entry.reads_per_s:.1f}",
        format_bytes(entry.bytes_per_s),
        None if entry.live_bytes is None else format_bytes(entry.live_bytes),
        None if entry.rows is None else f"{entry.rows:,}",
    )


def format_bytes(count: float) -> str:
    """A number of bytes in three or four digits."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if round(count) < _STEP:
            return f"{count:.0f} {unit}" if unit == "B" or count >= _STEP / 10 else f"{count:.1f} {unit}"
        count /= _STEP
    return f"{count:.1f} PB"


def _tell_out(report: TopReport) -> str:
    return f"no answer, so left out: {', '.join(report.shards_out)}"
