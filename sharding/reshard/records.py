"""Moves and the map in the directory: every transition is a compare-and-set."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from operator import itemgetter
from typing import LiteralString

import msgspec
from psycopg.rows import TupleRow

from sharding.directory import Connection, list_pins, load_map_sync, lock_map
from sharding.reshard.errors import MoveConflict, MoveNotFound
from sharding.reshard.model import ENDED, Goal, Move, MoveOptions, MoveState, Side, Throttle, Unit
from sharding.shardmap import Pin, Placement, ShardMap
from wire.ids import NsId, slot_of, system_ns

_COLUMNS: LiteralString = (
    "move_id, source, target, state, goal, options::text, is_paused, error, extract(epoch FROM retired_at)"
)
_UNIT_COLUMNS: LiteralString = "key, first, last, excluded, holder, is_cutting"
_UNIT_WIDTH = 6


def insert_move(
    conn: Connection, source: str, target: str, units: Sequence[Unit], options: MoveOptions, goal: Goal
) -> Move:
    """A new move in state PLANNED.

    Raises:
        MoveConflict: as `check_units`.

    Tx: one of its own, under the map lock, so that what is checked holds until it is recorded.
    """
    with conn.transaction():
        lock_map(conn)
        check_units(conn, source, target, units)
        row = conn.execute(
            "INSERT INTO moves (source, target, state, goal, options) VALUES (%s, %s, %s, %s, %s::jsonb)"
            " RETURNING move_id",
            [source, target, MoveState.PLANNED, goal, msgspec.json.encode(options).decode()],
        ).fetchone()
        assert row is not None
        with conn.cursor() as cursor:
            cursor.executemany(
                "INSERT INTO move_units (move_id, key, first, last, excluded, holder, is_cutting, is_live)"
                " VALUES (%s, %s, %s, %s, %s, 's', false, true)",
                [(row[0], u.key, u.first, u.last, list(u.excluded)) for u in units],
            )
    return get_move(conn, int(row[0]))


def check_units(conn: Connection, source: str, target: str, units: Sequence[Unit]) -> None:
    """Pass when units can begin to move.

    Raises:
        MoveConflict: the target takes nothing; a unit is not the source's by the map, or part of another
            move, or the slot of a namespace is, or a namespace of a slot; or a pin would be broken.
    """
    shard_map = load_map_sync(conn)
    _check_shards(shard_map, source, target)
    for unit in units:
        check_is_free(conn, unit.key)
        placed = shard_map.placement(unit.key)
        if placed is None or placed.shard != source:
            raise MoveConflict(f"{unit.name} is not on {source} by the map")
        away = {n for n in shard_map.overrides if unit.is_slot and slot_of(n) == slot_of(unit.key)}
        if away != set(unit.excluded):
            raise MoveConflict(f"the namespaces of {unit.name} that are placed by themselves changed")
        _check_pins(conn, shard_map, unit, target)


def check_is_free(conn: Connection, key: NsId) -> None:
    """Pass when neither a unit, nor its slot, nor for a slot any of its namespaces is in a live move.

    Raises:
        MoveConflict: one is.
    """
    slot_key = system_ns(slot_of(key))
    row = conn.execute(
        "SELECT move_id, key FROM move_units"
        " WHERE is_live AND (key = %s OR key = %s OR %s AND key >> 51 = %s) LIMIT 1",
        [key, slot_key, key == slot_key, slot_of(key)],
    ).fetchone()
    if row is not None:
        raise MoveConflict(f"{key} is part of move {row[0]}, or its slot or a namespace of it ({row[1]}) is")


def _check_shards(shard_map: ShardMap, source: str, target: str) -> None:
    for name in (source, target):
        if name not in shard_map.shards:
            raise MoveConflict(f"there is no shard {name!r}")
    if source == target:
        raise MoveConflict(f"it is on {source} already")
    if not shard_map.shards[target].is_in_service:
        raise MoveConflict(f"{target} drains, and takes nothing")


def _check_pins(conn: Connection, shard_map: ShardMap, unit: Unit, target: str) -> None:
    """Pass when no namespace that goes along is pinned to elsewhere."""
    for ns_id, pin in list_pins(conn).items():
        goes_along = unit.first <= ns_id <= unit.last and ns_id not in unit.excluded
        if goes_along and not pin.is_met_by(shard_map.shards[target]):
            raise MoveConflict(f"namespace {ns_id} is pinned to {pin}, which {target} is not")


def get_move(conn: Connection, move_id: int) -> Move:
    """A move.

    Raises:
        MoveNotFound: there is none of this number.
    """
    found = _read_moves(conn, "WHERE move_id = %s", [move_id])
    if not found:
        raise MoveNotFound(f"there is no move {move_id}")
    return found[0]


def list_moves(conn: Connection, *, is_live_only: bool = False) -> list[Move]:
    """All moves, or those that have not ended, by number."""
    if is_live_only:
        return _read_moves(conn, "WHERE NOT state = ANY(%s)", [list(ENDED)])
    return _read_moves(conn, "", [])


def _read_moves(conn: Connection, where: LiteralString, params: list[object]) -> list[Move]:
    # In one statement, as a move and its units change together.
    rows = conn.execute(
        f"SELECT {_COLUMNS}, {_UNIT_COLUMNS} FROM moves LEFT JOIN move_units USING (move_id) {where}"
        " ORDER BY move_id, key",
        params,
    ).fetchall()
    return [_to_move(list(of_one)) for _, of_one in groupby(rows, key=itemgetter(0))]


def _to_move(rows: Sequence[TupleRow]) -> Move:
    """A move from its rows, one for each unit."""
    row = rows[0]
    units = (u[-_UNIT_WIDTH:] for u in rows)
    return Move(
        move_id=row[0],
        source=row[1],
        target=row[2],
        state=MoveState(row[3]),
        goal=Goal(row[4]),
        options=msgspec.json.decode(row[5], type=MoveOptions),
        units=tuple(Unit(u[0], u[1], u[2], tuple(u[3]), Side(u[4]), u[5]) for u in units if u[0] is not None),
        is_paused=row[6],
        error=row[7],
        retired_at_s=None if row[8] is None else float(row[8]),
    )


def advance_move(conn: Connection, move: Move, state: MoveState) -> Move:
    """The move in its next state, persisted.

    Raises:
        MoveConflict: somebody else has changed its state meanwhile.
    """
    has_ended = state in ENDED
    with conn.transaction():
        changed = conn.execute(
            "UPDATE moves SET state = %s, progress = NULL, verified = NULL, updated_at = now(),"
            " retired_at = CASE WHEN %s THEN now() ELSE retired_at END,"
            " ended_at = CASE WHEN %s THEN now() END WHERE move_id = %s AND state = %s",
            [state, state is MoveState.RETIRING, has_ended, move.move_id, move.state],
        )
        if changed.rowcount != 1:
            raise MoveConflict(f"move {move.move_id} is no longer {move.state}: another runner is at work")
        if has_ended or state is MoveState.DELETING:
            # What is left to be done then heeds ownership by itself, and the units may move on.
            conn.execute("UPDATE move_units SET is_live = false WHERE move_id = %s", [move.move_id])
        if state is MoveState.CANCELLED:
            # The pin came with the move. One that was cancelled before it began has no other step.
            for unit in move.units:
                drop_pin_to(conn, unit.key, move.target)
    return get_move(conn, move.move_id)


def begin_run(conn: Connection, move_id: int, goal: Goal, runner: str) -> None:
    """Note who runs a move, and where to."""
    conn.execute(
        "UPDATE moves SET goal = %s, runner = %s, error = NULL, updated_at = now() WHERE move_id = %s",
        [goal, runner, move_id],
    )


def set_error(conn: Connection, move_id: int, error: str) -> None:
    """Note why a runner stopped."""
    conn.execute("UPDATE moves SET error = %s, updated_at = now() WHERE move_id = %s", [error, move_id])


def set_paused(conn: Connection, move_id: int, *, is_paused: bool) -> None:
    """Let the runner of a move stand still, or go on."""
    conn.execute(
        "UPDATE moves SET is_paused = %s, updated_at = now() WHERE move_id = %s", [is_paused, move_id]
    )


def set_options(conn: Connection, move_id: int, options: MoveOptions) -> None:
    """Change how a move is made; its runner looks about once a second."""
    conn.execute(
        "UPDATE moves SET options = %s::jsonb, updated_at = now() WHERE move_id = %s",
        [msgspec.json.encode(options).decode(), move_id],
    )


def find_control(conn: Connection, move_id: int) -> tuple[Throttle, bool]:
    """What a move's copy and deletions are to keep below now, and whether it is to stand still."""
    move = get_move(conn, move_id)
    return move.options.throttle, move.is_paused


