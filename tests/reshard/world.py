"""A cluster with accounts in slots that move together, and others in slots that stay."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass

import aiohttp
import psycopg

from metaserver.services.access import AccessService
from metaserver.services.accounts import AccountService
from metaserver.services.devices import DeviceService
from metaserver.services.identities import IdentityService
from ops.postgres import use_passfile
from ops.readiness import is_server_ready
from sharding.router import Router
from sharding.tx import Transactions
from tests.kill.api import ApiDevice
from tests.reshard.history import (
    Findings,
    Picture,
    compare_pictures,
    judge_journal,
    judge_listing,
    judge_told,
    take_picture,
)
from tests.reshard.leftovers import check_owners, find_doubled, find_leftovers
from tests.reshard.load import Reader, Writer, seed
from tests.reshard.matrix import Kind
from tests.support.dev import DevCluster
from tests.support.waiting import wait_for
from wire.ids import NsId, Slot, parse_ns_id, slot_of, system_ns

MOVERS = 2
MAX_ACCOUNTS = 40
"""Slots are drawn: five in different slots of which four are on one shard are found among some eight."""
STILL_FILES = 2000
GONE_S = 15.0
"""What a killed process held is let go when its peer notices: at once, or when it next looks."""
BACK_S = 60.0
"""Crash recovery, or the imports of a metaserver, on a machine that does other things, too."""
DIRECTORY = "directory"


@dataclass(slots=True)
class World:
    """Accounts under load in a cluster of two shards."""

    cluster: DevCluster
    dsns: Mapping[str, str]
    """By process name: the directory's and the shards'."""
    urls: Mapping[str, str]
    """Likewise: the metaservers'."""
    movers: Sequence[Writer]
    stayers: Sequence[Writer]
    still: ApiDevice
    """In a slot that moves; nobody writes to it."""
    readers: Sequence[Reader]

    @property
    def writers(self) -> list[Writer]:
        """All that commit."""
        return [*self.movers, *self.stayers]

    @property
    def slots(self) -> list[Slot]:
        """What moves; ascending."""
        return sorted({slot_of(ns_id) for ns_id in (self.still_root, *(w.root for w in self.movers))})

    @property
    def still_root(self) -> NsId:
        """The namespace to which nobody writes."""
        return parse_ns_id(self.still.linked.root_ns)

    def sides(self, kind: Kind) -> tuple[str, str]:
        """The shard that holds by the map what is to move, and the other one."""
        with self.connect(DIRECTORY) as conn:
            places = read_places(conn)
        if kind is Kind.NAMESPACE:
            held = places.of(self.loner)
        else:
            (held,) = {places.slots[slot] for slot in self.slots}
        return held, next(name for name in self.shard_names if name != held)

    @property
    def loner(self) -> NsId:
        """The namespace that moves by itself."""
        return self.movers[0].root

    @property
    def homebody(self) -> tuple[NsId, str]:
        """A namespace that never moves, and its shard."""
        root = self.stayers[0].root
        with self.connect(DIRECTORY) as conn:
            return root, read_places(conn).of(root)

    @property
    def shard_names(self) -> list[str]:
        """Both."""
        return sorted(self.dsns.keys() - {DIRECTORY})

    def connect(self, name: str) -> psycopg.Connection:
        """An autocommit connection to the directory or a shard."""
        return psycopg.connect(self.dsns[name], autocommit=True)

    @contextmanager
    def connected(self) -> Iterator[tuple[psycopg.Connection, dict[str, psycopg.Connection]]]:
        """Connections to the directory and, by name, to the shards."""
        with ExitStack() as stack:
            directory = stack.enter_context(self.connect(DIRECTORY))
            yield directory, {n: stack.enter_context(self.connect(n)) for n in self.shard_names}

    def kill(self, name: str) -> None:
        """kill -9 a process; it comes back by itself."""
        self.cluster.kill(name)

    def wait_back(self, name: str) -> None:
        """Return when a process that was killed answers again."""
        wait_for(lambda: self._answers(name), f"{name} answering again", timeout_s=BACK_S)

    def _answers(self, name: str) -> bool:
        if name in self.urls:
            return is_server_ready(self.urls[name])
        try:
            self.connect(name).close()
        except psycopg.OperationalError:
            return False
        return True

    # ---- Checks

    def take_picture(self, heads: Mapping[NsId, int]) -> Picture:
        """What must not change, by the owners that the map names."""
        with self.connected() as (directory, shards):
            places = read_places(directory)
            owners = {ns_id: shards[places.of(ns_id)] for ns_id in (self.still_root, *heads)}
            return take_picture(owners, [self.still_root], heads)

    def heads(self) -> dict[NsId, int]:
        """How far each writer is."""
        return {writer.root: writer.newest for writer in self.writers}

    async def judge(self, before: Picture) -> Findings:
        """What is wrong with any account's history; nobody writes at the moment."""
        findings = Findings()
        for reader in self.readers:
            judge_told(reader, findings)
            await judge_listing(reader.writer, findings)
        await asyncio.to_thread(self._judge_tables, before, findings)
        return findings

    def _judge_tables(self, before: Picture, findings: Findings) -> None:
        with self.connected() as (directory, shards):
            places = read_places(directory)
            for writer in self.writers:
                judge_journal(writer, shards[places.of(writer.root)], findings)
        after = self.take_picture({ns_id: head for ns_id, (head, _) in before.prefixes.items()})
        findings.other += compare_pictures(before, after)

    def complain_of_owners(self) -> list[str]:
        """What is wrong with the ownership rows between two commands."""
        with self.connected() as (directory, shards):
            return check_owners(directory, shards)

    def find_doubled(self) -> list[str]:
        """Keys with two owners; there are none at any moment."""
        with self.connected() as (_, shards):
            return find_doubled(shards)

    def leftovers(self) -> list[str]:
        """What is left once sessions of the dead have had time to go."""
        with self.connected() as (directory, shards):
            found: list[str] = []

            def is_clean() -> bool:
                found[:] = find_leftovers(directory, shards)
                return not found

            try:
                wait_for(is_clean, "nothing being left", timeout_s=GONE_S)
            except AssertionError:
                return found
        return []


