"""E-mail addresses and outside identities after a restore: they lead to accounts that are there, no others.

Such a row lies in the slot of the address's hash, the account in a slot of its own; one has gone back in time
and the other has not.
"""

from collections.abc import Iterator
from typing import LiteralString

from metaserver.services.accounts import email_key
from ops.restore.claims import BATCH, lock_slots
from ops.restore.steps import Restored, Step
from sharding.directory import Connection, load_map_sync
from wire.errors import MalformedId
from wire.ids import NsId, root_ns_of_account, slot_of, slot_of_hash, system_ns


def list_again(restored: Restored) -> None:
    """Put in what is lost here; free what leads to accounts that are lost here."""
    kept = set(restored.kept())
    there = {
        row[0]: row[1]
        for row in restored.conn.execute("SELECT ns_id, account_id FROM ns.accounts WHERE state <> 'c'")
    }
    restored.counts["emails_listed"] = _insert_emails(restored, kept)
    freed = 0
    for conn in (restored.conn, *restored.others.values()):
        freed += _free(conn, _CONFIRMED, _FREE_EMAILS, kept, there)
        freed += _free(conn, _IDENTITIES, _FREE_IDENTITIES, kept, there)
    restored.counts["entries_freed"] = freed
    with restored.conn.transaction():
        restored.note(Step.LISTED)


def _insert_emails(restored: Restored, kept: set[NsId]) -> int:
    slot_count = load_map_sync(restored.directory).slot_count
    inserted = 0
    for conn in restored.others.values():
        for batch in _accounts(conn):
            rows = [(system_ns(slot_of_hash(key.encode(), slot_count)), key, who) for key, who in batch]
            here = list({row[:2]: row for row in rows if row[0] in kept}.values())
            # An address that was only reserved at that moment is the account's that has it now.
            inserted += restored.conn.execute(
                "INSERT INTO ns.emails (ns_id, email_key, account_id, is_confirmed)"
                " SELECT t.*, true FROM unnest(%s::bigint[], %s::text[], %s::text[]) AS t"
                " ON CONFLICT (ns_id, email_key)"
                " DO UPDATE SET account_id = excluded.account_id, is_confirmed = true"
                " WHERE NOT emails.is_confirmed",
                [[row[0] for row in here], [row[1] for row in here], [row[2] for row in here]],
            ).rowcount
    return inserted


def _accounts(conn: Connection) -> Iterator[list[tuple[str, str]]]:
    after = -1
    while rows := conn.execute(
        "SELECT ns_id, email, account_id FROM ns.accounts WHERE state <> 'c' AND ns_id > %s"
        " ORDER BY ns_id LIMIT %s",
        [after, BATCH],
    ).fetchall():
        yield [(email_key(row[1]), row[2]) for row in rows]
        after = rows[-1][0]


_CONFIRMED: LiteralString = "SELECT ns_id, account_id FROM ns.emails WHERE is_confirmed"
_FREE_EMAILS: LiteralString = (
    "DELETE FROM ns.emails e USING unnest(%s::bigint[], %s::text[]) AS t(ns_id, account_id)"
    " WHERE e.ns_id = t.ns_id AND e.account_id = t.account_id AND e.is_confirmed"
)
_IDENTITIES: LiteralString = "SELECT ns_id, account_id FROM ns.identities"
_FREE_IDENTITIES: LiteralString = (
    "DELETE FROM ns.identities e USING unnest(%s::bigint[], %s::text[]) AS t(ns_id, account_id)"
    " WHERE e.ns_id = t.ns_id AND e.account_id = t.account_id"
)


def _free(
    conn: Connection, find: LiteralString, delete: LiteralString, kept: set[NsId], there: dict[int, str]
) -> int:
    """Delete the rows whose account was to be here and is not. Reservations resolve themselves."""
    rows = conn.execute(find).fetchall()
    lost = [(row[0], row[1]) for row in rows if _is_lost(row[1], kept, there)]
    for i in range(0, len(lost), BATCH):
        batch = lost[i : i + BATCH]
        with conn.transaction():
            lock_slots(conn, [NsId(row[0]) for row in batch])
            conn.execute(delete, [[row[0] for row in batch], [row[1] for row in batch]])
    return len(lost)


def _is_lost(account_id: str, kept: set[NsId], there: dict[int, str]) -> bool:
    try:
        root = root_ns_of_account(account_id)
    except MalformedId:
        return False
    is_here = root in kept or system_ns(slot_of(root)) in kept
    return is_here and there.get(root) != account_id
