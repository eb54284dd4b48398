"""`shardctl keys`."""

import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from ops.cluster import DIRECTORY_DSN_VARIABLE, find_directory_dsn
from ops.commands.dev import DataDirOption, layout_of
from ops.dev_setup import read_record
from ops.errors import UsageError
from ops.keys import LOADED_TIMEOUT_S, KeyKind, KeyStore, rotate, wait_until_loaded
from ops.moves import renew_streams
from ops.output import OutputFormat, OutputOption, print_table, say, show
from ops.passwords import rotate_password
from ops.session import load_map
from ops.specs import (
    DIRECTORY,
    EVERY_SERVER,
    cursor_keys_file,
    service_keys_file,
    token_keys_file,
    token_verify_keys_file,
)
from wire.errors import NotFound

app = typer.Typer(
    no_args_is_help=True,
    help="Keys that servers sign with, and the databases' passwords, replaced in service.",
)

KindArgument = Annotated[KeyKind, typer.Argument(help="Which keys.")]
FileOption = Annotated[
    Path | None, typer.Option(help="The file of the keys. Default: the embedded cluster's.")
]
PublicOption = Annotated[
    Path | None, typer.Option(help="token: the file of the public keys, which blockservers have.")
]
UrlOption = Annotated[
    list[str] | None,
    typer.Option(help="A server that reads the file, to be asked whether it has; repeatable."),
]


@app.command("list")
def list_keys(
    kind: KindArgument,
    file: FileOption = None,
    data_dir: DataDirOption = None,
    output: OutputOption = OutputFormat.TEXT,
) -> None:
    """List the keys of a file, the signing one first; no secret is shown."""
    keys = _store(kind, file, None, data_dir).list_keys()
    rows = [(k.key_id, k.role, _text(k.made_at), _text(k.signed_until), _text(k.retirable_at)) for k in keys]
    columns = ["key", "role", "made", "signed until", "can go at"]
    show({"kind": kind, "keys": keys}, output, lambda: print_table(columns, rows))


@app.command("rotate")
def rotate_keys(
    kind: KindArgument,
    file: FileOption = None,
    public_file: PublicOption = None,
    url: UrlOption = None,
    only_add: Annotated[
        bool, typer.Option("--only-add", help="Add the key and stop: for files that are copied by hand.")
    ] = False,
    timeout_s: Annotated[float, typer.Option(min=1, help="For the servers to take it.")] = LOADED_TIMEOUT_S,
    data_dir: DataDirOption = None,
    output: OutputOption = OutputFormat.TEXT,
) -> None:
    """Sign with a new key from now on; what the old one has signed stays good. Cut short, run it again."""
    store = _whole_store(kind, file, public_file, data_dir)
    with store.alone():
        if only_add:
            key_id = store.ensure_next()
        else:
            key_id = rotate(store, _urls(file, url, data_dir), say, timeout_s=timeout_s)
    show({"kind": kind, "key_id": key_id}, output, lambda: print(key_id))


@app.command()
def retire(
    kind: KindArgument,
    file: FileOption = None,
    public_file: PublicOption = None,
    url: UrlOption = None,
    force: Annotated[
        bool,
        typer.Option("--force", help="Now, even if what the key has signed is still good: it was stolen."),
    ] = False,
    data_dir: DataDirOption = None,
    output: OutputOption = OutputFormat.TEXT,
) -> None:
    """Take out the keys that have been rotated away, once nothing that they have signed is good any more."""
    store = _whole_store(kind, file, public_file, data_dir)
    with store.alone():
        signing = store.list_keys()[0].key_id
        wait_until_loaded(kind, signing, _urls(file, url, data_dir), timeout_s=LOADED_TIMEOUT_S)
        gone = store.retire(is_forced=force)
    show({"kind": kind, "retired": gone}, output, lambda: print("\n".join(gone) or "nothing to retire"))


@app.command()
def password(
    server: Annotated[str, typer.Argument(help="A shard's name, `directory`, or `all`.")],
    passfile: Annotated[
        Path | None,
        typer.Option(help="libpq's password file. Default: PGPASSFILE, or the embedded cluster's."),
    ] = None,
    data_dir: DataDirOption = None,
    output: OutputOption = OutputFormat.TEXT,
) -> None:
    """Give the role of a database a new password, and the password file with it. Cut short, run it again."""
    directory_dsn = find_directory_dsn(data_dir)
    dsns = {DIRECTORY: directory_dsn}
    dsns |= {name: info.dsn for name, info in load_map(directory_dsn).shards.items()}
    names = sorted(dsns) if server == EVERY_SERVER else [server]
    if server not in {*dsns, EVERY_SERVER}:
        raise NotFound(f"the directory knows no shard {server!r}")
    path = passfile or (Path(os.environ["PGPASSFILE"]) if "PGPASSFILE" in os.environ else None)
    if path is None:
        raise UsageError("name the password file: --passfile")
    for name in names:
        rotate_password(name, dsns[name], path)
        if name != DIRECTORY:
            renew_streams(directory_dsn, name)
        say(f"{name} has a new password")
    show({"servers": names}, output, lambda: None)


def _whole_store(
    kind: KeyKind, file: Path | None, public_file: Path | None, data_dir: Path | None
) -> KeyStore:
    """The files to change: what a token's private key signs is good where the public one has come."""
    store = _store(kind, file, public_file, data_dir)
    if kind is KeyKind.TOKEN and store.public_file is None:
        raise UsageError("name the file of the public keys too: --public-file")
    return store


def _store(kind: KeyKind, file: Path | None, public_file: Path | None, data_dir: Path | None) -> KeyStore:
    if file is not None:
        return KeyStore(kind, file, public_file)
    if os.environ.get(DIRECTORY_DSN_VARIABLE) and data_dir is None:
        raise UsageError("name the file of the keys: --file")
    layout = layout_of(data_dir)
    read_record(layout)
    if kind is KeyKind.TOKEN:
        return KeyStore(kind, token_keys_file(layout), token_verify_keys_file(layout))
    return KeyStore(kind, cursor_keys_file(layout) if kind is KeyKind.CURSOR else service_keys_file(layout))


def _urls(file: Path | None, urls: list[str] | None, data_dir: Path | None) -> Sequence[str]:
    if urls:
        return urls
    if file is not None:
        raise UsageError("name every server that reads the file (--url), or --only-add and copy it by hand")
    record = read_record(layout_of(data_dir))
    return [record.url(name) for name in record.server_names]


def _text(unix_time: int | None) -> str | None:
    return f"{datetime.fromtimestamp(unix_time, UTC):%Y-%m-%d %H:%M:%SZ}" if unix_time else None
