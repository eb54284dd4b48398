"""How a command tells its result: for people, or as one JSON document on stdout."""

import sys
from collections.abc import Callable, Iterable, Sequence
from enum import StrEnum
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.table import Table


class OutputFormat(StrEnum):
    """What stdout carries."""

    TEXT = "text"
    JSON = "json"


OutputOption = Annotated[OutputFormat, typer.Option("--output", "-o", help="What stdout carries.")]


def show(value: object, output: OutputFormat, as_text: Callable[[], None]) -> None:
    """Print a command's result."""
    if output is OutputFormat.JSON:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n")
    else:
        as_text()


def say(message: str) -> None:
    """Tell what is being done: on stderr, so that stdout stays the result's."""
    print(message, file=sys.stderr, flush=True)


def make_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """Rows in columns; None shows as a dash."""
    table = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*("–" if cell is None else str(cell) for cell in row))
    return table


def make_console() -> Console:
    """What tables are printed on; a name that looks like rich's markup, or an emoji's, is shown as it is."""
    # A pipe has no width of its own; cut-off cells would be useless there.
    width = None if sys.stdout.isatty() else 240
    return Console(width=width, markup=False, emoji=False, highlight=False)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print rows in columns; None shows as a dash."""
    make_console().print(make_table(columns, rows))
