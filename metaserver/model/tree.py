"""The part of a namespace's tree that a request has loaded, with what the request changes laid over it.

Looking at something that has not been loaded raises NeedRows; the service loads it and asks again. So the
rules stay pure, and still nobody reads a whole tree.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from metaserver.model.changes import Changes
from metaserver.model.rows import ROOT, Entry, Kind, Rev
from wire.errors import TooManyEntries
from wire.ids import ROOT_ENTRY, EntryId, Jid
from wire.names import MAX_SHOWN_PATH_CHARS, NameKey, name_key

MAX_ROWS_BELOW = 50_000
"""Rows that the copies of one batch look at, also those of folders that turn out to be too large; the last
folder may go beyond it. Some 0.3 s under the namespace's lock."""


@dataclass(frozen=True, slots=True)
class Walk:
    """Names to follow down from a folder."""

    anchor: EntryId
    keys: tuple[NameKey, ...]


class NeedRows(Exception):
    """Rows that must be loaded before the question can be answered."""

    def __init__(
        self,
        *,
        ids: Iterable[EntryId] = (),
        walks: Iterable[Walk] = (),
        revs: Iterable[Jid] = (),
        changed_after: Jid | None = None,
        below: EntryId | None = None,
        owing: EntryId | None = None,
    ):
        super().__init__()
        self.ids = tuple(ids)
        self.walks = tuple(walks)
        self.revs = tuple(revs)
        self.changed_after = changed_after
        self.below = below
        self.owing = owing