def set_progress(conn: Connection, move_id: int, progress: msgspec.Struct) -> None:
    """Show how far the work of a move's state is."""
    conn.execute(
        "UPDATE moves SET progress = %s::jsonb, updated_at = now() WHERE move_id = %s",
        [msgspec.json.encode(progress).decode(), move_id],
    )


def find_progress(conn: Connection, move_id: int) -> tuple[bytes | None, str | None]:
    """What the runner of a move last told, as JSON, and who it is or was."""
    row = conn.execute("SELECT progress::text, runner FROM moves WHERE move_id = %s", [move_id]).fetchone()
    return (None, None) if row is None else (None if row[0] is None else str(row[0]).encode(), row[1])


def set_verified(conn: Connection, move_id: int, verified: bytes) -> None:
    """Keep how far a comparison is (JSON), so that the next runner goes on there."""
    conn.execute("UPDATE moves SET verified = %s::jsonb WHERE move_id = %s", [verified.decode(), move_id])


def find_verified(conn: Connection, move_id: int) -> bytes | None:
    """How far the comparison of a move's state is, as JSON."""
    row = conn.execute("SELECT verified::text FROM moves WHERE move_id = %s", [move_id]).fetchone()
    return None if row is None or row[0] is None else str(row[0]).encode()


def begin_cut(conn: Connection, move: Move, unit: Unit) -> None:
    """Persist that a unit is being cut away from its holder; repeating it is harmless."""
    conn.execute(
        "UPDATE move_units SET is_cutting = true WHERE move_id = %s AND key = %s AND holder = %s",
        [move.move_id, unit.key, unit.holder],
    )


