"""`shardctl doctor`."""

import contextlib
import os
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from ops.cluster import DIRECTORY_DSN_VARIABLE, find_directory_dsn
from ops.commands.dev import DataDirOption, layout_of
from ops.dev_setup import read_record
from ops.doctor.backups import MAX_BACKUP_AGE, check_backups, check_work
from ops.doctor.finding import Finding, Verdict
from ops.doctor.moves import Mend, fix_moves
from ops.doctor.run import examine
from ops.errors import EXIT_FAILURE, NoCluster
from ops.output import OutputFormat, OutputOption, print_table, say, show
from ops.session import load_map

_URL_VARIABLES = ("SHARDBOX_METASERVER_URLS", "SHARDBOX_BLOCKSERVER_URLS", "SHARDBOX_NOTIFSERVER_URLS")


class DoctorReport(msgspec.Struct, frozen=True, kw_only=True):
    """What was found, after what was put right."""

    is_healthy: bool
    """Whether no check fails."""
    mended: list[Mend]
    findings: list[Finding]


def doctor(
    url: Annotated[
        list[str] | None,
        typer.Option(
            help="A server to ask for its readiness; repeatable. Default: those of SHARDBOX_…SERVER_URLS, "
            "or of the embedded cluster."
        ),
    ] = None,
    backups: Annotated[
        Path | None,
        typer.Option(help="The folder of the backups. Default: that of an embedded cluster that archives."),
    ] = None,
    backup_age_h: Annotated[
        float, typer.Option(min=0, help="How many hours old the newest base backup may be.")
    ] = MAX_BACKUP_AGE.total_seconds() / 3600,
    fix: Annotated[
        bool, typer.Option("--fix", help="Put right what moves have left behind, then look again.")
    ] = False,
    data_dir: DataDirOption = None,
    output: OutputOption = OutputFormat.TEXT,
) -> None:
    """Look at the whole cluster; say what is wrong and what to do. Exit status 1 when a check fails.

    `--fix` may be run beside clients and moves: it touches nothing that one of them needs.
    """
    directory_dsn = find_directory_dsn(data_dir)
    mends = fix_moves(directory_dsn, _say_mend) if fix else []
    findings = examine(directory_dsn, url or _default_urls(data_dir))
    findings += _check_backups(directory_dsn, backups, timedelta(hours=backup_age_h), data_dir)
    columns = ["check", "of", "verdict", "detail", "remedy"]
    rows = [(f.check, f.subject, f.verdict, f.detail, f.remedy or "") for f in findings]
    is_healthy = all(f.verdict is not Verdict.FAIL for f in findings)
    report = DoctorReport(is_healthy=is_healthy, mended=mends, findings=findings)
    show(report, output, lambda: print_table(columns, rows))
    if not is_healthy:
        raise typer.Exit(EXIT_FAILURE)


def _say_mend(mend: Mend) -> None:
    say(f"{mend.subject}: {mend.detail}" if mend.is_done else f"{mend.subject}: NOT mended: {mend.detail}")


def _check_backups(
    directory_dsn: str, folder: Path | None, max_age: timedelta, data_dir: Path | None
) -> list[Finding]:
    """About backups where there is to be any, and about restores in the embedded cluster."""
    findings: list[Finding] = []
    is_embedded = data_dir is not None or not os.environ.get(DIRECTORY_DSN_VARIABLE)
    if is_embedded:
        layout = layout_of(data_dir)
        record = read_record(layout)
        for name in record.database_names:
            findings += check_work(name, layout.postgres / name / "data")
        folder = folder or (layout.backups if record.is_archiving else None)
    if folder is not None:
        with contextlib.suppress(NoCluster):  # said already
            findings += check_backups(folder, sorted(load_map(directory_dsn).shards), max_age)
    return findings


def _default_urls(data_dir: Path | None) -> list[str]:
    named = [url for name in _URL_VARIABLES for url in os.environ.get(name, "").split(",") if url]
    if named or (os.environ.get(DIRECTORY_DSN_VARIABLE) and data_dir is None):
        return named
    record = read_record(layout_of(data_dir))
    return [record.url(name) for name in record.server_names]