@dataclass(frozen=True, slots=True)
class Places:
    """Which shard holds what, by the map."""

    slots: Mapping[int, str]
    alone: Mapping[int, str]
    """Namespaces that are placed by themselves."""

    def of(self, ns_id: NsId) -> str:
        """The shard of a namespace."""
        return self.alone.get(ns_id) or self.slots[slot_of(ns_id)]


def read_places(directory: psycopg.Connection) -> Places:
    """The map in force."""
    return Places(
        dict(directory.execute("SELECT slot, shard FROM shard_map").fetchall()),
        dict(directory.execute("SELECT ns_id, shard FROM overrides").fetchall()),
    )


@asynccontextmanager
async def peopled(cluster: DevCluster) -> AsyncIterator[World]:
    """Accounts of their own in a cluster that is up and whole."""
    status = cluster.status()
    use_passfile(cluster.layout.passfile)
    dsns = {name: cluster.dsn(name) for name in (DIRECTORY, *status.shard_dsns)}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        on_shards = await _link_accounts(cluster, session)
        home = max(on_shards, key=lambda name: len(on_shards[name]))
        still, *rest = on_shards[home]
        movers = [Writer(device) for device in rest[:MOVERS]]
        elsewhere = next(devices for name, devices in on_shards.items() if name != home)
        stayers = [Writer(rest[MOVERS]), Writer(elsewhere[0])]
        await seed(still, STILL_FILES)
        readers = [Reader(writer) for writer in (*movers, *stayers)]
        for reader in readers:
            await reader.read()
        names = [process.name for process in status.processes if process.name.startswith("metaserver")]
        urls = dict(zip(sorted(names), status.metaserver_urls, strict=True))
        yield World(cluster, dsns, urls, movers, stayers, still, readers)


async def _link_accounts(cluster: DevCluster, session: aiohttp.ClientSession) -> dict[str, list[ApiDevice]]:
    """Devices of accounts by shard, no two in one slot: one on each shard, and on one of them enough."""
    status = cluster.status()
    on_shards: dict[str, list[ApiDevice]] = {name: [] for name in status.shard_dsns}
    taken: set[Slot] = set()
    router = Router(status.directory_dsn, None, "tests.reshard")
    await router.open()
    try:
        tx = Transactions(router)
        accounts = AccountService(tx)
        devices = DeviceService(tx, AccessService(tx, IdentityService(tx)), None)
        for _ in range(MAX_ACCOUNTS):
            counts = sorted(map(len, on_shards.values()))
            if counts[0] >= 1 and counts[-1] >= MOVERS + 2:
                return on_shards
            account = await accounts.create_account(f"{secrets.token_hex(8)}@reshard.example", "moves")
            code = await devices.make_code(account.account_id)
            device = await ApiDevice.link(
                session, status.metaserver_urls, status.blockserver_url, status.notifserver_url, code
            )
            root = parse_ns_id(device.linked.root_ns)
            if slot_of(root) not in taken:
                taken.add(slot_of(root))
                on_shards[router.placement(system_ns(slot_of(root))).shard].append(device)
    finally:
        await router.close()
    raise AssertionError(f"{MAX_ACCOUNTS} accounts are not spread over the shards")
