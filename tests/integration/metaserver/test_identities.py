"""Callers whom outside issuers vouch for: whose accounts they are, and that they can do what devices can."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterator

import psycopg
import pytest

from metaserver.services import access as access_module
from metaserver.services import devices as devices_module
from metaserver.services.access import AccessService
from metaserver.services.identities import IdentityService
from tests.support.databases import FreshCluster, PgServers, cloned_cluster
from tests.support.services import Services, User, run_services
from tests.support.waiting import wait_until
from wire import faults
from wire.api import CreateFolder, LinkIdentity, ListFolder, RefreshAccess
from wire.errors import (
    AlreadyExists,
    BadRequest,
    DeviceRevoked,
    Forbidden,
    IdempotencyMismatch,
    IdentityNotLinked,
    InvalidCursor,
    NotFound,
    TooManyEntries,
)
from wire.ids import NsId, parse_ns_id
from wire.internal import DeviceCaller, IdentityCaller

ISSUER = "https://id.example.org"
OTHER = "https://other.example.org"
pytestmark = pytest.mark.xdist_group("identities")  # the cluster is shared, the people are not


class Cut(Exception):
    """A process that ends here."""


@pytest.fixture(scope="module")
def fresh_cluster(pg_templates: PgServers) -> Iterator[FreshCluster]:
    with cloned_cluster(pg_templates) as cluster:
        yield cluster


@pytest.fixture(scope="module")
async def services(fresh_cluster: FreshCluster) -> AsyncIterator[Services]:
    async with run_services(fresh_cluster) as found:
        yield found


@pytest.fixture
def ada() -> IdentityCaller:
    return IdentityCaller(ISSUER, f"ada-{secrets.token_hex(4)}")


@pytest.fixture
def email(ada: IdentityCaller) -> str:
    return f"{ada.subject}@example.org"


def request_of(**how: str) -> LinkIdentity:
    fields = {"request_id": secrets.token_hex(16), "refresh_token": secrets.token_hex(16)}
    return LinkIdentity(**(fields | {"device_name": "laptop"} | how))


def owner_of(services: Services, cluster: FreshCluster, ns_id: NsId) -> psycopg.Connection:
    return psycopg.connect(cluster.shard_dsns[services.router.placement(ns_id).shard], autocommit=True)


async def linked(services: Services, ada: IdentityCaller, email: str) -> User:
    """A user of a device whose account an identity stands for too."""
    user = await services.user(email)
    await services.identities.add(user.caller.account_id, ISSUER, ada.subject)
    return user


def believing(services: Services) -> AccessService:
    """As in a metaserver that believes the issuer's verified addresses."""
    return AccessService(services.tx, IdentityService(services.tx, [ISSUER]))


async def test_an_identity_is_added_listed_and_removed(services: Services, ada: IdentityCaller, email: str):
    user, other = await services.user(email), await services.user(f"bob.{email}", "Bob")
    account_id = user.caller.account_id
    with pytest.raises(IdentityNotLinked):
        await services.access.identify(ada)
    for _ in range(2):
        await services.identities.add(account_id, ISSUER, ada.subject)
    await services.identities.add(account_id, OTHER, ada.subject)
    await services.identities.add(account_id, ISSUER, ada.subject + "b")
    found = await services.identities.list_identities(account_id)
    assert [(i.issuer, i.subject) for i in found] == [
        (ISSUER, ada.subject),
        (OTHER, ada.subject),
        (ISSUER, ada.subject + "b"),
    ]
    assert await services.identities.list_identities(other.caller.account_id) == []
    who = await services.access.identify(ada)
    assert (who.account_id, who.device_id, who.display_name) == (account_id, None, "Ada")

    with pytest.raises(AlreadyExists):
        await services.identities.add(other.caller.account_id, ISSUER, ada.subject)
    with pytest.raises(NotFound):
        await services.identities.remove(other.caller.account_id, ISSUER, ada.subject)
    await services.identities.remove(account_id, OTHER, ada.subject)
    with pytest.raises(NotFound):
        await services.identities.remove(account_id, OTHER, ada.subject)
    with pytest.raises(IdentityNotLinked):
        await services.access.identify(IdentityCaller(OTHER, ada.subject))
    # What was removed can be given to whom the operator wants.
    await services.identities.add(other.caller.account_id, OTHER, ada.subject)
    assert (await services.access.identify(IdentityCaller(OTHER, ada.subject))).display_name == "Bob"
    for issuer, subject in (("", "s"), (ISSUER, ""), (ISSUER, "ä"), (ISSUER, "a\0b"), ("i" * 256, "s")):
        with pytest.raises(BadRequest):
            await services.identities.add(account_id, issuer, subject)


