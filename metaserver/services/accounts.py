"""Creating accounts over two shards without a transaction over both.

    1 allocate   the root namespace's slot: take a count
    2 reserve    the address's slot: insert the address, unconfirmed
    3 insert     the root namespace's slot: account, namespace, member. This decides.
    4 confirm    the address's slot

Any step may be the last one that happens. Whoever meets a reservation older than ten minutes, or retries,
inserts a `cancelled` account under its id: if an account is there already the reservation is confirmed, else
the address is freed.
"""

import os
import unicodedata
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

from psycopg import sql

from metaserver.storage import accounts as rows
from metaserver.storage.accounts import ACCOUNT_OF_SLOT, Account, AccountState, to_account
from metaserver.storage.namespaces import insert_namespace
from sharding.tx import Transactions, Tx, TxKind
from wire import faults
from wire.errors import AlreadyExists, BadRequest, NotFound
from wire.ids import (
    ACCOUNT_RANDOM_BYTES,
    MAX_COUNT,
    AccountId,
    NsId,
    Slot,
    format_account_id,
    make_ns_id,
    root_ns_of_account,
    slot_of_hash,
    system_ns,
)

T = TypeVar("T")

MAX_EMAIL_CHARS = 320
MAX_DISPLAY_NAME_CHARS = 100
_PAGE_ACCOUNTS = 500

faults.declare(
    "metaserver.accounts.allocated",
    "metaserver.accounts.reserved",
    "metaserver.accounts.inserted",
    "metaserver.accounts.cancelled",
    "metaserver.accounts.confirmed",
)


def email_key(email: str) -> str:
    """What makes two addresses the same: trimmed, NFC, case-folded.

    Raises:
        BadRequest: not an address.
    """
    key = unicodedata.normalize("NFC", unicodedata.normalize("NFC", email.strip()).casefold())
    local, at, domain = key.rpartition("@")
    if not local or not at or not domain or len(key) > MAX_EMAIL_CHARS or not key.isprintable() or " " in key:
        raise BadRequest("not an e-mail address")
    return key


