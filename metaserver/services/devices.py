"""Linking devices, renewing their access, revoking them."""

import os
import secrets
from datetime import datetime
from hashlib import sha256

from psycopg import sql

from metaserver.services.access import AccessService
from metaserver.storage import devices as rows
from metaserver.storage.accounts import Account, AccountState, find_account
from runtime.tokens import ACCESS_TOKEN_S, TokenIssuer
from sharding.tx import Transactions, Tx, TxKind
from wire import faults
from wire.api import (
    AccessGranted,
    CurrentDevice,
    Device,
    LinkDevice,
    LinkedDevice,
    LinkIdentity,
    RefreshAccess,
)
from wire.errors import (
    BadRequest,
    DeviceRevoked,
    Forbidden,
    InvalidLinkCode,
    InvalidRefreshToken,
    MalformedId,
    NotFound,
    ShardboxError,
    TooManyEntries,
)
from wire.ids import (
    DEVICE_RANDOM_BYTES,
    AccountId,
    DeviceId,
    NsId,
    format_device_id,
    format_ns_id,
    parse_ns_id,
    root_ns_of_account,
    root_ns_of_device,
)
from wire.internal import Caller, DeviceCaller

CODE_LIFE_S = 900
"""A quarter of an hour: long enough to carry a code to another machine, short enough to be forgotten."""
_CODE_BYTES = 16
MAX_DEVICES = 1_000
"""Linked ones of an account. People have some; whoever holds an outside token could link without end."""

faults.declare("metaserver.devices.code_used", "metaserver.devices.linked", "metaserver.devices.refreshed")


