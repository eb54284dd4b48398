"""A shard that has gone back in time, taken through the steps that make it fit the others' present.

The databases are clones on one server here, so that it costs little; tests/restore has real backups.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import msgspec
import psycopg
import pytest
from psycopg import sql

from ops.postgres import PgServer
from ops.restore.steps import LOST_COUNTS, Step
from sharding.shardmap import OwnershipState
from tests.support.commands import OPERATOR, run_command
from tests.support.databases import FreshCluster, PgServers, drop_database
from tests.support.services import Services, User
from tests.support.waiting import wait_until
from wire.api import CreateFolder, LinkDevice, ListFolder, RefreshAccess
from wire.errors import InvalidRefreshToken, ShardUnavailable
from wire.hashes import block_hash
from wire.ids import (
    LOST_IDS,
    MAX_COUNT,
    NsId,
    parse_file_id,
    parse_rev,
    slot_of,
    slot_of_digest,
    slot_of_hash,
    system_ns,
)
from wire.internal import BeginBlock, BeginUpload

LOST, OTHER = "shard-1", "shard-2"
CUTS = [
    "ops.restore.fenced",
    "ops.restore.reconciled",
    "ops.restore.pending_deleted",
    "ops.restore.half_claimed",
    "ops.restore.claimed",
    "ops.restore.listed",
    "ops.restore.jumped",
    "ops.restore.active",
    "ops.restore.published",
]


@dataclass
class Past:
    """A cluster one of whose shards is about to be lost, and what it held at some moment."""

    services: Services
    cluster: FreshCluster
    server: PgServer
    database: str
    copies: list[str] = field(default_factory=list)

    async def remember(self, name: str) -> str:
        """Copy the shard as it is: what a backup brings back."""
        copy = f"{self.database}_{name}"
        pool = self.services.router.pool(LOST)
        await pool.close()
        with self.server.connect() as conn:
            statement = sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY file_copy")
            conn.execute(statement.format(sql.Identifier(copy), sql.Identifier(self.database)))
        self.copies.append(copy)
        await pool.open()
        await wait_until(lambda: self.answers(LOST), "the shard being back")
        return self.server.dsn(copy)

    async def answers(self, shard: str) -> bool:
        try:
            async with self.services.router.pool(shard).connection():
                return True
        except ShardUnavailable:
            return False

    async def lose(self) -> None:
        """The shard is gone."""
        with self.server.connect() as conn:
            conn.execute(
                sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS false").format(sql.Identifier(self.database))
            )
            conn.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = %s",
                [self.database],
            )
        await wait_until(lambda: self.services.router.shards_out() == [LOST], "the shard being out")

    def restore(self, at: str, *options: str, fault: str = "") -> Any:
        """`shardctl restore shard`; what it answers, or the signal that ended it."""
        done = run_command(
            OPERATOR,
            *("restore", "shard", LOST, "--at", at, "--public-dsn", at, "--yes", "--output", "json"),
            *options,
            env={"SHARDBOX_DIRECTORY_DSN": self.cluster.directory_dsn, "SHARDBOX_FAULT": fault},
        )
        if done.returncode != 0:
            return done.returncode if done.returncode < 0 else (done.returncode, done.stderr)
        return msgspec.json.decode(done.stdout)

    async def user_on(self, shard: str, stem: str) -> User:
        """An account whose root lies on a shard."""
        for n in range(100):
            user = await self.services.user(f"{stem}-{n}@example.org")
            if self.services.router.placement(user.root_ns).shard == shard:
                return user
        raise AssertionError("100 accounts, and none there")

    def email_on(self, shard: str, stem: str) -> str:
        """An address whose index row lies on a shard."""
        placed = self.services.router.map
        for n in range(1000):
            email = f"{stem}-{n}@example.org"
            if placed.slots[slot_of_hash(email.encode(), placed.slot_count)].shard == shard:
                return email
        raise AssertionError("1,000 addresses, and none there")

    def data_on(self, shard: str, stem: str) -> bytes:
        """Bytes whose block is indexed on a shard."""
        placed = self.services.router.map
        for n in range(1000):
            data = f"{stem} {n}".encode()
            if placed.slots[slot_of_digest(block_hash(data), placed.slot_count)].shard == shard:
                return data
        raise AssertionError("1,000 contents, and none there")


@pytest.fixture
async def past(services: Services, fresh_cluster: FreshCluster, pg_servers: PgServers) -> AsyncIterator[Past]:
    dsn = fresh_cluster.shard_dsns[LOST]
    server = next(s for s in pg_servers.shards if s.name == LOST)
    found = Past(services, fresh_cluster, server, dsn.rpartition("/")[2])
    yield found
    await services.router.close()
    with server.connect() as conn:
        conn.execute(
            sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS true").format(sql.Identifier(found.database))
        )
    for copy in found.copies:
        drop_database(server, copy)


def find_unclaimed(dsns: list[str], slot_count: int) -> list[object]:
    """Blocks that a namespace holds ready, and that are not stored and claimed under what it holds."""
    stored, claims, held = {}, set(), []
    for dsn in dsns:
        with psycopg.connect(dsn) as conn:
            stored |= {
                (r[0], r[1]): r[2] for r in conn.execute("SELECT ns_id, hash, generation FROM ns.blocks")
            }
            claims |= {
                tuple(r)
                for r in conn.execute("SELECT ns_id, hash, claimant_ns_id, claim_id FROM ns.block_claims")
            }
            held += conn.execute(
                "SELECT ns_id, hash, claim_id, generation FROM ns.namespace_blocks WHERE state = 'r'"
            ).fetchall()
    assert held
    wrong: list[object] = []
    for ns_id, block, claim_id, generation in held:
        key = system_ns(slot_of_digest(block, slot_count))
        if stored.get((key, block)) != generation or (key, block, ns_id, claim_id) not in claims:
            wrong.append((ns_id, block.hex()))
    return wrong


def active_keys(dsn: str) -> int:
    with psycopg.connect(dsn) as conn:
        row = conn.execute("SELECT count(*) FROM local.ownership WHERE state = 'a'").fetchone()
    assert row is not None
    return int(row[0])


async def follow(user: User, cursor: str) -> tuple[set[str], bool, int]:
    """The names that a reader is told, whether it had to begin anew, and where it is then."""
    names, is_restarted = set(), False
    while True:
        page = await user.services.reads.list_folder_continue(user.caller, cursor)
        names |= {str(entry.name) for entry in page.entries}
        is_restarted |= page.restarted
        cursor = page.cursor
        if not page.has_more:
            return names, is_restarted, page.jid


async def cursor_of(user: User) -> str:
    page = await user.services.reads.list_folder(user.caller, ListFolder(path="", recursive=True))
    while page.has_more:
        page = await user.services.reads.list_folder_continue(user.caller, page.cursor)
    return page.cursor


@pytest.mark.long
async def test_cut_at_every_step_a_restored_shard_comes_to_fit_the_others(past: Past):
    services = past.services
    ann, bob = await past.user_on(LOST, "ann"), await past.user_on(OTHER, "bob")
    await ann.ok(await ann.put("/kept.txt", past.data_on(LOST, "kept here")))
    await ann.ok(await ann.put("/kept2.txt", past.data_on(OTHER, "kept there")))
    kept = await ann.write(CreateFolder(path="/once"), key="k-kept")
    at_moment = await cursor_of(ann)
    restored = await past.remember("back")

    lost_file = await ann.ok(await ann.put("/lost.txt", past.data_on(LOST, "lost here")))
    await ann.ok(await ann.put("/lost2.txt", past.data_on(OTHER, "lost there")))
    await ann.write(CreateFolder(path="/lost"), key="k-lost")
    await bob.ok(await bob.put("/bob.txt", past.data_on(LOST, "indexed on what is lost")))
    half = block_hash(past.data_on(LOST, "half sent"))
    await services.blocks.begin(BeginUpload(bob.caller, bob.root_ns, [BeginBlock(half, 10)]))
    lost_user = await past.user_on(LOST, past.email_on(OTHER, "lost").partition("@")[0])
    found_email = past.email_on(LOST, "found")
    while True:  # an account elsewhere, whose address is indexed on what is lost
        eve = await services.user(found_email)
        if services.router.placement(eve.root_ns).shard == OTHER:
            break
        found_email = past.email_on(LOST, f"found-{eve.root_ns}")
    in_range = await cursor_of(ann)
    given_out = await revs_and_ids(ann)
    await past.lose()

    for point in CUTS:
        assert past.restore(restored, "--restore-id", "r1", fault=point) == -9, point
        is_in = point in ("ops.restore.active", "ops.restore.published")
        assert (active_keys(restored) > 0) is is_in, point
    report = past.restore(restored, "--restore-id", "r1")

    assert report["step"] == Step.PUBLISHED
    assert report["counts"]["kept_keys"] == len(services.router.map.slots_of(LOST))
    await wait_until(lambda: past.answers(LOST), "the new address being known")
    # The namespaces have jumped, once.
    with psycopg.connect(restored) as conn:
        heads = conn.execute("SELECT ns_id, head, lost_ranges, next_entry_id FROM ns.namespaces").fetchall()
        waiting = dict(conn.execute("SELECT ns_id, jid FROM ns.outbox").fetchall())
    assert all(ranges == [head - LOST_IDS, head] and next_id > LOST_IDS for _, head, ranges, next_id in heads)
    assert waiting == {ns_id: head for ns_id, head, _, _ in heads}  # every poll wakes
    # Readers go on, or begin anew.
    names, is_restarted, jid = await follow(ann, at_moment)
    assert (names, is_restarted) == (set(), False)
    assert jid > LOST_IDS
    names, is_restarted, _ = await follow(ann, in_range)
    assert (names, is_restarted) == ({"kept.txt", "kept2.txt", "once"}, True)
    # Nothing is given out twice.
    again = await ann.ok(await ann.put("/lost.txt", past.data_on(LOST, "lost here")))
    assert again.id != lost_file.id
    assert not given_out & {again.id, again.rev}
    assert parse_rev(str(again.rev))[1] > LOST_IDS
    assert parse_file_id(str(again.id))[1] > LOST_IDS
    newborn = await past.user_on(LOST, "newborn")
    assert newborn.root_ns & MAX_COUNT > LOST_COUNTS
    # A key of before is remembered, a lost one acts again.
    assert await ann.write(CreateFolder(path="/once"), key="k-kept") == kept
    assert (await ann.write(CreateFolder(path="/lost"), key="k-lost")).verdicts[0].error is None
    # Blocks, addresses and accounts fit.
    dsns = [restored, past.cluster.shard_dsns[OTHER]]
    assert find_unclaimed(dsns, services.router.map.slot_count) == []
    for dsn in dsns:
        with psycopg.connect(dsn) as conn:
            assert conn.execute("SELECT 1 FROM ns.namespace_blocks WHERE state = 'p'").fetchone() is None
    await bob.ok(await bob.put("/half.txt", past.data_on(LOST, "half sent")))
    found = await services.accounts.find_by_email(found_email)
    assert found is not None
    assert found.root_ns == eve.root_ns
    assert await services.accounts.find_account(lost_user.caller.account_id) is None
    for dsn in dsns:
        with psycopg.connect(dsn) as conn:
            assert (lost_user.caller.account_id,) not in conn.execute(
                "SELECT account_id FROM ns.emails"
            ).fetchall()


async def revs_and_ids(user: User) -> set[object]:
    page = await user.services.reads.list_folder(user.caller, ListFolder(path="", recursive=True))
    return {value for entry in page.entries for value in (entry.id, entry.rev)}


async def test_a_device_is_taken_back_by_the_token_before(past: Past):
    services, ann = past.services, await past.user_on(LOST, "ann")
    tokens = [f"token-{n}" * 4 for n in range(4)]
    user_code = await services.devices.make_code(ann.caller.account_id)
    device = await link_with(services, user_code, tokens[0])
    await refresh(services, device, tokens[0], tokens[1])
    restored = await past.remember("back")
    await refresh(services, device, tokens[1], tokens[2])
    await past.lose()
    assert past.restore(restored)["step"] == Step.PUBLISHED
    await wait_until(lambda: past.answers(LOST), "the new address being known")

    with pytest.raises(InvalidRefreshToken):  # nobody knows it any more; and nobody is revoked for that
        await refresh(services, device, tokens[2], tokens[3])
    await refresh(services, device, tokens[1], tokens[3])
    await refresh(services, device, tokens[3], "token-5" * 4)


async def refresh(services: Services, device_id: str, token: str, following: str) -> None:
    request = RefreshAccess(device_id=device_id, refresh_token=token, next_refresh_token=following)
    await services.devices.refresh(request)


async def link_with(services: Services, code: str, refresh_token: str) -> str:
    request = LinkDevice(code=code, request_id="r" * 32, refresh_token=refresh_token, device_name="laptop")
    return (await services.devices.link(request)).device_id


async def test_what_moved_meanwhile_is_settled_or_refused(past: Past, fresh_cluster: FreshCluster):
    placed = past.services.router.map
    away, later = (system_ns(slot) for slot in placed.slots_of(LOST)[:2])
    came = system_ns(placed.slots_of(OTHER)[0])
    restored, too_old = await past.remember("back"), await past.remember("old")
    with psycopg.connect(too_old) as conn:
        conn.execute("DELETE FROM local.ownership WHERE ns_id = %s", [later])
    with psycopg.connect(fresh_cluster.shard_dsns[OTHER]) as conn:
        # Since that moment one slot has moved there; a move of another was begun.
        conn.execute("INSERT INTO local.ownership (ns_id, epoch, state) VALUES (%s, 2, 'a')", [away])
        conn.execute("INSERT INTO local.ownership (ns_id, epoch, state) VALUES (%s, 1, 'i')", [later])
    await past.lose()

    status, text = past.restore(too_old)
    assert (status, text.splitlines()[-1].split(": ")[1]) == (4, "slots_missing")
    assert active_keys(too_old) == 0
    report = past.restore(restored, "--restore-id", "new")

    assert report["counts"]["gone_keys"] == 1
    with psycopg.connect(restored) as conn:
        rows = {
            r[0]: tuple(r[1:])
            for r in conn.execute(
                "SELECT ns_id, state, epoch, successor, successor_epoch FROM local.ownership"
            )
        }
    assert rows[away] == (OwnershipState.GONE, 1, OTHER, 2)
    assert rows[later] == (OwnershipState.ACTIVE, 2, None, None)
    assert came not in rows
    with psycopg.connect(fresh_cluster.shard_dsns[OTHER]) as conn:
        imported = conn.execute("SELECT epoch, state FROM local.ownership WHERE ns_id = %s", [later])
        assert imported.fetchone() == (2, "i")  # too high for an activation at epoch 2 of the old move
    with psycopg.connect(fresh_cluster.directory_dsn) as conn:
        published = dict(
            conn.execute("SELECT slot, epoch FROM shard_map WHERE shard = %s", [LOST]).fetchall()
        )
    assert published[slot_of(later)] == 2
    assert slot_of(NsId(away)) in published  # the move's own business


async def test_mistakes_are_refused_before_anything_happens(past: Past):
    restored = await past.remember("back")

    status, text = past.restore(restored)  # the old one still answers
    assert (status, text.splitlines()[-1].split(": ")[1]) == (2, "usage")
    for options, code in (
        (["--to-time", "yesterday"], "usage"),
        (["--to-time", "2026-01-02T03:04:05"], "usage"),  # whose clock?
        (["--to-lsn", "zero"], "usage"),
        (["--to-lsn", "0/1", "--to-time", "2026-01-02T03:04:05Z"], "usage"),
        (["--without", "shard-9"], "not_found"),
    ):
        status, text = past.restore(restored, *options)
        assert text.splitlines()[-1].split(": ")[1] == code, options
    assert active_keys(restored) > 0


async def test_an_unfinished_restore_is_named_and_gone_on_with(past: Past):
    restored = await past.remember("back")
    await past.lose()
    assert past.restore(restored, "--restore-id", "r1", fault="ops.restore.jumped") == -9

    status, text = past.restore(restored)

    assert (status, text.splitlines()[-1].split(": ")[1]) == (4, "restore_unfinished")
    assert past.restore(restored, "--restore-id", "r1")["restore_id"] == "r1"
