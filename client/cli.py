"""`shardbox`: keep a folder in sync with a Shardbox server.

Exit codes: 0 done, or in sync · 1 unexpected error · 2 wrong usage · 3 in sync but for deletions that wait
for an answer (--allow-mass-delete) or entries that failed and are worth another try · 4 the servers did not
answer · 5 the folder is not linked, is gone or is not itself · 6 another sync of the folder runs · 7 the
device was unlinked on the server · 8 the link code is not good · 9 the folder is paused · 10 the server
refused what was asked for · 130, 143 a sync without --watch was ended by SIGINT, SIGTERM.
"""

import asyncio
import contextlib
import os
import shutil
import signal
import socket
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import msgspec
import typer
from rich.console import Console
from rich.table import Table

import client.folder_commands
import client.remote_commands
from client.account import Account, link
from client.api import Unreachable
from client.calls import discover
from client.console import (
    Exit,
    FolderArgument,
    Output,
    OutputOption,
    explaining,
    fail,
    find_folder,
    print_json,
    print_table,
    run,
)
from client.folder import Folder
from client.limits import parse_rate
from client.progress import Terminal
from client.remote import PAGE_ENTRIES
from client.session import open_session, stop_on_signals, sync_folder
from client.state import State
from client.status import Status, read_status
from client.sync import NO_LIMIT, Options
from wire.api import MAX_PAGE_ENTRIES
from wire.errors import DisallowedName, MalformedPath, ShardboxError, TooDeep
from wire.faults import arm_from_environment

__all__ = ["Exit", "app", "main"]

app = typer.Typer(help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False)
client.remote_commands.add_to(app)
client.folder_commands.add_to(app)


class Unlinked(msgspec.Struct, frozen=True):
    """What `unlink` prints."""

    folder: str


