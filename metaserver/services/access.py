"""The one place that decides who may do what."""

import time
from dataclasses import dataclass

from psycopg import sql

from metaserver.model.rows import Level
from metaserver.services.identities import IdentityService
from metaserver.storage.accounts import STANDING, AccountState, standing_params
from runtime.owners import Owners
from sharding.tx import Transactions
from wire.errors import DeviceRevoked, Forbidden, IdentityNotLinked, MalformedId, NotFound, Unauthenticated
from wire.ids import AccountId, DeviceId, NsId, root_ns_of_account, root_ns_of_device
from wire.internal import Caller, IdentityCaller

STANDING_TTL_S = 4.0
"""How long an account's and device's standing is believed. A revocation must hold everywhere within 10 s;
the rest is for a read that is itself slow."""
_MAX_REMEMBERED = 100_000


@dataclass(frozen=True, slots=True)
class Who:
    """Who acts: an account in good standing.

    `device_id` is None for a caller whom an outside issuer vouches for.
    """

    account_id: AccountId
    device_id: DeviceId | None
    root_ns: NsId
    display_name: str


class AccessService:
    """Standing of accounts and devices, and rights in namespaces."""

    def __init__(self, transactions: Transactions, identities: IdentityService, owners: Owners | None = None):
        """`owners` is told whose account a caller is found to have."""
        self._tx = transactions
        self._identities = identities
        self._owners = owners or Owners()
        self._remembered: dict[Caller, tuple[float, Who]] = {}

    async def identify(self, caller: Caller) -> Who:
        """The holder of a verified token, if the account is enabled and the device or identity linked.

        Raises:
            DeviceRevoked: the device was unlinked, or the account disabled.
            IdentityNotLinked: the identity stands for no account.
            Unauthenticated: the token names nobody.
        """
        known = self._remembered.get(caller)
        if known is not None and known[0] > time.monotonic():
            return known[1]
        self._remembered.pop(caller, None)
        # The clock starts before the read: what is read then is at most this old.
        expires = time.monotonic() + STANDING_TTL_S
        who = await self._read_standing(caller)
        self._owners.learn(caller, who.account_id)
        if len(self._remembered) >= _MAX_REMEMBERED:
            self._remembered.clear()
        self._remembered[caller] = (expires, who)
        return who

    def forget(self, caller: Caller) -> None:
        """Look again next time: this process has just changed the caller's standing."""
        self._remembered.pop(caller, None)

    async def _read_standing(self, caller: Caller) -> Who:
        account_id, device_id = await self._resolve(caller)
        root_ns = root_ns_of_account(account_id)
        params = standing_params(device_id, root_ns, account_id)
        try:
            rows = await self._tx.run_read(root_ns, "read_standing", sql.SQL(STANDING), params)
        except NotFound as error:
            raise Unauthenticated("the token names nobody") from error
        if not rows:
            raise Unauthenticated("the token names nobody")
        state, display_name, is_revoked, is_linked = rows[0]
        is_device_out = device_id is not None and (is_revoked or not is_linked)
        if state != AccountState.ACTIVE or is_device_out:
            raise DeviceRevoked()
        return Who(account_id, device_id, root_ns, display_name)

    async def _resolve(self, caller: Caller) -> tuple[AccountId, DeviceId | None]:
        """Whose token it is. The one place that maps an identity to an account."""
        if isinstance(caller, IdentityCaller):
            account_id = await self._identities.find_account_id(caller)
            if account_id is None:
                self._owners.forget(caller)
                raise IdentityNotLinked()
            return account_id, None
        try:
            if root_ns_of_device(caller.device_id) != root_ns_of_account(caller.account_id):
                raise Unauthenticated("the token's device is not its account's")
        except MalformedId as error:
            raise Unauthenticated("the token names nobody") from error
        return caller.account_id, caller.device_id


def require_read(level: Level | None) -> None:
    """Any member reads.

    Raises:
        NotFound: a stranger does not learn whether the namespace exists.
    """
    if level is None:
        raise NotFound()


def require_write(level: Level | None) -> None:
    """Owners and editors write.

    Raises:
        NotFound: a stranger.
        Forbidden: a viewer.
    """
    require_read(level)
    if level is not None and not level.can_write:
        raise Forbidden("you may read here, not write")
