"""`shardctl doctor`."""

import os
from pathlib import Path
from typing import Annotated

import typer

from ops.cluster import DIRECTORY_DSN_VARIABLE, find_directory_dsn
from ops.commands.dev import DataDirOption, layout_of
from ops.dev_setup import read_record
from ops.doctor.finding import Verdict
from ops.doctor.run import examine
from ops.errors import EXIT_FAILURE
from ops.output import OutputFormat, OutputOption, print_table, show

_URL_VARIABLES = ("SHARDBOX_METASERVER_URLS", "SHARDBOX_BLOCKSERVER_URLS", "SHARDBOX_NOTIFSERVER_URLS")


def doctor(
    url: Annotated[
        list[str] | None,
        typer.Option(
            help="A server to ask for its readiness; repeatable. Default: those of SHARDBOX_…SERVER_URLS, "
            "or of the embedded cluster."
        ),
    ] = None,
    data_dir: DataDirOption = None,
    output: OutputOption = OutputFormat.TEXT,
) -> None:
    """Look at the whole cluster; say what is wrong and what to do. Exit status 1 when a check fails."""
    directory_dsn = find_directory_dsn(data_dir)
    findings = examine(directory_dsn, url or _default_urls(data_dir))
    columns = ["check", "of", "verdict", "detail", "remedy"]
    rows = [(f.check, f.subject, f.verdict, f.detail, f.remedy or "") for f in findings]
    is_healthy = all(f.verdict is not Verdict.FAIL for f in findings)
    show({"is_healthy": is_healthy, "findings": findings}, output, lambda: print_table(columns, rows))
    if not is_healthy:
        raise typer.Exit(EXIT_FAILURE)


def _default_urls(data_dir: Path | None) -> list[str]:
    named = [url for name in _URL_VARIABLES for url in os.environ.get(name, "").split(",") if url]
    if named or (os.environ.get(DIRECTORY_DSN_VARIABLE) and data_dir is None):
        return named
    record = read_record(layout_of(data_dir))
    return [record.url(name) for name in record.server_names]
