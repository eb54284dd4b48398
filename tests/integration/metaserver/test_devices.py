"""Devices: one code, one device; refresh tokens turn; a revocation holds everywhere."""

import asyncio
import secrets

import psycopg
import pytest

from metaserver.services import access as access_module
from runtime.tokens import ACCESS_TOKEN_S
from tests.support.databases import FreshCluster
from tests.support.services import Services, User, run_services
from tests.support.waiting import wait_until
from wire.api import CreateFolder, LinkDevice, LinkedDevice, ListFolder, RefreshAccess
from wire.errors import (
    DeviceRevoked,
    InvalidLinkCode,
    InvalidRefreshToken,
    NotFound,
    Unauthenticated,
)
from wire.ids import AccountId, DeviceId, NsId, format_device_id
from wire.internal import DeviceCaller

HOLDS_WITHIN_S = 10.0


def token() -> str:
    return secrets.token_hex(16)


def request_of(code: str, **how: str) -> LinkDevice:
    fields = {"request_id": token(), "refresh_token": token(), "device_name": "laptop"} | how
    return LinkDevice(code=code, **fields)


async def linked(services: Services) -> tuple[LinkedDevice, str]:
    """A device and its refresh token."""
    account = await services.accounts.create_account("ada@example.org", "Ada")
    request = request_of(await services.devices.make_code(account.account_id))
    return await services.devices.link(request), request.refresh_token


def owner_of(services: Services, cluster: FreshCluster, ns_id: NsId) -> psycopg.Connection:
    return psycopg.connect(cluster.shard_dsns[services.router.placement(ns_id).shard], autocommit=True)


# ---- Codes


async def test_a_code_makes_one_device(services: Services, fresh_cluster: FreshCluster):
    account = await services.accounts.create_account("ada@example.org", "Ada")
    code = await services.devices.make_code(account.account_id)
    assert code.startswith(f"{account.root_ns}-")
    request = request_of(code)
    first = await services.devices.link(request)
    assert (first.account_id, first.email, first.display_name) == (account.account_id, account.email, "Ada")
    assert await services.verifier.verify(f"Bearer {first.access_token}") == DeviceCaller(
        account.account_id, DeviceId(first.device_id)
    )
    async with run_services(fresh_cluster) as other:
        again = await other.devices.link(request)
        assert again.device_id == first.device_id
        for different in (
            request_of(code),
            request_of(code, request_id=request.request_id),
            request_of(code, refresh_token=request.refresh_token),
        ):
            with pytest.raises(InvalidLinkCode):
                await other.devices.link(different)
    assert len(await services.devices.list_devices(account.account_id)) == 1


async def test_a_refresh_token_is_one_device_s(services: Services):
    device, refresh_token = await linked(services)
    code = await services.devices.make_code(AccountId(device.account_id))
    with pytest.raises(InvalidRefreshToken):
        await services.devices.link(request_of(code, refresh_token=refresh_token))
    assert len(await services.devices.list_devices(AccountId(device.account_id))) == 1
    await services.devices.link(request_of(code))  # the code has not been used up


async def test_one_of_many_gets_the_device(services: Services, fresh_cluster: FreshCluster):
    account = await services.accounts.create_account("ada@example.org", "Ada")
    code = await services.devices.make_code(account.account_id)
    requests = [request_of(code) for _ in range(4)] * 2
    async with run_services(fresh_cluster) as other:
        outcomes = await asyncio.gather(
            *((services, other)[i % 2].devices.link(r) for i, r in enumerate(requests)),
            return_exceptions=True,
        )
    devices = {o.device_id for o in outcomes if isinstance(o, LinkedDevice)}
    assert len(devices) == 1
    assert sum(isinstance(o, LinkedDevice) for o in outcomes) == 2
    assert all(isinstance(o, LinkedDevice | InvalidLinkCode) for o in outcomes)


async def test_codes_that_are_refused(services: Services, fresh_cluster: FreshCluster):
    account = await services.accounts.create_account("ada@example.org", "Ada")
    code = await services.devices.make_code(account.account_id)
    unknown = f"{account.root_ns}-{'0' * 32}"
    for text in ("", "x", "-", unknown, code[:-1], code.upper() + "0", "9" * 40, f"{2**62}-{'0' * 32}"):
        with pytest.raises(InvalidLinkCode):
            await services.devices.link(request_of(text))
    with owner_of(services, fresh_cluster, account.root_ns) as conn:
        conn.execute("UPDATE ns.link_codes SET expires_at = now() - interval '1 second'")
    with pytest.raises(InvalidLinkCode):
        await services.devices.link(request_of(code))


