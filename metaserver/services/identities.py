"""Identities of outside issuers, and whose accounts they are."""

import asyncio
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from psycopg import sql

from metaserver.services.accounts import AccountService
from metaserver.storage import identities as rows
from metaserver.storage.accounts import AccountState
from metaserver.storage.identities import IdentityKey
from sharding.tx import Transactions, Tx, TxKind
from wire.errors import AlreadyExists, BadRequest, NotFound
from wire.ids import AccountId, Slot, slot_of_hash, system_ns
from wire.internal import MAX_ISSUER_CHARS, MAX_SUBJECT_CHARS, IdentityCaller

_SLOTS_AT_ONCE = 8
"""How many slots are asked at once for an account's identities: half of an operator's connections."""


@dataclass(frozen=True, slots=True)
class Identity:
    """One identity of an account."""

    issuer: str
    subject: str
    since: datetime


class IdentityService:
    """Which identity stands for which account."""

    def __init__(self, transactions: Transactions, linking_issuers: Collection[str] = ()):
        """`linking_issuers`: those whose verified e-mail addresses are believed."""
        self._tx = transactions
        self._accounts = AccountService(transactions)
        self._linking_issuers = frozenset(linking_issuers)

    async def add(self, account_id: AccountId, issuer: str, subject: str) -> None:
        """Let an identity stand for an account; a repeat changes nothing.

        Raises:
            AlreadyExists: it stands for another account.
            NotFound: there is no such account.
            BadRequest: not an issuer and a subject.
        """
        if await self._accounts.find_account(account_id) is None:
            raise NotFound("there is no such account")
        key = self._key(issuer, subject)

        async def link(tx: Tx) -> AccountId | None:
            await rows.insert_identity(tx.conn, key, account_id)
            await rows.revive_identity(tx.conn, key, account_id)
            return await rows.find_identity(tx.conn, key)

        if await self._tx.run_tx([key.system_ns], "add_identity", link, kind=TxKind.FENCE_ONLY) != account_id:
            raise AlreadyExists("the identity stands for another account")

    async def remove(self, account_id: AccountId, issuer: str, subject: str) -> None:
        """Take an identity from an account; holds everywhere within 10 s.

        Raises:
            NotFound: it is not the account's.
        """
        key = self._key(issuer, subject)

        async def unlink(tx: Tx) -> bool:
            return await rows.remove_identity(tx.conn, key, account_id)

        if not await self._tx.run_tx([key.system_ns], "remove_identity", unlink, kind=TxKind.FENCE_ONLY):
            raise NotFound("the account has no such identity")

    async def list_identities(self, account_id: AccountId) -> list[Identity]:
        """The identities of an account, the oldest first. All slots are asked: for operators."""
        limit = asyncio.Semaphore(_SLOTS_AT_ONCE)

        async def of_slot(slot: Slot) -> list[Identity]:
            async with limit:
                params = [system_ns(slot), account_id]
                found = await self._tx.run_read(
                    system_ns(slot), "list_identities", sql.SQL(rows.IDENTITIES_OF), params
                )
            return [Identity(row[0], row[1], row[2]) for row in found]

        slots = map(Slot, range(self._tx.router.map.slot_count))
        found = await asyncio.gather(*map(of_slot, slots))
        return sorted((i for part in found for i in part), key=lambda i: (i.since, i.issuer, i.subject))

    async def find_account_id(self, caller: IdentityCaller) -> AccountId | None:
        """The account that the holder of a verified token stands for.

        At the first sign-in that is the account of the token's e-mail address, if its issuer is believed in
        that. An identity that an operator has removed is not linked again.
        """
        key = self._key(caller.issuer, caller.subject)
        params = [key.system_ns, key.issuer, key.subject]
        found = await self._tx.run_read(key.system_ns, "find_identity", sql.SQL(rows.OWNER), params)
        if found:
            return None if found[0][0] is None else AccountId(str(found[0][0]))
        if caller.email is None or caller.issuer not in self._linking_issuers:
            return None
        return await self._link_by_email(key, caller.email)

    async def _link_by_email(self, key: IdentityKey, email: str) -> AccountId | None:
        try:
            account = await self._accounts.find_by_email(email)
        except BadRequest:
            return None
        if account is None or account.state is not AccountState.ACTIVE:
            return None

        async def link(tx: Tx) -> AccountId | None:
            await rows.insert_identity(tx.conn, key, account.account_id)
            return await rows.find_identity(tx.conn, key)

        return await self._tx.run_tx([key.system_ns], "link_identity", link, kind=TxKind.FENCE_ONLY)

    def _key(self, issuer: str, subject: str) -> IdentityKey:
        if not _is_plain(issuer, MAX_ISSUER_CHARS) or not _is_plain(subject, MAX_SUBJECT_CHARS):
            raise BadRequest("issuer and subject are printable ASCII, of 1 to 255 characters")
        key = f"{issuer}\0{subject}".encode()
        return IdentityKey(system_ns(slot_of_hash(key, self._tx.router.map.slot_count)), issuer, subject)


def _is_plain(text: str, limit: int) -> bool:
    return 1 <= len(text) <= limit and text.isascii() and text.isprintable()
