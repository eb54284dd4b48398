"""Whose account an identity of an outside issuer stands for: in the slot of issuer and subject."""

from dataclasses import dataclass
from typing import LiteralString

from sharding.pool import Connection
from wire.ids import AccountId, NsId

OWNER: LiteralString = (
    "SELECT account_id FROM ns.identities WHERE ns_id = %s AND issuer = %s AND subject = %s"
)
"""One identity's account; null: it was removed."""
IDENTITIES_OF: LiteralString = (
    "SELECT issuer, subject, since FROM ns.identities WHERE ns_id = %s AND account_id = %s"
)
"""The identities of an account that lie in one slot."""


@dataclass(frozen=True, slots=True)
class IdentityKey:
    """An identity and the system namespace that it lies in."""

    system_ns: NsId
    issuer: str
    subject: str


async def insert_identity(conn: Connection, key: IdentityKey, account_id: AccountId) -> None:
    """Link an identity that has no row; one that has keeps it, a removed one too."""
    await conn.execute(
        "INSERT INTO ns.identities (ns_id, issuer, subject, account_id) VALUES (%s, %s, %s, %s)"
        " ON CONFLICT DO NOTHING",
        [key.system_ns, key.issuer, key.subject, account_id],
    )


async def revive_identity(conn: Connection, key: IdentityKey, account_id: AccountId) -> None:
    """Link an identity that has been removed."""
    await conn.execute(
        "UPDATE ns.identities SET account_id = %s, since = now()"
        " WHERE ns_id = %s AND issuer = %s AND subject = %s AND account_id IS NULL",
        [account_id, key.system_ns, key.issuer, key.subject],
    )


async def find_identity(conn: Connection, key: IdentityKey) -> AccountId | None:
    """The account of an identity."""
    cursor = await conn.execute(OWNER, [key.system_ns, key.issuer, key.subject])
    row = await cursor.fetchone()
    return None if row is None or row[0] is None else AccountId(str(row[0]))


async def remove_identity(conn: Connection, key: IdentityKey, account_id: AccountId) -> bool:
    """Take an identity from an account; its row stays. False if it was not the account's."""
    cursor = await conn.execute(
        "UPDATE ns.identities SET account_id = NULL, since = now()"
        " WHERE ns_id = %s AND issuer = %s AND subject = %s AND account_id = %s",
        [key.system_ns, key.issuer, key.subject, account_id],
    )
    return cursor.rowcount == 1
