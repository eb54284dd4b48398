"""Scan and follow: what a page of rows tells a reader.

Source: the design of the delta by entry id. Each rule is a function of its own, so that a test can switch it
off and see that it is missed.

    scan    entries by primary key: live ones that were created by the time the listing began
    follow  journal rows: one counts only if it is its entry's last. Live: its present state. Dead: `deleted`,
            unless the entry was created after the reader's place (it never saw it)
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from metaserver.model.rows import Entry
from metaserver.model.tree import TreeView
from wire.cursors import Following, Scanning
from wire.errors import CursorReset
from wire.ids import EntryId, Jid


@dataclass(frozen=True, slots=True)
class Seen:
    """A row that was looked at: its jid, its entry's id, and the entry unless that has been purged."""

    jid: Jid
    entry_id: EntryId
    entry: Entry | None


@dataclass(frozen=True, slots=True)
class News:
    """What a reader is told: an entry's present state, or with None that it is gone."""

    entry_id: EntryId
    entry: Entry | None


def is_in_scan(entry: Entry, base: Jid) -> bool:
    """What was created later comes by the following."""
    return entry.created_jid <= base


def is_last_row(seen: Seen) -> bool:
    """An earlier row of an entry tells a state that is past."""
    return seen.entry is None or seen.entry.last_jid == seen.jid


def was_seen(entry: Entry | None, after: Jid) -> bool:
    """A reader who was at `after` cannot know what was created later, and needs no `deleted` for it."""
    return entry is None or entry.created_jid <= after


def is_live(view: TreeView, entry: Entry) -> bool:
    """An entry lives when neither it nor any ancestor is deleted."""
    return view.is_live(entry)


def emit_scan(view: TreeView, rows: Iterable[Seen], base: Jid) -> list[News]:
    """What a page of a scan tells."""
    return [
        News(row.entry_id, row.entry)
        for row in rows
        if row.entry is not None and is_in_scan(row.entry, base) and is_live(view, row.entry)
    ]


def emit_follow(view: TreeView, rows: Iterable[Seen], after: Jid, folder: EntryId | None) -> list[News]:
    """What a page of a follow tells; with a folder, of its children alone."""
    news: list[News] = []
    for row in rows:
        if not is_last_row(row):
            continue
        entry = row.entry
        if entry is not None and is_live(view, entry) and folder in (None, entry.parent_id):
            news.append(News(row.entry_id, entry))
        elif was_seen(entry, after):
            news.append(News(row.entry_id, None))
    return news


def after_scan(state: Scanning, rows: Sequence[Seen], is_full: bool, by_name: bool) -> Scanning | Following:
    """Where a scan goes on; a page that was not full was the last one."""
    if not is_full or not rows:
        return Following(state.base)
    last = rows[-1]
    if by_name and last.entry is not None:
        return Scanning(state.base, last.entry_id, last.entry.name_key)
    return Scanning(state.base, last.entry_id)


def after_follow(rows: Sequence[Seen], is_full: bool, head: Jid) -> Following:
    """Where a follow goes on.

    A page that was not full has read all up to its snapshot's head: after a restore that is far above the
    last row, and a reader who stopped at that row would be told for ever that there is more.
    """
    return Following(rows[-1].jid if rows and is_full else head)


def check_place(
    state: Scanning | Following, head: Jid, lost_ranges: Iterable[tuple[Jid, Jid]]
) -> Scanning | Following | None:
    """The place, or None if it was lost with a server, so that the reader must scan anew.

    Raises:
        CursorReset: the namespace has never been that far.
    """
    jid = state.jid if isinstance(state, Following) else state.base
    if jid > head:
        raise CursorReset()
    if any(old_head < jid < new_start for old_head, new_start in lost_ranges):
        return None
    return state
