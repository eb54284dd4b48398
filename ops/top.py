"""The busiest and the largest slots and namespaces, gathered from all shards at once."""

from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum
from typing import LiteralString, TypeVar

import msgspec
import psycopg

from ops.session import APPLICATION
from sharding.activity import FADE_S, Activity, Rates, read_activity
from sharding.directory import Connection
from sharding.shardmap import ShardInfo, ShardMap
from wire.ids import LOST_IDS, MAX_COUNT, NsId, make_ns_id, slot_of, system_ns

T = TypeVar("T")

CONNECT_TIMEOUT_S = 3
STATEMENT_TIMEOUT_S = 20
"""To add up the sizes of a million namespaces takes a second."""
LEAST_PER_S = 0.01 / FADE_S
"""A rate below is what has faded of something long ago."""


class Order(StrEnum):
    """What comes first."""

    WRITES = "writes"
    READS = "reads"
    BYTES = "bytes"
    SIZE = "size"


class TopEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A slot or a namespace; the rates are of about the last `TopReport.window_s`."""

    slot: int
    ns_id: str | None = None
    """None: all of the slot, but for namespaces that are placed by themselves."""
    shard: str
    is_alone: bool = False
    """Whether it is a namespace that is placed by itself."""
    writes_per_s: float
    reads_per_s: float
    bytes_per_s: float
    """Of contents that clients committed."""
    live_bytes: int | None
    """Sizes of the live files; None: its shard does not answer."""
    rows: int | None
    """Of journal and entries; None: its shard does not answer."""


class TopReport(msgspec.Struct, frozen=True, kw_only=True):
    """What is busiest; a list that was not asked for is None."""

    order: Order
    window_s: int = FADE_S
    slots: list[TopEntry] | None = None
    namespaces: list[TopEntry] | None = None
    shards_out: list[str]
    """What they would tell is missing."""


# Journal rows and entries are numbered without gaps, and none is ever taken away; a restore makes both jump.
_SIZES: LiteralString = """
SELECT k.key, coalesce(sum(n.live_bytes), 0)::bigint,
       coalesce(sum(n.head + n.next_entry_id - 1 - cardinality(n.lost_ranges) * %(lost)s::bigint), 0)::bigint
  FROM unnest(%(keys)s::bigint[], %(lasts)s::bigint[]) k(key, last)
  LEFT JOIN ns.namespaces n
    ON n.ns_id BETWEEN k.key AND k.last AND (n.ns_id = k.key OR n.ns_id <> ALL (%(alone)s::bigint[]))
 GROUP BY k.key
"""
_LARGEST_SLOTS: LiteralString = """
SELECT (ns_id >> 51) << 51 FROM ns.namespaces
 WHERE ns_id >> 51 = ANY (%(slots)s::bigint[]) AND ns_id <> ALL (%(alone)s::bigint[])
 GROUP BY 1 ORDER BY sum(live_bytes) DESC LIMIT %(limit)s
"""
_LARGEST_NAMESPACES: LiteralString = """
SELECT ns_id FROM ns.namespaces
 WHERE ns_id = ANY (%(own)s::bigint[])
    OR ns_id >> 51 = ANY (%(slots)s::bigint[]) AND ns_id <> ALL (%(alone)s::bigint[])
 ORDER BY live_bytes DESC LIMIT %(limit)s
