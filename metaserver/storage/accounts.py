"""Accounts, e-mail addresses and slot counters."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import LiteralString

from sharding.pool import Connection
from wire.ids import AccountId, DeviceId, NsId


class AccountState(StrEnum):
    """One byte in `ns.accounts`."""

    ACTIVE = "a"
    DISABLED = "d"
    CANCELLED = "c"


@dataclass(frozen=True, slots=True)
class Account:
    """A person's account, keyed by its root namespace; `quota_bytes` is None for the cluster's default."""

    root_ns: NsId
    account_id: AccountId
    state: AccountState
    email: str
    display_name: str
    created_at: datetime
    quota_bytes: int | None
    used_bytes: int


@dataclass(frozen=True, slots=True)
class EmailRow:
    """Whose an address is, or is about to be. `is_stale`: reserved more than ten minutes ago."""

    account_id: AccountId
    is_confirmed: bool
    is_stale: bool


RESERVATION_S = 600
"""After this an unconfirmed reservation is anybody's to resolve: creating an account takes milliseconds."""

_ACCOUNT_COLUMNS: LiteralString = (
    "ns_id, account_id, state, email, display_name, created_at, quota_bytes,"
    " coalesce((SELECT n.live_bytes FROM ns.namespaces n WHERE n.ns_id = accounts.ns_id), 0)"
)


async def take_count(conn: Connection, system_ns: NsId) -> int:
    """The next free count of a slot, from 1."""
    cursor = await conn.execute(
        "INSERT INTO ns.slot_counters (ns_id, next_count) VALUES (%s, 2)"
        " ON CONFLICT (ns_id) DO UPDATE SET next_count = slot_counters.next_count + 1"
        " RETURNING next_count - 1",
        [system_ns],
    )
    row = await cursor.fetchone()
    assert row is not None
    return int(row[0])


async def find_email(conn: Connection, system_ns: NsId, email_key: str) -> EmailRow | None:
    """An address's row, locked."""
    cursor = await conn.execute(
        "SELECT account_id, is_confirmed, since < now() - make_interval(secs => %s) FROM ns.emails"
        " WHERE ns_id = %s AND email_key = %s FOR UPDATE",
        [RESERVATION_S, system_ns, email_key],
    )
    row = await cursor.fetchone()
    return None if row is None else EmailRow(row[0], row[1], row[2])


async def insert_reservation(
    conn: Connection, system_ns: NsId, email_key: str, account_id: AccountId
) -> bool:
    """Reserve an address; False if it has a row."""
    cursor = await conn.execute(
        "INSERT INTO ns.emails (ns_id, email_key, account_id, is_confirmed) VALUES (%s, %s, %s, false)"
        " ON CONFLICT DO NOTHING",
        [system_ns, email_key, account_id],
    )
    return cursor.rowcount == 1


async def confirm_email(conn: Connection, system_ns: NsId, email_key: str, account_id: AccountId) -> bool:
    """Confirm a reservation; False if the address is not this account's."""
    cursor = await conn.execute(
        "UPDATE ns.emails SET is_confirmed = true WHERE ns_id = %s AND email_key = %s AND account_id = %s",
        [system_ns, email_key, account_id],
    )
    return cursor.rowcount == 1


async def delete_reservation(
    conn: Connection, system_ns: NsId, email_key: str, account_id: AccountId
) -> None:
    """Free an address, if it is still this account's unconfirmed reservation."""
    await conn.execute(
        "DELETE FROM ns.emails WHERE ns_id = %s AND email_key = %s AND account_id = %s AND NOT is_confirmed",
        [system_ns, email_key, account_id],
    )


async def insert_account(
    conn: Connection,
    root_ns: NsId,
    account_id: AccountId,
    state: AccountState,
    email: str,
    display_name: str,
) -> Account:
    """The account as it stands: the one given, or the one that was there first."""
    await conn.execute(
        "INSERT INTO ns.accounts (ns_id, account_id, state, email, display_name)"
        " VALUES (%s, %s, %s, %s, %s) ON CONFLICT DO NOTHING",
        [root_ns, account_id, state.value, email, display_name],
    )
    account = await find_account(conn, root_ns)
    assert account is not None
    return account


async def find_account(conn: Connection, root_ns: NsId) -> Account | None:
    """The account of a root namespace, cancelled ones too."""
    cursor = await conn.execute(f"SELECT {_ACCOUNT_COLUMNS} FROM ns.accounts WHERE ns_id = %s", [root_ns])
    row = await cursor.fetchone()
    return None if row is None else _to_account(row)


async def update_account_state(conn: Connection, root_ns: NsId, state: AccountState) -> None:
    """Enable or disable an account."""
    await conn.execute("UPDATE ns.accounts SET state = %s WHERE ns_id = %s", [state.value, root_ns])


def _to_account(row: tuple[object, ...]) -> Account:
    root_ns, account_id, state, email, display_name, created_at, quota_bytes, used_bytes = row
    assert isinstance(root_ns, int)
    assert quota_bytes is None or isinstance(quota_bytes, int)
    assert isinstance(used_bytes, int)
    assert isinstance(created_at, datetime)
    return Account(
        NsId(root_ns),
        AccountId(str(account_id)),
        AccountState(str(state)),
        str(email),
        str(display_name),
        created_at,
        quota_bytes,
        used_bytes,
    )


ACCOUNT_OF_SLOT: LiteralString = (
    f"SELECT {_ACCOUNT_COLUMNS} FROM ns.accounts WHERE ns_id BETWEEN %s AND %s AND state <> 'c'"
    " AND ns_id > %s ORDER BY ns_id LIMIT %s"
)
"""A page of a slot's accounts: first and last ns_id of the slot, the one to read on after, how many."""


def to_account(row: tuple[object, ...]) -> Account:
    """An account from the columns of ACCOUNT_OF_SLOT."""
    return _to_account(row)


STANDING: LiteralString = (
    "SELECT a.state, a.display_name, d.revoked_at IS NOT NULL, d.device_id IS NOT NULL"
    " FROM ns.accounts a LEFT JOIN ns.devices d ON d.ns_id = a.ns_id AND d.device_id = %s"
    " WHERE a.ns_id = %s AND a.account_id = %s"
)
"""What the access service asks of an account and a device."""


def standing_params(device_id: DeviceId | None, root_ns: NsId, account_id: AccountId) -> list[object]:
    """The parameters of STANDING."""
    return [device_id, root_ns, account_id]
