"""One look at everything that moves leave on shards, and at what explains it.

A cluster is looked at while it works. The moves are therefore read before the shards and after them, and
whatever one of them does, or did meanwhile, is explained by it; and what is found counts only when further
looks find it, too (`ops.doctor.moves`).
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import psycopg
from psycopg import sql

from ops.doctor.databases import connect
from ops.session import connect_directory
from sharding.directory import Connection, list_pins, load_map_sync
from sharding.reshard.catalog import read_tables
from sharding.reshard.errors import MoveError
from sharding.reshard.fence import OwnershipRow
from sharding.reshard.model import BEFORE_COPY, STREAMED, Move, MoveState
from sharding.reshard.records import find_clock, list_moves
from sharding.reshard.runner import is_running
from sharding.reshard.sites import site_of
from sharding.reshard.stream import Parts, check_stream, list_parts, stream_name
from sharding.shardmap import OwnershipState, Pin, Placement, ShardMap
from wire.ids import MAX_COUNT, NsId, Slot, make_ns_id, slot_of, system_ns

MARKERS = "move_markers"
PARALLEL = 8
_IDLE = (None, OwnershipState.GONE)


@dataclass(frozen=True, slots=True)
class ShardLook:
    """What a shard has."""

    ownership: Mapping[NsId, OwnershipRow]
    parts: Parts
    markers: frozenset[NsId]
    """The units that it has markers of."""
    foreign: frozenset[NsId]
    """Of the keys whose rows should not be here, those that have some."""

    def effective(self, key: NsId) -> OwnershipRow | None:
        """The row that decides about a key: its own, else its slot's."""
        return self.ownership.get(key) or self.ownership.get(system_ns(slot_of(key)))


@dataclass(frozen=True, slots=True)
class Look:
    """A cluster as it was within a moment."""

    shard_map: ShardMap
    pins: Mapping[NsId, Pin]
    moves: Mapping[int, Move]
    """Those that had not ended when the look began, or when it was over; as they were then."""
    changed: frozenset[int]
    """Those that went on meanwhile: they explain whatever any state of theirs does."""
    running: frozenset[int]
    """Those that a process was at work on, at the beginning or at the end."""
    broken: Mapping[int, str]
    """Those at rest whose streams do not carry what they should, and why."""
    shards: Mapping[str, ShardLook]
    """Those that answered, and could be read."""
    now_s: float
    """The directory's clock."""

    @property
    def is_whole(self) -> bool:
        """Whether every shard was asked."""
        return self.shards.keys() == self.shard_map.shards.keys()

    def has_stream(self, move_id: int, shard: str) -> bool:
        """Whether a move may have parts of a stream on a shard."""
        move = self.moves.get(move_id)
        return move is not None and self._may_stream(move) and shard in (move.source, move.target)

    def is_expected(self, key: NsId, shard: str) -> bool:
        """Whether a move explains that a key is importing or fenced on a shard."""
        return any(
            self._may_stream(move) and any(unit.key == key for unit in move.units)
            for move in self._moves_at(shard)
        )

    def is_in_use(self, key: NsId, shard: str) -> bool:
        """Whether a move explains rows of a key on a shard that does not own them."""
        return any(
            move.covers(key) and (move.state not in BEFORE_COPY or move.move_id in self.changed)
            for move in self._moves_at(shard)
        )

    def is_near(self, key: NsId, shard: str) -> bool:
        """Whether a move at a shard has a key's slot, even without the key: it tells who comes there late."""
        return any(u.first <= key <= u.last for move in self._moves_at(shard) for u in move.units)

    def is_moving(self, key: NsId) -> bool:
        """Whether a key, its slot, or of a slot a namespace, may be amid a move."""
        slot_key = system_ns(slot_of(key))
        return any(
            unit.key in (key, slot_key) or (key == slot_key and slot_of(unit.key) == slot_of(key))
            for move in self.moves.values()
            if move.state is not MoveState.DELETING or move.move_id in self.changed
            for unit in move.units
        )

    def owner(self, key: NsId) -> str | None:
        """The shard that the map has a key on, if it says so itself."""
        placed = self.shard_map.placement(key)
        if placed is None or placed.shard not in self.shards:
            return None
        row = self.shards[placed.shard].effective(key)
        return placed.shard if row is not None and row.state is OwnershipState.ACTIVE else None

    def active(self, key: NsId) -> list[Placement]:
        """Where a key's own row is active; by shard."""
        return [
            Placement(name, row.epoch)
            for name, shard in sorted(self.shards.items())
            if (row := shard.ownership.get(key)) is not None and row.state is OwnershipState.ACTIVE
        ]

    def _may_stream(self, move: Move) -> bool:
        return move.state in STREAMED or move.move_id in self.changed

    def _moves_at(self, shard: str) -> Iterator[Move]:
        return (move for move in self.moves.values() if shard in (move.source, move.target))


