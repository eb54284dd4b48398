"""`shardbox ls`, `history` and `restore`: what the server has, asked for there and then.

They run beside a sync of the folder; what they change comes down with the next sync.
"""

import contextlib
import secrets
import shlex
from collections.abc import Awaitable, Callable
from typing import Annotated, TypeVar

import msgspec
import typer
from rich.table import Table

from client.account import Account
from client.calls import Calls
from client.console import (
    FolderOption,
    Output,
    OutputOption,
    PathArgument,
    find_place,
    print_json,
    print_table,
    remote_form,
    run,
)
from client.folder import Folder
from client.session import open_session
from wire.api import MAX_REVISIONS, ListFolderResult, Metadata, Tag

T = TypeVar("T")


class RemoteEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A file or folder on the server; of a folder size, rev, hash and times are null."""

    path: str
    """From the synced folder, without a slash before it."""
    kind: str
    id: str
    size: int | None = None
    rev: str | None = None
    content_hash: str | None = None
    client_modified: str | None = None
    server_modified: str | None = None


class Listing(msgspec.Struct, frozen=True):
    """What `ls` prints; entries by path."""

    path: str
    entries: list[RemoteEntry]


class Revision(msgspec.Struct, frozen=True, kw_only=True):
    """One version of a file."""

    rev: str
    size: int
    content_hash: str
    client_modified: str
    server_modified: str
    is_current: bool


class History(msgspec.Struct, frozen=True, kw_only=True):
    """What `history` prints; the newest first."""

    path: str
    is_deleted: bool
    entries: list[Revision]


class Restored(msgspec.Struct, frozen=True):
    """What `restore` prints: the file as it is now on the server."""

    path: str
    entry: RemoteEntry


def add_to(app: typer.Typer) -> None:
    """Add these commands to the program."""
    app.command()(ls)
    app.command()(history)
    app.command()(restore)


def ls(
    path: PathArgument = "",
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="With all that is below.")] = False,
    long: Annotated[bool, typer.Option("--long", "-l", help="With time, size and rev.")] = False,
    folder: FolderOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """List a folder as the server has it, left out on this device or not."""
    place, relative = find_place(path, folder)
    entries = _ask(place, lambda calls: _list(calls, relative, is_recursive=recursive))
    if output is Output.JSON:
        print_json(Listing(relative, entries))
        return
    table = Table(show_header=False, box=None, pad_edge=False)
    for x in entries:
        shown = x.path if recursive else x.path.rpartition("/")[2]
        name = shown + ("/" if x.kind == Tag.FOLDER else "")
        if long:
            size = "" if x.size is None else str(x.size)
            table.add_row(x.server_modified or "", size, x.rev or "", name)
        else:
            typer.echo(name)
    if long:
        print_table(table)


def history(
    path: PathArgument,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="How many, the newest first.")] = 100,
    folder: FolderOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Show the versions of a file, deleted or not."""
    place, relative = find_place(path, folder)
    found = _ask(place, lambda calls: _list_revisions(calls, relative, limit))
    if output is Output.JSON:
        print_json(found)
        return
    table = Table("modified", "size", "rev", "", box=None, pad_edge=False)
    for n, x in enumerate(found.entries):
        note = "current" if x.is_current else "deleted" if found.is_deleted and n == 0 else ""
        table.add_row(x.server_modified, str(x.size), x.rev, note)
    print_table(table)