def publish_unit(conn: Connection, move: Move, unit: Unit, holder: Side, epoch: int) -> Unit:
    """The unit with its holder, which is in the map from now on.

    Repeating it is harmless. The version of the map rises only if its placement is another one than before.

    Tx: one of its own, under the map lock.
    """
    with conn.transaction():
        lock_map(conn)
        publish_placement(conn, unit.key, Placement(move.shard(holder), epoch), move.move_id)
        conn.execute(
            "UPDATE move_units SET holder = %s, is_cutting = false WHERE move_id = %s AND key = %s",
            [holder, move.move_id, unit.key],
        )
    return replace(unit, holder=holder, is_cutting=False)


def publish_placement(conn: Connection, key: NsId, placed: Placement, move_id: int | None) -> None:
    """Put a placement into the map and its history, unless the map has one of this epoch or a later one.

    Tx: the caller's, which holds the map lock.
    """
    if key == system_ns(slot_of(key)):
        changed = conn.execute(
            "UPDATE shard_map SET shard = %s, epoch = %s WHERE slot = %s AND epoch < %s",
            [placed.shard, placed.epoch, slot_of(key), placed.epoch],
        )
    else:
        changed = conn.execute(
            "INSERT INTO overrides (ns_id, shard, epoch) VALUES (%s, %s, %s) ON CONFLICT (ns_id)"
            " DO UPDATE SET shard = excluded.shard, epoch = excluded.epoch"
            " WHERE overrides.epoch < excluded.epoch",
            [key, placed.shard, placed.epoch],
        )
    if changed.rowcount:
        _append_history(conn, key, placed, move_id)


def withdraw_override(conn: Connection, ns_id: NsId, slot_placed: Placement, move_id: int | None) -> None:
    """Take a namespace's own placement out of the map: it is where its slot is, at the slot's new epoch.

    Tx: one of its own, under the map lock, so that no map shows one change without the other.
    """
    with conn.transaction():
        lock_map(conn)
        publish_placement(conn, system_ns(slot_of(ns_id)), slot_placed, move_id)
        if conn.execute("DELETE FROM overrides WHERE ns_id = %s", [ns_id]).rowcount:
            _append_history(conn, ns_id, None, move_id)


def _append_history(conn: Connection, key: NsId, placed: Placement | None, move_id: int | None) -> None:
    conn.execute(
        "WITH risen AS (UPDATE cluster SET map_version = map_version + 1 RETURNING map_version)"
        " INSERT INTO map_history (map_version, key, shard, epoch, move_id)"
        " SELECT map_version, %s, %s, %s, %s FROM risen",
        [key, placed and placed.shard, placed and placed.epoch, move_id],
    )


def find_clock(conn: Connection) -> float:
    """The directory's time in seconds, which `Move.retired_at_s` is of."""
    row = conn.execute("SELECT extract(epoch FROM clock_timestamp())::float8").fetchone()
    assert row is not None
    return float(row[0])


def insert_pin(conn: Connection, ns_id: NsId, pin: Pin) -> None:
    """Say where a namespace has to live, instead of what was said before.

    Raises:
        MoveConflict: it is being moved, or its slot is.

    Tx: one of its own, or part of the caller's, under the map lock.
    """
    with conn.transaction():
        lock_map(conn)
        check_is_free(conn, ns_id)
        conn.execute(
            "INSERT INTO pins (ns_id, shard, label, value) VALUES (%s, %s, %s, %s) ON CONFLICT (ns_id)"
            " DO UPDATE SET shard = excluded.shard, label = excluded.label, value = excluded.value",
            [ns_id, pin.shard, pin.label, pin.value],
        )


def delete_pin(conn: Connection, ns_id: NsId) -> bool:
    """Let a namespace live with its slot again; whether it was pinned. As `insert_pin`."""
    with conn.transaction():
        lock_map(conn)
        check_is_free(conn, ns_id)
        return conn.execute("DELETE FROM pins WHERE ns_id = %s", [ns_id]).rowcount > 0


def drop_pin_to(conn: Connection, ns_id: NsId, shard: str) -> None:
    """Forget a namespace's pin to a shard that its move there was cancelled."""
    conn.execute("DELETE FROM pins WHERE ns_id = %s AND shard = %s", [ns_id, shard])


def has_pin(conn: Connection, ns_id: NsId) -> bool:
    """Whether a namespace is pinned, to a shard or by a label."""
    return conn.execute("SELECT 1 FROM pins WHERE ns_id = %s", [ns_id]).fetchone() is not None
