"""How much an account uses, and how much it may."""

from psycopg import sql

from metaserver.services.access import AccessService
from metaserver.storage import usage as rows
from metaserver.storage.accounts import AccountState, find_account
from sharding.tx import Transactions, Tx, TxKind
from wire.api import UNLIMITED_BYTES, AccountUsage
from wire.errors import BadRequest, NotFound
from wire.ids import AccountId, root_ns_of_account
from wire.internal import Caller


class UsageService:
    """Usage and quota. The quota itself is enforced by the rules of writing (metaserver/model/write.py)."""

    def __init__(self, transactions: Transactions, access: AccessService, quota_bytes: int | None = None):
        self._tx = transactions
        self._access = access
        self._quota_bytes = quota_bytes

    async def get_own(self, caller: Caller) -> AccountUsage:
        """What the caller's account uses; too high for a moment after a folder was deleted."""
        who = await self._access.identify(caller)
        return await self.get_usage(who.account_id)

    async def get_usage(self, account_id: AccountId) -> AccountUsage:
        """What an account uses.

        Raises:
            NotFound: no such account.
        """
        root_ns = root_ns_of_account(account_id)
        params = [self._quota_bytes, root_ns, account_id]
        found = await self._tx.run_read(root_ns, "get_usage", sql.SQL(rows.USAGE), params)
        if not found:
            raise NotFound("there is no such account")
        used, quota = found[0]
        return AccountUsage(used=used, allocation=None if quota == UNLIMITED_BYTES else quota)

    async def set_quota(self, account_id: AccountId, quota_bytes: int | None) -> None:
        """Give an account a quota of its own; None: the cluster's default. Holds from the next write on.

        Raises:
            NotFound: no such account.
            BadRequest: negative, or beyond what can be stored.
        """
        if quota_bytes is not None and not 0 <= quota_bytes <= UNLIMITED_BYTES:
            raise BadRequest(f"a quota is 0 to {UNLIMITED_BYTES} bytes")
        root_ns = root_ns_of_account(account_id)

        async def mark(tx: Tx) -> None:
            account = await find_account(tx.conn, root_ns)
            if account is None or account.state is AccountState.CANCELLED:
                raise NotFound("there is no such account")
            await rows.update_quota(tx.conn, root_ns, quota_bytes)

        await self._tx.run_tx([root_ns], "set_quota", mark, kind=TxKind.FENCE_ONLY)