class DeviceService:
    """Devices and their tokens."""

    def __init__(self, transactions: Transactions, access: AccessService, issuer: TokenIssuer | None):
        self._tx = transactions
        self._access = access
        self._issuer = issuer

    async def make_code(self, account_id: AccountId) -> str:
        """A one-time code for linking one device to an account; it carries the root namespace.

        Raises:
            NotFound: no such account.
        """
        root_ns = root_ns_of_account(account_id)
        code = f"{format_ns_id(root_ns)}-{secrets.token_hex(_CODE_BYTES)}"

        async def insert(tx: Tx) -> None:
            _require_account(await find_account(tx.conn, root_ns), account_id)
            await rows.insert_code(tx.conn, root_ns, _digest(code), CODE_LIFE_S)

        await self._tx.run_tx([root_ns], "make_code", insert, kind=TxKind.FENCE_ONLY)
        return code

    async def link(self, request: LinkDevice) -> LinkedDevice:
        """Use a code up and insert its device, in one transaction; a repeat of the request gets that device.

        Raises:
            InvalidLinkCode: unknown, expired, or used by another request.
            DeviceRevoked: the device that the request made has been unlinked.
            TooManyEntries: the account has as many devices as it may.
        """
        try:
            root_ns = parse_ns_id(request.code.partition("-")[0])
            self._tx.router.placement(root_ns)
        except (MalformedId, NotFound) as error:
            raise InvalidLinkCode() from error
        code_hash = _digest(request.code)
        request_hash = _digest(f"{request.request_id} {request.refresh_token}")

        async def use(tx: Tx) -> tuple[Account, DeviceId]:
            code = await rows.find_code(tx.conn, root_ns, code_hash)
            account = await find_account(tx.conn, root_ns)
            if code is None or account is None or account.state is not AccountState.ACTIVE:
                raise InvalidLinkCode()
            if code.device_id is not None:
                if code.request_hash != request_hash:
                    raise InvalidLinkCode("the code has been used")
                device = await rows.find_device(tx.conn, root_ns, code.device_id)
                if device is None or device.revoked_at is not None:
                    raise DeviceRevoked()
                return account, code.device_id
            if code.is_expired:
                raise InvalidLinkCode("the code has expired")
            device_id = format_device_id(root_ns, os.urandom(DEVICE_RANDOM_BYTES))
            _require_room(await rows.count_devices(tx.conn, root_ns))
            await rows.use_code(tx.conn, root_ns, code_hash, request_hash, device_id)
            faults.fault_point("metaserver.devices.code_used")
            await _insert_device(tx, root_ns, device_id, request.device_name, request.refresh_token)
            return account, device_id

        account, device_id = await self._tx.run_tx([root_ns], "link_device", use, kind=TxKind.FENCE_ONLY)
        faults.fault_point("metaserver.devices.linked")
        return self._present_linked(account, device_id)

    async def link_identity(self, caller: Caller, request: LinkIdentity) -> LinkedDevice:
        """A device for the holder of an outside issuer's token; a repeat of the request gets that device.

        The request itself names the device, so nothing has to be kept for the repeat.

        Raises:
            Forbidden: the token is a device's, which may not make others: an hour's token would become a
                lasting one.
            IdentityNotLinked: the identity stands for no account.
            DeviceRevoked: the account is disabled, or the device that the request made has been unlinked.
            TooManyEntries: the account has as many devices as it may.
        """
        if isinstance(caller, DeviceCaller):
            raise Forbidden("a device's token links no other devices")
        who = await self._access.identify(caller)
        drawn = _digest(f"{request.request_id} {request.refresh_token}")[:DEVICE_RANDOM_BYTES]
        device_id = format_device_id(who.root_ns, drawn)

        async def insert(tx: Tx) -> Account:
            device_count = await rows.count_devices(tx.conn, who.root_ns)
            account = await find_account(tx.conn, who.root_ns)
            found = await rows.find_device(tx.conn, who.root_ns, device_id)
            is_out = found is not None and found.revoked_at is not None
            if account is None or account.state is not AccountState.ACTIVE or is_out:
                raise DeviceRevoked()
            if found is None:
                _require_room(device_count)
                await _insert_device(tx, who.root_ns, device_id, request.device_name, request.refresh_token)
            return account

        account = await self._tx.run_tx([who.root_ns], "link_identity", insert, kind=TxKind.FENCE_ONLY)
        faults.fault_point("metaserver.devices.linked")
        return self._present_linked(account, device_id)

    async def refresh(self, request: RefreshAccess) -> AccessGranted:
        """A new access token, and a promise to take `next_refresh_token` from now on.

        The old token stays good until the next one is used; its use after that revokes the device, as then
        two parties hold the device's tokens. So does the use of a next token that another one has displaced.

        Raises:
            InvalidRefreshToken: not one of the device's, or used up.
            DeviceRevoked: the device or its account is out.
        """
        try:
            root_ns = root_ns_of_device(request.device_id)
            self._tx.router.placement(root_ns)
        except (MalformedId, NotFound) as error:
            raise InvalidRefreshToken() from error
        device_id = DeviceId(request.device_id)
        old, following = _digest(request.refresh_token), _digest(request.next_refresh_token)
        if old == following:
            raise InvalidRefreshToken("the next refresh token is a new one")

        async def turn(tx: Tx) -> Account | ShardboxError:
            device = await rows.find_device(tx.conn, root_ns, device_id)
            account = await find_account(tx.conn, root_ns)
            if device is None or account is None:
                return InvalidRefreshToken()
            state = await rows.find_token_state(tx.conn, root_ns, old, device_id)
            if state is None:
                return InvalidRefreshToken()
            if device.revoked_at is not None or account.state is not AccountState.ACTIVE:
                return DeviceRevoked()
            if state == rows.USED:
                await rows.revoke_device(tx.conn, root_ns, device_id)
                return InvalidRefreshToken("a refresh token was used twice; the device has been revoked")
            following_state = await rows.find_token_state(tx.conn, root_ns, following, device_id)
            if following_state not in (None, rows.NEXT) or (state == rows.NEXT and following_state):
                return InvalidRefreshToken("the next refresh token is a new one")
            if state == rows.NEXT:
                await rows.promote_next(tx.conn, root_ns, device_id)
            await rows.replace_next(tx.conn, root_ns, following, device_id)
            return account

        # A refusal is returned, not raised: revoking must be committed.
        outcome = await self._tx.run_tx([root_ns], "refresh_access", turn, kind=TxKind.FENCE_ONLY)
        if isinstance(outcome, ShardboxError):
            raise outcome
        faults.fault_point("metaserver.devices.refreshed")
        return AccessGranted(self._issue(DeviceCaller(outcome.account_id, device_id)), ACCESS_TOKEN_S)

    async def list_devices(self, account_id: AccountId) -> list[Device]:
        """The devices of an account, the oldest first."""
        root_ns = root_ns_of_account(account_id)
        found = await self._tx.run_read(root_ns, "list_devices", sql.SQL(rows.DEVICES), [root_ns])
        return [
            Device(
                device_id=row[0],
                name=row[1],
                created_at=_format(row[2]),
                revoked_at=_format(row[3]) if row[3] else None,
            )
            for row in sorted(found, key=lambda row: (row[2], row[0]))
        ]

    async def revoke(self, account_id: AccountId, device_id: str) -> None:
        """Unlink a device; holds everywhere within 10 s.

        Raises:
            NotFound: the account has no such device.
        """
        root_ns = root_ns_of_account(account_id)
        try:
            is_own = root_ns_of_device(device_id) == root_ns
        except MalformedId:
            is_own = False
        if not is_own:
            raise NotFound("the account has no such device")
        named = DeviceId(device_id)

        async def mark(tx: Tx) -> None:
            if await rows.find_device(tx.conn, root_ns, named) is None:
                raise NotFound("the account has no such device")
            await rows.revoke_device(tx.conn, root_ns, named)

        await self._tx.run_tx([root_ns], "revoke_device", mark, kind=TxKind.FENCE_ONLY)
        self._access.forget(DeviceCaller(account_id, named))

    async def revoke_own(self, caller: Caller, device_id: str | None) -> None:
        """A device unlinks itself or another one of its account.

        Raises:
            BadRequest: the caller is no device, and names none.
            NotFound: the account has no such device.
        """
        who = await self._access.identify(caller)
        unlinked = who.device_id if device_id is None else device_id
        if unlinked is None:
            raise BadRequest("name the device: the token is not one of a device")
        await self.revoke(who.account_id, unlinked)

    async def list_own(self, caller: Caller) -> list[Device]:
        """The devices of the caller's account."""
        who = await self._access.identify(caller)
        return await self.list_devices(who.account_id)

    def _present_linked(self, account: Account, device_id: DeviceId) -> LinkedDevice:
        return LinkedDevice(
            device_id=device_id,
            account_id=account.account_id,
            email=account.email,
            display_name=account.display_name,
            root_ns=format_ns_id(account.root_ns),
            access_token=self._issue(DeviceCaller(account.account_id, device_id)),
            expires_in=ACCESS_TOKEN_S,
        )

    async def describe_own(self, caller: Caller) -> CurrentDevice:
        """The caller's account and device."""
        who = await self._access.identify(caller)
        return CurrentDevice(
            account_id=who.account_id,
            device_id=who.device_id,
            display_name=who.display_name,
            root_ns=format_ns_id(who.root_ns),
        )

    def _issue(self, caller: DeviceCaller) -> str:
        assert self._issuer is not None, "this process has no token keys"
        return self._issuer.issue(caller)


async def _insert_device(tx: Tx, root_ns: NsId, device_id: DeviceId, name: str, refresh_token: str) -> None:
    await rows.insert_device(tx.conn, root_ns, device_id, name)
    await rows.insert_token(tx.conn, root_ns, _digest(refresh_token), device_id, rows.CURRENT)


def _require_room(device_count: int) -> None:
    if device_count >= MAX_DEVICES:
        raise TooManyEntries(f"an account has at most {MAX_DEVICES} devices; unlink some")


def _require_account(account: Account | None, account_id: AccountId) -> None:
    if account is None or account.account_id != account_id or account.state is AccountState.CANCELLED:
        raise NotFound("there is no such account")


def _digest(text: str) -> bytes:
    """What is stored of a secret; with 128 random bits or more a plain digest will do."""
    return sha256(text.encode()).digest()


def _format(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
