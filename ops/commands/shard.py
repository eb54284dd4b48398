"""`shardctl shard`: the PostgreSQL servers that hold namespaces."""

from pathlib import Path
from typing import Annotated

import msgspec
import psycopg
import typer

from ops.cluster import find_directory_dsn, find_embedded
from ops.commands.dev import DataDirOption
from ops.dev import stop_shard
from ops.errors import UsageError
from ops.output import OutputFormat, OutputOption, print_table, say, show
from ops.planning import PlanReport, print_plan, report_plan
from ops.session import APPLICATION, connect_directory, load_map
from ops.shards import add_shard, check_shard_name, read_dsn, remove_shard, set_shard
from ops.survey import survey
from sharding.directory import set_shard_state
from sharding.reshard.planner import plan_moves
from sharding.reshard.situation import with_state
from sharding.shardmap import ShardInfo, ShardMap, ShardState

app = typer.Typer(no_args_is_help=True, help="The PostgreSQL servers that hold namespaces.")
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The shard's name.")]

PROBE_TIMEOUT_S = 2


class ShardReport(msgspec.Struct, frozen=True, kw_only=True):
    """One shard as the directory has it, and whether it answers."""

    name: str
    dsn: str
    replication_dsn: str | None
    """As the other shards reach it; null: as dsn."""
    state: str
    weight: int
    labels: dict[str, str]
    slot_count: int
    override_count: int
    """Namespaces that it holds by themselves."""
    is_reachable: bool


class DrainReport(msgspec.Struct, frozen=True, kw_only=True):
    """A shard whose state was set, and what should move from now on."""

    name: str
    state: str
    has_changed: bool
    plan: PlanReport


@app.command("list")
def list_shards(data_dir: DataDirOption = None, output: OutputOption = OutputFormat.TEXT) -> None:
    """List the shards, how much of the map each holds, and whether it answers."""
    shard_map = load_map(find_directory_dsn(data_dir))
    reports = [_report(shard_map, info) for _, info in sorted(shard_map.shards.items())]
    show({"shards": reports}, output, lambda: _print_shards(reports))


@app.command()
def add(
    name: NameArgument,
    dsn_file: Annotated[
        Path,
        typer.Option(help="A file with the address of an empty database, without a password; - reads stdin."),
    ],
    replication_dsn_file: Annotated[
        Path | None,
        typer.Option(help="A file with the address for the other shards, where they need another one."),
    ] = None,
    weight: Annotated[int, typer.Option(min=1, help="How much it is to hold, beside the others.")] = 1,
    labels: Annotated[
        list[str] | None, typer.Option("--label", help="KEY=VALUE for pins to refer to; repeatable.")
    ] = None,
    data_dir: DataDirOption = None,
    output: OutputOption = OutputFormat.TEXT,
) -> None:
    """Make a shard of an empty database on a server of its own. It holds nothing until `shardctl rebalance`.

    May be repeated: what was cut short goes on. Passwords are found where libpq finds them: by PGPASSFILE.
    """
    if str(dsn_file) == str(replication_dsn_file) == "-":
        raise UsageError("standard input is one address: name a file for the other")
    info = ShardInfo(
        name=check_shard_name(name),
        dsn=read_dsn(dsn_file),
        weight=weight,
        labels=dict(map(_parse_label, labels or [])),
        replication_dsn=None if replication_dsn_file is None else read_dsn(replication_dsn_file),
    )
    report = _report(add_shard(find_directory_dsn(data_dir), info, say), info)
    show(report, output, lambda: _print_shards([report]))