@app.command("link")
def link_command(
    url: Annotated[str, typer.Argument(help="A metaserver's URL; the others are found through it.")],
    folder: Annotated[Path, typer.Argument(help="The folder to sync; made if it is not there.")],
    code: Annotated[str, typer.Option("--code", prompt=True, help="The link code, good for one device.")],
    name: Annotated[str | None, typer.Option("--name", help="What this device is called.")] = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Make FOLDER a device of the account that the code was given out for."""
    url = url.strip()
    if not _is_web_url(url):
        raise typer.BadParameter(f"{url} is not the URL of a server: it begins with https:// or http://")
    place = Folder(folder)
    if place.is_linked() and place.state_path.exists():
        with explaining(), contextlib.closing(State(place.state_path)) as state:
            if state.find_fact("device_id") is not None:
                fail(Exit.FOLDER, f"{place.path} is linked already")
    for above in place.path.parents:
        if Folder(above).is_linked():
            fail(Exit.FOLDER, f"{place.path} lies in the linked folder {above}")

    async def work() -> None:
        async with open_session() as session:
            # Should this be the wrong URL, nothing has been made for it.
            servers = await discover(session, url)
            is_new = not os.path.lexists(place.private)
            try:
                with contextlib.closing(place.create()) as state:
                    device_name = name or socket.gethostname()
                    await link(state, session, url=url, servers=servers, code=code, device_name=device_name)
            except ShardboxError:
                # Refused: there is nothing to be taken up again, as there is when no answer came.
                if is_new:
                    shutil.rmtree(place.private)
                raise

    run(work())
    _print_status(place, output)


def _is_web_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        # Both refuse what no request could be sent to: UnicodeError is a ValueError.
        is_port = parts.port != 0
        is_host = bool((parts.hostname or "").encode("idna").decode("idna"))
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and is_host and is_port


def _rate(text: str | None) -> int | None:
    try:
        return None if text is None else parse_rate(text) or NO_LIMIT
    except ValueError as problem:
        raise typer.BadParameter(str(problem)) from problem


@app.command()
def sync(
    folder: FolderArgument = Path(),
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Go on until interrupted.")] = False,
    allow_mass_delete: Annotated[
        bool, typer.Option("--allow-mass-delete", help="Delete on the server even if most of it goes.")
    ] = False,
    limit_up: Annotated[
        str | None, typer.Option("--limit-up", help="Bytes per second that are sent, like 500k or 2M.")
    ] = None,
    limit_down: Annotated[
        str | None, typer.Option("--limit-down", help="Bytes per second that are fetched.")
    ] = None,
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
    place = find_folder(folder)
    terminal = Terminal(Console(stderr=True), keyboard=0)
    options = Options(
        is_watching=watch,
        allow_mass_delete=allow_mass_delete,
        ask_mass_delete=terminal.ask_mass_delete if terminal.can_ask else None,
        poll_s=poll_timeout,
        page_entries=page_entries,
        give_up_s=give_up_after,
        limit_up=_rate(limit_up),
        limit_down=_rate(limit_down),
    )

    signals: list[signal.Signals] = []

    async def work() -> None:
        stop_on_signals(signals.append)
        await sync_folder(place, options, terminal.show_progress)

    is_broken_off = False
    try:
        run(work())
    except (asyncio.CancelledError, KeyboardInterrupt):
        is_broken_off = not watch
    status = _print_status(place, output)
    if is_broken_off:
        raise typer.Exit(Exit.TERMINATED if signal.SIGTERM in signals else Exit.INTERRUPTED)
    if status.is_paused and not watch:
        raise typer.Exit(Exit.PAUSED)
    if status.held_deletions or (not watch and is_work_left(status)):
        raise typer.Exit(Exit.LEFT)


@app.command()
def status(folder: FolderArgument = Path(), output: OutputOption = Output.TEXT) -> None:
    """Show what is synced, what is pending, and what is left alone and why."""
    _print_status(find_folder(folder), output)


@app.command()
def unlink(
    folder: FolderArgument = Path(),
    forget: Annotated[
        bool, typer.Option("--forget", help="Also when the server cannot be told; revoke the device there.")
    ] = False,
    output: OutputOption = Output.TEXT,
) -> None:
    """End the link. Files stay where they are; `.shardbox` goes, with the trash."""
    place = find_folder(folder)

    async def work() -> None:
        with contextlib.closing(place.open()) as state:
            place.lock()
            async with open_session() as session:
                try:
                    await Account(state, session).calls.revoke_self()
                except (Unreachable, ShardboxError) as problem:
                    is_gone = isinstance(problem, ShardboxError) and problem.status == 401
                    if not forget and not is_gone:
                        raise

    run(work())
    shutil.rmtree(place.private)
    if output is Output.JSON:
        print_json(Unlinked(str(place.path)))
    else:
        typer.echo(f"{place.path} is not linked any more")


def main() -> None:
    """The program."""
    arm_from_environment()
    app()


_FOR_GOOD = {
    "name_clash",
    "name_too_long",
    "not_empty",
    "not_utf8",
    "occupied",
    "other_file_system",
    "linked_folder_inside",
    "path_too_long",
    "special_file",
    "symlink",
    DisallowedName.code,
    MalformedPath.code,
    TooDeep.code,
}
"""What the next sync would leave alone again: somebody has to rename or move something."""


def is_work_left(found: Status) -> bool:
    """Whether entries are out of step that another sync may bring in step."""
    reasons = {x.reason for x in found.skipped}
    return found.pending.total > 0 and not (reasons and reasons <= _FOR_GOOD)


def _print_status(place: Folder, output: Output) -> Status:
    with explaining(), contextlib.closing(place.open(read_only=True)) as state:
        found = read_status(place, state)
    if output is Output.JSON:
        print_json(found)
    else:
        _show_status(found)
    return found


def _show_status(found: Status) -> None:
    table = Table(show_header=False, box=None)
    table.add_row("folder", found.folder)
    table.add_row("account", f"{found.email} ({found.display_name})")
    table.add_row("device", found.device_name)
    doing = "paused" if found.is_paused else found.activity
    table.add_row("state", doing if found.pending.total == 0 else f"{doing}, not in step yet")
    table.add_row(
        "entries", f"{found.entries} in sync, {found.pending.up} to send, {found.pending.down} to get"
    )
    if found.excluded:
        table.add_row("left out", ", ".join(found.excluded))
    for label, text in (("last error", found.last_error), ("trouble", found.troubles)):
        if text:
            table.add_row(label, text)
    print_table(table)
    if found.skipped:
        skipped = Table("left alone", "reason", "detail", box=None)
        for x in found.skipped:
            skipped.add_row(x.path or "(folder)", x.reason, x.detail)
        print_table(skipped)
