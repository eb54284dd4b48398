"""What each operation does to the tree: conflicts, missing parents, moves, copies, deletes, restores, quota.

`Batch.apply` either changes the overlay and appends journal rows, or raises and changes nothing.
"""

from collections.abc import Mapping
from dataclasses import replace
from itertools import filterfalse, islice

from metaserver.model.changes import MAX_CHANGES_LOOKED_AT
from metaserver.model.names import conflict_label
from metaserver.model.operations import (
    CommitRequest,
    CopyRequest,
    CreateFolderRequest,
    DeleteRequest,
    MoveRequest,
    Outcome,
    Request,
    RestoreRequest,
    Start,
)
from metaserver.model.places import Place, Places
from metaserver.model.rows import Content, Entry, JournalOp, JournalRow, Kind, SameContent
from metaserver.model.tree import TreeView
from wire.api import WriteMode
from wire.errors import (
    BlocksAbsent,
    ConflictChanged,
    ContentMismatch,
    MalformedPath,
    MoveIntoItself,
    NotFound,
    QuotaExceeded,
    TooManyEntries,
)
from wire.hashes import BlockHash, ContentHash, block_count, block_size
from wire.ids import ROOT_ENTRY, EntryId, Jid
from wire.names import name_key

MAX_ROWS_PER_TX = 10_000
"""Journal rows of one transaction: keeps the lock of a namespace, and the WAL between two commits, short."""

MAX_COPIED_BLOCKS = 2**21
"""Blocks of the files that one batch copies or restores: 64 MiB of hashes for the journal, as many as a
request that names them itself could bring; 8 TiB of files."""

MAX_NAMED_BLOCKS = 1_000
"""Absent blocks that a refusal names, as many as an answer has targets. All of the largest file's: 35 MB."""


def check_quota(quota_bytes: int | None, used_bytes: int, growth_bytes: int) -> None:
    """What does not grow is never refused, also beyond the quota.

    Raises:
        QuotaExceeded: details.used, details.allocation, details.needed.
    """
    if quota_bytes is not None and growth_bytes > 0 and used_bytes + growth_bytes > quota_bytes:
        raise QuotaExceeded(details={"used": used_bytes, "allocation": quota_bytes, "needed": growth_bytes})


