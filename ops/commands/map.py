"""`shardctl map`: which shard holds which slot, and since when."""

from datetime import datetime
from typing import Annotated

import msgspec
import typer

from ops.cluster import find_directory_dsn
from ops.commands.dev import DataDirOption
from ops.output import OutputFormat, OutputOption, print_table, show
from ops.planning import slot_ranges
from ops.session import connect_directory, load_map
from sharding.directory import MapChange, list_map_changes
from sharding.shardmap import Placement, ShardMap
from wire.ids import slot_of, system_ns

app = typer.Typer(no_args_is_help=True, help="The shard map: which shard holds which slot.")


class MapReport(msgspec.Struct, frozen=True, kw_only=True):
    """The map in force."""

    cluster_id: str
    version: int
    slot_count: int
    slots: list[Placement]
    """(shard, epoch) by slot."""
    overrides: dict[str, Placement]


@app.command("show")
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


class ChangeReport(msgspec.Struct, frozen=True, kw_only=True):
    """A placement that came with a version of the map."""

    map_version: int
    at: datetime
    key: str
    what: str
    shard: str | None
    """None: the namespace is no longer placed by itself."""
    epoch: int | None
    move_id: int | None


@app.command()
def history(
    limit: Annotated[int, typer.Option(min=1, max=1_000_000, help="How many changes.")] = 20,
    data_dir: DataDirOption = None,
    output: OutputOption = OutputFormat.TEXT,
) -> None:
    """Tell what changed in the map, newest first. Versions that are missing here brought or took shards."""
    with connect_directory(find_directory_dsn(data_dir)) as conn:
        changes = [_report_change(change) for change in list_map_changes(conn, limit)]
    columns = ["version", "at", "what", "shard", "epoch", "move"]
    rows = [
        (c.map_version, c.at.isoformat(" ", "seconds"), c.what, c.shard or "by its slot", c.epoch, c.move_id)
        for c in changes
    ]
    show({"changes": changes}, output, lambda: print_table(columns, rows))


def _report_change(change: MapChange) -> ChangeReport:
    slot = slot_of(change.key)
    return ChangeReport(
        map_version=change.map_version,
        at=change.at,
        key=str(change.key),
        what=f"slot {slot}" if change.key == system_ns(slot) else f"namespace {change.key}",
        shard=change.shard,
        epoch=change.epoch,
        move_id=change.move_id,
    )
