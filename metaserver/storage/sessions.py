"""Upload sessions, the targets that they have given out, and a file as the session API shows it."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import LiteralString

from psycopg import sql
from psycopg.rows import TupleRow

from metaserver.model.rows import Level
from sharding.pool import Connection
from sharding.tx import Transactions
from wire.errors import NotFound, UploadSessionNotFound
from wire.hashes import DIGEST_BYTES, BlockHash, ContentHash
from wire.ids import AccountId, EntryId, Jid, NsId


@dataclass(frozen=True, slots=True)
class SessionKey:
    """Which session, and whose: for any other account it is not there."""

    ns_id: NsId
    session_id: bytes
    account_id: AccountId

    @property
    def params(self) -> list[object]:
        """The parameters of _OWN."""
        return [self.ns_id, self.session_id, self.account_id]


@dataclass(frozen=True, slots=True)
class UploadPlan:
    """What is to be uploaded, and where to; fixed when the session begins."""

    parent_id: EntryId
    file_name: str
    file_size: int
    content_hash: ContentHash


@dataclass(frozen=True, slots=True)
class SessionRow:
    """A session that has not expired. `commit_digest` and `commit_answer` are set once it is committed."""

    plan: UploadPlan
    expires_at: datetime
    commit_digest: bytes | None
    commit_answer: bytes | None


@dataclass(frozen=True, slots=True)
class TargetRow:
    """A block that a client was told where to put, and the generation of the object that it will be."""

    hash: BlockHash
    generation: bytes
    size: int


_COLUMNS: LiteralString = (
    "s.parent_id, s.file_name, s.file_size, s.content_hash, s.expires_at, s.commit_digest, s.commit_answer"
)
# Who has lost the namespace has lost the session.
_OWN: LiteralString = (
    "s.ns_id = %s AND s.session_id = %s AND s.account_id = %s AND s.expires_at > now() AND EXISTS"
    " (SELECT FROM ns.members m WHERE m.ns_id = s.ns_id AND m.account_id = s.account_id)"
)
SESSION: LiteralString = f"SELECT {_COLUMNS} FROM ns.upload_sessions s WHERE {_OWN}"
"""A session, for `run_read`; its parameters are those of its key."""
SESSION_BLOCKLIST: LiteralString = f"SELECT s.blocklist FROM ns.upload_sessions s WHERE {_OWN}"
"""The blocks of a session, which may be 16 MB; null where they are not known."""


def to_session(row: Sequence[object]) -> SessionRow:
    """A session from the columns of SESSION."""
    parent_id, file_name, file_size, content_hash, expires_at, digest, answer = row
    assert isinstance(parent_id, int)
    assert isinstance(file_size, int)
    assert isinstance(content_hash, bytes)
    assert isinstance(expires_at, datetime)
    assert isinstance(digest, bytes | None)
    assert isinstance(answer, bytes | None)
    plan = UploadPlan(EntryId(parent_id), str(file_name), file_size, ContentHash(content_hash))
    return SessionRow(plan, expires_at, digest, answer)


async def read_own(
    transactions: Transactions, key: SessionKey, name: str, query: LiteralString, *params: object
) -> list[TupleRow]:
    """The rows of one of the queries of this page that end in a session's key.

    Raises:
        UploadSessionNotFound: an id in a slot that is not in use, which nobody was given.
    """
    try:
        return await transactions.run_read(key.ns_id, name, sql.SQL(query), [*params, *key.params])
    except NotFound as error:
        raise UploadSessionNotFound() from error


async def insert_session(
    conn: Connection, key: SessionKey, plan: UploadPlan, blocks: Sequence[BlockHash] | None, life_s: int
) -> datetime:
    """A new session; when it expires."""
    cursor = await conn.execute(
        "INSERT INTO ns.upload_sessions (ns_id, session_id, account_id, parent_id, file_name, file_size,"
        " content_hash, blocklist, expires_at)"
        " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, now() + make_interval(secs => %s)) RETURNING expires_at",
        [
            *key.params,
            plan.parent_id,
            plan.file_name,
            plan.file_size,
            plan.content_hash,
            None if blocks is None else b"".join(blocks),
            life_s,
        ],
    )
    row = await cursor.fetchone()
    assert row is not None
    expires_at: datetime = row[0]
    return expires_at


async def count_open(conn: Connection, key: SessionKey, up_to: int) -> int:
    """How many sessions the account has begun in the namespace that are neither committed nor expired."""
    cursor = await conn.execute(
        "SELECT count(*) FROM (SELECT FROM ns.upload_sessions WHERE ns_id = %s AND account_id = %s"
        " AND commit_digest IS NULL AND expires_at > now() LIMIT %s) found",
        [key.ns_id, key.account_id, up_to],
    )
    row = await cursor.fetchone()
    assert row is not None
    return int(row[0])


async def lock_session(conn: Connection, key: SessionKey) -> SessionRow | None:
    """A session, its row locked; None if it is not there, another's, or expired."""
    cursor = await conn.execute(f"{SESSION} FOR UPDATE", key.params, binary=True)
    row = await cursor.fetchone()
    return None if row is None else to_session(row)


async def set_blocklist(conn: Connection, key: SessionKey, blocks: Sequence[BlockHash]) -> None:
    """Remember the blocks of a session that began without them."""
    await conn.execute(
        f"UPDATE ns.upload_sessions s SET blocklist = %s WHERE {_OWN} AND blocklist IS NULL",
        [b"".join(blocks), *key.params],
    )


