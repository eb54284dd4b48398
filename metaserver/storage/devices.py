"""Link codes, devices and refresh tokens: all in the account's root namespace."""

from dataclasses import dataclass
from datetime import datetime
from typing import LiteralString

import psycopg

from sharding.pool import Connection
from wire.errors import InvalidRefreshToken
from wire.ids import DeviceId, NsId

CURRENT, NEXT, USED = "c", "n", "u"


@dataclass(frozen=True, slots=True)
class LinkCode:
    """A code, its row locked; `request_hash` and `device_id` tell who used it up."""

    is_expired: bool
    request_hash: bytes | None
    device_id: DeviceId | None


@dataclass(frozen=True, slots=True)
class DeviceRow:
    """A linked device."""

    device_id: DeviceId
    name: str
    created_at: datetime
    revoked_at: datetime | None


async def insert_code(conn: Connection, root_ns: NsId, code_hash: bytes, life_s: int) -> None:
    """A new one-time code."""
    await conn.execute(
        "INSERT INTO ns.link_codes (ns_id, code_hash, expires_at)"
        " VALUES (%s, %s, now() + make_interval(secs => %s))",
        [root_ns, code_hash, life_s],
    )


async def find_code(conn: Connection, root_ns: NsId, code_hash: bytes) -> LinkCode | None:
    """A code, locked."""
    cursor = await conn.execute(
        "SELECT expires_at < now(), request_hash, device_id FROM ns.link_codes"
        " WHERE ns_id = %s AND code_hash = %s FOR UPDATE",
        [root_ns, code_hash],
    )
    row = await cursor.fetchone()
    return None if row is None else LinkCode(row[0], row[1], row[2])


async def use_code(
    conn: Connection, root_ns: NsId, code_hash: bytes, request_hash: bytes, device_id: DeviceId
) -> None:
    """Use a code up."""
    await conn.execute(
        "UPDATE ns.link_codes SET request_hash = %s, device_id = %s WHERE ns_id = %s AND code_hash = %s",
        [request_hash, device_id, root_ns, code_hash],
    )


async def count_devices(conn: Connection, root_ns: NsId) -> int:
    """How many devices of an account are linked, with the account locked against further ones."""
    await conn.execute("SELECT 1 FROM ns.accounts WHERE ns_id = %s FOR UPDATE", [root_ns])
    cursor = await conn.execute(
        "SELECT count(*) FROM ns.devices WHERE ns_id = %s AND revoked_at IS NULL", [root_ns]
    )
    row = await cursor.fetchone()
    assert row is not None
    return int(row[0])


async def insert_device(conn: Connection, root_ns: NsId, device_id: DeviceId, name: str) -> None:
    """A new device."""
    await conn.execute(
        "INSERT INTO ns.devices (ns_id, device_id, name) VALUES (%s, %s, %s)", [root_ns, device_id, name]
    )


async def find_device(conn: Connection, root_ns: NsId, device_id: DeviceId) -> DeviceRow | None:
    """A device, locked."""
    cursor = await conn.execute(
        "SELECT device_id, name, created_at, revoked_at FROM ns.devices"
        " WHERE ns_id = %s AND device_id = %s FOR UPDATE",
        [root_ns, device_id],
    )
    row = await cursor.fetchone()
    return None if row is None else DeviceRow(row[0], row[1], row[2], row[3])


async def revoke_device(conn: Connection, root_ns: NsId, device_id: DeviceId) -> None:
    """Mark a device revoked; the first time stays."""
    await conn.execute(
        "UPDATE ns.devices SET revoked_at = coalesce(revoked_at, now()) WHERE ns_id = %s AND device_id = %s",
        [root_ns, device_id],
    )


async def insert_token(
    conn: Connection, root_ns: NsId, token_hash: bytes, device_id: DeviceId, state: str
) -> None:
    """Remember a refresh token.

    Raises:
        InvalidRefreshToken: it is one already, perhaps another device's.
    """
    try:
        await conn.execute(
            "INSERT INTO ns.refresh_tokens (ns_id, token_hash, device_id, state) VALUES (%s, %s, %s, %s)",
            [root_ns, token_hash, device_id, state],
        )
    except psycopg.errors.UniqueViolation as error:
        raise InvalidRefreshToken("the refresh token is not a new one") from error


async def find_token_state(
    conn: Connection, root_ns: NsId, token_hash: bytes, device_id: DeviceId
) -> str | None:
    """Whether a device's token is current, next or used up; None if it is not one of its tokens."""
    cursor = await conn.execute(
        "SELECT state FROM ns.refresh_tokens WHERE ns_id = %s AND token_hash = %s AND device_id = %s",
        [root_ns, token_hash, device_id],
    )
    row = await cursor.fetchone()
    return None if row is None else str(row[0])


async def promote_next(conn: Connection, root_ns: NsId, device_id: DeviceId) -> None:
    """The next token has been used: it is the current one now, and the old one used up."""
    await conn.execute(
        "UPDATE ns.refresh_tokens SET since = now(),"
        " state = CASE state WHEN 'n' THEN 'c' ELSE 'u' END::\"char\""
        " WHERE ns_id = %s AND device_id = %s AND state IN ('c', 'n')",
        [root_ns, device_id],
    )


async def replace_next(conn: Connection, root_ns: NsId, token_hash: bytes, device_id: DeviceId) -> None:
    """Remember what the client will send next; what had been announced before counts as used up.

    A client announces one token until it is taken: the displaced one may be the owner's, and this one stolen.
    """
    await conn.execute(
        "UPDATE ns.refresh_tokens SET state = 'u', since = now()"
        " WHERE ns_id = %s AND device_id = %s AND state = 'n' AND token_hash <> %s",
        [root_ns, device_id, token_hash],
    )
    await conn.execute(
        "INSERT INTO ns.refresh_tokens (ns_id, token_hash, device_id, state) VALUES (%s, %s, %s, 'n')"
        " ON CONFLICT DO NOTHING",
        [root_ns, token_hash, device_id],
    )


DEVICES: LiteralString = "SELECT device_id, name, created_at, revoked_at FROM ns.devices WHERE ns_id = %s"
"""All devices of a root namespace."""
