"""Creating accounts: each step cut, leftovers resolved, two at once."""

import asyncio
from collections.abc import Awaitable, Callable

import psycopg
import pytest

from metaserver.services import accounts as module
from metaserver.services.accounts import email_key
from tests.support.databases import FreshCluster
from tests.support.services import Services, run_services
from wire.api import LinkDevice, ListFolder
from wire.errors import AlreadyExists, BadRequest, DeviceRevoked, InvalidLinkCode, NotFound
from wire.ids import NsId, format_account_id, root_ns_of_account, slot_of_hash, system_ns

ADA = "Ada@Example.org"
STEPS = ["allocated", "reserved", "inserted", "confirmed"]


class Cut(BaseException):
    """The process is killed here."""


def cut_at(patch: pytest.MonkeyPatch, step: str) -> None:
    """Let the next creation end at a step, as if its process died."""

    def fault_point(name: str) -> None:
        if name == f"metaserver.accounts.{step}":
            patch.undo()
            raise Cut(name)

    patch.setattr(module.faults, "fault_point", fault_point)


def owner_of(services: Services, cluster: FreshCluster, ns_id: NsId) -> psycopg.Connection:
    return psycopg.connect(cluster.shard_dsns[services.router.placement(ns_id).shard], autocommit=True)


def reservation(services: Services, cluster: FreshCluster, email: str = ADA) -> tuple[str, bool] | None:
    """(account id, whether it is confirmed) of an address."""
    key = email_key(email)
    ns_id = system_ns(slot_of_hash(key.encode(), 64))
    with owner_of(services, cluster, ns_id) as conn:
        query = "SELECT account_id, is_confirmed FROM ns.emails WHERE ns_id = %s AND email_key = %s"
        return conn.execute(query, [ns_id, key]).fetchone()


def age(services: Services, cluster: FreshCluster, email: str = ADA) -> None:
    """Let a reservation be eleven minutes old."""
    ns_id = system_ns(slot_of_hash(email_key(email).encode(), 64))
    with owner_of(services, cluster, ns_id) as conn:
        conn.execute("UPDATE ns.emails SET since = since - interval '11 minutes' WHERE ns_id = %s", [ns_id])


def account_rows(cluster: FreshCluster) -> list[tuple[str, str]]:
    """(account id, state) of all account rows, cancelled ones too."""
    rows: list[tuple[str, str]] = []
    for dsn in cluster.shard_dsns.values():
        with psycopg.connect(dsn) as conn:
            rows += conn.execute("SELECT account_id, state FROM ns.accounts").fetchall()
    return rows


async def test_an_account_and_its_namespace(services: Services, fresh_cluster: FreshCluster):
    account = await services.accounts.create_account(f"  {ADA} ", " Ada Lovelace ")
    assert (len(account.account_id), account.email, account.display_name) == (40, ADA, "Ada Lovelace")
    assert root_ns_of_account(account.account_id) == account.root_ns
    assert reservation(services, fresh_cluster) == (account.account_id, True)
    assert await services.accounts.find_by_email("ADA@EXAMPLE.ORG") == account
    assert await services.accounts.find_account(account.account_id) == account
    with pytest.raises(AlreadyExists):
        await services.accounts.create_account("ada@example.ORG", "Another")
    other = format_account_id(account.root_ns, bytes(18))
    assert await services.accounts.find_account(other) is None
    with pytest.raises(NotFound):
        await services.devices.make_code(other)


@pytest.mark.parametrize(
    "email", ["", "ada", "@example.org", "ada@", "a b@example.org", "a\n@b.c", "a" * 400 + "@b.c"]
)
async def test_what_is_no_address(services: Services, email: str):
    with pytest.raises(BadRequest):
        await services.accounts.create_account(email, "Ada")


@pytest.mark.parametrize("name", ["", "   ", "a" * 101, "a\tb"])
async def test_what_is_no_display_name(services: Services, name: str):
    with pytest.raises(BadRequest):
        await services.accounts.create_account(ADA, name)


@pytest.mark.parametrize("step", STEPS)
async def test_cut_at_each_step(
    services: Services, fresh_cluster: FreshCluster, monkeypatch: pytest.MonkeyPatch, step: str
):
    cut_at(monkeypatch, step)
    with pytest.raises(Cut):
        await services.accounts.create_account(ADA, "Ada")
    left = reservation(services, fresh_cluster)
    match step:
        case "allocated":
            assert left is None
            account = await services.accounts.create_account(ADA, "Ada")
            assert reservation(services, fresh_cluster) == (account.account_id, True)
            return
        case "confirmed":
            assert left is not None
            assert left[1]
        case _:
            assert left is not None
            assert not left[1]
    # A fresh reservation is somebody's who may be at it.
    with pytest.raises(AlreadyExists):
        await services.accounts.create_account(ADA, "Ada")
    assert reservation(services, fresh_cluster) == left
    age(services, fresh_cluster)
    if step == "reserved":
        account = await services.accounts.create_account(ADA, "Ada")
        assert account.account_id != left[0]
        states = sorted(account_rows(fresh_cluster))
        assert states == sorted([(left[0], "c"), (account.account_id, "a")])
        assert await services.accounts.find_account(left[0]) is None
    else:
        with pytest.raises(AlreadyExists):
            await services.accounts.create_account(ADA, "Ada")
        assert account_rows(fresh_cluster) == [(left[0], "a")]
        account = await services.accounts.find_by_email(ADA)
        assert account is not None
        assert account.account_id == left[0]
    assert reservation(services, fresh_cluster) == (account.account_id, True)
    user = await services.link(account.account_id)
    assert (await services.reads.list_folder(user.caller, ListFolder())).entries == []