async def test_one_of_two_accounts_gets_an_identity(
    services: Services, fresh_cluster: FreshCluster, ada: IdentityCaller, email: str
):
    users = [await services.user(f"{n}.{email}") for n in range(2)]
    async with run_services(fresh_cluster) as other:
        for n in range(5):
            outcomes = await asyncio.gather(
                *(
                    service.identities.add(user.caller.account_id, ISSUER, f"{ada.subject}-{n}")
                    for service, user in zip((services, other), users, strict=True)
                ),
                return_exceptions=True,
            )
            assert sorted(type(o) for o in outcomes if o is not None) == [AlreadyExists], outcomes


async def test_it_writes_and_reads_like_a_device(
    services: Services, fresh_cluster: FreshCluster, ada: IdentityCaller, email: str
):
    user = await linked(services, ada, email)
    outside = User(services, ada, user.root_ns)  # type: ignore[arg-type]
    await user.ok(CreateFolder(path="/by device"))
    made = await outside.ok(await outside.put("/by token.txt", b"hello"))
    with owner_of(services, fresh_cluster, user.root_ns) as conn:
        rows = conn.execute(
            "SELECT device FROM ns.server_file_journal WHERE ns_id = %s ORDER BY jid", [user.root_ns]
        ).fetchall()
    assert [row[0] is None for row in rows] == [False, True]

    first = await outside.write(CreateFolder(path="/once"), key="k")
    assert await outside.write(CreateFolder(path="/once"), key="k") == first
    # Keys are the account's, so a device that takes over knows them too.
    assert await user.write(CreateFolder(path="/once"), key="k") == first
    with pytest.raises(IdempotencyMismatch):
        await outside.write(CreateFolder(path="/twice"), key="k")

    page = await services.reads.list_folder(ada, ListFolder(path="", recursive=True))
    assert {entry.name for entry in page.entries} == {"by device", "by token.txt", "once"}
    await user.ok(CreateFolder(path="/later"))
    for caller in (ada, user.caller):  # a cursor is the account's
        following = await services.reads.list_folder_continue(caller, page.cursor)
        assert [entry.name for entry in following.entries] == ["later"]
    stranger = await services.user(f"bob.{email}", "Bob")
    with pytest.raises(InvalidCursor):
        await services.reads.list_folder_continue(stranger.caller, page.cursor)
    assert (await services.reads.get_metadata(ada, "/by token.txt")).id == made.id


@pytest.mark.parametrize("how", ["removed", "disabled"])
async def test_a_refusal_holds_within_its_time(
    services: Services,
    fresh_cluster: FreshCluster,
    monkeypatch: pytest.MonkeyPatch,
    how: str,
    ada: IdentityCaller,
    email: str,
):
    assert access_module.STANDING_TTL_S <= 5, "the standing is believed for half of the promised 10 s"
    monkeypatch.setattr(access_module, "STANDING_TTL_S", 0.2)
    user = await linked(services, ada, email)
    async with run_services(fresh_cluster) as other:
        assert (await other.access.identify(ada)).account_id == user.caller.account_id
        if how == "removed":
            await services.identities.remove(user.caller.account_id, ISSUER, ada.subject)
        else:
            await services.accounts.set_disabled(user.caller.account_id, is_disabled=True)

        async def is_refused() -> bool:
            try:
                await other.access.identify(ada)
            except (IdentityNotLinked, DeviceRevoked):
                return True
            return False

        await wait_until(is_refused, "the refusal", timeout_s=5)


# ---- The first sign-in


async def test_a_verified_address_links_where_its_issuer_is_believed(
    services: Services, ada: IdentityCaller, email: str
):
    user = await services.user(email)
    vouched = IdentityCaller(ISSUER, ada.subject, f"  {email.upper()} ")
    with pytest.raises(IdentityNotLinked):
        await services.access.identify(vouched)  # off, unless told otherwise
    access = believing(services)
    for caller in (
        IdentityCaller(OTHER, ada.subject, email),
        IdentityCaller(ISSUER, ada.subject),
        IdentityCaller(ISSUER, ada.subject, f"nobody.{email}"),
        IdentityCaller(ISSUER, ada.subject, "no address"),
    ):
        with pytest.raises(IdentityNotLinked):
            await access.identify(caller)
    found = await asyncio.gather(*(believing(services).identify(vouched) for _ in range(4)))
    assert {who.account_id for who in found} == {user.caller.account_id}
    # From then on the identity counts, whatever its address, and whoever has that address now.
    await services.user(f"bob.{email}", "Bob")
    assert await access.identify(IdentityCaller(ISSUER, ada.subject, f"bob.{email}")) == found[0]
    assert (await services.access.identify(ada)).account_id == user.caller.account_id


