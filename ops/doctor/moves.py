"""Moves that stand still, and what dead ones have left behind: found, and with `--fix` put right.

Nothing counts before it was seen for as long as anything of a healthy move may last. What is put right goes
through the functions of the moves themselves, each of which looks once more, under a lock.
"""

import time
from collections.abc import Callable

import msgspec
import psycopg

from ops.doctor.finding import Finding, fail, ok, warn
from ops.doctor.look import Look, look_at
from ops.doctor.mending import describe_failure, mend_remnant
from ops.doctor.remnants import (
    AwayRow,
    Broken,
    Due,
    Expectation,
    Fence,
    ForeignRows,
    Homecoming,
    LoosePin,
    Marker,
    Ownerless,
    PartKind,
    Remnant,
    Standing,
    StreamPart,
    Unpublished,
    find_remnants,
    find_standing,
)
from ops.session import connect_directory
from sharding.directory import Connection
from sharding.reshard.errors import MoveError
from sharding.reshard.model import MoveState

PATIENCE_S = 2.0
"""A cutover lasts a second at most, and what two looks find may still be of two moves in a row."""
LOOK_AGAIN_S = 0.25
MIN_LOOKS = 3
"""However long one takes."""
ROUNDS = 4
"""Of mending: what is disowned in one has its rows deleted in the next, and its row forgotten in another."""
_SHOWN = 50
_FIX = "`shardctl doctor --fix`"

_CHECKS: dict[type[Remnant], str] = {
    Ownerless: "moves.ownerless",
    Unpublished: "moves.map",
    StreamPart: "moves.streams",
    Expectation: "moves.importing",
    Fence: "moves.fenced",
    ForeignRows: "moves.rows",
    AwayRow: "moves.away",
    Marker: "moves.markers",
    Homecoming: "moves.home",
    LoosePin: "moves.pins",
}
_REMEDIES: dict[type[Remnant], str] = {
    StreamPart: f"{_FIX} drops it; a replication slot keeps WAL until then",
    Expectation: f"{_FIX} disowns it, and deletes what has come of it",
    Fence: f"{_FIX} disowns it",
    Ownerless: f"{_FIX} makes it active again",
    Unpublished: f"{_FIX} puts it into the map",
    ForeignRows: f"{_FIX} deletes them, in small batches",
    AwayRow: f"{_FIX} forgets it",
    Marker: f"{_FIX} deletes it",
    Homecoming: f"{_FIX} lets it live with its slot",
    LoosePin: f"{_FIX} gives it a row of its own",
}
_ORDER = list(_CHECKS)
_DROP_ORDER = list(PartKind)


class Mend(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was put right, or could not be."""

    check: str
    subject: str
    detail: str
    is_done: bool


def check_moves(directory_dsn: str) -> list[Finding]:
    """Findings about moves and what they have left; says nothing about shards that do not answer."""
    look, standing, remnants = look_patiently(directory_dsn)
    findings = [*map(_describe_standing, standing), *map(_describe, remnants[:_SHOWN])]
    if len(remnants) > _SHOWN:
        findings.append(warn("moves", "cluster", f"and {len(remnants) - _SHOWN} more remnants", _FIX))
    if not findings:
        findings.append(ok("moves", "cluster", f"{len(look.moves)} under way, nothing left by others"))
    return findings


def fix_moves(directory_dsn: str, on_mend: Callable[[Mend], None]) -> list[Mend]:
    """What was put right of what moves have left, in order, then what could not be.

    Args:
        directory_dsn: the directory.
        on_mend: told of each, once it is certain.
    """
    done: list[Mend] = []
    failed: list[Mend] = []
    for _ in range(ROUNDS):
        *_, remnants = look_patiently(directory_dsn)
        with connect_directory(directory_dsn) as directory:
            mends = [_try_to_mend(directory, r, on_mend) for r in remnants if not _is_doubtful(r)]
        done += [mend for mend in mends if mend.is_done]
        # What failed may go when something else is put right.
        failed = [mend for mend in mends if not mend.is_done]
        if len(failed) == len(mends):
            break
    for mend in failed:
        on_mend(mend)
    return done + failed


def look_patiently(directory_dsn: str) -> tuple[Look, list[Standing], list[Remnant]]:
    """The last look, and what all looks of some seconds found, in the order in which it is put right."""
    deadline = time.monotonic() + PATIENCE_S
    look = look_at(directory_dsn)
    standing, found = find_standing(look), find_remnants(look)
    looks = 1
    while (standing or found) and (looks < MIN_LOOKS or time.monotonic() < deadline):
        time.sleep(LOOK_AGAIN_S)
        looks += 1
        look = look_at(directory_dsn)
        standing, found = standing & find_standing(look), found & find_remnants(look)
    return look, sorted(standing, key=lambda s: s.move_id), sorted(found, key=_place_in_order)


def _place_in_order(remnant: Remnant) -> tuple[object, ...]:
    kind = _DROP_ORDER.index(remnant.kind) if isinstance(remnant, StreamPart) else 0
    return _ORDER.index(type(remnant)), kind, remnant.shard, str(remnant)


def _is_doubtful(remnant: Remnant) -> bool:
    return isinstance(remnant, Ownerless) and bool(remnant.doubt)


def _try_to_mend(directory: Connection, remnant: Remnant, on_mend: Callable[[Mend], None]) -> Mend:
    check = _CHECKS[type(remnant)]
    try:
        mend = Mend(check=check, subject=remnant.shard, detail=mend_remnant(directory, remnant), is_done=True)
    except (MoveError, psycopg.Error) as error:
        detail = f"{remnant}: left as it is, as {describe_failure(error)}"
        return Mend(check=check, subject=remnant.shard, detail=detail, is_done=False)
    on_mend(mend)
    return mend


def _describe(remnant: Remnant) -> Finding:
    check, remedy = _CHECKS[type(remnant)], _REMEDIES[type(remnant)]
    if isinstance(remnant, Ownerless):
        if remnant.doubt:
            remedy = "start all shards and look again; else decide by `local.ownership` of each who has it"
        return fail(check, remnant.shard, str(remnant), remedy)
    return warn(check, remnant.shard, str(remnant), remedy)


def _describe_standing(standing: Standing) -> Finding:
    resume = f"`shardctl move resume {standing.move_id}`"
    match standing:
        case Due():
            return warn("moves.due", standing.shard, str(standing), resume)
        case Broken():
            remedy = f"`shardctl move cancel {standing.move_id}`, and start it again"
            if standing.state is MoveState.SOAKING:
                remedy = f"it cannot be rolled back any more: `shardctl move complete {standing.move_id}`"
            return fail("moves.broken", standing.shard, str(standing), remedy)
        case _:
            return warn("moves.stopped", standing.shard, str(standing), resume)
