"""`shardctl namespace move|pin|unpin`: single namespaces, apart from their slots."""

from typing import Annotated

import msgspec
import typer

from ops.cluster import find_directory_dsn
from ops.commands.dev import DataDirOption
from ops.errors import UsageError
from ops.moves import (
    MAX_QUARANTINE_S,
    MoveReport,
    check_exists,
    one_namespace,
    report_move,
    run_move,
    source_of,
)
from ops.output import OutputFormat, OutputOption, say, show
from ops.session import connect_directory, load_map
from sharding.directory import list_pins
from sharding.reshard.alone import come_home, keep_here
from sharding.reshard.errors import MoveConflict
from sharding.reshard.model import Goal, MoveOptions
from sharding.reshard.records import delete_pin, insert_move, insert_pin
from sharding.shardmap import Pin, ShardMap
from wire.ids import NsId, parse_ns_id, slot_of, system_ns

NamespaceArgument = Annotated[str, typer.Argument(metavar="NAMESPACE", help="A namespace's id.")]
UntilOption = Annotated[Goal, typer.Option(help="Where to stop: ready, soaking or completed.")]
QuarantineOption = Annotated[
    float,
    typer.Option(
        min=0, max=MAX_QUARANTINE_S, help="Seconds that the old rows stay after the point of no return."
    ),
]
_QUARANTINE_S = MoveOptions().quarantine_s


class PinReport(msgspec.Struct, frozen=True, kw_only=True):
    """A namespace's pin, and the move that it took."""

    ns_id: str
    pin: str | None
    shard: str
    """Where it is."""
    is_met: bool
    move: MoveReport | None = None
    """None: nothing had to move."""


def move(
    namespace: NamespaceArgument,
    shard: Annotated[str, typer.Argument(metavar="SHARD", help="Where it is to live, and to stay.")],
    until: UntilOption = Goal.COMPLETED,
    quarantine: QuarantineOption = _QUARANTINE_S,
    data_dir: DataDirOption = None,
    output: OutputOption = OutputFormat.TEXT,
) -> None:
    """Move one namespace to a shard and pin it there; `unpin` lets it come home.

    One that is pinned to a label keeps that pin, which the shard has to meet.
    """
    directory = find_directory_dsn(data_dir)
    shard_map = load_map(directory)
    ns_id = _parse(shard_map, namespace)
    _check_shard(shard_map, shard)
    wanted = _find_label_pin(directory, ns_id) or Pin(shard=shard)
    if not wanted.is_met_by(shard_map.shards[shard]):
        raise MoveConflict(f"namespace {ns_id} is pinned to {wanted}, which {shard} is not: unpin it first")
    placed = shard_map.placement(ns_id)
    if placed is not None and placed.shard == shard:
        _pin(directory, ns_id, wanted, output)
        return
    _start(directory, shard_map, ns_id, shard, wanted, until, quarantine, output)


def _find_label_pin(directory: str, ns_id: NsId) -> Pin | None:
    with connect_directory(directory) as conn:
        pin = list_pins(conn).get(ns_id)
    return pin if pin is not None and pin.label is not None else None


def pin(
    namespace: NamespaceArgument,
    label: Annotated[str | None, typer.Option(help="KEY=VALUE that its shard must have.")] = None,
    shard: Annotated[str | None, typer.Option(help="The shard that it must live on.")] = None,
    data_dir: DataDirOption = None,
    output: OutputOption = OutputFormat.TEXT,
) -> None:
    """Say where a namespace may live. No move breaks a pin; `rebalance` heeds those that are not met."""
    if (label is None) == (shard is None):
        raise UsageError("say either --label KEY=VALUE or --shard")
    directory = find_directory_dsn(data_dir)
    shard_map = load_map(directory)
    ns_id = _parse(shard_map, namespace)
    if shard is not None:
        _check_shard(shard_map, shard)
        wanted = Pin(shard=shard)
    else:
        key, equals, value = (label or "").partition("=")
        if not key or not equals:
            raise UsageError(f"not KEY=VALUE: {label!r}")
        wanted = Pin(label=key, value=value)
    _pin(directory, ns_id, wanted, output)


def _pin(directory: str, ns_id: NsId, wanted: Pin, output: OutputFormat) -> None:
    with connect_directory(directory) as conn:
        insert_pin(conn, ns_id, wanted)
        is_met = keep_here(conn, ns_id)
    placed = load_map(directory).placement(ns_id)
    assert placed is not None
    if not is_met:
        say(f"{placed.shard} does not meet it: `shardctl rebalance` moves the namespace to a shard that does")
    report = PinReport(ns_id=str(ns_id), pin=str(wanted), shard=placed.shard, is_met=is_met)
    show(report, output, lambda: print(f"namespace {ns_id} is pinned to {wanted}, and on {placed.shard}"))


def unpin(
    namespace: NamespaceArgument,
    until: UntilOption = Goal.COMPLETED,
    quarantine: QuarantineOption = _QUARANTINE_S,
    data_dir: DataDirOption = None,
    output: OutputOption = OutputFormat.TEXT,
) -> None:
    """Let a namespace live with its slot again: it comes home, by a move if the slot is elsewhere."""
    directory = find_directory_dsn(data_dir)
    shard_map = load_map(directory)
    ns_id = _parse(shard_map, namespace)
    with connect_directory(directory) as conn:
        delete_pin(conn, ns_id)
        is_home = come_home(conn, ns_id)
    if not is_home:
        home = shard_map.placement(system_ns(slot_of(ns_id)))
        assert home is not None
        _start(directory, shard_map, ns_id, home.shard, None, until, quarantine, output)
        return
    placed = load_map(directory).placement(ns_id)
    assert placed is not None
    report = PinReport(ns_id=str(ns_id), pin=None, shard=placed.shard, is_met=True)
    show(report, output, lambda: print(f"namespace {ns_id} lives with its slot, on {placed.shard}"))


def _start(
    directory: str,
    shard_map: ShardMap,
    ns_id: NsId,
    shard: str,
    wanted: Pin | None,
    until: Goal,
    quarantine: float,
    output: OutputFormat,
) -> None:
    units = one_namespace(shard_map, ns_id)
    options = MoveOptions(quarantine_s=quarantine)
    with connect_directory(directory) as conn, conn.transaction():
        if wanted is not None:
            insert_pin(conn, ns_id, wanted)
        begun = insert_move(conn, source_of(shard_map, units), shard, units, options, until)
    say(f"move {begun.move_id}: namespace {ns_id} from {begun.source} to {shard}")
    ran = run_move(directory, begun.move_id, until)
    after = load_map(directory)
    placed = after.placement(ns_id)
    assert placed is not None
    report = PinReport(
        ns_id=str(ns_id),
        pin=None if wanted is None else str(wanted),
        shard=placed.shard,
        is_met=wanted is None or wanted.is_met_by(after.shards[placed.shard]),
        move=report_move(ran.move, ran.cutovers, ran.copied),
    )
    show(report, output, lambda: print(f"namespace {ns_id} is on {placed.shard}, its move {ran.move.state}"))


def _parse(shard_map: ShardMap, text: str) -> NsId:
    ns_id = one_namespace(shard_map, parse_ns_id(text))[0].key
    check_exists(shard_map, ns_id)
    return ns_id


def _check_shard(shard_map: ShardMap, name: str) -> None:
    if name not in shard_map.shards:
        raise UsageError(f"there is no shard {name!r}; `shardctl shard list` shows them")