async def test_a_removed_identity_is_not_linked_again_by_its_address(
    services: Services, ada: IdentityCaller, email: str
):
    user = await services.user(email)
    vouched = IdentityCaller(ISSUER, ada.subject, email)
    await believing(services).identify(vouched)
    await services.identities.remove(user.caller.account_id, ISSUER, ada.subject)
    with pytest.raises(IdentityNotLinked):
        await believing(services).identify(vouched)
    await services.identities.add(user.caller.account_id, ISSUER, ada.subject)
    assert (await believing(services).identify(vouched)).account_id == user.caller.account_id


async def test_a_disabled_account_is_not_linked(services: Services, ada: IdentityCaller, email: str):
    user = await services.user(email)
    await services.accounts.set_disabled(user.caller.account_id, is_disabled=True)
    with pytest.raises(IdentityNotLinked):
        await believing(services).identify(IdentityCaller(ISSUER, ada.subject, email))
    assert await services.identities.list_identities(user.caller.account_id) == []


# ---- Linking a device


async def test_a_device_is_linked_by_a_token_once(
    services: Services, fresh_cluster: FreshCluster, ada: IdentityCaller, email: str
):
    user = await linked(services, ada, email)
    request = request_of()
    async with run_services(fresh_cluster) as other:
        answers = await asyncio.gather(
            *((services, other)[n % 2].devices.link_identity(ada, request) for n in range(6))
        )
    (device_id,) = {answer.device_id for answer in answers}
    first = answers[0]
    assert (first.account_id, first.email, first.display_name) == (user.caller.account_id, email, "Ada")
    assert parse_ns_id(first.root_ns) == user.root_ns
    assert len(await services.devices.list_devices(user.caller.account_id)) == 2
    caller = await services.verifier.verify(f"Bearer {first.access_token}")
    assert isinstance(caller, DeviceCaller)
    assert (await services.access.identify(caller)).device_id == device_id

    turned = RefreshAccess(
        device_id=device_id, refresh_token=request.refresh_token, next_refresh_token=secrets.token_hex(16)
    )
    await services.devices.refresh(turned)
    assert (await services.devices.link_identity(ada, request)).device_id == device_id
    other_device = await services.devices.link_identity(ada, request_of(request_id=request.request_id))
    assert other_device.device_id != device_id

    await services.devices.revoke_own(ada, device_id)
    with pytest.raises(DeviceRevoked):
        await services.devices.link_identity(ada, request)
    with pytest.raises(BadRequest):
        await services.devices.revoke_own(ada, None)
    assert len(await services.devices.list_own(ada)) == 3


async def test_who_links_no_device(services: Services, ada: IdentityCaller, email: str):
    user = await linked(services, ada, email)
    with pytest.raises(Forbidden):
        await services.devices.link_identity(user.caller, request_of())
    with pytest.raises(IdentityNotLinked):
        await services.devices.link_identity(IdentityCaller(ISSUER, "somebody"), request_of())


async def test_a_link_that_is_cut_short_leaves_a_whole_device_or_none(
    services: Services, monkeypatch: pytest.MonkeyPatch, ada: IdentityCaller, email: str
):
    user = await linked(services, ada, email)
    count = 1
    for point, is_there in (("sharding.tx.before_commit", False), ("metaserver.devices.linked", True)):
        request = request_of()

        def cut(name: str, point: str = point) -> None:
            if name == point:
                raise Cut

        with monkeypatch.context() as patch:
            patch.setattr(faults, "fault_point", cut)
            with pytest.raises(Cut):
                await services.devices.link_identity(ada, request)
        assert len(await services.devices.list_devices(user.caller.account_id)) == count + is_there
        again = await services.devices.link_identity(ada, request)
        await services.devices.refresh(
            RefreshAccess(
                device_id=again.device_id,
                refresh_token=request.refresh_token,
                next_refresh_token=secrets.token_hex(16),
            )
        )
        count += 1
        assert len(await services.devices.list_devices(user.caller.account_id)) == count


async def test_the_devices_of_an_account_are_bounded(
    services: Services, monkeypatch: pytest.MonkeyPatch, ada: IdentityCaller, email: str
):
    assert devices_module.MAX_DEVICES == 1_000
    monkeypatch.setattr(devices_module, "MAX_DEVICES", 3)
    user = await linked(services, ada, email)
    requests = [request_of() for _ in range(5)]
    outcomes = await asyncio.gather(
        *(services.devices.link_identity(ada, request) for request in requests), return_exceptions=True
    )
    assert sorted(type(o).__name__ for o in outcomes) == ["LinkedDevice"] * 2 + ["TooManyEntries"] * 3
    with pytest.raises(TooManyEntries):
        await services.link(user.caller.account_id)
    good = next(
        request for request, o in zip(requests, outcomes, strict=True) if not isinstance(o, Exception)
    )
    again = await services.devices.link_identity(ada, good)  # a repeat needs no room
    await services.devices.revoke_own(ada, again.device_id)
    await services.devices.link_identity(ada, request_of())
