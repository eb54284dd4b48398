"""`shardctl shard`, `shardctl map` and `shardctl namespace`: where what lives."""

from typing import Annotated

import msgspec
import psycopg
import typer

from ops.cluster import find_directory_dsn
from ops.commands.dev import DataDirOption
from ops.locate import locate_namespace
from ops.output import OutputFormat, OutputOption, print_table, show
from ops.session import APPLICATION, load_map
from sharding.shardmap import Placement, ShardInfo, ShardMap

shard_app = typer.Typer(no_args_is_help=True, help="The PostgreSQL servers that hold namespaces.")
map_app = typer.Typer(no_args_is_help=True, help="The shard map: which shard holds which slot.")
namespace_app = typer.Typer(no_args_is_help=True, help="Single namespaces.")

PROBE_TIMEOUT_S = 2


class ShardReport(msgspec.Struct, frozen=True, kw_only=True):
    """One shard as the directory has it, and whether it answers."""

    name: str
    dsn: str
    weight: int
    labels: dict[str, str]
    slot_count: int
    override_count: int
    """Namespaces that it holds by themselves."""
    is_reachable: bool


class MapReport(msgspec.Struct, frozen=True, kw_only=True):
    """The map in force."""

    cluster_id: str
    version: int
    slot_count: int
    slots: list[Placement]
    """(shard, epoch) by slot."""
    overrides: dict[str, Placement]


@shard_app.command("list")
def list_shards(data_dir: DataDirOption = None, output: OutputOption = OutputFormat.TEXT) -> None:
    """List the shards, how much of the map each holds, and whether it answers."""
    shard_map = load_map(find_directory_dsn(data_dir))
    reports = [_report(shard_map, info) for info in shard_map.shards.values()]
    columns = ["shard", "answers", "weight", "slots", "own namespaces", "labels", "address"]
    rows = [
        (
            r.name,
            "yes" if r.is_reachable else "no",
            r.weight,
            r.slot_count,
            r.override_count,
            ", ".join(f"{k}={v}" for k, v in r.labels.items()) or None,
            r.dsn,
        )
        for r in reports
    ]
    show({"shards": reports}, output, lambda: print_table(columns, rows))


def _report(shard_map: ShardMap, info: ShardInfo) -> ShardReport:
    return ShardReport(
        name=info.name,
        dsn=info.dsn,
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


@map_app.command("show")
def show_map(data_dir: DataDirOption = None, output: OutputOption = OutputFormat.TEXT) -> None:
    """Show the map in force."""
    shard_map = load_map(find_directory_dsn(data_dir))
    report = MapReport(
        cluster_id=shard_map.cluster_id,
        version=shard_map.version,
        slot_count=shard_map.slot_count,
        slots=shard_map.slots,
        overrides={str(ns_id): placed for ns_id, placed in shard_map.overrides.items()},
    )
    show(report, output, lambda: _print_map(shard_map))


def _print_map(shard_map: ShardMap) -> None:
    print(f"cluster {shard_map.cluster_id}, map version {shard_map.version}, {shard_map.slot_count} slots\n")
    rows = [
        (name, len(slots), slot_ranges([int(slot) for slot in slots]))
        for name in sorted(shard_map.shards)
        for slots in [shard_map.slots_of(name)]
    ]
    print_table(["shard", "count", "slots"], rows)
    if shard_map.overrides:
        print()
        placed = sorted(shard_map.overrides.items())
        print_table(["namespace", "shard", "epoch"], [(ns_id, p.shard, p.epoch) for ns_id, p in placed])


def slot_ranges(slots: list[int]) -> str:
    """Ascending numbers in short: 0-3, 7, 9-10."""
    ranges: list[list[int]] = []
    for slot in slots:
        if ranges and ranges[-1][-1] == slot - 1:
            ranges[-1] = [ranges[-1][0], slot]
        else:
            ranges.append([slot])
    return ", ".join("-".join(map(str, ends)) for ends in ranges)


@namespace_app.command()
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
