"""Appending to a namespace's journal: rows, entries, head, outbox and idempotency key of one commit."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import LiteralString

from metaserver.model.rows import Content, Entry, JournalOp, JournalRow, SameContent
from sharding.pool import Connection
from wire.ids import AccountId, EntryId, Jid, NsId


@dataclass(frozen=True, slots=True)
class Append:
    """All that one write adds to a namespace. `device` is packed; `at_us` is server_modified."""

    ns_id: NsId
    head: Jid
    next_entry_id: EntryId
    at_us: int
    device: bytes | None
    rows: Sequence[JournalRow]
    written: Mapping[EntryId, Entry]
    created: Collection[EntryId]
    grown_bytes: int
    debts: Collection[EntryId]


@dataclass(frozen=True, slots=True)
class KeepAnswer:
    """The idempotency row of a write."""

    account_id: AccountId
    key: str
    digest: bytes
    answer: bytes


_HEAD: LiteralString = (
    "UPDATE ns.namespaces SET head = %s, next_entry_id = %s, modified_us = %s, live_bytes = live_bytes + %s"
    " WHERE ns_id = %s"
)
_JOURNAL: LiteralString = """
INSERT INTO ns.server_file_journal (ns_id, jid, entry_id, parent_id, prev_jid, rev_jid, at_us, op, kind,
    is_deleted, name, device, old_path, size, client_modified_us, content_hash, blocklist)
SELECT %s, t.jid, t.entry_id, t.parent_id, t.prev_jid, t.rev_jid, %s, t.op, t.kind, t.is_deleted, t.name, %s,
       t.old_path, t.size, coalesce(t.client_modified_us, s.client_modified_us), t.content_hash,
       coalesce(t.blocklist, s.blocklist)
  FROM unnest(%s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[], %s::"char"[],
              %s::"char"[], %s::bool[], %s::text[], %s::text[], %s::bigint[], %s::bigint[], %s::bytea[],
              %s::bytea[], %s::bigint[])
       AS t(jid, entry_id, parent_id, prev_jid, rev_jid, op, kind, is_deleted, name, old_path, size,
            client_modified_us, content_hash, blocklist, same_as)
  LEFT JOIN LATERAL (
    SELECT r.client_modified_us, r.blocklist FROM ns.server_file_journal r
     WHERE r.ns_id = %s AND r.jid = t.same_as LIMIT 1) s ON true
"""
_ENTRY_ARRAYS: LiteralString = """
  FROM unnest(%s::bigint[], %s::bigint[], %s::text[], %s::text[], %s::"char"[], %s::bool[], %s::bigint[],
              %s::bigint[], %s::bigint[], %s::bigint[], %s::bytea[])
       AS t(entry_id, parent_id, name, name_key, kind, is_deleted, created_jid, last_jid, rev_jid, size,
            content_hash)
"""
_INSERT_ENTRIES: LiteralString = f"""
INSERT INTO ns.entries (ns_id, entry_id, parent_id, name, name_key, kind, is_deleted, created_jid, last_jid,
    rev_jid, size, content_hash)
