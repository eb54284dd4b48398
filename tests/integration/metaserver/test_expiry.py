"""Rows that have had their time go, and no others."""

import os
from collections.abc import AsyncIterator

import psycopg
import pytest

from metaserver.services import expiry as module
from metaserver.storage.expiry import UPLOAD_SESSIONS
from tests.support.databases import FreshCluster
from tests.support.services import Services, User
from wire import faults
from wire.ids import MAX_COUNT, NsId, make_ns_id, slot_of


@pytest.fixture
async def user(services: Services) -> User:
    return await services.user()


@pytest.fixture
async def home(user: User, fresh_cluster: FreshCluster) -> AsyncIterator[psycopg.AsyncConnection]:
    """The database of the user's namespace."""
    dsn = fresh_cluster.shard_dsns[shard_of(user)]
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
        yield conn


def shard_of(user: User) -> str:
    return user.services.router.placement(user.root_ns).shard


async def insert_session(conn: psycopg.AsyncConnection, ns_id: NsId, age: str) -> bytes:
    session = os.urandom(16)
    await conn.execute(
        "INSERT INTO ns.upload_sessions (ns_id, session_id, account_id, parent_id, file_name, file_size,"
        " content_hash, expires_at) VALUES (%s, %s, 'a', 0, 'f', 1, '', now() - %s::interval)",
        [ns_id, session, age],
    )
    return session


async def insert_target(conn: psycopg.AsyncConnection, ns_id: NsId, session: bytes, age_s: float) -> None:
    cursor = await conn.execute("SELECT ((extract(epoch FROM now()) - %s) * 1000000)::bigint", [age_s])
    row = await cursor.fetchone()
    assert row is not None
    await conn.execute(
        "INSERT INTO ns.upload_targets (ns_id, session_id, hash, generation, size)"
        " VALUES (%s, %s, %s, %s, 1)",
        [ns_id, session, os.urandom(32), row[0].to_bytes(8, "big") + os.urandom(8)],
    )


async def values(conn: psycopg.AsyncConnection, query: str) -> list[object]:
    return [row[0] for row in await (await conn.execute(query)).fetchall()]  # type: ignore[arg-type]


async def test_sessions_and_targets(services: Services, user: User, home: psycopg.AsyncConnection):
    await insert_session(home, user.root_ns, "1 second")
    live = await insert_session(home, user.root_ns, "-1 minute")
    await insert_target(home, user.root_ns, live, 86_399)
    await insert_target(home, user.root_ns, live, 86_401)
    tail = await insert_session(home, user.root_ns, "1 hour")
    await insert_target(home, user.root_ns, tail, 0)
    await services.expiry.run(shard_of(user))
    assert await values(home, "SELECT session_id FROM ns.upload_sessions") == [live]
    assert await values(home, "SELECT session_id FROM ns.upload_targets") == [live]


async def test_codes_tokens_and_cancelled_accounts(
    services: Services, user: User, home: psycopg.AsyncConnection
):
    async def insert(days: int, seconds: int, name: str) -> None:
        age = f"{days} days {seconds} seconds"
        await home.execute(
            "INSERT INTO ns.link_codes (ns_id, code_hash, expires_at) VALUES (%s, %s, now() - %s::interval)",
            [user.root_ns, name.encode(), f"{days - 23} days {seconds} seconds"],
        )
        for state in "cnu":
            await home.execute(
                "INSERT INTO ns.refresh_tokens (ns_id, token_hash, device_id, state, since)"
                " VALUES (%s, %s, 'd', %s, now() - %s::interval)",
                [user.root_ns, f"{name} {state}".encode(), state, age],
            )
        slot = slot_of(user.root_ns)
        for number, state in enumerate("adc"):
            await home.execute(
                "INSERT INTO ns.accounts (ns_id, account_id, state, email, display_name, created_at)"
                " VALUES (%s, %s, %s, '', '', now() - %s::interval)",
                [make_ns_id(slot, MAX_COUNT - 3 * seconds - number), f"{name} {state}", state, age],
            )

    await insert(30, 2, "old")
    await insert(29, 86_390, "young")
    await services.expiry.run(shard_of(user))
    codes = await values(home, "SELECT code_hash FROM ns.link_codes WHERE request_hash IS NULL")
    assert codes == [b"young"]
    tokens = await values(home, "SELECT token_hash FROM ns.refresh_tokens WHERE device_id = 'd'")
    assert set(tokens) == {b"old c", b"old n", b"young c", b"young n", b"young u"}
    accounts = await values(home, "SELECT account_id FROM ns.accounts WHERE display_name = ''")
    assert set(accounts) == {"old a", "old d", "young a", "young d", "young c"}


async def test_what_lives_elsewhere_is_passed_over(
    services: Services, user: User, fresh_cluster: FreshCluster, monkeypatch: pytest.MonkeyPatch
):
    """Also where there is more of it than is looked at once: what lies behind it still goes."""
    monkeypatch.setattr(module, "LOOKED_AT_ONCE", 2)
    monkeypatch.setattr(module, "DELETED_AT_ONCE", 2)
    away, here = sorted(fresh_cluster.shard_dsns, key=lambda name: name == shard_of(user))
    placements = services.router.map.slots
    foreign = [s for s, p in enumerate(placements) if p.shard == here]
    own = [s for s, p in enumerate(placements) if p.shard == away and s > foreign[0]]
    dsn = fresh_cluster.shard_dsns[away]
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
        for slot in (foreign[0], own[-1]):
            for number in range(5):
                await conn.execute(
                    "INSERT INTO ns.idempotency (ns_id, account_id, key, digest, answer, created_at)"
                    " VALUES (%s, 'a', %s, '', '', now() - interval '2 days')",
                    [make_ns_id(slot, 7), f"k{number}"],  # type: ignore[arg-type]
                )
        await services.expiry.run(away)
        left = await values(conn, "SELECT ns_id FROM ns.idempotency")
    assert left == [make_ns_id(foreign[0], 7)] * 5  # type: ignore[arg-type]


async def test_it_rests_between_readings(services: Services, user: User, home: psycopg.AsyncConnection):
    shard = shard_of(user)
    await services.expiry.run(shard)
    await insert_session(home, user.root_ns, "1 second")
    assert not await services.expiry.step(shard)
    assert len(await values(home, "SELECT 1 FROM ns.upload_sessions")) == 1


class Cut(BaseException):
    """The process is killed here."""


@pytest.mark.parametrize(("point", "left"), [("listed", 3), ("deleted", 2)])
async def test_what_one_leaves_the_next_one_takes(
    services: Services, user: User, home: psycopg.AsyncConnection, point: str, left: int
):
    for _ in range(3):
        await insert_session(home, user.root_ns, "1 second")

    def fault_point(name: str) -> None:
        if name == f"metaserver.expiry.{point}" and services.expiry._places[shard].index == sessions:
            raise Cut(name)

    shard = shard_of(user)
    sessions = [table for table, _ in module.LIVES].index(UPLOAD_SESSIONS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "DELETED_AT_ONCE", 1)
        patch.setattr(module.faults, "fault_point", fault_point)
        with pytest.raises(Cut):
            await services.expiry.run(shard)
    assert len(await values(home, "SELECT 1 FROM ns.upload_sessions")) == left
    await module.Expiry(services.tx).run(shard)
    assert await values(home, "SELECT 1 FROM ns.upload_sessions") == []


def test_every_point_is_cut():
    points = {name for name in faults.declared() if name.startswith("metaserver.expiry.")}
    assert points == {"metaserver.expiry.listed", "metaserver.expiry.deleted"}
