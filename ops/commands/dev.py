"""`shardctl dev`."""

import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer

from ops import dev
from ops.demo import DemoReport, run_demo
from ops.dev_status import DevStatus, get_status
from ops.errors import EXIT_FAILURE, UsageError
from ops.layout import DATA_DIR_VARIABLE, DevLayout, choose_data_dir
from ops.output import OutputFormat, OutputOption, print_table, say, show

app = typer.Typer(
    no_args_is_help=True,
    help="A whole cluster on this machine: PostgreSQL servers, metaservers, blockserver, notifserver.",
)

DataDirOption = Annotated[
    Path | None,
    typer.Option(
        help="Where it lies. Default: .dev in the checkout; for root a folder in /var/lib/shardbox.",
        envvar=DATA_DIR_VARIABLE,
    ),
]


def layout_of(data_dir: Path | None) -> DevLayout:
    """The files of the cluster that the option names."""
    return DevLayout(choose_data_dir(data_dir))


@app.command()
def up(
    data_dir: DataDirOption = None,
    metaservers: Annotated[int | None, typer.Option(min=1, max=64, help="How many. Default: 2.")] = None,
    shards: Annotated[
        int | None,
        typer.Option(min=1, max=16, help="How many. Default: 2. More than there are join, and hold nothing."),
    ] = None,
    databases_only: Annotated[
        bool, typer.Option("--databases-only", help="Leave the servers to a debugger of yours.")
    ] = False,
    archive: Annotated[
        bool | None,
        typer.Option(
            "--archive/--no-archive",
            help="Archive the write-ahead logs into backups/ in the data folder, for restores to any moment; "
            "kept for later starts. Takes `dev down` first where the databases run.",
        ),
    ] = None,
    output: OutputOption = OutputFormat.TEXT,
) -> None:
    """Start the cluster, or what of it does not run; it goes on in the background.

    Variables for single processes can be put into config.json in the data folder:
    {"env": {"metaserver-1": {"NAME": "value"}}}, by a process's name or kind, from its next start on.
    """
    layout = layout_of(data_dir)
    dev.up(
        layout,
        say,
        metaservers=metaservers,
        shards=shards,
        has_servers=not databases_only,
        is_archiving=archive,
    )
    status = get_status(layout)
    show(status, output, lambda: _print_next_steps(status))


@app.command()
def demo(data_dir: DataDirOption = None, output: OutputOption = OutputFormat.TEXT) -> None:
    """Start the cluster and two devices that keep a folder each in sync; all of it in the background."""
    layout = layout_of(data_dir)
    report = run_demo(layout, say)
    show(report, output, lambda: _print_demo(layout, report))


@app.command()
def down(data_dir: DataDirOption = None, output: OutputOption = OutputFormat.TEXT) -> None:
    """Stop everything, in order; the data stays."""
    layout = layout_of(data_dir)
    dev.down(layout, say)
    result = {"data_dir": str(layout.root), "is_up": False}
    show(result, output, lambda: print(f"stopped; the data stays in {layout.root}"))


@app.command()
def status(data_dir: DataDirOption = None, output: OutputOption = OutputFormat.TEXT) -> None:
    """Tell what runs, where it lies and whether it answers. Exit status 1 when something does not."""
    found = get_status(layout_of(data_dir))
    show(found, output, lambda: _print_status(found))
    if not found.is_up:
        raise typer.Exit(EXIT_FAILURE)


@app.command()
def reset(
    data_dir: DataDirOption = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    output: OutputOption = OutputFormat.TEXT,
) -> None:
    """Stop everything and delete the cluster with all its data."""
    layout = layout_of(data_dir)
    if not yes:
        if output is OutputFormat.JSON:
            raise UsageError("with --output json nobody can be asked: add --yes")
        typer.confirm(f"Delete {layout.root} with all accounts and files in it?", abort=True)
    dev.reset(layout, say)
    show({"data_dir": str(layout.root), "is_deleted": True}, output, lambda: None)


def command_prefix() -> str:
    """What to put before our commands' names, so that a copied line works in this shell."""
    if shutil.which("shardctl"):
        return ""
    folder = Path(sys.executable).parent
    return f"{folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder}/"


def _print_next_steps(status: DevStatus) -> None:
    at = command_prefix()
    print(f"The cluster runs; its data lies in {status.data_dir}\n")
    for name, urls in (
        ("metaservers", status.metaserver_urls),
        ("blockserver", [status.blockserver_url]),
        ("notifserver", [status.notifserver_url]),
    ):
        print(f"  {name:12} {'  '.join(urls)}")
    print(
        f"""
Next:
  {at}shardctl user add you@example.org --name "Your Name"    an account
  {at}shardctl device code you@example.org                    a code to link a device with
  {at}shardbox link {status.metaserver_urls[0]} --code CODE FOLDER
  {at}shardctl dev status                                     what runs, and where its logs are
  {at}shardctl dev down                                       stop it; the data stays"""
    )


def _print_demo(layout: DevLayout, report: DemoReport) -> None:
    at, (first, second) = command_prefix(), (shown_path(layout, Path(f)) for f in report.folders.values())
    print(
        f"""Two devices of {report.email} are in sync, and stay so in the background:

  {first}
  {second}

Play   cp -r docs {first}/ && ls {second}
       any change in one shows up in the other, offline ones too
Look   {at}shardbox status {first}
       {at}shardctl dev status          every process, its log, and how often it was restarted
       {at}shardctl doctor              is everything as it should be?
Stop   make down                    the data stays, and make run goes on with it
       {at}shardctl dev reset           delete it all"""
    )


def shown_path(layout: DevLayout, path: Path) -> str:
    """A path in the cluster's folder, by way of the checkout's `.dev` where that is shorter to type."""
    here = Path.cwd() / ".dev"
    is_ours = here.exists() and here.resolve() == layout.root.resolve()
    return f".dev/{path.relative_to(layout.root)}" if is_ours else str(path)


def _print_status(status: DevStatus) -> None:
    watched = f"pid {status.supervisor_pid}" if status.supervisor_pid else "not running; `dev up` starts it"
    print(f"data        {status.data_dir}\nsupervisor  {watched}\npassfile    {status.passfile}\n")
    answers = {True: "yes", False: "no", None: None}
    print_table(
        ["process", "status", "ready", "pid", "restarts", "last exit", "address", "log"],
        [
            (p.name, p.status, answers[p.is_ready], p.pid, p.restarts, p.last_exit, p.url or p.dsn, p.log)
            for p in status.processes
        ],
    )