def look_at(directory_dsn: str) -> Look:
    """The cluster as it is now; shards that do not answer, or have another schema, are left out.

    Raises:
        NoCluster: the directory does not answer, or holds no cluster.
    """
    with connect_directory(directory_dsn) as directory:
        before = {move.move_id: move for move in list_moves(directory, is_live_only=True)}
        running = {move_id for move_id in before if is_running(directory, move_id)}
        shard_map, pins = load_map_sync(directory), list_pins(directory)
        apart = {u.key for move in before.values() for u in move.units if not u.is_slot}
        with ThreadPoolExecutor(PARALLEL) as pool:
            asked = {
                name: pool.submit(_look_at_shard, info.dsn, shard_map, apart)
                for name, info in shard_map.shards.items()
            }
            shards = {name: answer.result() for name, answer in asked.items()}
        after = {move.move_id: move for move in list_moves(directory, is_live_only=True)}
        running |= {move_id for move_id in after if is_running(directory, move_id)}
        now_s = find_clock(directory)
    broken = {
        move.move_id: why
        for move in after.values()
        if move.state in (MoveState.READY, MoveState.SOAKING) and move.move_id not in running
        for why in [_find_fault(shard_map, move)]
        if why is not None
    }
    changed = {i for i in before.keys() | after.keys() if _state(before, i) != _state(after, i)}
    return Look(
        shard_map=shard_map,
        pins=pins,
        moves=before | after,
        changed=frozenset(changed),
        running=frozenset(running),
        broken=broken,
        shards={name: shard for name, shard in shards.items() if shard is not None},
        now_s=now_s,
    )


def _state(moves: Mapping[int, Move], move_id: int) -> MoveState | None:
    return moves[move_id].state if move_id in moves else None


def _find_fault(shard_map: ShardMap, move: Move) -> str | None:
    """What is wrong with the streams of a move; None if nothing is, or a shard does not answer."""
    try:
        with (
            site_of(shard_map, move.source).connect() as source,
            site_of(shard_map, move.target).connect() as target,
        ):
            for sender, receiver, is_back in ((source, target, False), (target, source, True)):
                name = stream_name(shard_map.cluster_id, move.move_id, is_back=is_back)
                check_stream(sender, receiver, name)
    except MoveError as error:
        return str(error)
    except psycopg.Error:
        pass  # the checks of a shard by itself say what is wrong with it
    return None


def _look_at_shard(dsn: str, shard_map: ShardMap, apart: set[NsId]) -> ShardLook | None:
    try:
        with connect(dsn) as conn:
            ownership = _read_ownership(conn)
            markers = conn.execute("SELECT DISTINCT ns_id FROM ns.move_markers").fetchall()
            return ShardLook(
                ownership=ownership,
                parts=list_parts(conn, shard_map.cluster_id),
                markers=frozenset(NsId(row[0]) for row in markers),
                foreign=frozenset(_find_foreign(conn, shard_map, ownership, apart)),
            )
    except (psycopg.Error, MoveError):
        return None  # the checks of a shard by itself say what is wrong with it


def _read_ownership(conn: Connection) -> dict[NsId, OwnershipRow]:
    rows = conn.execute("SELECT ns_id, epoch, state, successor, successor_epoch FROM local.ownership")
    return {
        NsId(row[0]): OwnershipRow(
            row[1], OwnershipState(row[2]), None if row[3] is None else Placement(row[3], row[4])
        )
        for row in rows.fetchall()
    }


# ---- Rows of what a shard does not own


def disowned_ranges(
    shard_map: ShardMap, ownership: Mapping[NsId, OwnershipRow], apart: set[NsId]
) -> Iterator[tuple[NsId, NsId, NsId]]:
    """Of what a shard owns and awaits nothing of: (key, first, last), inclusive.

    The slots, without the namespaces that any shard or move has by themselves: those are keys of their own.
    """
    single: dict[Slot, set[NsId]] = {}
    for key in ownership.keys() | shard_map.overrides.keys() | apart:
        if key != system_ns(slot_of(key)):
            single.setdefault(slot_of(key), set()).add(key)
    for slot in map(Slot, range(shard_map.slot_count)):
        slot_key = system_ns(slot)
        slot_row = ownership.get(slot_key)
        begin = slot_key
        for key in sorted(single.get(slot, ())):
            row = ownership.get(key) or slot_row
            if (row and row.state) in _IDLE:
                yield key, key, key
            if (slot_row and slot_row.state) in _IDLE and begin < key:
                yield slot_key, begin, NsId(key - 1)
            begin = NsId(key + 1)
        if (slot_row and slot_row.state) in _IDLE:
            yield slot_key, begin, make_ns_id(slot, MAX_COUNT)


def _find_foreign(
    conn: Connection, shard_map: ShardMap, ownership: Mapping[NsId, OwnershipRow], apart: set[NsId]
) -> set[NsId]:
    ranges = list(disowned_ranges(shard_map, ownership, apart))
    keys, firsts, lasts = ([r[i] for r in ranges] for i in range(3))
    found: set[NsId] = set()
    # One step into the primary key for each range and table, however much there is of it.
    conn.execute("SET enable_seqscan = off")
    for table in read_tables(conn):
        if table.name != MARKERS:
            found |= _probe(conn, table.name, [keys, firsts, lasts])
    return found


def _probe(conn: Connection, table: str, ranges: Sequence[Sequence[NsId]]) -> set[NsId]:
    statement = sql.SQL(
        "SELECT DISTINCT r.key FROM unnest(%s::bigint[], %s::bigint[], %s::bigint[]) r (key, first, last)"
        " CROSS JOIN LATERAL (SELECT 1 FROM {} WHERE ns_id BETWEEN r.first AND r.last LIMIT 1) t"
    ).format(sql.Identifier("ns", table))
    return {NsId(row[0]) for row in conn.execute(statement, list(ranges)).fetchall()}
