"""Bringing a move's units to one of its sides, one after another: switch, rollback, and remains."""

from collections.abc import Sequence
from dataclasses import replace

import msgspec

from sharding.reshard.catalog import Table, check_tables
from sharding.reshard.context import MoveContext
from sharding.reshard.errors import FenceHeld, MoveConflict, VerifyFailed
from sharding.reshard.fence import (
    OwnershipRow,
    abort,
    cut_over,
    find_ownership,
    finish_cut,
    rehearse,
)
from sharding.reshard.marker import read_marker
from sharding.reshard.model import Side, Unit
from sharding.reshard.records import begin_cut, find_verified, publish_unit, set_verified
from sharding.reshard.stream import check_stream
from sharding.reshard.verify import Verified, VerifyReport, verify_units
from sharding.shardmap import OwnershipState
from wire import faults

_SHOWN = 5


def bring_to(ctx: MoveContext, side: Side) -> None:
    """Make one side the owner of all units; units that are there already stay untouched.

    Raises:
        VerifyFailed: the shards differ; nothing was cut over.
        FenceHeld: a unit could not be taken; those before it have been.
    """
    for unit in ctx.move.units:
        if unit.is_cutting:
            _replace(ctx, settle(ctx, unit, is_forwards=unit.holder is not side))
    waiting = [unit for unit in ctx.move.units if unit.holder is not side]
    if not waiting:
        return
    check_streams(ctx)
    tables = check_tables(ctx.conn(Side.SOURCE), ctx.conn(Side.TARGET))
    if ctx.move.options.is_verified:
        _raise_for_differences(compare(ctx, tables, waiting, side.other, is_new=False))
    for unit in waiting:
        _replace(ctx, _cut(ctx, unit))


def check_streams(ctx: MoveContext) -> None:
    """Pass when both streams run, and have lost nothing.

    Raises:
        StreamBroken: one does not.
    """
    for publisher in Side:
        check_stream(ctx.conn(publisher), ctx.conn(publisher.other), ctx.stream(publisher))


def compare(
    ctx: MoveContext, tables: Sequence[Table], units: Sequence[Unit], owner: Side, *, is_new: bool
) -> VerifyReport:
    """Compare what both shards have of units that one of them owns.

    Args:
        ctx: the move.
        tables: that both have.
        units: what is compared.
        owner: the side that owns them.
        is_new: from the beginning, rather than where the last run of this state stopped.
    """
    move_id = ctx.move.move_id
    kept = None if is_new else find_verified(ctx.directory, move_id)
    return verify_units(
        ctx.sites[owner],
        ctx.sites[owner.other],
        tables,
        units,
        move_id % (1 << 31),
        None if kept is None else msgspec.json.decode(kept, type=Verified),
        lambda done: set_verified(ctx.directory, move_id, msgspec.json.encode(done)),
        ctx.pacer,
    )


def _raise_for_differences(report: VerifyReport) -> None:
    found = report.differences
    if not found:
        return
    shown = "; ".join(f"{d.table} {d.key}: {d.kind}" for d in found[:_SHOWN])
    more = f" and {report.difference_count - _SHOWN} more" if report.difference_count > _SHOWN else ""
    raise VerifyFailed(f"the shards differ in {report.difference_count} rows: {shown}{more}")


def settle(ctx: MoveContext, unit: Unit, *, is_forwards: bool) -> Unit:
    """The unit at rest, after a cutover that somebody began and did not end.

    Args:
        ctx: the move.
        unit: whose cutover away from its holder was begun.
        is_forwards: end it rather than call it off, where there is a choice.
    """
    owner, heir = ctx.conn(unit.holder), ctx.conn(unit.holder.other)
    epoch = ctx.placed(unit.key).epoch
    theirs = find_ownership(heir, unit.key)
    if theirs is not None and theirs.state is OwnershipState.ACTIVE:
        return _publish(ctx, unit, unit.holder.other, theirs.epoch)
    mine = find_ownership(owner, unit.key)
    if mine is None:
        raise MoveConflict(f"{unit.name} has no owner; run `shardctl doctor`")
    if mine.state is OwnershipState.FENCED and is_forwards and _can_take(theirs, mine.epoch):
        writer, successor = ctx.move.shard(unit.holder), ctx.move.shard(unit.holder.other)
        seq = read_marker(owner, unit.key, writer)
        times = finish_cut(owner, heir, unit, mine.epoch - 1, seq, writer=writer, successor=successor)
        ctx.cutovers.append(times)
        return _publish(ctx, unit, unit.holder.other, mine.epoch)
    if mine.state is OwnershipState.ACTIVE and mine.epoch > epoch:
        # It had been called off, and only the map was not told.
        return _publish(ctx, unit, unit.holder, mine.epoch)
    before = mine.epoch - 1 if mine.state is OwnershipState.FENCED else mine.epoch
    kept = abort(owner, heir, unit, before)
    if kept is None:
        return _publish(ctx, unit, unit.holder.other, before + 1)
    return _publish(ctx, unit, unit.holder, kept)


def _can_take(heir: OwnershipRow | None, epoch: int) -> bool:
    """Whether an activation at an epoch would succeed; it would not once a call-off has begun."""
    if heir is None or heir.epoch >= epoch:
        return False
    return heir.state in (OwnershipState.IMPORTING, OwnershipState.FENCED)


def _cut(ctx: MoveContext, unit: Unit) -> Unit:
    owner, heir = ctx.conn(unit.holder), ctx.conn(unit.holder.other)
    writer, successor = ctx.move.shard(unit.holder), ctx.move.shard(unit.holder.other)
    epoch = ctx.placed(unit.key).epoch
    rehearse(owner, heir, unit, writer)
    begin_cut(ctx.directory, ctx.move, unit)
    faults.fault_point("reshard.cutover.begun")
    try:
        times = cut_over(
            owner, heir, unit, epoch, writer=writer, successor=successor, apart=ctx.apart_on(unit, writer)
        )
        ctx.cutovers.append(times)
    except (FenceHeld, MoveConflict):
        _replace(ctx, settle(ctx, replace(unit, is_cutting=True), is_forwards=False))
        raise
    return _publish(ctx, unit, unit.holder.other, epoch + 1)


def _publish(ctx: MoveContext, unit: Unit, holder: Side, epoch: int) -> Unit:
    published = publish_unit(ctx.directory, ctx.move, unit, holder, epoch)
    faults.fault_point("reshard.cutover.published")
    return published


def _replace(ctx: MoveContext, unit: Unit) -> None:
    units = tuple(unit if unit.key == old.key else old for old in ctx.move.units)
    ctx.move = replace(ctx.move, units=units)
