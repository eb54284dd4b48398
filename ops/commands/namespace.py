"""`shardctl namespace`: single namespaces."""

from typing import Annotated

import msgspec
import typer

from ops.cluster import find_directory_dsn
from ops.commands.dev import DataDirOption
from ops.locate import locate_namespace
from ops.output import OutputFormat, OutputOption, print_table, show

app = typer.Typer(no_args_is_help=True, help="Single namespaces.")


@app.command()
def locate(
    what: Annotated[
        str,
        typer.Argument(
            help="A namespace id, or what names one: an e-mail address, an account, device, file id or rev."
        ),
    ],
    data_dir: DataDirOption = None,
    output: OutputOption = OutputFormat.TEXT,
) -> None:
    """Tell which shard holds a namespace, by the map and by the shard's own record."""
    report = locate_namespace(find_directory_dsn(data_dir), what)
    pairs = [(name.replace("_", " "), value) for name, value in msgspec.structs.asdict(report).items()]
    show(report, output, lambda: print_table(["", ""], pairs))