async def test_a_repeat_outlives_the_code(services: Services, fresh_cluster: FreshCluster):
    account = await services.accounts.create_account("ada@example.org", "Ada")
    request = request_of(await services.devices.make_code(account.account_id))
    first = await services.devices.link(request)
    with owner_of(services, fresh_cluster, account.root_ns) as conn:
        conn.execute("UPDATE ns.link_codes SET expires_at = now() - interval '1 second'")
    assert (await services.devices.link(request)).device_id == first.device_id


async def test_a_repeat_does_not_bring_an_unlinked_device_back(services: Services):
    account = await services.accounts.create_account("ada@example.org", "Ada")
    request = request_of(await services.devices.make_code(account.account_id))
    first = await services.devices.link(request)
    await services.devices.revoke(account.account_id, first.device_id)
    with pytest.raises(DeviceRevoked):
        await services.devices.link(request)


# ---- Refresh tokens


async def turn(services: Services, device_id: str, old: str, following: str) -> None:
    granted = await services.devices.refresh(
        RefreshAccess(device_id=device_id, refresh_token=old, next_refresh_token=following)
    )
    assert granted.expires_in == ACCESS_TOKEN_S
    assert (await services.verifier.verify(f"Bearer {granted.access_token}")).device_id == device_id


async def is_revoked(services: Services, account_id: str) -> bool:
    (device,) = await services.devices.list_devices(account_id)
    return device.revoked_at is not None


async def test_tokens_turn(services: Services):
    device, t0 = await linked(services)
    t1, t2, t3 = token(), token(), token()
    await turn(services, device.device_id, t0, t1)
    await turn(services, device.device_id, t0, t1)  # the answer was lost: the old one stays good
    await turn(services, device.device_id, t1, t2)
    await turn(services, device.device_id, t1, t2)
    await turn(services, device.device_id, t2, t3)
    assert not await is_revoked(services, device.account_id)


async def test_another_next_token_takes_the_place_of_the_first(services: Services):
    """The client lost what it had stored, but still has the old token."""
    device, t0 = await linked(services)
    t1, t1b, t2 = token(), token(), token()
    await turn(services, device.device_id, t0, t1)
    await turn(services, device.device_id, t0, t1b)
    with pytest.raises(InvalidRefreshToken):  # it cannot be announced again
        await turn(services, device.device_id, t0, t1)
    assert not await is_revoked(services, device.account_id)
    await turn(services, device.device_id, t1b, t2)


@pytest.mark.parametrize("is_taken", [True, False])
async def test_a_thief_who_displaces_the_next_token_is_found_out(services: Services, is_taken: bool):
    """The owner uses what had been announced, whether the thief's own next has been used by then or not."""
    device, r0 = await linked(services)
    r1, stolen, later = token(), token(), token()
    await turn(services, device.device_id, r0, r1)
    await turn(services, device.device_id, r0, stolen)
    if is_taken:
        await turn(services, device.device_id, stolen, later)
    with pytest.raises(InvalidRefreshToken):
        await turn(services, device.device_id, r1, token())
    assert await is_revoked(services, device.account_id)
    for held in (stolen, later)[: 1 + is_taken]:
        with pytest.raises(DeviceRevoked):
            await turn(services, device.device_id, held, token())


@pytest.mark.parametrize("following", ["a new one", "the next", "the used"])
async def test_a_token_used_after_its_next_revokes_the_device(services: Services, following: str):
    device, t0 = await linked(services)
    t1, t2 = token(), token()
    await turn(services, device.device_id, t0, t1)
    await turn(services, device.device_id, t1, t2)
    named = {"a new one": token(), "the next": t2, "the used": token()}[following]
    with pytest.raises(InvalidRefreshToken):
        await turn(services, device.device_id, t0, named)
    assert await is_revoked(services, device.account_id)
    for current in (t1, t2):
        with pytest.raises(DeviceRevoked):
            await turn(services, device.device_id, current, token())