@app.command("set")
def set_properties(
    name: NameArgument,
    weight: Annotated[int | None, typer.Option(min=1, help="How much it is to hold.")] = None,
    labels: Annotated[list[str] | None, typer.Option("--label", help="KEY=VALUE; repeatable.")] = None,
    without: Annotated[list[str] | None, typer.Option("--no-label", help="KEY; repeatable.")] = None,
    dsn_file: Annotated[Path | None, typer.Option(help="A file with its new address; - reads stdin.")] = None,
    replication_dsn_file: Annotated[
        Path | None, typer.Option(help="A file with its new address for the other shards.")
    ] = None,
    data_dir: DataDirOption = None,
    output: OutputOption = OutputFormat.TEXT,
) -> None:
    """Change a shard's weight, labels or addresses; nothing moves until `shardctl rebalance`."""
    dsn = None if dsn_file is None else read_dsn(dsn_file)
    replication_dsn = None if replication_dsn_file is None else read_dsn(replication_dsn_file)
    added = dict(map(_parse_label, labels or []))

    def change(info: ShardInfo) -> ShardInfo:
        kept = {key: value for key, value in info.labels.items() if key not in (without or [])}
        return msgspec.structs.replace(
            info,
            weight=weight or info.weight,
            labels=kept | added,
            dsn=dsn or info.dsn,
            replication_dsn=replication_dsn or info.replication_dsn,
        )

    shard_map = set_shard(find_directory_dsn(data_dir), name, change)
    report = _report(shard_map, shard_map.shards[name])
    show(report, output, lambda: _print_shards([report]))


@app.command()
def drain(
    name: NameArgument,
    undo: Annotated[bool, typer.Option("--undo", help="Take it back into service.")] = False,
    data_dir: DataDirOption = None,
    output: OutputOption = OutputFormat.TEXT,
) -> None:
    """Mark a shard as one to be emptied, and tell what that moves; `shardctl rebalance` does it.

    Refused where namespaces are pinned to it, or to a label that no other shard in service has.
    """
    directory = find_directory_dsn(data_dir)
    state = ShardState.IN_SERVICE if undo else ShardState.DRAINING
    surveyed = survey(directory)
    plan = plan_moves(with_state(surveyed.situation, name, state))
    with connect_directory(directory) as conn:
        has_changed = set_shard_state(conn, name, state)
    report = DrainReport(
        name=name,
        state=state,
        has_changed=has_changed,
        plan=report_plan(plan, is_exact=surveyed.is_exact),
    )
    show(report, output, lambda: _print_drain(report))


@app.command()
def remove(
    name: NameArgument,
    lost: Annotated[bool, typer.Option("--lost", help="Its server is gone for good: do not ask it.")] = False,
    data_dir: DataDirOption = None,
    output: OutputOption = OutputFormat.TEXT,
) -> None:
    """Forget a shard that holds nothing. Its database is left as it is, and can be added again."""
    remove_shard(find_directory_dsn(data_dir), name, is_lost=lost)
    layout = find_embedded(data_dir)
    if layout is not None:
        stop_shard(layout, name, say)
    show({"name": name, "is_removed": True}, output, lambda: print(f"{name} is no shard any more"))


def _report(shard_map: ShardMap, info: ShardInfo) -> ShardReport:
    return ShardReport(
        name=info.name,
        dsn=info.dsn,
        replication_dsn=info.replication_dsn,
        state=info.state,
        weight=info.weight,
        labels=info.labels,
        slot_count=len(shard_map.slots_of(info.name)),
        override_count=sum(placed.shard == info.name for placed in shard_map.overrides.values()),
        is_reachable=_is_reachable(info.dsn),
    )


def _is_reachable(dsn: str) -> bool:
    try:
        psycopg.connect(dsn, connect_timeout=PROBE_TIMEOUT_S, application_name=APPLICATION).close()
    except psycopg.OperationalError:
        return False
    return True


def _print_shards(reports: list[ShardReport]) -> None:
    columns = ["shard", "state", "answers", "weight", "slots", "own namespaces", "labels", "address"]
    rows = [
        (
            r.name,
            r.state,
            "yes" if r.is_reachable else "no",
            r.weight,
            r.slot_count,
            r.override_count,
            ", ".join(f"{k}={v}" for k, v in r.labels.items()) or None,
            r.dsn if r.replication_dsn is None else f"{r.dsn}, for shards {r.replication_dsn}",
        )
        for r in reports
    ]
    print_table(columns, rows)


def _print_drain(report: DrainReport) -> None:
    change = "is now" if report.has_changed else "was already"
    print(f"{report.name} {change} {report.state.replace('_', ' ')}\n")
    print_plan(report.plan)


def _parse_label(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals or not value:
        raise UsageError(f"not KEY=VALUE: {text!r}")
    return key, value