class AccountService:
    """Accounts, by operators' hands."""

    def __init__(self, transactions: Transactions):
        self._tx = transactions

    async def create_account(self, email: str, display_name: str) -> Account:
        """A new account with an empty root namespace.

        Raises:
            AlreadyExists: the address has an account, or is being given one.
            BadRequest: not an address, or a name that is empty or too long.
        """
        key = email_key(email)
        display_name = display_name.strip()
        if not 1 <= len(display_name) <= MAX_DISPLAY_NAME_CHARS or not display_name.isprintable():
            raise BadRequest(f"a display name has 1 to {MAX_DISPLAY_NAME_CHARS} printable characters")
        await self.resolve_reservation(email, is_retry=False)
        account_id = await self._allocate()
        faults.fault_point("metaserver.accounts.allocated")
        email_ns = self._system_ns(key.encode())

        async def reserve(tx: Tx) -> bool:
            return await rows.insert_reservation(tx.conn, email_ns, key, account_id)

        if not await self._run(email_ns, "reserve_email", reserve):
            raise AlreadyExists("the address has an account, or is being given one")
        faults.fault_point("metaserver.accounts.reserved")
        account = await self._decide(account_id, AccountState.ACTIVE, email.strip(), display_name)
        faults.fault_point("metaserver.accounts.inserted")
        if account.state is AccountState.CANCELLED:
            raise AlreadyExists("creating this account was given up by somebody else; try again")
        await self._confirm(email_ns, key, account_id)
        faults.fault_point("metaserver.accounts.confirmed")
        return account

    async def resolve_reservation(self, email: str, *, is_retry: bool) -> None:
        """Bring an unfinished creation to its end, whichever that is.

        Args:
            email: The address.
            is_retry: Whether the caller knows that nobody is at it any more; else only a reservation older
                than ten minutes is touched.
        """
        key = email_key(email)
        email_ns = self._system_ns(key.encode())

        async def look(tx: Tx) -> rows.EmailRow | None:
            return await rows.find_email(tx.conn, email_ns, key)

        found = await self._run(email_ns, "find_email", look)
        if found is None or found.is_confirmed or not (is_retry or found.is_stale):
            return
        account = await self._decide(found.account_id, AccountState.CANCELLED, email.strip(), "")
        faults.fault_point("metaserver.accounts.cancelled")
        if account.state is not AccountState.CANCELLED:
            await self._confirm(email_ns, key, found.account_id)
            return

        async def free(tx: Tx) -> None:
            await rows.delete_reservation(tx.conn, email_ns, key, found.account_id)

        await self._run(email_ns, "free_email", free)

    async def find_by_email(self, email: str) -> Account | None:
        """The account of an address; None if it has none."""
        key = email_key(email)
        email_ns = self._system_ns(key.encode())

        async def look(tx: Tx) -> rows.EmailRow | None:
            return await rows.find_email(tx.conn, email_ns, key)

        found = await self._run(email_ns, "find_email", look)
        return None if found is None else await self.find_account(found.account_id)

    async def find_account(self, account_id: AccountId) -> Account | None:
        """An account; None if there is none, or it was cancelled."""
        root_ns = root_ns_of_account(account_id)
        async for account in self._iter_range(root_ns, root_ns):
            if account.account_id == account_id:
                return account
        return None

    async def set_disabled(self, account_id: AccountId, *, is_disabled: bool) -> None:
        """Disable an account, or enable it again; holds everywhere within 10 s.

        Raises:
            NotFound: no such account.
        """
        root_ns = root_ns_of_account(account_id)

        async def mark(tx: Tx) -> None:
            account = await rows.find_account(tx.conn, root_ns)
            if account is None or account.state is AccountState.CANCELLED:
                raise NotFound("there is no such account")
            state = AccountState.DISABLED if is_disabled else AccountState.ACTIVE
            await rows.update_account_state(tx.conn, root_ns, state)

        await self._run(root_ns, "set_disabled", mark)

    async def iter_accounts(self) -> AsyncIterator[Account]:
        """All accounts, slot by slot."""
        for slot in range(self._tx.router.map.slot_count):
            first, last = system_ns(Slot(slot)), make_ns_id(Slot(slot), MAX_COUNT)
            async for account in self._iter_range(first, last):
                yield account

    async def _iter_range(self, first: NsId, last: NsId) -> AsyncIterator[Account]:
        after = NsId(first - 1)
        while True:
            params = [first, last, after, _PAGE_ACCOUNTS]
            page = await self._tx.run_read(first, "list_accounts", sql.SQL(ACCOUNT_OF_SLOT), params)
            accounts = sorted(map(to_account, page), key=lambda account: account.root_ns)
            for account in accounts:
                yield account
            if len(accounts) < _PAGE_ACCOUNTS:
                return
            after = accounts[-1].root_ns

    async def _allocate(self) -> AccountId:
        """A new account id; the count that it takes is never given again."""
        random = os.urandom(ACCOUNT_RANDOM_BYTES)
        slot_ns = self._system_ns(random)

        async def take(tx: Tx) -> int:
            return await rows.take_count(tx.conn, slot_ns)

        count = await self._run(slot_ns, "take_count", take)
        return format_account_id(NsId(slot_ns + count), random)

    async def _decide(
        self, account_id: AccountId, state: AccountState, email: str, display_name: str
    ) -> Account:
        """Insert the account, or find the one that was there first: the insert decides."""
        root_ns = root_ns_of_account(account_id)

        async def insert(tx: Tx) -> Account:
            account = await rows.insert_account(tx.conn, root_ns, account_id, state, email, display_name)
            if account.state is not AccountState.CANCELLED:
                await insert_namespace(tx.conn, root_ns, account_id)
            return account

        return await self._tx.run_tx([root_ns], "insert_account", insert)

    async def _confirm(self, email_ns: NsId, key: str, account_id: AccountId) -> None:
        async def confirm(tx: Tx) -> None:
            await rows.confirm_email(tx.conn, email_ns, key, account_id)

        await self._run(email_ns, "confirm_email", confirm)

    async def _run(self, ns_id: NsId, name: str, fn: Callable[[Tx], Awaitable[T]]) -> T:
        return await self._tx.run_tx([ns_id], name, fn, kind=TxKind.FENCE_ONLY)

    def _system_ns(self, key: bytes) -> NsId:
        return system_ns(slot_of_hash(key, self._tx.router.map.slot_count))
