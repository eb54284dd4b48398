"""`shardctl cluster`: making a cluster on PostgreSQL servers that are there already."""

from pathlib import Path
from typing import Annotated

import msgspec
import psycopg
import typer

from ops.cluster import find_directory_dsn
from ops.dev_setup import ensure_key_files
from ops.errors import EXIT_CONFLICT, OpsError, UsageError
from ops.migrate import migrate_databases
from ops.output import OutputFormat, OutputOption, print_table, say, show
from ops.session import CONNECT_TIMEOUT_S
from ops.shards import check_shard_name
from sharding.bootstrap import DirectoryLost, create_cluster
from wire.ids import MAX_SLOTS

app = typer.Typer(no_args_is_help=True, help="A cluster on PostgreSQL servers of one's own.")

DEFAULT_SLOTS = MAX_SLOTS
"""The number is for ever, and bounds the number of shards: a small cluster pays for it with 4,096 rows."""


class ClusterReport(msgspec.Struct, frozen=True):
    """A cluster as it was created, or had been."""

    cluster_id: str
    slot_count: int
    shards: list[str]


class KeysReport(msgspec.Struct, frozen=True):
    """The key files of a folder."""

    files: list[str]


class ClusterDiffers(OpsError):
    """The directory holds a cluster of other shards."""

    code, exit_status = "cluster_differs", EXIT_CONFLICT


@app.command()
def create(
    shards: Annotated[
        list[str],
        typer.Option("--shard", help="NAME=DSN of a shard's empty database, without a password; repeatable."),
    ],
    slots: Annotated[int, typer.Option(min=1, max=MAX_SLOTS, help="Slots in use, for ever.")] = DEFAULT_SLOTS,
    output: OutputOption = OutputFormat.TEXT,
) -> None:
    """Migrate the directory (SHARDBOX_DIRECTORY_DSN) and the shards, and make one cluster of them.

    May be repeated; a cluster that is there stays as it is, and one of other shards is refused.
    """
    directory = find_directory_dsn(None)
    dsns = dict(parse_shard(text) for text in shards)
    if len(dsns) != len(shards) or len(dsns) > slots:
        raise UsageError("each shard has a name of its own, and there are no more shards than slots")
    known = _find_shards(directory)
    if known and known != dsns.keys():
        raise ClusterDiffers(f"there is a cluster already, of the shards {', '.join(sorted(known))}")
    migrate_databases(directory, dsns).raise_for_failures()
    try:
        made = create_cluster(directory, [(name, dsn, 1) for name, dsn in dsns.items()], slots)
    except DirectoryLost as error:
        raise OpsError(f"{error}: run `shardctl restore directory`") from error
    report = ClusterReport(str(made.cluster_id), made.slot_count, sorted(made.shards))
    show(
        report,
        output,
        lambda: print_table(
            ["cluster", "slots", "shards"],
            [(report.cluster_id, report.slot_count, ", ".join(report.shards))],
        ),
    )


@app.command()
def keys(
    folder: Annotated[Path, typer.Argument(help="Where the key files go; it is made if need be.")],
    output: OutputOption = OutputFormat.TEXT,
) -> None:
    """Make the key files that servers are given, those that are not there yet.

    Every server needs service-keys.json, metaservers and notifservers cursor-keys.json, metaservers alone
    token-keys.json, blockservers token-verify-keys.json.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    made = ensure_key_files(folder)
    say(f"key files in {folder}; nobody but the servers' user may read them")
    show(KeysReport([str(file) for file in made]), output, lambda: print_table(["file"], [[f] for f in made]))


def _find_shards(directory: str) -> set[str]:
    """The shards that a directory has; none before its first migration."""
    with psycopg.connect(directory, connect_timeout=CONNECT_TIMEOUT_S) as conn:
        try:
            return {row[0] for row in conn.execute("SELECT name FROM shards")}
        except psycopg.errors.UndefinedTable:
            return set()


def parse_shard(text: str) -> tuple[str, str]:
    """Name and DSN of a --shard.

    Raises:
        UsageError: not NAME=DSN, or a name that stands for something else.
    """
    name, equals, dsn = text.partition("=")
    if not name or not equals or not dsn or "://" in name:
        raise UsageError(f"not NAME=DSN: {text!r}")
    return check_shard_name(name), dsn
