"""Some namespaces of a slot that moves from one shard to another: PostgreSQL, and no servers of ours."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import psycopg

from sharding.bootstrap import create_cluster
from sharding.directory import Connection, load_map_sync
from sharding.reshard import stream
from sharding.reshard.fence import find_ownership
from sharding.reshard.model import Goal, Move, MoveOptions, Unit, slot_unit
from sharding.reshard.records import get_move, insert_move
from sharding.reshard.runner import MoveRunner, RunReport
from sharding.reshard.sites import Site
from sharding.shardmap import OwnershipState, ShardMap
from tests.support.databases import FreshCluster
from tests.support.two_shards import put_namespaces
from wire.ids import NsId, make_ns_id, system_ns

NO_QUARANTINE = MoveOptions(quarantine_s=0)


@dataclass
class SlotWorld:
    """What moves, from where to where. The connections are not a move's, which would have to end with it."""

    directory_dsn: str
    directory: Connection
    home: Site
    away: Site
    shards: dict[str, Connection]
    """All of the cluster, by name."""
    unit: Unit
    ns_ids: list[NsId]

    @property
    def shard_map(self) -> ShardMap:
        """The map in force."""
        return load_map_sync(self.directory)

    @property
    def home_conn(self) -> Connection:
        """To the shard that the slot is to leave."""
        return self.shards[self.home.name]

    @property
    def away_conn(self) -> Connection:
        """To the shard that is to have it."""
        return self.shards[self.away.name]

    def insert(self, options: MoveOptions = NO_QUARANTINE) -> Move:
        """A move of the slot, from home to away."""
        return insert_move(
            self.directory, self.home.name, self.away.name, [self.unit], options, Goal.COMPLETED
        )

    def run(self, move: Move, goal: Goal) -> Move:
        """The move after a run of its own."""
        return self.report(move, goal).move

    def report(self, move: Move, goal: Goal) -> RunReport:
        """The same, with what the run did."""
        runner = MoveRunner(self.directory_dsn, lambda _: None, threading.Event())
        return runner.run(move.move_id, goal)

    def find(self, move: Move) -> Move:
        """The move as it is recorded."""
        return get_move(self.directory, move.move_id)

    def owners(self) -> list[str]:
        """The shards on which the slot is active."""
        rows = {name: find_ownership(conn, self.unit.key) for name, conn in self.shards.items()}
        return [n for n, row in rows.items() if row is not None and row.state is OwnershipState.ACTIVE]

    def drop_streams(self) -> None:
        """Leave no replication slot behind: its database could not be dropped."""
        cluster_id = self.shard_map.cluster_id
        for conn in self.shards.values():
            for name in stream.list_parts(conn, cluster_id).subscriptions:
                stream.drop_subscription(conn, name)
        for conn in self.shards.values():
            for name in stream.list_parts(conn, cluster_id).slots:
                stream.drop_slot(conn, name)


@contextmanager
def open_slot_world(cluster: FreshCluster, home_name: str, away_name: str) -> Iterator[SlotWorld]:
    """A cluster that is created here, with five namespaces in a slot of the first shard."""
    shard_map = create_cluster(cluster.directory_dsn, cluster.shards)
    home, away = (Site(name, cluster.shard_dsns[name]) for name in (home_name, away_name))
    slot = shard_map.slots_of(home.name)[0]
    ns_ids = [make_ns_id(slot, count) for count in range(1, 6)]
    with ExitStack() as stack:
        directory, *conns = (
            stack.enter_context(psycopg.connect(dsn, autocommit=True))
            for dsn in (cluster.directory_dsn, *cluster.shard_dsns.values())
        )
        shards = dict(zip(cluster.shard_dsns, conns, strict=True))
        put_namespaces(shards[home_name], ns_ids)
        unit = slot_unit(system_ns(slot))
        world = SlotWorld(cluster.directory_dsn, directory, home, away, shards, unit, ns_ids)
        try:
            yield world
        finally:
            world.drop_streams()
