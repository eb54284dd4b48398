"""What the work of a move's states has at hand: the move, both shards, the directory."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field

import msgspec

from sharding.directory import Connection, load_map_sync
from sharding.reshard.copy import CopyProgress
from sharding.reshard.errors import MoveConflict
from sharding.reshard.fence import CutoverTimes
from sharding.reshard.model import Move, Side, Unit
from sharding.reshard.pacing import Pacer
from sharding.reshard.sites import Site
from sharding.reshard.stream import stream_name
from sharding.shardmap import Placement, ShardMap
from wire.ids import NsId


@dataclass(slots=True)
class MoveContext:
    """One run of one move. Connections are opened when they are first asked for, and closed with it."""

    directory: Connection
    move: Move
    sites: dict[Side, Site]
    closing: ExitStack
    pacer: Pacer = field(init=False)
    tell: Callable[[msgspec.Struct], None] = field(init=False)
    """Told how far the work is; some times a second."""
    cutovers: list[CutoverTimes] = field(default_factory=list[CutoverTimes])
    """Of this run, in order."""
    copied: CopyProgress | None = None
    """What this run has copied."""
    _conns: dict[Side, Connection] = field(default_factory=dict[Side, Connection])

    def conn(self, side: Side) -> Connection:
        """The connection to one of the shards."""
        conn = self._conns.get(side)
        if conn is None or conn.closed:
            conn = self._conns[side] = self.closing.enter_context(self.sites[side].connect())
        return conn

    def map(self) -> ShardMap:
        """The map as it is now."""
        return load_map_sync(self.directory)

    def placed(self, key: NsId) -> Placement:
        """Where the map has a unit now."""
        placement = self.map().placement(key)
        if placement is None:
            raise MoveConflict(f"the map does not know {key}")
        return placement

    def apart_on(self, unit: Unit, shard: str) -> list[NsId]:
        """A unit's namespaces that are on a shard by themselves, by the map."""
        overrides = self.map().overrides
        return [n for n in unit.excluded if n in overrides and overrides[n].shard == shard]

    def stream(self, publisher: Side) -> str:
        """The name of the stream that one of the shards sends to the other."""
        return stream_name(self.map().cluster_id, self.move.move_id, is_back=publisher is Side.TARGET)
