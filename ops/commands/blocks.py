"""`shardctl blocks`."""

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from ops.commands.dev import DataDirOption
from ops.errors import EXIT_FAILURE
from ops.output import OutputFormat, OutputOption, print_table, show
from ops.scrub import find_store, scrub
from runtime.logs import configure_logs
from wire import faults

app = typer.Typer(no_args_is_help=True, help="The block store.")

DEFAULT_RATE_BYTES = 20 * 2**20
"""A fraction of what a disk reads, so that nobody notices; a terabyte takes 14 hours."""


@app.callback()
def blocks() -> None:
    """The block store."""


@app.command("scrub")
def scrub_command(
    rate_bytes: Annotated[
        int, typer.Option(min=1, help="Bytes to read a second at most.")
    ] = DEFAULT_RATE_BYTES,
    state_file: Annotated[
        Path | None,
        typer.Option(help="Where to keep how far it has come; cut short, the next run goes on from there."),
    ] = None,
    metrics_file: Annotated[
        Path | None, typer.Option(help="Where to write metrics, for node exporter's textfile collector.")
    ] = None,
    data_dir: DataDirOption = None,
    output: OutputOption = OutputFormat.TEXT,
) -> None:
    """Read every object of the block store and compare it with its name.

    The store is that of SHARDBOX_BLOCK_STORE and its settings, or the embedded cluster's. Damaged objects are
    logged on stderr and left where they are. Exit status 1 when there are any.
    """
    configure_logs("info", "scrub")
    faults.arm_from_environment()
    store = find_store(data_dir)
    state = asyncio.run(scrub(store, rate_bytes=rate_bytes, state_file=state_file, metrics_file=metrics_file))

    def as_text() -> None:
        print(
            f"{state.object_count} objects, {state.byte_count} bytes read: {state.corrupt_count} corrupt, "
            f"{state.unreadable_count} unreadable"
        )
        if state.damaged:
            rows = [(damage.object, damage.kind, damage.size) for damage in state.damaged]
            print_table(["object", "what", "bytes"], rows)

    show(state, output, as_text)
    if state.damaged_count:
        raise typer.Exit(EXIT_FAILURE)