async def test_tokens_that_are_refused(services: Services):
    device, t0 = await linked(services)
    for device_id, old, following in (
        (device.device_id, token(), token()),
        (device.device_id, t0, t0),
        (format_device_id(NsId(int(device.root_ns)), bytes(16)), t0, token()),
        (format_device_id(NsId(2**62), bytes(16)), t0, token()),
        ("device:x", t0, token()),
        ("", t0, token()),
    ):
        with pytest.raises(InvalidRefreshToken):
            await turn(services, device_id, old, following)
    t1, t2 = token(), token()
    await turn(services, device.device_id, t0, t1)
    await turn(services, device.device_id, t1, t2)
    with pytest.raises(InvalidRefreshToken):  # a used one does not come back as the next
        await turn(services, device.device_id, t2, t0)
    assert not await is_revoked(services, device.account_id)
    await turn(services, device.device_id, t2, token())


async def test_two_refreshes_at_once_are_one_after_the_other(services: Services, fresh_cluster: FreshCluster):
    device, t0 = await linked(services)
    t1 = token()
    async with run_services(fresh_cluster) as other:
        request = RefreshAccess(device_id=device.device_id, refresh_token=t0, next_refresh_token=t1)
        await asyncio.gather(*(s.devices.refresh(request) for s in (services, other) for _ in range(5)))
    await turn(services, device.device_id, t1, token())


# ---- Revocation


async def can_read(services: Services, user: User) -> bool:
    try:
        await services.reads.list_folder(user.caller, ListFolder())
    except DeviceRevoked:
        return False
    return True


async def test_a_revocation_holds_in_other_processes_within_its_time(
    services: Services, fresh_cluster: FreshCluster
):
    user = await services.user()
    stays = await services.link(user.caller.account_id)
    async with run_services(fresh_cluster) as other:
        assert await can_read(other, user)
        await services.devices.revoke_own(stays.caller, user.caller.device_id)
        assert not await can_read(services, user)

        async def refused() -> bool:
            return not await can_read(other, user)

        await wait_until(refused, "the revocation in another process", timeout_s=HOLDS_WITHIN_S)
        with pytest.raises(DeviceRevoked):
            await other.writes.write_batch(user.caller, [CreateFolder(path="/x")], None)
        assert await can_read(other, stays)
    async with run_services(fresh_cluster) as restarted:
        assert not await can_read(restarted, user)
    assert access_module.STANDING_TTL_S < HOLDS_WITHIN_S


async def test_disabling_holds_in_other_processes_within_its_time(
    services: Services, fresh_cluster: FreshCluster
):
    user = await services.user()
    async with run_services(fresh_cluster) as other:
        assert await can_read(other, user)
        await services.accounts.set_disabled(user.caller.account_id, is_disabled=True)

        async def refused() -> bool:
            return not await can_read(other, user)

        await wait_until(refused, "the disabling in another process", timeout_s=HOLDS_WITHIN_S)
    device = user.caller.device_id
    with pytest.raises((DeviceRevoked, InvalidRefreshToken)):
        await turn(services, device, token(), token())


async def test_who_may_revoke_whom(services: Services):
    user = await services.user()
    other = await services.user("bob@example.org", "Bob")
    for device_id in (other.caller.device_id, "device:nonsense", ""):
        if device_id:
            with pytest.raises(NotFound):
                await services.devices.revoke_own(user.caller, device_id)
    assert await can_read(services, other)
    await services.devices.revoke_own(user.caller, None)
    assert not await can_read(services, user)
    with pytest.raises(DeviceRevoked):
        await services.devices.list_own(user.caller)


async def test_tokens_that_name_nobody(services: Services):
    user, other = await services.user(), await services.user("bob@example.org", "Bob")
    for caller in (
        DeviceCaller(user.caller.account_id, other.caller.device_id),
        DeviceCaller(user.caller.account_id, DeviceId("device:x")),
        DeviceCaller("dbid:x", user.caller.device_id),  # type: ignore[arg-type]
    ):
        with pytest.raises(Unauthenticated):
            await services.access.identify(caller)
    stranger = DeviceCaller(user.caller.account_id, format_device_id(user.root_ns, bytes(16)))
    with pytest.raises(DeviceRevoked):
        await services.access.identify(stranger)


@pytest.mark.parametrize("device_id", ["", "a\0", "device:x", "x" * 100_000])
async def test_what_is_no_device_of_the_account_is_not_revoked(services: Services, device_id: str):
    user = await services.user()
    with pytest.raises(NotFound):
        await services.devices.revoke_own(user.caller, device_id)
    (device,) = await services.devices.list_own(user.caller)
    assert device.revoked_at is None