@pytest.mark.parametrize("step", ["reserved", "inserted"])
async def test_a_retry_need_not_wait(
    services: Services, fresh_cluster: FreshCluster, monkeypatch: pytest.MonkeyPatch, step: str
):
    cut_at(monkeypatch, step)
    with pytest.raises(Cut):
        await services.accounts.create_account(ADA, "Ada")
    await services.accounts.resolve_reservation(ADA, is_retry=True)
    left = reservation(services, fresh_cluster)
    assert left is None if step == "reserved" else (left is not None and left[1])


async def test_a_resolver_that_dies_too(
    services: Services, fresh_cluster: FreshCluster, monkeypatch: pytest.MonkeyPatch
):
    cut_at(monkeypatch, "reserved")
    with pytest.raises(Cut):
        await services.accounts.create_account(ADA, "Ada")
    cut_at(monkeypatch, "cancelled")
    with pytest.raises(Cut):
        await services.accounts.resolve_reservation(ADA, is_retry=True)
    assert reservation(services, fresh_cluster) is not None
    await services.accounts.resolve_reservation(ADA, is_retry=True)
    assert reservation(services, fresh_cluster) is None
    await services.accounts.create_account(ADA, "Ada")


async def meanwhile(
    patch: pytest.MonkeyPatch, services: Services, name: str, happens: Callable[[], Awaitable[None]]
) -> None:
    """Let something happen right before a transaction of that name."""
    run_tx = services.tx.run_tx

    async def late(ns_ids, tx_name, *how, **more):
        if tx_name == name:
            patch.undo()
            await happens()
        return await run_tx(ns_ids, tx_name, *how, **more)

    patch.setattr(services.tx, "run_tx", late)


async def test_a_slow_creator_loses_to_the_cancelled_row(
    services: Services, fresh_cluster: FreshCluster, monkeypatch: pytest.MonkeyPatch
):
    async def give_up() -> None:
        await services.accounts.resolve_reservation(ADA, is_retry=True)
        assert reservation(services, fresh_cluster) is None

    await meanwhile(monkeypatch, services, "insert_account", give_up)
    with pytest.raises(AlreadyExists):
        await services.accounts.create_account(ADA, "Ada")
    assert [state for _, state in account_rows(fresh_cluster)] == ["c"]
    assert [a async for a in services.accounts.iter_accounts()] == []
    account = await services.accounts.create_account(ADA, "Ada")
    assert reservation(services, fresh_cluster) == (account.account_id, True)


async def test_a_resolver_that_comes_late_confirms(
    services: Services, fresh_cluster: FreshCluster, monkeypatch: pytest.MonkeyPatch
):
    async def resolve() -> None:
        await services.accounts.resolve_reservation(ADA, is_retry=True)
        left = reservation(services, fresh_cluster)
        assert left is not None
        assert left[1]

    await meanwhile(monkeypatch, services, "confirm_email", resolve)
    account = await services.accounts.create_account(ADA, "Ada")
    assert reservation(services, fresh_cluster) == (account.account_id, True)


async def test_a_freed_address_taken_by_another_stays_the_others(
    services: Services, fresh_cluster: FreshCluster, monkeypatch: pytest.MonkeyPatch
):
    """Two resolve one leftover; the slower one must not free what the faster one's caller has made since."""
    cut_at(monkeypatch, "reserved")
    with pytest.raises(Cut):
        await services.accounts.create_account(ADA, "Ada")
    made = []

    async def faster() -> None:
        await services.accounts.resolve_reservation(ADA, is_retry=True)
        made.append(await services.accounts.create_account(ADA, "Ada"))

    await meanwhile(monkeypatch, services, "free_email", faster)
    await services.accounts.resolve_reservation(ADA, is_retry=True)
    assert reservation(services, fresh_cluster) == (made[0].account_id, True)


async def test_many_create_one_address(services: Services, fresh_cluster: FreshCluster):
    async with run_services(fresh_cluster) as other:
        outcomes = await asyncio.gather(
            *(s.accounts.create_account(ADA, "Ada") for s in (services, other) for _ in range(8)),
            return_exceptions=True,
        )
    made = [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]
    assert len(made) == 1
    assert all(isinstance(o, AlreadyExists) for o in outcomes if isinstance(o, BaseException)), outcomes
    assert reservation(services, fresh_cluster) == (made[0].account_id, True)
    assert account_rows(fresh_cluster) == [(made[0].account_id, "a")]


async def test_counts_are_never_given_twice(services: Services):
    accounts = []
    for first in range(0, 150, 15):  # no more at once than a pool has connections
        accounts += await asyncio.gather(
            *(
                services.accounts.create_account(f"user{i}@example.org", "User")
                for i in range(first, first + 15)
            )
        )
    assert len({account.root_ns for account in accounts}) == 150


async def test_a_disabled_account_is_refused_and_can_come_back(
    services: Services, fresh_cluster: FreshCluster
):
    user = await services.user()
    account_id = user.caller.account_id
    code = await services.devices.make_code(account_id)
    request = LinkDevice(code=code, request_id="q" * 32, refresh_token="t" * 32, device_name="d")
    await services.accounts.set_disabled(account_id, is_disabled=True)
    async with run_services(fresh_cluster) as fresh:  # one that remembers nothing
        with pytest.raises(DeviceRevoked):
            await fresh.reads.list_folder(user.caller, ListFolder())
        with pytest.raises(InvalidLinkCode):
            await fresh.devices.link(request)
        await services.accounts.set_disabled(account_id, is_disabled=False)
        assert (await fresh.reads.list_folder(user.caller, ListFolder())).entries == []
        assert (await fresh.devices.link(request)).account_id == account_id
    with pytest.raises(NotFound):
        await services.accounts.set_disabled(format_account_id(user.root_ns + 1, bytes(18)), is_disabled=True)