SELECT %s, t.* {_ENTRY_ARRAYS}
"""
# An edit sets no indexed column, so that it stays a heap-only update.
_EDIT_ENTRIES: LiteralString = f"""
UPDATE ns.entries e SET last_jid = t.last_jid, rev_jid = t.rev_jid, size = t.size,
       content_hash = t.content_hash
{_ENTRY_ARRAYS} WHERE e.ns_id = %s AND e.entry_id = t.entry_id
"""
_PLACE_ENTRIES: LiteralString = f"""
UPDATE ns.entries e SET last_jid = t.last_jid, rev_jid = t.rev_jid, size = t.size,
       content_hash = t.content_hash, parent_id = t.parent_id, name = t.name, name_key = t.name_key,
       is_deleted = t.is_deleted
{_ENTRY_ARRAYS} WHERE e.ns_id = %s AND e.entry_id = t.entry_id
"""
# Names change hands within a batch (a swap is three moves). A unique index looks at each row as it changes,
# so whatever leaves its place leaves the index first.
_LIFT_ENTRIES: LiteralString = (
    "UPDATE ns.entries SET is_deleted = true WHERE ns_id = %s AND entry_id = ANY(%s)"
)
_OUTBOX: LiteralString = (
    "INSERT INTO ns.outbox (ns_id, jid) VALUES (%s, %s)"
    " ON CONFLICT (ns_id) DO UPDATE SET jid = greatest(outbox.jid, excluded.jid)"
)
# A folder that owes from an earlier death, and was revived since: whoever walks it begins anew.
_DEBTS: LiteralString = (
    "INSERT INTO ns.usage_debts (ns_id, entry_id) SELECT %s, unnest(%s::bigint[])"
    " ON CONFLICT (ns_id, entry_id) DO UPDATE SET revived_count = usage_debts.revived_count + 1"
)
_KEEP: LiteralString = (
    "INSERT INTO ns.idempotency (ns_id, account_id, key, digest, answer) VALUES (%s, %s, %s, %s, %s)"
)


_PLACING = (JournalOp.MOVE, JournalOp.DELETE, JournalOp.RESTORE)


async def append_journal(conn: Connection, add: Append, keep: KeepAnswer | None) -> None:
    """Write everything, in one round trip.

    Tx: the namespace's lock is held; ownership has been proved.
    """
    moved = {row.entry.entry_id for row in add.rows if row.op in _PLACING} - set(add.created)
    edited = [e for i, e in add.written.items() if i not in add.created and i not in moved]
    placed = [add.written[i] for i in sorted(moved)]
    created = [add.written[i] for i in sorted(add.created)]
    async with conn.pipeline():
        head = [add.head, add.next_entry_id, add.at_us, add.grown_bytes, add.ns_id]
        await conn.execute(_HEAD, head)
        await conn.execute(
            _JOURNAL, [add.ns_id, add.at_us, add.device, *_journal_arrays(add.rows), add.ns_id]
        )
        if edited:
            await conn.execute(_EDIT_ENTRIES, [*_entry_arrays(edited), add.ns_id])
        if len(placed) > 1:
            await conn.execute(_LIFT_ENTRIES, [add.ns_id, sorted(moved)])
        if placed:
            await conn.execute(_PLACE_ENTRIES, [*_entry_arrays(placed), add.ns_id])
        if created:
            await conn.execute(_INSERT_ENTRIES, [add.ns_id, *_entry_arrays(created)])
        if add.debts:
            await conn.execute(_DEBTS, [add.ns_id, sorted(add.debts)])
        await conn.execute(_OUTBOX, [add.ns_id, add.head])
        if keep is not None:
            await keep_answer(conn, add.ns_id, keep)


async def keep_answer(conn: Connection, ns_id: NsId, keep: KeepAnswer) -> None:
    """Remember the answer of a write for its repeat.

    Tx: the namespace's lock is held.
    """
    await conn.execute(_KEEP, [ns_id, keep.account_id, keep.key, keep.digest, keep.answer])


def _journal_arrays(rows: Sequence[JournalRow]) -> list[object]:
    # Where a content is another rev's, its time and blocks are copied inside the database.
    contents = [row.content for row in rows]
    given = [content if isinstance(content, Content) else None for content in contents]
    return [
        [row.jid for row in rows],
        [row.entry.entry_id for row in rows],
        [row.entry.parent_id for row in rows],
        [row.prev_jid for row in rows],
        [row.entry.rev_jid for row in rows],
        [row.op.value for row in rows],
        [row.entry.kind.value for row in rows],
        [row.entry.is_deleted for row in rows],
        [row.entry.name for row in rows],
        [row.old_path for row in rows],
        [content and content.size for content in contents],
        [content and content.client_modified_us for content in given],
        [content and content.content_hash for content in contents],
        [content and content.blocklist for content in given],
        [content.rev_jid if isinstance(content, SameContent) else None for content in contents],
    ]


def _entry_arrays(entries: Sequence[Entry]) -> list[object]:
    return [
        [e.entry_id for e in entries],
        [e.parent_id for e in entries],
        [e.name for e in entries],
        [e.name_key for e in entries],
        [e.kind.value for e in entries],
        [e.is_deleted for e in entries],
        [e.created_jid for e in entries],
        [e.last_jid for e in entries],
        [e.rev_jid for e in entries],
        [e.size for e in entries],
        [e.content_hash for e in entries],
    ]
