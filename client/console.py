"""What all commands share: exit codes, ways to print, finding the folder and the path that is meant."""

import asyncio
import contextlib
import os
import signal
import sqlite3
from collections.abc import Coroutine, Iterator
from enum import IntEnum, StrEnum
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from client.api import NoShardbox, Unreachable
from client.folder import AlreadyRunning, Folder, FolderProblem
from client.schema import WrongVersion
from client.sync import GaveUp
from wire.errors import DeviceRevoked, InvalidLinkCode, ShardboxError

T = TypeVar("T")


class Exit(IntEnum):
    """What the process tells its caller; 2 is typer's, for wrong usage."""

    OK = 0
    ERROR = 1
    LEFT = 3
    UNREACHABLE = 4
    FOLDER = 5
    RUNNING = 6
    UNLINKED = 7
    BAD_CODE = 8
    PAUSED = 9
    REFUSED = 10
    INTERRUPTED = 128 + signal.SIGINT
    TERMINATED = 128 + signal.SIGTERM


class Output(StrEnum):
    """How to print."""

    TEXT = "text"
    JSON = "json"


FolderArgument = Annotated[Path, typer.Argument(help="The synced folder, or any below it.")]
FolderOption = Annotated[
    Path | None, typer.Option("--folder", "-f", help="The synced folder, or any below it; here unless told.")
]
PathArgument = Annotated[
    str, typer.Argument(help="A path relative to the synced folder, or an absolute one inside it.")
]
OutputOption = Annotated[Output, typer.Option("--output", "-o", help="text or json")]


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run to the end, or leave with the exit code of what went wrong."""
    with explaining():
        return asyncio.run(work)


@contextlib.contextmanager
def explaining() -> Iterator[None]:
    """Leave with the exit code of what goes wrong inside, and say what it was."""
    try:
        yield
    except (FolderProblem, WrongVersion) as problem:
        fail(Exit.FOLDER, str(problem))
    except AlreadyRunning as problem:
        fail(Exit.RUNNING, str(problem))
    except NoShardbox as problem:
        fail(Exit.UNREACHABLE, str(problem))
    except (GaveUp, Unreachable) as problem:
        fail(Exit.UNREACHABLE, f"the servers do not answer: {problem}")
    except DeviceRevoked as problem:
        fail(Exit.UNLINKED, f"this device is no longer linked: {problem}")
    except InvalidLinkCode as problem:
        fail(Exit.BAD_CODE, str(problem))
    except ShardboxError as problem:
        fail(Exit.UNLINKED if problem.status == 401 else Exit.REFUSED, f"{problem.code}: {problem}")
    except sqlite3.OperationalError as problem:
        fail(Exit.ERROR, f"the state cannot be written: {problem}")
    except sqlite3.DatabaseError as problem:
        if problem.sqlite_errorcode & _PRIMARY_CODE not in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
            raise
        fail(Exit.FOLDER, f"the state is damaged ({problem}): remove the .shardbox folder and link it anew")


_PRIMARY_CODE = 0xFF
"""SQLite says in the other bits where it noticed."""


def fail(code: Exit, message: str) -> NoReturn:
    """Say why, and leave."""
    typer.echo(message, err=True)
    raise typer.Exit(code)


def print_json(result: msgspec.Struct) -> None:
    """One line of JSON."""
    typer.echo(msgspec.json.encode(result).decode())


def print_table(table: Table) -> None:
    """A table whose cells are shown as they are: a name may look like rich's markup, or like an emoji's."""
    # Not cut to a width: what a terminal shows in two lines a program can still read.
    width = None if Console().is_terminal else 10_000
    Console(width=width, soft_wrap=True, markup=False, emoji=False, highlight=False).print(table)


def find_folder(start: Path | None) -> Folder:
    """The linked folder at or above a path, or at or above where we are."""
    start = (start or Path()).absolute()
    for path in (start, *start.parents):
        found = Folder(path)
        if found.is_linked():
            return found
    fail(Exit.FOLDER, f"{start} is not linked (or its disk is not mounted)")


def find_place(path: str, folder: Path | None) -> tuple[Folder, str]:
    """The folder that a PATH argument is about, and the path below it: names with / between, "" is itself."""
    if os.path.isabs(path):
        place = find_folder(Path(os.path.normpath(path)))
        relative = os.path.relpath(os.path.normpath(path), place.path)
    else:
        place = find_folder(folder)
        relative = os.path.normpath(path or ".")
    if relative == ".." or relative.startswith("../"):
        raise typer.BadParameter(f"{path} leads out of {place.path}")
    if not _is_utf8(relative):
        shown = os.fsencode(path).decode(errors="backslashreplace")
        raise typer.BadParameter(f"{shown} is not valid UTF-8: nothing on the server is called so")
    return place, "" if relative == "." else relative


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def remote_form(path: str) -> str:
    """A path as the API takes it."""
    return f"/{path}" if path else ""
