"""The work of each state of a move, and what it says of itself in a dry run.

All work can be repeated from its beginning, whoever did how much of it before.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from sharding.directory import Connection
from sharding.locks import SLOT_LOCK_CLASS
from sharding.reshard import stream
from sharding.reshard.catalog import check_tables, read_tables
from sharding.reshard.cleanup import delete_rows, has_rows
from sharding.reshard.context import MoveContext
from sharding.reshard.copy import copy_rows
from sharding.reshard.errors import MoveConflict, MoveRefused, Quarantined
from sharding.reshard.fence import check_apart, find_ownership
from sharding.reshard.model import MoveState, Side, Unit
from sharding.reshard.own_rows import (
    bring_home,
    disown_unit,
    expect_unit,
    forget_away,
    forget_unit,
    take_out,
)
from sharding.reshard.records import drop_pin_to, find_clock, has_pin, publish_unit, withdraw_override
from sharding.reshard.servers import check_different_servers, check_server
from sharding.reshard.switch import bring_to
from sharding.shardmap import OwnershipState, Placement
from wire.ids import slot_of, system_ns

CATCH_UP_S = 3600.0
"""For the stream to bring what was written during the copy. A stream that does not gain on its source by then
never will; the move can be resumed with a lower load."""


@dataclass(frozen=True, slots=True)
class Step:
    """The work of one state."""

    describe: Callable[[MoveContext], str]
    """What it will do, in words."""
    run: Callable[[MoveContext], None]


def check_move(ctx: MoveContext) -> None:
    """Pass when both shards can take part: read-only, so that a dry run does it as well.

    Raises:
        MoveError: what is missing, and what to do.
    """
    source, target = ctx.conn(Side.SOURCE), ctx.conn(Side.TARGET)
    check_different_servers(source, target)
    for side in Side:
        check_server(ctx.conn(side))
    _check_versions(source, target)
    tables = check_tables(source, target)
    for unit in ctx.move.units:
        placed, mine = ctx.placed(unit.key), find_ownership(source, unit.key)
        is_own = mine is not None and mine.state is OwnershipState.ACTIVE
        if placed.shard != ctx.move.source or (unit.is_slot and not is_own):
            raise MoveConflict(f"{unit.name} is not owned by {ctx.move.source}")
        check_apart(source, unit, ctx.apart_on(unit, ctx.move.source), ctx.move.source)
    if has_rows(ctx.sites[Side.TARGET], tables, ctx.move.units):
        raise MoveRefused(
            f"{ctx.move.target} holds rows of what is to move there: of a move whose quarantine has not ended"
            " (`shardctl move list`), or of something that died (`shardctl doctor --fix` deletes them)"
        )


def _check_versions(source: Connection, target: Connection) -> None:
    found = [
        conn.execute("SELECT version_num FROM local.alembic_version").fetchone() for conn in (source, target)
    ]
    if found[0] != found[1]:
        raise MoveRefused("the two shards' schemas are of different versions: run `shardctl migrate`")


def _prepare(ctx: MoveContext) -> None:
    check_move(ctx)
    source = ctx.conn(Side.SOURCE)
    for unit in ctx.move.units:
        if not unit.is_slot:
            _take_out(ctx, unit)
    _expect(ctx)
    tables = read_tables(source)
    stream.ensure_publication(source, ctx.stream(Side.SOURCE), tables, ctx.move.units)


def _expect(ctx: MoveContext) -> None:
    shard_map = ctx.map()
    for unit in ctx.move.units:
        placed = shard_map.placement(unit.key)
        assert placed is not None
        away = {ns_id: shard_map.overrides[ns_id] for ns_id in unit.excluded}
        expect_unit(ctx.conn(Side.TARGET), unit, placed.epoch, away)


def _take_out(ctx: MoveContext, unit: Unit) -> None:
    """Give a namespace a row of its own where it is, so that it can be cut over by itself."""
    there = find_ownership(ctx.conn(Side.TARGET), unit.key)
    epoch = take_out(ctx.conn(Side.SOURCE), unit.key, there.epoch if there else 0)
    publish_unit(ctx.directory, ctx.move, unit, Side.SOURCE, epoch)


def _copy(ctx: MoveContext) -> None:
    source, target = ctx.conn(Side.SOURCE), ctx.conn(Side.TARGET)
    tables, units, name = read_tables(source), ctx.move.units, ctx.stream(Side.SOURCE)
    # What an earlier try has left. Its subscription, if it came that far, would apply to the new rows.
    stream.drop_subscription(target, name)
    stream.drop_slot(source, name)
    if has_rows(ctx.sites[Side.TARGET], tables, units):
        for unit in units:
            disown_unit(target, unit, 0, ctx.placed(unit.key))
        delete_rows(ctx.sites[Side.TARGET], tables, units, ctx.pacer, ctx.tell)
    _expect(ctx)
    with stream.create_slot(ctx.sites[Side.SOURCE], name) as snapshot:
        ctx.copied = copy_rows(
            ctx.sites[Side.SOURCE], snapshot, ctx.sites[Side.TARGET], tables, units, ctx.pacer, ctx.tell
        )


def _stream(ctx: MoveContext) -> None:
    source, target, name = ctx.conn(Side.SOURCE), ctx.conn(Side.TARGET), ctx.stream(Side.SOURCE)
    stream.ensure_subscription(target, ctx.sites[Side.SOURCE], name)
    stream.wait_until_caught_up(source, target, name, CATCH_UP_S)


def _reverse(ctx: MoveContext) -> None:
    source, target, name = ctx.conn(Side.SOURCE), ctx.conn(Side.TARGET), ctx.stream(Side.TARGET)
    stream.ensure_publication(target, name, read_tables(target), ctx.move.units)
    stream.ensure_slot(target, name)
    stream.ensure_subscription(source, ctx.sites[Side.TARGET], name)
    stream.wait_until_caught_up(target, source, name, CATCH_UP_S)


def _drop_streams(ctx: MoveContext) -> None:
    for publisher in Side:
        name = ctx.stream(publisher)
        stream.drop_subscription(ctx.conn(publisher.other), name)
        stream.drop_slot(ctx.conn(publisher), name)
        stream.drop_publication(ctx.conn(publisher), name)


def _delete_markers(conn: Connection, units: tuple[Unit, ...]) -> None:
    for unit in units:
        with conn.transaction():
            conn.execute("SELECT pg_advisory_xact_lock_shared(%s, %s)", [SLOT_LOCK_CLASS, slot_of(unit.key)])
            conn.execute("DELETE FROM ns.move_markers WHERE ns_id = %s", [unit.key])


def _retire(ctx: MoveContext) -> None:
    _drop_streams(ctx)
    for unit in ctx.move.units:
        placed = ctx.placed(unit.key)
        disown_unit(ctx.conn(Side.SOURCE), unit, placed.epoch, placed)
    _delete_markers(ctx.conn(Side.TARGET), ctx.move.units)
    _come_home(ctx, Side.TARGET)


def _come_home(ctx: MoveContext, side: Side) -> None:
    """Take away the own rows of namespaces that are where their slots are, and not pinned."""
    for unit in ctx.move.units:
        home = ctx.placed(system_ns(slot_of(unit.key)))
        if unit.is_slot or home.shard != ctx.move.shard(side) or has_pin(ctx.directory, unit.key):
            continue
        epoch = bring_home(ctx.conn(side), unit.key)
        withdraw_override(ctx.directory, unit.key, Placement(home.shard, epoch), ctx.move.move_id)


def _delete(ctx: MoveContext) -> None:
    due_s = (ctx.move.retired_at_s or 0.0) + ctx.move.options.quarantine_s
    left_s = due_s - find_clock(ctx.directory)
    if left_s > 0:
        raise Quarantined(left_s)
    _clear(ctx, Side.SOURCE)


def _clear(ctx: MoveContext, side: Side) -> None:
    conn = ctx.conn(side)
    delete_rows(ctx.sites[side], read_tables(conn), ctx.move.units, ctx.pacer, ctx.tell)
    for unit in ctx.move.units:
        if unit.is_slot and side is Side.SOURCE:
            forget_away(conn, unit)  # its own row stays, and tells whoever comes late where to go
        else:
            forget_unit(conn, unit)


def _cancel(ctx: MoveContext) -> None:
    bring_to(ctx, Side.SOURCE)
    _drop_streams(ctx)
    for unit in ctx.move.units:
        placed = ctx.placed(unit.key)
        disown_unit(ctx.conn(Side.TARGET), unit, placed.epoch, placed)
    _delete_markers(ctx.conn(Side.SOURCE), ctx.move.units)


def _clear_target(ctx: MoveContext) -> None:
    _clear(ctx, Side.TARGET)
    for unit in ctx.move.units:
        drop_pin_to(ctx.directory, unit.key, ctx.move.target)
    _come_home(ctx, Side.SOURCE)


def _names(ctx: MoveContext) -> str:
    return ", ".join(unit.name for unit in ctx.move.units)


STEPS: Mapping[MoveState, Step] = {
    MoveState.PREPARING: Step(
        lambda c: (
            f"check both shards; tell {c.move.target} to expect {_names(c)}; publish them on"
            f" {c.move.source} as {c.stream(Side.SOURCE)}"
        ),
        _prepare,
    ),
    MoveState.COPYING: Step(
        lambda c: f"hold back changes in a replication slot on {c.move.source}; copy the rows as of then",
        _copy,
    ),
    MoveState.STREAMING: Step(
        lambda c: f"subscribe {c.move.target} to {c.move.source}; wait until it has caught up", _stream
    ),
    MoveState.REVERSING: Step(
        lambda c: f"subscribe {c.move.source} to {c.move.target}, as {c.stream(Side.TARGET)}", _reverse
    ),
    MoveState.SWITCHING: Step(
        lambda c: _describe_cutover(c, c.move.target), lambda c: bring_to(c, Side.TARGET)
    ),
    MoveState.ROLLING_BACK: Step(
        lambda c: _describe_cutover(c, c.move.source), lambda c: bring_to(c, Side.SOURCE)
    ),
    MoveState.RETIRING: Step(
        lambda c: f"POINT OF NO RETURN: drop both streams; {c.move.source} disowns {_names(c)}", _retire
    ),
    MoveState.DELETING: Step(
        lambda c: f"after {c.move.options.quarantine_s:g} s delete the rows on {c.move.source}, in batches",
        _delete,
    ),
    MoveState.CANCELLING: Step(
        lambda c: f"drop both streams; {c.move.target} no longer expects {_names(c)}", _cancel
    ),
    MoveState.CLEARING: Step(lambda c: f"delete the rows on {c.move.target}, in batches", _clear_target),
}
"""By state; the others' work is none."""


def _describe_cutover(ctx: MoveContext, to: str) -> str:
    first = "compare both shards; " if ctx.move.options.is_verified else ""
    return f"{first}one by one fence, drain and activate {_names(ctx)} on {to}, and publish it in the map"
