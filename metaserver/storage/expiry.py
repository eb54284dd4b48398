"""Finding and deleting rows that have had their time.

No index is kept for it: a table is read once from end to end by its primary key, some rows a statement.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import LiteralString

from psycopg.rows import TupleRow

from sharding.pool import Connection
from wire.ids import NsId

Key = tuple[object, ...]
"""A primary key: ns_id, then the others in the table's order."""


@dataclass(frozen=True, slots=True)
class ExpiringTable:
    """A table whose rows are let go of.

    `keys` are the columns of its primary key after ns_id, each with its type and the least value of that.
    `is_due` is a condition on a row `t`; the row's life in seconds is its one parameter.
    """

    name: LiteralString
    keys: tuple[tuple[LiteralString, LiteralString, object], ...]
    is_due: LiteralString

    @property
    def columns(self) -> LiteralString:
        """t.ns_id, t.…"""
        return ", ".join(["t.ns_id", *[f"t.{column}" for column, _, _ in self.keys]])

    @property
    def arrays(self) -> LiteralString:
        """A parameter for each column of the key, as an array."""
        return ", ".join(["%s::bigint[]", *[f"%s::{type_}[]" for _, type_, _ in self.keys]])

    @property
    def params(self) -> LiteralString:
        """A parameter for each column of the key."""
        return ", ".join(["%s", *["%s" for _ in self.keys]])

    @property
    def first(self) -> Key:
        """What stands before every key."""
        return (-1, *(least for _, _, least in self.keys))


IDEMPOTENCY = ExpiringTable(
    "idempotency",
    (("account_id", "text", ""), ("key", "text", "")),
    "t.created_at < now() - make_interval(secs => %s)",
)
# A generation begins with its time, so bytes compare as times do.
UPLOAD_TARGETS = ExpiringTable(
    "upload_targets",
    (("session_id", "bytea", b""), ("hash", "bytea", b"")),
    "t.generation < int8send(((extract(epoch FROM now()) - %s) * 1000000)::bigint)",
)
UPLOAD_SESSIONS = ExpiringTable(
    "upload_sessions",
    (("session_id", "bytea", b""),),
    "t.expires_at < now() - make_interval(secs => %s)",
)
LINK_CODES = ExpiringTable(
    "link_codes", (("code_hash", "bytea", b""),), "t.expires_at < now() - make_interval(secs => %s)"
)
USED_TOKENS = ExpiringTable(
    "refresh_tokens",
    (("token_hash", "bytea", b""),),
    "t.state = 'u' AND t.since < now() - make_interval(secs => %s)",
)
CANCELLED_ACCOUNTS = ExpiringTable(
    "accounts", (), "t.state = 'c' AND t.created_at < now() - make_interval(secs => %s)"
)

# What is not active here is passed over: another shard's sweep has it, or will. Rows are read without locks,
# and deleted under them later. (An ns_id is slot << 51 | count.)
_IS_ACTIVE_HERE: LiteralString = """
(SELECT w.state FROM local.ownership w
  WHERE w.ns_id IN (t.ns_id, (t.ns_id >> 51) << 51)
  ORDER BY w.ns_id DESC LIMIT 1) = 'a'
"""


async def list_due(
    conn: Connection, table: ExpiringTable, life_s: float, after: Key, limit: int
) -> tuple[list[Key], Key | None]:
    """The keys of those rows that are due, of the next `limit` rows; the last one's, None at the end."""
    columns = table.columns
    cursor = await conn.execute(
        f"SELECT coalesce({table.is_due} AND {_IS_ACTIVE_HERE}, false), {columns}"
        f" FROM (SELECT * FROM ns.{table.name} t WHERE ({columns}) > ({table.params})"
        f" ORDER BY {columns} LIMIT %s) t ORDER BY {columns}",
        [life_s, *after, limit],
        binary=True,
    )
    rows: list[TupleRow] = await cursor.fetchall()
    last = rows[-1][1:] if len(rows) == limit else None
    return [row[1:] for row in rows if row[0]], last


async def delete_due(conn: Connection, table: ExpiringTable, life_s: float, keys: Sequence[Key]) -> None:
    """Delete rows, if they still are due; one that is in use is left for the next time."""
    columns = table.columns
    names: LiteralString = ", ".join(["ns_id", *[column for column, _, _ in table.keys]])
    await conn.execute(
        f"DELETE FROM ns.{table.name} WHERE ({names}) IN (SELECT {columns} FROM ns.{table.name} t"
        f" WHERE ({columns}) IN (SELECT * FROM unnest({table.arrays})) AND {table.is_due}"
        f" ORDER BY {columns} FOR UPDATE SKIP LOCKED)",
        [*(list(column) for column in zip(*keys, strict=True)), life_s],
    )


def ns_of(key: Key) -> NsId:
    """The namespace of a row."""
    ns_id = key[0]
    assert isinstance(ns_id, int)
    return NsId(ns_id)