class Batch:
    """Operations applied one after another to one namespace's tree.

    Invariant: `rows` have dense jids from start.head + 1; `written` maps each touched entry to its last
    state. `grown_bytes` is what the sizes of live files have grown by, but for what lies below `debts`: the
    folders that were deleted, which nothing has walked yet.
    """

    def __init__(self, start: Start, view: TreeView, ready_blocks: Mapping[BlockHash, int]):
        self._start = start
        self._view = view
        self._places = Places(start.ns_id, view)
        self._ready = ready_blocks
        self._next_entry_id = start.next_entry_id
        self.rows: list[JournalRow] = []
        self.written: dict[EntryId, Entry] = {}
        self.created: set[EntryId] = set()
        self.grown_bytes = 0
        self.debts: set[EntryId] = set()
        self._copied_blocks = 0

    @property
    def head(self) -> Jid:
        """The head after what has been applied."""
        return Jid(self._start.head + len(self.rows))

    @property
    def next_entry_id(self) -> EntryId:
        """The first entry id that is still free."""
        return self._next_entry_id

    def apply(self, request: Request) -> Outcome:
        """Do one operation.

        Raises:
            NeedRows: something must be loaded first; ask again.
            ShardboxError: the operation is refused.
        """
        match request:
            case CommitRequest():
                return self._commit(request)
            case CreateFolderRequest():
                return self._create_folder(request)
            case MoveRequest():
                return self._move(request)
            case DeleteRequest():
                return self._delete(request)
            case CopyRequest():
                return self._copy(request)
            case RestoreRequest():
                return self._restore(request)

    # ---- The operations

    def _commit(self, request: CommitRequest) -> Outcome:
        place = self._places.of_file(request.target)
        there = self._places.find_at(place)
        is_lost_update = False
        if there is not None:
            if _is_identical(there, request.content) and not request.strict_conflict:
                return self._unchanged(there)
            is_same_rev = there.kind is Kind.FILE and there.rev_jid == request.rev_jid
            is_lost_update = request.mode is WriteMode.UPDATE and not is_same_rev
            is_free = there.kind is Kind.FILE and (
                request.mode is WriteMode.OVERWRITE or (request.mode is WriteMode.UPDATE and is_same_rev)
            )
        else:
            # An update of a file that has been deleted creates it anew.
            is_lost_update = request.mode is WriteMode.UPDATE and request.strict_conflict
            is_free = not is_lost_update
        if is_free:
            self._check_content(request, replaced=there)
            return self._write(there, place, Kind.FILE, JournalOp.CONTENT, content=request.content)
        if not request.autorename:
            raise self._places.conflict(there)
        label = conflict_label(self._start.display_name) if is_lost_update else None
        for other in self._places.iter_beside(place, label):
            taken = self._places.find_at(other)
            if taken is None:
                self._check_content(request, replaced=None)
                return self._write(None, other, Kind.FILE, JournalOp.CONTENT, content=request.content)
            if _is_identical(taken, request.content):
                return self._unchanged(taken)
        raise self._places.conflict(there)

    def _create_folder(self, request: CreateFolderRequest) -> Outcome:
        place = self._places.of(request.target)
        place = self._places.get_free(place, request.autorename, mover=None)
        return self._write(None, place, Kind.FOLDER, JournalOp.FOLDER)

    def _move(self, request: MoveRequest) -> Outcome:
        entry = self._places.get_live(request.source)
        if entry.entry_id == ROOT_ENTRY:
            raise MalformedPath("the root folder cannot be moved")
        place = self._places.of(request.target)
        if self._places.is_inside(place, entry):
            raise MoveIntoItself()
        place = self._places.get_free(place, request.autorename, mover=entry)
        if not place.missing and (place.parent_id, place.name) == (entry.parent_id, entry.name):
            return self._unchanged(entry)
        return self._write(entry, place, entry.kind, JournalOp.MOVE, old_path=self._view.path_of(entry))

    def _delete(self, request: DeleteRequest) -> Outcome:
        entry = self._places.get_live(request.target)
        if entry.entry_id == ROOT_ENTRY:
            raise MalformedPath("the root folder cannot be deleted")
        if request.rev_jid is not None:
            if entry.kind is not Kind.FILE:
                raise self._places.conflict(entry)
            if entry.rev_jid != request.rev_jid:
                raise ConflictChanged(details=self._places.details(entry))
        if request.seen_jid is not None:
            if request.seen_jid < self._start.head - MAX_CHANGES_LOOKED_AT:
                raise ConflictChanged(
                    "too much has changed since to tell; read on and try again",
                    details=self._places.details(entry),
                )
            if self._view.has_changed_below(entry.entry_id, request.seen_jid):
                raise ConflictChanged(details=self._places.details(entry))
        path = self._view.path_of(entry)
        self._check_room(1)
        gone = replace(entry, is_deleted=True, last_jid=Jid(self.head + 1))
        self._append(JournalOp.DELETE, gone, prev_jid=entry.last_jid, old_path=path)
        if entry.kind is Kind.FOLDER:
            self.debts.add(entry.entry_id)
        self.grown_bytes -= entry.size or 0
        return Outcome(entry, path, is_changed=True)

    def _copy(self, request: CopyRequest) -> Outcome:
        source = self._places.get_live(request.source)
        if source.entry_id == ROOT_ENTRY:
            raise MalformedPath("the root folder cannot be copied")
        place = self._places.of(request.target)
        if self._places.is_inside(place, source):
            raise MoveIntoItself("a folder cannot be copied into itself")
        there = self._places.find_at(place)
        # A copy beside itself is what autorename is asked for; anything else of that content will do.
        is_beside = request.autorename and there is not None and there.entry_id == source.entry_id
        if there is not None and _has_content_of(there, source) and not is_beside:
            return self._unchanged(there)
        place = self._places.get_free(place, request.autorename, mover=None)
        self._check_room(len(place.missing) + 1)
        below = [] if source.kind is Kind.FILE else self._view.list_below(source.entry_id, MAX_ROWS_PER_TX)
        self._check_room(len(place.missing) + 1 + len(below))
        sizes = [entry.size for entry in (source, *below) if entry.size is not None]
        self._check_quota(sum(sizes))
        self._take_copied_blocks(sum(map(block_count, sizes)))
        copy = self._write(None, place, source.kind, *self._copied(source))
        ids = {source.entry_id: copy.entry.entry_id}
        for entry in below:  # parents come before their children
            op, content = self._copied(entry)
            ids[entry.entry_id] = self._create(
                ids[entry.parent_id], entry.name, entry.kind, op, content
            ).entry_id
        return copy

    def _copied(self, entry: Entry) -> tuple[JournalOp, Content | SameContent | None]:
        """The op and content of an entry's copy."""
        if entry.rev_jid is None or entry.size is None or entry.content_hash is None:
            return JournalOp.FOLDER, None
        return JournalOp.CONTENT, self._content_of(entry.rev_jid, entry.size, entry.content_hash)

    def _content_of(self, rev_jid: Jid, size: int, content_hash: ContentHash) -> Content | SameContent:
        """A rev's content; one that this batch has made is not in the journal yet."""
        if rev_jid <= self._start.head:
            return SameContent(size, content_hash, rev_jid)
        content = self.rows[rev_jid - self._start.head - 1].content
        assert content is not None, "a rev is a row with a content"
        return content

    def _restore(self, request: RestoreRequest) -> Outcome:
        rev = self._view.find_rev(request.rev_jid)
        file = None if rev is None else self._view.find_entry(rev.entry_id)
        if rev is None or file is None:
            raise NotFound("there is no such rev")
        content = SameContent(rev.size, rev.content_hash, rev.jid)
        place = self._places.of_restored(request.target, file)
        there, is_live = self._places.find_at(place), self._view.is_live(file)
        if there is not None and there.entry_id != file.entry_id:
            if is_live and there.kind is Kind.FILE:
                raise NotFound("the rev is another file's")
            raise self._places.conflict(there)
        if there is not None and _is_identical(there, content):
            return self._unchanged(there)
        self._check_room(len(place.missing) + 1)
        if is_live:  # in its place; or it lives elsewhere, and its old content comes back beside it
            self._check_quota(content.size - ((there and there.size) or 0))
            self._take_copied_blocks(block_count(content.size))
            return self._write(there, place, Kind.FILE, JournalOp.CONTENT, content)
        counted_bytes = self._counted_bytes(file)
        self._check_quota(content.size - counted_bytes)
        self._take_copied_blocks(block_count(content.size))
        # From here on it counts as live: what of it does not is owed by nobody.
        self.grown_bytes += (file.size or 0) - counted_bytes
        return self._write(file, place, Kind.FILE, JournalOp.RESTORE, content)

    def _counted_bytes(self, file: Entry) -> int:
        """What of a dead file is counted still: all of it, while the deleted folder above it owes.

        Asked last: the question itself tells the debt's walk to begin anew.
        """
        if file.is_deleted:
            return 0
        above = self._view.list_places(file) or []
        grave = next((step.entry_id for step in reversed(above) if step.is_deleted), None)
        if grave is None or not (grave in self.debts or self._view.owes(grave)):
            return 0
        return file.size or 0

    # ---- Writing

    def _write(
        self,
        old: Entry | None,
        place: Place,
        kind: Kind,
        op: JournalOp,
        content: Content | SameContent | None = None,
        *,
        old_path: str | None = None,
    ) -> Outcome:
        """Give an entry its new state at a place, making the place's missing parents first."""
        self._check_room(len(place.missing) + 1)
        parent_id = place.parent_id
        for name in place.missing:
            parent_id = self._create(parent_id, name, Kind.FOLDER, JournalOp.FOLDER, None).entry_id
        if old is None:
            entry = self._create(parent_id, place.name, kind, op, content)
            return Outcome(entry, self._view.find_path(entry), is_changed=True)
        entry = replace(old, last_jid=Jid(self.head + 1))
        if op is not JournalOp.CONTENT:  # an edit keeps the name's case
            key = name_key(place.name)
            entry = replace(entry, parent_id=parent_id, name=place.name, name_key=key, is_deleted=False)
        entry = self._with_content(entry, content)
        self._append(op, entry, prev_jid=old.last_jid, old_path=old_path, content=content)
        return Outcome(entry, self._view.find_path(entry), is_changed=True)

    def _create(
        self, parent_id: EntryId, name: str, kind: Kind, op: JournalOp, content: Content | SameContent | None
    ) -> Entry:
        """A new entry."""
        jid = Jid(self.head + 1)
        entry_id = self._next_entry_id
        self._next_entry_id = EntryId(entry_id + 1)
        self.created.add(entry_id)
        entry = Entry(entry_id, parent_id, name, name_key(name), kind, False, jid, jid)
        entry = self._with_content(entry, content)
        self._append(op, entry, prev_jid=None, content=content)
        return entry

    def _with_content(self, entry: Entry, content: Content | SameContent | None) -> Entry:
        """The entry with the content that its next row brings, which makes a rev."""
        if content is None:
            return entry
        self.grown_bytes += content.size - (entry.size or 0)
        return replace(entry, rev_jid=entry.last_jid, size=content.size, content_hash=content.content_hash)

    def _append(
        self,
        op: JournalOp,
        entry: Entry,
        *,
        prev_jid: Jid | None,
        old_path: str | None = None,
        content: Content | SameContent | None = None,
    ) -> None:
        self.rows.append(JournalRow(entry.last_jid, op, entry, prev_jid, old_path, content))
        self.written[entry.entry_id] = entry
        self._view.put(entry, is_new=prev_jid is None)

    # ---- Refusals

    def _check_room(self, rows: int) -> None:
        if len(self.rows) + rows > MAX_ROWS_PER_TX:
            raise TooManyEntries(f"a batch writes at most {MAX_ROWS_PER_TX} journal rows")

    def _check_content(self, request: CommitRequest, replaced: Entry | None) -> None:
        # Room comes first: who has none shall not send the blocks to learn it.
        self._check_quota(request.content.size - ((replaced and replaced.size) or 0))
        self._check_blocks(request)

    def _check_quota(self, growth_bytes: int) -> None:
        check_quota(self._start.quota_bytes, self._start.live_bytes + self.grown_bytes, growth_bytes)

    def _take_copied_blocks(self, count: int) -> None:
        """The last thing to be asked: from here on the copy is made."""
        if self._copied_blocks + count > MAX_COPIED_BLOCKS:
            raise TooManyEntries(
                f"the files that a batch copies or restores have at most {MAX_COPIED_BLOCKS} blocks"
            )
        self._copied_blocks += count

    def _check_blocks(self, request: CommitRequest) -> None:
        absent = dict.fromkeys(filterfalse(self._ready.__contains__, request.blocks))
        if absent:
            named = [block.hex() for block in islice(absent, MAX_NAMED_BLOCKS)]
            raise BlocksAbsent(details={"hashes": named, "count": len(absent)})
        for index, block in enumerate(request.blocks):
            if self._ready[block] != block_size(request.content.size, index):
                raise ContentMismatch(f"block {index} does not have the length that the size asks for")

    def _unchanged(self, entry: Entry) -> Outcome:
        return Outcome(entry, self._view.find_path(entry), is_changed=False)


def _is_identical(entry: Entry, content: Content | SameContent) -> bool:
    return (
        entry.kind is Kind.FILE and entry.size == content.size and entry.content_hash == content.content_hash
    )


def _has_content_of(entry: Entry, other: Entry) -> bool:
    return (
        entry.kind is Kind.FILE
        and other.kind is Kind.FILE
        and (entry.size, entry.content_hash) == (other.size, other.content_hash)
    )
