"""`shardbox`: keep a folder in sync with a Shardbox server.

Exit codes: 0 in sync · 1 unexpected error · 2 wrong usage · 3 in sync but for deletions that wait for
an answer (--allow-mass-delete) or entries that failed and are worth another try · 4 the servers did not
answer · 5 the folder is not linked, is gone or is not itself · 6 another sync of the folder runs · 7 the
device was unlinked on the server · 8 the link code is not good.
"""

import asyncio
import contextlib
import shutil
import socket
import sqlite3
import sys
from collections.abc import Coroutine
from enum import IntEnum, StrEnum
from pathlib import Path
from typing import Annotated, Any, NoReturn

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from client.account import Account, link
from client.api import Unreachable
from client.folder import AlreadyRunning, Folder, FolderProblem
from client.progress import show_progress
from client.remote import PAGE_ENTRIES
from client.schema import WrongVersion
from client.session import open_session, stop_on_signals, sync_folder
from client.state import State
from client.status import Status, read_status
from client.sync import GaveUp, Options
from wire.api import MAX_PAGE_ENTRIES
from wire.errors import DeviceRevoked, InvalidLinkCode, ShardboxError, all_errors
from wire.faults import arm_from_environment


class Exit(IntEnum):
    """What the process tells its caller."""

    OK = 0
    ERROR = 1
    LEFT = 3
    UNREACHABLE = 4
    FOLDER = 5
    RUNNING = 6
    UNLINKED = 7
    BAD_CODE = 8


class Output(StrEnum):
    """How to print."""

    TEXT = "text"
    JSON = "json"


app = typer.Typer(help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False)
FolderArgument = Annotated[Path, typer.Argument(help="The synced folder, or any below it.")]
OutputOption = Annotated[Output, typer.Option("--output", "-o", help="text or json")]