def restore(
    path: PathArgument,
    rev: Annotated[
        str | None, typer.Option("--rev", help="Which version; of a deleted file the last, unless told.")
    ] = None,
    folder: FolderOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Make a version of a file the current one on the server; the next sync brings it down."""
    place, relative = find_place(path, folder)
    entry = _ask(place, lambda calls: _restore(calls, relative, rev))
    if output is Output.JSON:
        print_json(Restored(relative, entry))
    else:
        typer.echo(f"{entry.path} is again what it was (rev {entry.rev})")


# ---- The asking


def _ask(place: Folder, work: Callable[[Calls], Awaitable[T]]) -> T:
    async def connected() -> T:
        with contextlib.closing(place.open()) as state:
            async with open_session() as session:
                return await work(Account(state, session).calls)

    return run(connected())


async def _list(calls: Calls, path: str, *, is_recursive: bool) -> list[RemoteEntry]:
    page = await calls.list_folder(remote_form(path), is_recursive=is_recursive)
    found: dict[str, Metadata] = {}
    _note_page(found, page)
    while page.has_more:
        page = await calls.list_on(page.cursor)
        _note_page(found, page)
    entries = [_entry(x, _path_of(x, found, path)) for x in found.values()]
    return sorted(entries, key=lambda x: x.path)


def _note_page(found: dict[str, Metadata], page: ListFolderResult) -> None:
    if page.restarted:
        found.clear()
    for x in page.entries:
        if x.tag is Tag.DELETED:
            found.pop(x.id, None)
        else:
            found[x.id] = x


def _path_of(x: Metadata, found: dict[str, Metadata], listed: str) -> str:
    """A listing of a whole namespace gives names and parents only."""
    if x.path_display is not msgspec.UNSET:
        return x.path_display.lstrip("/")
    parts: list[str] = []
    at: Metadata | None = x
    while at is not None:
        parts.append("" if at.name is msgspec.UNSET else at.name)
        at = None if at.parent_id is msgspec.UNSET else found.get(at.parent_id)
    return "/".join(filter(None, [listed, *reversed(parts)]))


async def _list_revisions(calls: Calls, path: str, limit: int) -> History:
    revs: list[Metadata] = []
    is_deleted, has_more = False, True
    while has_more and len(revs) < limit:
        before = str(revs[-1].rev) if revs else None
        some = min(MAX_REVISIONS, limit - len(revs))
        page = await calls.list_revisions(remote_form(path), limit=some, before_rev=before)
        is_deleted, has_more = page.is_deleted, page.has_more and bool(page.entries)
        revs += page.entries
    entries = [_revision(x, is_current=n == 0 and not is_deleted) for n, x in enumerate(revs)]
    return History(path=path, is_deleted=is_deleted, entries=entries)


async def _restore(calls: Calls, path: str, rev: str | None) -> RemoteEntry:
    if rev is None:
        found = await _list_revisions(calls, path, 1)
        if not found.is_deleted or not found.entries:
            raise typer.BadParameter(
                f"{path} is there: say by --rev which version it is to be;"
                f" `shardbox history {shlex.quote(path)}` lists them"
            )
        rev = found.entries[0].rev
    restored = await calls.restore(secrets.token_hex(16), remote_form(path), rev)
    return _entry(
        restored, path if restored.path_display is msgspec.UNSET else restored.path_display.lstrip("/")
    )


def _entry(x: Metadata, path: str) -> RemoteEntry:
    if x.tag is Tag.FOLDER:
        return RemoteEntry(path=path, kind=x.tag.value, id=x.id)
    return RemoteEntry(
        path=path,
        kind=x.tag.value,
        id=x.id,
        size=_known(x.size, None),
        rev=_known(x.rev, None),
        content_hash=_known(x.content_hash, None),
        client_modified=_known(x.client_modified, None),
        server_modified=_known(x.server_modified, None),
    )


def _revision(x: Metadata, *, is_current: bool) -> Revision:
    return Revision(
        rev=_known(x.rev, ""),
        size=_known(x.size, 0),
        content_hash=_known(x.content_hash, ""),
        client_modified=_known(x.client_modified, ""),
        server_modified=_known(x.server_modified, ""),
        is_current=is_current,
    )


def _known(value: T | msgspec.UnsetType, otherwise: T) -> T:
    return otherwise if isinstance(value, msgspec.UnsetType) else value
