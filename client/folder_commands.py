"""`shardbox exclude`, `config`, `pause` and `resume`: what a sync is told through the state."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from client.account import Account
from client.commit import parse_entry_id
from client.console import (
    Exit,
    FolderArgument,
    FolderOption,
    Output,
    OutputOption,
    PathArgument,
    explaining,
    fail,
    find_folder,
    find_place,
    print_json,
    remote_form,
    run,
)
from client.control import SETTINGS, find_limit, put_setting, set_paused
from client.folder import Folder
from client.limits import format_rate, parse_rate
from client.selection import Exclusion, Verb, find_by_path, list_exclusions, order
from client.session import open_session
from client.state import State
from wire.api import Tag

exclude_app = typer.Typer(help="Folders that are left out on this device.", no_args_is_help=True)
config_app = typer.Typer(help="Settings of a synced folder.", no_args_is_help=True)


class Excluded(msgspec.Struct, frozen=True):
    """One folder; `state`: excluded, waiting, returning, gone (docs/client.md)."""

    path: str
    state: str


class Exclusions(msgspec.Struct, frozen=True):
    """What every `exclude` command prints."""

    folder: str
    exclusions: list[Excluded]


class Pause(msgspec.Struct, frozen=True):
    """What `pause` and `resume` print."""

    folder: str
    is_paused: bool
    is_running: bool


class Settings(msgspec.Struct, frozen=True):
    """What every `config` command prints; bytes per second, null: no limit."""

    folder: str
    limit_up: int | None
    limit_down: int | None


def add_to(app: typer.Typer) -> None:
    """Add these commands to the program."""
    app.add_typer(exclude_app, name="exclude")
    app.add_typer(config_app, name="config")
    app.command()(pause)
    app.command()(resume)


@exclude_app.command("add")
def exclude_add(path: PathArgument, folder: FolderOption = None, output: OutputOption = Output.TEXT) -> None:
    """Leave a folder out on this device. It stays on the server and on other devices.

    The next sync, or the one that runs, moves what is here of it into the trash; what has not been sent yet
    is sent first.
    """
    place, relative = find_place(path, folder)
    if not relative:
        raise typer.BadParameter("the whole folder cannot be left out: unlink it")
    with _opened(place) as state:
        order(state, Verb.ADD, _find_remote_folder(state, relative), relative)
        _print_exclusions(place, state, output)


@exclude_app.command("remove")
def exclude_remove(
    path: PathArgument, folder: FolderOption = None, output: OutputOption = Output.TEXT
) -> None:
    """Take a folder in again: the next sync, or the one that runs, brings it down."""
    place, relative = find_place(path, folder)
    with _opened(place) as state:
        found = _find_exclusion(state, relative)
        if found is None:
            fail(Exit.REFUSED, f"{relative} is not left out; shardbox exclude list shows what is")
        order(state, Verb.REMOVE, found.id, found.path)
        _print_exclusions(place, state, output)


@exclude_app.command("list")
def exclude_list(folder: FolderOption = None, output: OutputOption = Output.TEXT) -> None:
    """Show which folders are left out on this device."""
    place = find_folder(folder)
    with _opened(place) as state:
        _print_exclusions(place, state, output)


@config_app.command("set")
def config_set(
    name: Annotated[str, typer.Argument(help=" or ".join(SETTINGS))],
    value: Annotated[str, typer.Argument(help="Bytes per second: 500k, 2M, none.")],
    folder: FolderOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Set a limit for every sync of the folder, also for one that runs."""
    if name not in SETTINGS:
        raise typer.BadParameter(f"{name!r} is none of {', '.join(SETTINGS)}")
    try:
        rate = parse_rate(value)
    except ValueError as problem:
        raise typer.BadParameter(str(problem)) from problem
    place = find_folder(folder)
    with _opened(place) as state:
        put_setting(state, name, None if rate is None else str(rate))
        _print_settings(place, state, output)


@config_app.command("list")
def config_list(folder: FolderOption = None, output: OutputOption = Output.TEXT) -> None:
    """Show the settings."""
    place = find_folder(folder)
    with _opened(place) as state:
        _print_settings(place, state, output)


def pause(folder: FolderArgument = Path(), output: OutputOption = Output.TEXT) -> None:
    """Have every sync of FOLDER rest, running or to come, until `resume`."""
    _set_paused(find_folder(folder), output, is_paused=True)


def resume(folder: FolderArgument = Path(), output: OutputOption = Output.TEXT) -> None:
    """End a pause; what has changed meanwhile is noticed then."""
    _set_paused(find_folder(folder), output, is_paused=False)


def _set_paused(place: Folder, output: Output, *, is_paused: bool) -> None:
    with _opened(place) as state:
        set_paused(state, is_paused=is_paused)
    if output is Output.JSON:
        print_json(Pause(str(place.path), is_paused, place.is_locked()))
    else:
        typer.echo(f"{place.path} is {'paused' if is_paused else 'not paused any more'}")


@contextlib.contextmanager
def _opened(place: Folder) -> Iterator[State]:
    with explaining(), contextlib.closing(place.open()) as state:
        yield state


def _find_remote_folder(state: State, path: str) -> int:
    """The entry of a folder on the server; asked there, as the listing may not have been read that far."""

    async def ask() -> int:
        async with open_session() as session:
            found = await Account(state, session).calls.get_metadata(remote_form(path))
            if found.tag is not Tag.FOLDER:
                raise typer.BadParameter(f"{path} is a file: folders can be left out")
            return parse_entry_id(found.id)

    return run(ask())


def _find_exclusion(state: State, path: str) -> Exclusion | None:
    here = find_by_path(state.trees, path)
    return next((x for x in list_exclusions(state) if x.id == here or x.path == path), None)


def _print_exclusions(place: Folder, state: State, output: Output) -> None:
    found = [Excluded(x.path, x.state) for x in list_exclusions(state)]
    if output is Output.JSON:
        print_json(Exclusions(str(place.path), found))
        return
    for x in found:
        typer.echo(x.path if x.state == "excluded" else f"{x.path} ({x.state})")


def _print_settings(place: Folder, state: State, output: Output) -> None:
    up, down = (find_limit(state, name) for name in SETTINGS)
    if output is Output.JSON:
        print_json(Settings(str(place.path), up, down))
    else:
        typer.echo(f"limit-up {format_rate(up)}\nlimit-down {format_rate(down)}")