@app.command("link")
def link_command(
    url: Annotated[str, typer.Argument(help="Any server's URL; the others are found through it.")],
    folder: Annotated[Path, typer.Argument(help="The folder to sync; made if it is not there.")],
    code: Annotated[str, typer.Option("--code", prompt=True, help="The link code, good for one device.")],
    name: Annotated[str | None, typer.Option("--name", help="What this device is called.")] = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Make FOLDER a device of the account that the code was given out for."""
    place = Folder(folder)
    if place.is_linked() and place.state_path.exists():
        with contextlib.closing(State(place.state_path)) as state:
            if state.find_fact("device_id") is not None:
                _fail(Exit.FOLDER, f"{place.path} is linked already")
    for above in place.path.parents:
        if Folder(above).is_linked():
            _fail(Exit.FOLDER, f"{place.path} lies in the linked folder {above}")

    async def run() -> None:
        with contextlib.closing(place.create()) as state:
            async with open_session() as session:
                await link(state, session, url=url, code=code, device_name=name or socket.gethostname())

    _run(run())
    _print_status(place, output)


@app.command()
def sync(
    folder: FolderArgument = Path(),
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Go on until interrupted.")] = False,
    allow_mass_delete: Annotated[
        bool, typer.Option("--allow-mass-delete", help="Delete on the server even if most of it goes.")
    ] = False,
    poll_timeout: Annotated[
        int, typer.Option("--poll-timeout", min=30, max=480, help="Seconds of one long-poll.")
    ] = 480,
    give_up_after: Annotated[
        float, typer.Option("--give-up-after", help="Seconds without any answer; not with --watch.")
    ] = 60.0,
    page_entries: Annotated[
        int,
        typer.Option("--page-entries", min=1, max=MAX_PAGE_ENTRIES, help="Entries in a page."),
    ] = PAGE_ENTRIES,
    output: OutputOption = Output.TEXT,
) -> None:
    """Bring FOLDER and server in step."""
    place = _find_folder(folder)
    can_ask = sys.stdin.isatty() and sys.stderr.isatty()
    options = Options(
        is_watching=watch,
        allow_mass_delete=allow_mass_delete,
        ask_mass_delete=_ask_mass_delete if can_ask else None,
        poll_s=poll_timeout,
        page_entries=page_entries,
        give_up_s=give_up_after,
    )

    async def run() -> None:
        stop_on_signals()
        await sync_folder(place, options, lambda runner: show_progress(runner, Console(stderr=True)))

    with contextlib.suppress(asyncio.CancelledError, KeyboardInterrupt):
        _run(run())
    status = _print_status(place, output)
    if status.held_deletions or (status.pending.total and not watch and _is_retry_useful(status)):
        raise typer.Exit(Exit.LEFT)


@app.command()
def status(folder: FolderArgument = Path(), output: OutputOption = Output.TEXT) -> None:
    """Show what is synced, what is pending, and what is left alone and why."""
    _print_status(_find_folder(folder), output)


@app.command()
def unlink(
    folder: FolderArgument = Path(),
    forget: Annotated[
        bool, typer.Option("--forget", help="Also when the server cannot be told; revoke the device there.")
    ] = False,
) -> None:
    """End the link. Files stay where they are; `.shardbox` goes, with the trash."""
    place = _find_folder(folder)

    async def run() -> None:
        with contextlib.closing(place.open()) as state:
            place.lock()
            async with open_session() as session:
                try:
                    await Account(state, session).calls.revoke_self()
                except (Unreachable, ShardboxError) as problem:
                    is_gone = isinstance(problem, ShardboxError) and problem.status == 401
                    if not forget and not is_gone:
                        raise

    _run(run())
    shutil.rmtree(place.private)
    typer.echo(f"{place.path} is not linked any more")


def main() -> None:
    """The program."""
    arm_from_environment()
    app()


# ---- What the commands share


def _run(work: Coroutine[Any, Any, None]) -> None:
    """Run to the end, or leave with the exit code of what went wrong."""
    try:
        asyncio.run(work)
    except FolderProblem as problem:
        _fail(Exit.FOLDER, str(problem))
    except AlreadyRunning as problem:
        _fail(Exit.RUNNING, str(problem))
    except (GaveUp, Unreachable) as problem:
        _fail(Exit.UNREACHABLE, f"the servers do not answer: {problem}")
    except DeviceRevoked as problem:
        _fail(Exit.UNLINKED, f"this device is no longer linked: {problem}")
    except InvalidLinkCode as problem:
        _fail(Exit.BAD_CODE, str(problem))
    except ShardboxError as problem:
        _fail(Exit.UNLINKED if problem.status == 401 else Exit.ERROR, f"{problem.code}: {problem}")
    except WrongVersion as problem:
        _fail(Exit.ERROR, str(problem))
    except sqlite3.OperationalError as problem:
        _fail(Exit.ERROR, f"the state cannot be written: {problem}")


def _fail(code: Exit, message: str) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(code)


def _find_folder(start: Path) -> Folder:
    """The linked folder at or above a path."""
    for path in (start.absolute(), *start.absolute().parents):
        found = Folder(path)
        if found.is_linked():
            return found
    _fail(Exit.FOLDER, f"{start.absolute()} is not linked (or its disk is not mounted)")


def _ask_mass_delete(count: int, total: int) -> bool:
    question = f"{count} of {total} entries were deleted here. Delete them on the server too?"
    return typer.confirm(question, default=False, err=True)


_WORTH_ANOTHER_TRY = {"changing", "unreachable", "disk_full"} | {
    error.code for error in all_errors().values() if error.retryable
}


def _is_retry_useful(found: Status) -> bool:
    return any(x.reason in _WORTH_ANOTHER_TRY for x in found.skipped)


def _print_status(place: Folder, output: Output) -> Status:
    try:
        with contextlib.closing(place.open(read_only=True)) as state:
            found = read_status(place, state)
    except (FolderProblem, WrongVersion) as problem:
        _fail(Exit.FOLDER, str(problem))
    if output is Output.JSON:
        typer.echo(msgspec.json.encode(found).decode())
        return found
    console = Console()
    table = Table(show_header=False, box=None)
    table.add_row("folder", found.folder)
    table.add_row("account", f"{found.email} ({found.display_name})")
    table.add_row("device", found.device_name)
    table.add_row(
        "state", found.activity if found.pending.total == 0 else f"{found.activity}, not in step yet"
    )
    table.add_row(
        "entries", f"{found.entries} in sync, {found.pending.up} to send, {found.pending.down} to get"
    )
    for label, text in (("last error", found.last_error), ("trouble", found.troubles)):
        if text:
            table.add_row(label, text)
    console.print(table)
    if found.skipped:
        skipped = Table("left alone", "reason", "detail", box=None)
        for x in found.skipped:
            skipped.add_row(x.path or "(folder)", x.reason, x.detail)
        console.print(skipped)
    return found