async def mark_committed(conn: Connection, key: SessionKey, digest: bytes, answer: bytes) -> None:
    """Use a session up; its blocks are the file's now.

    Tx: its row is locked.
    """
    await conn.execute(
        "UPDATE ns.upload_sessions s SET commit_digest = %s, commit_answer = %s, blocklist = NULL"
        f" WHERE {_OWN}",
        [digest, answer, *key.params],
    )


# A target that is young stays as it is: what has been put there still counts.
_UPSERT_TARGETS: LiteralString = """
INSERT INTO ns.upload_targets AS o (ns_id, session_id, hash, generation, size)
SELECT %s, %s, t.hash, t.generation, t.size
  FROM unnest(%s::bytea[], %s::bytea[], %s::int[]) AS t(hash, generation, size)
 ORDER BY t.hash
ON CONFLICT (ns_id, session_id, hash) DO UPDATE
   SET generation = CASE WHEN o.generation < %s THEN excluded.generation ELSE o.generation END
RETURNING o.hash, o.generation, o.size
"""
FOUND_TARGETS: LiteralString = f"""
SELECT t.hash, b.state IS NOT NULL, coalesce(b.size, o.size), o.generation
  FROM ns.upload_sessions s
 CROSS JOIN unnest(%s::bytea[]) AS t(hash)
  LEFT JOIN ns.namespace_blocks b ON b.ns_id = s.ns_id AND b.hash = t.hash AND b.state = 'r'
  LEFT JOIN ns.upload_targets o
    ON o.ns_id = s.ns_id AND o.session_id = s.session_id AND o.hash = t.hash
 WHERE {_OWN}
"""
"""For each hash: whether the namespace holds it ready, its size, and its target's generation; no rows where
there is no such session. Parameters: the hashes, then those of the session's key."""


async def ensure_targets(
    conn: Connection, key: SessionKey, targets: Sequence[TargetRow], oldest_generation: bytes
) -> dict[BlockHash, TargetRow]:
    """A target for each: the one that is there, unless its generation is below the oldest; else the new one.

    Tx: the session's row is locked.
    """
    cursor = await conn.execute(
        _UPSERT_TARGETS,
        [
            key.ns_id,
            key.session_id,
            [t.hash for t in targets],
            [t.generation for t in targets],
            [t.size for t in targets],
            oldest_generation,
        ],
        binary=True,
    )
    return {row[0]: TargetRow(row[0], row[1], row[2]) for row in await cursor.fetchall()}


async def count_taken(conn: Connection, key: SessionKey, full: int, last: int) -> tuple[int, int]:
    """Count distinct blocks that have come by the session's address: full ones, and those of the last length.

    Tx: the session's row is locked. Gives both counts so far.
    """
    cursor = await conn.execute(
        "UPDATE ns.upload_sessions s SET taken_full = taken_full + %s, taken_last = taken_last + %s"
        f" WHERE {_OWN} RETURNING taken_full, taken_last",
        [full, last, *key.params],
        binary=True,
    )
    row = await cursor.fetchone()
    assert row is not None, "the session is locked"
    return row[0], row[1]


@dataclass(frozen=True, slots=True)
class FileRow:
    """A file, or a folder, which has no rev. `level` is the asker's, None for a stranger."""

    level: Level | None
    owner: AccountId | None
    is_live: bool
    parent_id: EntryId
    name: str
    rev_jid: Jid | None
    size: int | None
    content_hash: ContentHash | None
    blocklist: bytes
    block_count: int


FILE: LiteralString = """
WITH RECURSIVE up AS (
    SELECT e.parent_id, e.is_deleted FROM ns.entries e WHERE e.ns_id = %s AND e.entry_id = %s
    UNION ALL
    SELECT p.parent_id, p.is_deleted
      FROM up CROSS JOIN LATERAL (
        SELECT * FROM ns.entries p WHERE p.ns_id = %s AND p.entry_id = up.parent_id LIMIT 1) p
  )
SELECT m.level,
       (SELECT o.account_id FROM ns.members o WHERE o.ns_id = e.ns_id AND o.level = 'o'
         ORDER BY o.account_id LIMIT 1),
       (SELECT NOT bool_or(up.is_deleted) AND bool_or(up.parent_id = 0) FROM up),
       e.parent_id, e.name, e.rev_jid, e.size, e.content_hash,
       substring(j.blocklist FROM 1 FOR %s), length(j.blocklist)
  FROM ns.entries e
  LEFT JOIN ns.members m ON m.ns_id = e.ns_id AND m.account_id = %s
  LEFT JOIN ns.server_file_journal j ON j.ns_id = e.ns_id AND j.jid = e.rev_jid
 WHERE e.ns_id = %s AND e.entry_id = %s
"""
"""An entry with its content and its liveness, for `run_read`."""


def file_params(ns_id: NsId, entry_id: EntryId, account_id: AccountId, max_blocks: int) -> list[object]:
    """The parameters of FILE."""
    return [ns_id, entry_id, ns_id, max_blocks * DIGEST_BYTES, account_id, ns_id, entry_id]


def to_file(row: Sequence[object]) -> FileRow:
    """A file from the columns of FILE."""
    level, owner, is_live, parent_id, name, rev_jid, size, content_hash, blocklist, length = row
    assert isinstance(parent_id, int)
    assert isinstance(rev_jid, int | None)
    assert isinstance(size, int | None)
    assert isinstance(content_hash, bytes | None)
    assert isinstance(blocklist, bytes | None)
    assert isinstance(length, int | None)
    return FileRow(
        Level(str(level)) if level else None,
        AccountId(str(owner)) if owner else None,
        bool(is_live),
        EntryId(parent_id),
        str(name),
        None if rev_jid is None else Jid(rev_jid),
        size,
        None if content_hash is None else ContentHash(content_hash),
        blocklist or b"",
        (length or 0) // DIGEST_BYTES,
    )
