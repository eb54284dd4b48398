"""What each operation does to the tree: conflicts, autorename, missing parents, moves, deletes.

`Batch.apply` either changes the overlay and appends journal rows, or raises and changes nothing.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from metaserver.model.names import conflict_label, iter_renames
from metaserver.model.rows import Content, Entry, JournalOp, JournalRow, Kind
from metaserver.model.tree import TreeView
from wire.api import WriteMode
from wire.errors import (
    BlocksAbsent,
    ConflictChanged,
    ConflictFileAncestor,
    ConflictFolder,
    ConflictRev,
    ContentMismatch,
    Details,
    MalformedPath,
    MoveIntoItself,
    NotAFolder,
    NotFound,
    QuotaExceeded,
    ShardboxError,
    TooManyEntries,
)
from wire.hashes import BlockHash, block_size
from wire.ids import ROOT_ENTRY, EntryId, Jid, NsId, format_file_id, format_rev
from wire.names import name_key

MAX_ROWS_PER_TX = 10_000
"""Journal rows of one transaction: keeps the lock of a namespace, and the WAL between two commits, short."""

RENAMES_AT_ONCE = 50
"""Names that autorename looks up in one round trip: the first one is mostly free, and 1,000 round trips
under the namespace's lock were seen to take 9 s."""


@dataclass(frozen=True, slots=True)
class Target:
    """A place: names below an entry that is given by id (0: the root). No names: that entry itself."""

    anchor: EntryId
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CommitRequest:
    """A file to write; `rev_jid` is the expected rev's, with mode update alone."""

    target: Target
    content: Content
    blocks: Sequence[BlockHash]
    mode: WriteMode
    rev_jid: Jid | None
    autorename: bool
    strict_conflict: bool


@dataclass(frozen=True, slots=True)
class CreateFolderRequest:
    """A folder to make."""

    target: Target
    autorename: bool


@dataclass(frozen=True, slots=True)
class MoveRequest:
    """An entry to move or rename."""

    source: Target
    target: Target
    autorename: bool


@dataclass(frozen=True, slots=True)
class DeleteRequest:
    """An entry to delete; refused when it has changed after what the caller has seen."""

    target: Target
    rev_jid: Jid | None
    seen_jid: Jid | None


Request = CommitRequest | CreateFolderRequest | MoveRequest | DeleteRequest


@dataclass(frozen=True, slots=True)
class Outcome:
    """An operation that succeeded: the entry afterwards (for a delete: before), its path, its content."""

    entry: Entry
    path: str
    is_changed: bool


@dataclass(frozen=True, slots=True)
class Start:
    """Where a batch begins: the namespace's counters and who writes.

    `quota_bytes` is None where there is no quota.
    """

    ns_id: NsId
    head: Jid
    next_entry_id: EntryId
    display_name: str
    live_bytes: int = 0
    quota_bytes: int | None = None