"""


def gather_top(
    shard_map: ShardMap, order: Order, limit: int, *, has_slots: bool, has_namespaces: bool
) -> TopReport:
    """The first of all slots and namespaces, by what the shards that answer tell.

    Rates add up over all shards, as what moved in the last minutes is known to two.
    """
    search = _Search(shard_map, order, limit)
    search.read_activity()
    return TopReport(
        order=order,
        slots=search.list_slots() if has_slots else None,
        namespaces=search.list_namespaces() if has_namespaces else None,
        shards_out=sorted(search.shards_out),
    )


class _Search:
    """The shards that answer, and what they have told so far."""

    def __init__(self, shard_map: ShardMap, order: Order, limit: int):
        self._map = shard_map
        self._order = order
        self._limit = limit
        self._slots: dict[NsId, Rates] = {}
        self._namespaces: dict[NsId, Rates] = {}
        self.shards_out: set[str] = set()

    def read_activity(self) -> None:
        """Rates, summed over the shards."""

        def read(conn: Connection, _: str) -> Activity:
            return read_activity(conn)

        for activity in self._ask(self._map.shards, read).values():
            for slot, rates in activity.slots.items():
                key = system_ns(slot)
                self._slots[key] = self._slots.get(key, Rates()) + rates
            for key, rates in activity.namespaces.items():
                self._namespaces[key] = self._namespaces.get(key, Rates()) + rates

    def list_slots(self) -> list[TopEntry]:
        """The first slots."""
        return self._list_first(self._slots, _LARGEST_SLOTS)

    def list_namespaces(self) -> list[TopEntry]:
        """The first namespaces."""
        return self._list_first(self._namespaces, _LARGEST_NAMESPACES)

    def _list_first(self, rates: dict[NsId, Rates], largest: LiteralString) -> list[TopEntry]:
        if self._order is Order.SIZE:
            keys: Collection[NsId] = self._find_largest(largest)
        else:
            ranked = sorted(rates, key=lambda key: (-_rate_of(rates[key], self._order), key))
            keys = [key for key in ranked if _rate_of(rates[key], self._order) >= LEAST_PER_S][: self._limit]
        entries = self._describe(keys, rates)
        if self._order is Order.SIZE:
            entries.sort(key=lambda entry: -(entry.live_bytes or 0))
        return entries[: self._limit]

    def _find_largest(self, statement: LiteralString) -> list[NsId]:
        """The largest ones of each shard."""

        def find(conn: Connection, shard: str) -> list[NsId]:
            params = {
                "slots": list(self._map.slots_of(shard)),
                "own": [key for key, placed in self._map.overrides.items() if placed.shard == shard],
                "alone": list(self._map.overrides),
                "limit": self._limit,
            }
            return [NsId(row[0]) for row in conn.execute(statement, params)]

        found = self._ask(self._map.shards, find)
        return [key for keys in found.values() for key in keys]

    def _describe(self, keys: Collection[NsId], rates: dict[NsId, Rates]) -> list[TopEntry]:
        groups: dict[str, list[NsId]] = {}
        for key in keys:
            placed = self._map.placement(key)
            assert placed is not None
            groups.setdefault(placed.shard, []).append(key)

        def read(conn: Connection, shard: str) -> dict[NsId, tuple[int, int]]:
            return _read_sizes(conn, groups[shard], list(self._map.overrides))

        sizes = {key: size for found in self._ask(groups, read).values() for key, size in found.items()}
        shards = {key: shard for shard, keys in groups.items() for key in keys}
        return [self._entry(key, shards[key], rates.get(key, Rates()), sizes.get(key)) for key in keys]

    def _entry(self, key: NsId, shard: str, rates: Rates, size: tuple[int, int] | None) -> TopEntry:
        live_bytes, rows = size or (None, None)
        return TopEntry(
            slot=slot_of(key),
            ns_id=None if _is_slot(key) else str(key),
            shard=shard,
            is_alone=key in self._map.overrides,
            writes_per_s=rates.writes_per_s,
            reads_per_s=rates.reads_per_s,
            bytes_per_s=rates.bytes_per_s,
            live_bytes=live_bytes,
            rows=rows,
        )

    def _ask(self, shards: Iterable[str], question: Callable[[Connection, str], T]) -> dict[str, T]:
        """The answers of the shards that answer, which are asked side by side."""
        names = [name for name in shards if name not in self.shards_out]

        def ask(name: str) -> T | None:
            try:
                with _connect(self._map.shards[name]) as conn:
                    return question(conn, name)
            except psycopg.OperationalError:
                return None

        with ThreadPoolExecutor(max(1, len(names))) as pool:
            answers = dict(zip(names, pool.map(ask, names), strict=True))
        self.shards_out |= {name for name, answer in answers.items() if answer is None}
        return {name: answer for name, answer in answers.items() if answer is not None}


def _read_sizes(conn: Connection, keys: Sequence[NsId], alone: Sequence[NsId]) -> dict[NsId, tuple[int, int]]:
    lasts = [make_ns_id(slot_of(key), MAX_COUNT) if _is_slot(key) else key for key in keys]
    params = {"keys": list(keys), "lasts": lasts, "alone": alone, "lost": LOST_IDS}
    return {NsId(key): (live_bytes, rows) for key, live_bytes, rows in conn.execute(_SIZES, params)}


def _is_slot(key: NsId) -> bool:
    return key == system_ns(slot_of(key))


def _rate_of(rates: Rates, order: Order) -> float:
    match order:
        case Order.WRITES:
            return rates.writes_per_s
        case Order.READS:
            return rates.reads_per_s
        case _:
            return rates.bytes_per_s


def _connect(info: ShardInfo) -> Connection:
    return psycopg.connect(
        info.dsn,
        autocommit=True,
        connect_timeout=CONNECT_TIMEOUT_S,
        application_name=APPLICATION,
        options=f"-c statement_timeout={STATEMENT_TIMEOUT_S}s",
    )