class TreeView:
    """Entries by id and by place."""

    def __init__(self) -> None:
        self._by_id: dict[EntryId, Entry | None] = {ROOT_ENTRY: ROOT}
        self._by_place: dict[tuple[EntryId, NameKey], EntryId | None] = {}
        # Live children, as far as they are known; all of them are in the folders that this request has made,
        # and in those that were loaded whole.
        self._children: dict[EntryId, set[EntryId]] = {}
        self._complete: set[EntryId] = set()
        self._too_large: set[EntryId] = set()
        self._below_count = 0
        self._revs: dict[Jid, Rev | None] = {}
        self._owing: dict[EntryId, bool] = {}
        self._changes: Changes | None = None
        # What was found out on the way up, which is climbed once for all that lies below: a page has up to
        # 2,000 entries, and nothing bounds how deep they lie.
        self._under: dict[EntryId, dict[EntryId, bool]] = {}
        self._paths: dict[EntryId, str | None] = {ROOT_ENTRY: ""}

    # ---- Loading

    def load(self, rows: Iterable[Entry], *, ids: Iterable[EntryId] = (), walks: Iterable[Walk] = ()) -> None:
        """Take rows in; `ids` and `walks` say what was asked for, so that what did not come is known absent.

        What was loaded before stays: this request may have changed it.
        """
        for entry in rows:
            if entry.entry_id not in self._by_id:
                self._by_id[entry.entry_id] = entry
                if not entry.is_deleted:
                    self._by_place.setdefault((entry.parent_id, entry.name_key), entry.entry_id)
                    self._children.setdefault(entry.parent_id, set()).add(entry.entry_id)
        for entry_id in ids:
            self._by_id.setdefault(entry_id, None)
        for walk in walks:
            at = walk.anchor
            for key in walk.keys:
                found = self._by_place.setdefault((at, key), None)
                if found is None:
                    break
                at = found

    def load_changed(self, after: Jid, rows: Iterable[Entry]) -> None:
        """Take in every entry that changed after a jid; what this request has changed counts as well."""
        self.load(rows)
        self._changes = Changes(after)
        changed = [entry for entry in self._by_id.values() if entry is not None and entry.last_jid > after]
        # The newest first: the folders above the others have then mostly been told of something newer.
        for entry in sorted(changed, key=lambda entry: entry.last_jid, reverse=True):
            if self.is_live(entry):
                self._changes.add(entry, self._iter_above(entry))

    def load_below(self, folder_id: EntryId, rows: Sequence[Entry], *, is_all: bool) -> None:
        """Take in all that lives below a folder, or with `is_all` False so much of it that it is too much."""
        self._below_count += len(rows)
        if not is_all:
            self._too_large.add(folder_id)
            return
        self.load(rows)
        self._complete |= {folder_id, *(row.entry_id for row in rows if row.kind is Kind.FOLDER)}

    def load_revs(self, asked: Iterable[Jid], revs: Mapping[Jid, Rev]) -> None:
        """Take in revs; those that did not come are known absent."""
        for jid in asked:
            self._revs[jid] = revs.get(jid)

    def load_owing(self, folder_id: EntryId, is_owing: bool) -> None:
        """Take in whether a deleted folder owes."""
        self._owing[folder_id] = is_owing

    # ---- Looking

    def find_entry(self, entry_id: EntryId) -> Entry | None:
        """The entry as this request has left it; None where there is no such row."""
        if entry_id not in self._by_id:
            raise NeedRows(ids=[entry_id])
        return self._by_id[entry_id]

    def find_child(self, parent_id: EntryId, key: NameKey) -> Entry | None:
        """The entry that holds a name in a folder."""
        place = (parent_id, key)
        if place not in self._by_place and parent_id not in self._complete:
            raise NeedRows(walks=[Walk(parent_id, (key,))])
        found = self._by_place.get(place)
        return None if found is None else self._by_id[found]

    def require_children(self, parent_id: EntryId, keys: Iterable[NameKey]) -> None:
        """Have these names of a folder loaded together, whether they are taken or not."""
        if parent_id not in self._complete:
            unknown = [key for key in keys if (parent_id, key) not in self._by_place]
            if unknown:
                raise NeedRows(walks=[Walk(parent_id, (key,)) for key in unknown])

    def list_lineage(self, entry: Entry) -> list[Entry] | None:
        """The entry and its ancestors from the root's child down; None if any of them is deleted or missing.

        The root itself has the empty lineage.
        """
        lineage: list[Entry] = []
        at: Entry | None = entry
        while at is not None and at.entry_id != ROOT_ENTRY:
            if at.is_deleted:
                return None
            lineage.append(at)
            at = self.find_entry(at.parent_id)
        return None if at is None else lineage[::-1]

    def _iter_above(self, entry: Entry) -> Iterator[Entry]:
        """The folders above a live entry, from its parent up to the root's child."""
        while entry.parent_id != ROOT_ENTRY:
            above = self.find_entry(entry.parent_id)
            assert above is not None, "what is above a live entry is there"
            yield above
            entry = above

    def list_places(self, entry: Entry) -> list[Entry] | None:
        """The entry and its ancestors from the root's child down, dead or alive; None if one is missing."""
        places: list[Entry] = []
        at: Entry | None = entry
        while at is not None and at.entry_id != ROOT_ENTRY:
            places.append(at)
            at = self.find_entry(at.parent_id)
        return None if at is None else places[::-1]

    def find_live(self, entry_id: EntryId) -> Entry | None:
        """The entry, if neither it nor any ancestor is deleted."""
        entry = self.find_entry(entry_id)
        return entry if entry is not None and self.is_live(entry) else None

    def is_live(self, entry: Entry) -> bool:
        """Whether neither the entry nor any ancestor is deleted."""
        return self.is_under(entry, ROOT_ENTRY)

    def is_under(self, entry: Entry, folder_id: EntryId) -> bool:
        """Whether an entry lives in a live folder, at any depth; of the root, the root itself does too."""
        known = self._under.setdefault(folder_id, {ROOT_ENTRY: False} | {folder_id: True})
        passed: list[EntryId] = []
        at: Entry | None = entry
        found: bool | None = None
        while found is None:
            if at is None or at.is_deleted:
                found = False
            elif (found := known.get(at.parent_id)) is None:
                passed.append(at.parent_id)
                at = self.find_entry(at.parent_id)
        known |= dict.fromkeys(passed, found)
        return found

    def path_of(self, entry: Entry) -> str:
        """The displayed path of a live entry, however long."""
        lineage = self.list_lineage(entry)
        assert lineage is not None, "only what is live has a path"
        return "".join("/" + step.name for step in lineage)

    def find_path(self, entry: Entry) -> str | None:
        """The displayed path of a live entry; None where it is too long to be shown."""
        assert self.is_live(entry), "only what is live has a path"
        if entry.entry_id == ROOT_ENTRY:
            return ""
        if entry.parent_id not in self._paths:
            self._paths[entry.parent_id] = self._find_folder_path(entry.parent_id)
        return _join_shown(self._paths[entry.parent_id], f"/{entry.name}")

    def _find_folder_path(self, folder_id: EntryId) -> str | None:
        # What it depends on is in `_under`: only what is known to live is asked for.
        path = ""
        while folder_id not in self._paths and len(path) <= MAX_SHOWN_PATH_CHARS:
            folder = self.find_entry(folder_id)
            assert folder is not None, "what is above a live entry is there"
            path = f"/{folder.name}{path}"
            folder_id = folder.parent_id
        return _join_shown(self._paths.get(folder_id, ""), path)

    def is_below(self, entry: Entry, folder_id: EntryId) -> bool:
        """Whether a live entry is the folder or lies in it, at any depth."""
        lineage = self.list_lineage(entry)
        return lineage is not None and any(step.entry_id == folder_id for step in lineage)

    def has_changed_below(self, folder_id: EntryId, after: Jid) -> bool:
        """Whether the folder or anything live in it has changed after a jid."""
        if self._changes is None or after < self._changes.since:
            raise NeedRows(changed_after=after)
        return self._changes.newest_in(folder_id) > after

    def list_below(self, folder_id: EntryId, limit: int) -> list[Entry]:
        """All that lives below a folder, parents before their children.

        Raises:
            TooManyEntries: more than `limit`, or this request has looked at too many rows for that.
        """
        found: list[Entry] = []
        todo = [folder_id]
        while todo:
            for child_id in sorted(self._list_children(todo.pop())):
                child = self._by_id[child_id]
                assert child is not None, "a child is loaded"
                found.append(child)
                if child.kind is Kind.FOLDER:
                    todo.append(child_id)
            if len(found) > limit:
                raise TooManyEntries(f"a folder of more than {limit} entries cannot be copied")
        return found

    def _list_children(self, folder_id: EntryId) -> set[EntryId]:
        if folder_id not in self._complete:
            if folder_id in self._too_large or self._below_count > MAX_ROWS_BELOW:
                raise TooManyEntries("there is too much in the folders that are to be copied")
            raise NeedRows(below=folder_id)
        return self._children.get(folder_id, set())

    def find_rev(self, jid: Jid) -> Rev | None:
        """A rev that was there before this request."""
        if jid not in self._revs:
            raise NeedRows(revs=[jid])
        return self._revs[jid]

    def owes(self, folder_id: EntryId) -> bool:
        """Whether a deleted folder owes: what was below it when it was deleted is counted still."""
        if folder_id not in self._owing:
            raise NeedRows(owing=folder_id)
        return self._owing[folder_id]

    # ---- Changing

    def put(self, entry: Entry, *, is_new: bool = False) -> None:
        """Lay a new state of an entry over what was loaded; a new entry has no children."""
        if is_new:
            self._complete.add(entry.entry_id)
        old = self._by_id.get(entry.entry_id)
        if any(entry.entry_id in known for known in self._under.values()):
            # It is above something that has been told of.
            self._under.clear()
            self._paths = {ROOT_ENTRY: ""}
        if old is not None and not old.is_deleted:
            has_left = entry.is_deleted or old.parent_id != entry.parent_id
            if self._changes is not None and has_left and self.is_live(old):
                self._changes.remove(old, self._iter_above(old))
            self._by_place[old.parent_id, old.name_key] = None
            self._children[old.parent_id].discard(old.entry_id)
        self._by_id[entry.entry_id] = entry
        if not entry.is_deleted:
            self._by_place[entry.parent_id, entry.name_key] = entry.entry_id
            self._children.setdefault(entry.parent_id, set()).add(entry.entry_id)
            if self._changes is not None and self.is_live(entry):
                self._changes.add(entry, self._iter_above(entry))


def _join_shown(above: str | None, below: str) -> str | None:
    """A path in two parts; None where it is too long to be shown."""
    return None if above is None or len(above) + len(below) > MAX_SHOWN_PATH_CHARS else above + below


def walk_of(anchor: EntryId, names: Sequence[str]) -> Walk:
    """The walk along displayed names."""
    return Walk(anchor, tuple(name_key(name) for name in names))