class Batch:
    """Operations applied one after another to one namespace's tree.

    Invariant: `rows` have dense jids from start.head + 1; `written` maps each touched entry to its last
    state. `grown_bytes` is what the sizes of live files have grown by, but for what lies below `debts`: the
    folders that were deleted, which nothing has walked yet.
    """

    def __init__(self, start: Start, view: TreeView, ready_blocks: Mapping[BlockHash, int]):
        self._start = start
        self._view = view
        self._ready = ready_blocks
        self._next_entry_id = start.next_entry_id
        self.rows: list[JournalRow] = []
        self.written: dict[EntryId, Entry] = {}
        self.created: set[EntryId] = set()
        self.grown_bytes = 0
        self.debts: set[EntryId] = set()

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

    # ---- The operations

    def _commit(self, request: CommitRequest) -> Outcome:
        place = self._place_of_file(request)
        there = self._at(place)
        is_lost_update = False
        if there is not None:
            if _is_identical(there, request) and not request.strict_conflict:
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
            raise self._conflict(there)
        label = conflict_label(self._start.display_name) if is_lost_update else None
        for other in self._iter_beside(place, label):
            taken = self._at(other)
            if taken is None:
                self._check_content(request, replaced=None)
                return self._write(None, other, Kind.FILE, JournalOp.CONTENT, content=request.content)
            if _is_identical(taken, request):
                return self._unchanged(taken)
        raise self._conflict(there)

    def _create_folder(self, request: CreateFolderRequest) -> Outcome:
        place = self._place(request.target)
        place = self._free_place(place, request.autorename, mover=None)
        return self._write(None, place, Kind.FOLDER, JournalOp.FOLDER)

    def _move(self, request: MoveRequest) -> Outcome:
        entry = self._live(request.source)
        if entry.entry_id == ROOT_ENTRY:
            raise MalformedPath("the root folder cannot be moved")
        place = self._place(request.target)
        parent = self._view.find_entry(place.parent_id)
        if entry.kind is Kind.FOLDER and parent is not None and self._view.is_below(parent, entry.entry_id):
            raise MoveIntoItself()
        place = self._free_place(place, request.autorename, mover=entry)
        if not place.missing and (place.parent_id, place.name) == (entry.parent_id, entry.name):
            return self._unchanged(entry)
        return self._write(entry, place, entry.kind, JournalOp.MOVE, old_path=self._view.path_of(entry))

    def _delete(self, request: DeleteRequest) -> Outcome:
        entry = self._live(request.target)
        if entry.entry_id == ROOT_ENTRY:
            raise MalformedPath("the root folder cannot be deleted")
        if request.rev_jid is not None:
            if entry.kind is not Kind.FILE:
                raise self._conflict(entry)
            if entry.rev_jid != request.rev_jid:
                raise ConflictChanged(details=self._details(entry))
        if request.seen_jid is not None and self._view.has_changed_below(entry.entry_id, request.seen_jid):
            raise ConflictChanged(details=self._details(entry))
        path = self._view.path_of(entry)
        self._check_room(1)
        gone = replace(entry, is_deleted=True, last_jid=Jid(self.head + 1))
        self._append(JournalOp.DELETE, gone, prev_jid=entry.last_jid, old_path=path)
        if entry.kind is Kind.FOLDER:
            self.debts.add(entry.entry_id)
        self.grown_bytes -= entry.size or 0
        return Outcome(entry, path, is_changed=True)

    # ---- Places

    def _live(self, target: Target) -> Entry:
        """The live entry at a target."""
        entry = self._view.find_live(target.anchor)
        for name in target.names:
            if entry is None or entry.kind is not Kind.FOLDER:
                raise NotFound()
            entry = self._view.find_child(entry.entry_id, name_key(name))
        if entry is None:
            raise NotFound()
        return entry

    def _place_of_file(self, request: CommitRequest) -> "_Place":
        """A commit may name the file itself by id, wherever it is by now."""
        if request.target.names:
            return self._place(request.target)
        entry = self._view.find_entry(request.target.anchor)
        if entry is None or entry.entry_id == ROOT_ENTRY or self._view.find_live(entry.parent_id) is None:
            raise NotFound()
        return _Place(entry.parent_id, (), entry.name)

    def _place(self, target: Target) -> "_Place":
        """Where a name would go: its parent as far as it is there, and the parents that are missing."""
        if not target.names:
            raise MalformedPath("a name is needed")
        at = self._view.find_live(target.anchor)
        if at is None:
            raise NotFound("the folder is not there")
        if at.kind is not Kind.FOLDER:
            raise NotAFolder()
        *folders, name = target.names
        for depth, folder in enumerate(folders):
            child = self._view.find_child(at.entry_id, name_key(folder))
            if child is None:
                return _Place(at.entry_id, tuple(folders[depth:]), name)
            if child.kind is not Kind.FOLDER:
                raise ConflictFileAncestor(details=self._details(child))
            at = child
        return _Place(at.entry_id, (), name)

    def _at(self, place: "_Place") -> Entry | None:
        return None if place.missing else self._view.find_child(place.parent_id, name_key(place.name))

    def _iter_beside(self, place: "_Place", label: str | None) -> Iterator["_Place"]:
        """The places that autorename tries, looked up some at a time."""
        names = iter_renames(place.name, label)
        while some := list(islice(names, RENAMES_AT_ONCE)):
            self._view.require_children(place.parent_id, [name_key(name) for name in some])
            for name in some:
                yield replace(place, name=name)

    def _free_place(self, place: "_Place", autorename: bool, mover: Entry | None) -> "_Place":
        """The place, or the first free one beside it; an entry does not stand in its own way."""
        there = self._at(place)
        if there is None or (mover is not None and there.entry_id == mover.entry_id):
            return place
        if autorename:
            for other in self._iter_beside(place, None):
                taken = self._at(other)
                if taken is None or (mover is not None and taken.entry_id == mover.entry_id):
                    return other
        raise self._conflict(there)

    # ---- Writing

    def _write(
        self,
        old: Entry | None,
        place: "_Place",
        kind: Kind,
        op: JournalOp,
        *,
        content: Content | None = None,
        old_path: str | None = None,
    ) -> Outcome:
        """Give an entry its new state at a place, making the place's missing parents first."""
        self._check_room(len(place.missing) + 1)
        parent_id = place.parent_id
        for name in place.missing:
            folder = self._new_entry(parent_id, name, Kind.FOLDER)
            self._append(JournalOp.FOLDER, folder, prev_jid=None)
            parent_id = folder.entry_id
        if old is None:
            entry = self._new_entry(parent_id, place.name, kind)
        elif content is not None:
            entry = replace(old, last_jid=Jid(self.head + 1))  # an edit keeps the name's case
        else:
            entry = replace(
                old,
                parent_id=parent_id,
                name=place.name,
                name_key=name_key(place.name),
                last_jid=Jid(self.head + 1),
            )
        if content is not None:
            self.grown_bytes += content.size - (entry.size or 0)
            entry = replace(
                entry, rev_jid=entry.last_jid, size=content.size, content_hash=content.content_hash
            )
        prev_jid = None if old is None else old.last_jid
        self._append(op, entry, prev_jid=prev_jid, old_path=old_path, content=content)
        return Outcome(entry, self._view.path_of(entry), is_changed=True)

    def _new_entry(self, parent_id: EntryId, name: str, kind: Kind) -> Entry:
        jid = Jid(self.head + 1)
        entry_id = self._next_entry_id
        self._next_entry_id = EntryId(entry_id + 1)
        self.created.add(entry_id)
        return Entry(entry_id, parent_id, name, name_key(name), kind, False, jid, jid)

    def _append(
        self,
        op: JournalOp,
        entry: Entry,
        *,
        prev_jid: Jid | None,
        old_path: str | None = None,
        content: Content | None = None,
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
        """What does not grow is never refused, also beyond the quota."""
        quota, used = self._start.quota_bytes, self._start.live_bytes + self.grown_bytes
        if quota is not None and growth_bytes > 0 and used + growth_bytes > quota:
            raise QuotaExceeded(details={"used": used, "allocation": quota, "needed": growth_bytes})

    def _check_blocks(self, request: CommitRequest) -> None:
        absent = dict.fromkeys(block.hex() for block in request.blocks if block not in self._ready)
        if absent:
            raise BlocksAbsent(details={"hashes": list(absent)})
        for index, block in enumerate(request.blocks):
            if self._ready[block] != block_size(request.content.size, index):
                raise ContentMismatch(f"block {index} does not have the length that the size asks for")

    def _unchanged(self, entry: Entry) -> Outcome:
        return Outcome(entry, self._view.path_of(entry), is_changed=False)

    def _details(self, entry: Entry) -> Details:
        details: Details = {"id": format_file_id(self._start.ns_id, entry.entry_id)}
        if entry.rev_jid is not None:
            details["rev"] = format_rev(self._start.ns_id, entry.rev_jid)
        return details

    def _conflict(self, there: Entry | None) -> ShardboxError:
        if there is None:
            return ConflictRev("the file has been deleted")
        kind = ConflictFolder if there.kind is Kind.FOLDER else ConflictRev
        return kind(details=self._details(there))


@dataclass(frozen=True, slots=True)
class _Place:
    """A name in a folder; `missing` are the folders still to be made between `parent_id` and the name."""

    parent_id: EntryId
    missing: tuple[str, ...]
    name: str


def _is_identical(entry: Entry, request: CommitRequest) -> bool:
    return (
        entry.kind is Kind.FILE
        and entry.size == request.content.size
        and entry.content_hash == request.content.content_hash
    )
