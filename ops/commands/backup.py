"""`shardctl backup`."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from ops.backup.archive import archive_settings, install_archiver
from ops.backup.base import take_base, verify
from ops.backup.repository import BaseBackup, ShardBackups
from ops.cluster import find_directory_dsn
from ops.commands.dev import DataDirOption, layout_of
from ops.errors import UsageError
from ops.osuser import ensure_server_user
from ops.output import OutputFormat, OutputOption, print_table, say, show
from ops.postgres import format_settings
from ops.programs import find_programs
from ops.session import load_map
from ops.specs import DIRECTORY
from wire.errors import NotFound

app = typer.Typer(no_args_is_help=True, help="Base backups of single PostgreSQL servers, and their archives.")

ShardArgument = Annotated[str, typer.Argument(help="A shard's name, or `directory`.")]
FolderOption = Annotated[
    Path | None,
    typer.Option(
        "--to", "--from", help="The folder of the backups. Default: backups/ of the embedded cluster."
    ),
]


class BackupReport(msgspec.Struct, frozen=True, kw_only=True):
    """A base backup, and how far its archive reaches."""

    backup: BaseBackup
    folder: str
    last_segment: str | None
    """The last one in the archive without a gap; None: the backup alone can be restored."""
    missing_segment: str | None
    archived_until: datetime | None
    """When the newest segment came in."""


@app.command()
def base(
    shard: ShardArgument,
    to: FolderOption = None,
    fast: Annotated[
        bool, typer.Option("--fast/--spread", help="Checkpoint at once, or spread out over minutes.")
    ] = True,
    data_dir: DataDirOption = None,
    output: OutputOption = OutputFormat.TEXT,
) -> None:
    """Copy a running server into a folder, and check the copy."""
    directory_dsn = find_directory_dsn(data_dir)
    backups = ShardBackups(folder_of(to, data_dir), shard)
    programs = find_programs(ensure_server_user(say))
    with _progress() as progress:
        made = take_base(programs, backups, _dsn_of(directory_dsn, shard), is_fast=fast, progress=progress)
    show(report_of(backups, made), output, lambda: print(f"{made.backup_id}: {made.total_bytes:,} bytes"))


def _dsn_of(directory_dsn: str, shard: str) -> str:
    if shard == DIRECTORY:
        return directory_dsn
    info = load_map(directory_dsn).shards.get(shard)
    if info is None:
        raise NotFound(f"the directory knows no shard {shard!r}")
    return info.dsn


@app.command("list")
def list_backups(
    folder: FolderOption = None, data_dir: DataDirOption = None, output: OutputOption = OutputFormat.TEXT
) -> None:
    """List the base backups of all servers, and how far each can be brought. Needs no database."""
    root = folder_of(folder, data_dir)
    if folder is not None and not root.is_dir():
        raise NotFound(f"there is no folder {root}")
    shards = sorted(path.parent.name for path in root.glob("*/base"))
    reports = [
        report_of(backups, backup)
        for backups in (ShardBackups(root, name) for name in shards)
        for backup in backups.list_backups()
    ]
    columns = ["of", "backup", "finished", "bytes", "archive reaches", "archived until", "lacks"]
    rows = [
        (
            r.backup.shard,
            r.backup.backup_id,
            f"{r.backup.finished_at:%Y-%m-%d %H:%M:%SZ}",
            f"{r.backup.total_bytes:,}",
            r.last_segment,
            f"{r.archived_until:%Y-%m-%d %H:%M:%SZ}" if r.archived_until else None,
            r.missing_segment,
        )
        for r in reports
    ]
    show({"folder": str(root), "backups": reports}, output, lambda: print_table(columns, rows))


@app.command("verify")
def verify_backups(
    shard: ShardArgument,
    backup_id: Annotated[str | None, typer.Option("--backup", help="Default: the newest.")] = None,
    folder: FolderOption = None,
    data_dir: DataDirOption = None,
    output: OutputOption = OutputFormat.TEXT,
) -> None:
    """Read a backup whole, against its checksums, and look for gaps in the archive. Needs no database."""
    backups = ShardBackups(folder_of(folder, data_dir), shard)
    backup = backups.get_backup(backup_id) if backup_id else backups.newest_before(None)
    verify(find_programs(ensure_server_user(say)), backups, backup)
    report = report_of(backups, backup)
    show(report, output, lambda: print(f"{backup.backup_id} is whole"))


@app.command()
def prune(
    shard: ShardArgument,
    keep: Annotated[int, typer.Option(min=1, help="How many base backups stay.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would go.")] = False,
    folder: FolderOption = None,
    data_dir: DataDirOption = None,
    output: OutputOption = OutputFormat.TEXT,
) -> None:
    """Delete all base backups but the newest, and the segments that only those needed."""
    backups = ShardBackups(folder_of(folder, data_dir), shard)
    deleted, segments = backups.prune(keep, is_dry_run=dry_run)
    result = {"deleted_backups": deleted, "deleted_segments": segments, "is_dry_run": dry_run}
    word = "would delete" if dry_run else "deleted"
    show(result, output, lambda: print(f"{word} {len(deleted)} backups, {len(segments)} segments"))


@app.command()
def archiver(
    path: Annotated[Path, typer.Argument(help="Where to write the program.")],
    wal: Annotated[Path, typer.Option(help="The server's archive: FOLDER/SHARD/wal.")],
    output: OutputOption = OutputFormat.TEXT,
) -> None:
    """Write the program that archives, for a server of your own, and tell what to put into its settings."""
    settings = archive_settings(path.absolute(), wal.absolute())
    install_archiver(path)
    show(dict(settings), output, lambda: print(format_settings(settings)))


def folder_of(option: Path | None, data_dir: Path | None) -> Path:
    """The folder that the option names, else the embedded cluster's.

    Raises:
        UsageError: there is neither.
    """
    if option is not None:
        return option.absolute()
    layout = layout_of(data_dir)
    if not layout.record_file.exists():
        raise UsageError("name the folder of the backups (--to, --from): this is no embedded cluster")
    return layout.backups


def report_of(backups: ShardBackups, backup: BaseBackup) -> BackupReport:
    """A backup and its reach."""
    reach = backups.reach(backup)
    until = backups.archived_until()
    return BackupReport(
        backup=backup,
        folder=str(backups.folder(backup.backup_id)),
        last_segment=reach.last.name if reach.last else None,
        missing_segment=reach.missing.name if reach.missing else None,
        archived_until=until.astimezone(UTC) if until else None,
    )


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    if not sys.stderr.isatty():
        yield _say_tenths()
        return
    columns = (TextColumn("copied"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("copied", total=None)
        yield lambda done_kb, total_kb: bar.update(task, completed=done_kb * 1024, total=total_kb * 1024)


def _say_tenths() -> Callable[[int, int], None]:
    told = -1

    def update(done_kb: int, total_kb: int) -> None:
        nonlocal told
        tenth = 10 * done_kb // max(1, total_kb)
        if tenth > told:
            told = tenth
            say(f"copied {10 * tenth} % of {total_kb:,} kB")

    return update
