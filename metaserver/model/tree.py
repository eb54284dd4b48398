"""The part of a namespace's tree that a request has loaded, with what the request changes laid over it.

Looking at something that has not been loaded raises NeedRows; the service loads it and asks again. So the
rules stay pure, and still nobody reads a whole tree.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from metaserver.model.rows import ROOT, Entry
from wire.ids import ROOT_ENTRY, EntryId, Jid
from wire.names import NameKey, name_key


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
        changed_after: Jid | None = None,
    ):
        super().__init__()
        self.ids = tuple(ids)
        self.walks = tuple(walks)
        self.changed_after = changed_after


class TreeView:
    """Entries by id and by place."""

    def __init__(self) -> None:
        self._by_id: dict[EntryId, Entry | None] = {ROOT_ENTRY: ROOT}
        self._by_place: dict[tuple[EntryId, NameKey], EntryId | None] = {}
        # Folders whose children are all known: those that this request made.
        self._complete: set[EntryId] = set()
        self._changed_after: dict[Jid, set[EntryId]] = {}
        # By jid: the live entries that changed after it, with all above them.
        self._touched_after: dict[Jid, set[EntryId]] = {}

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
        self._changed_after[after] = {
            entry_id
            for entry_id, entry in self._by_id.items()
            if entry is not None and entry.last_jid > after
        }
        self._touched_after.pop(after, None)

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
        return entry if entry is not None and self.list_lineage(entry) is not None else None

    def path_of(self, entry: Entry) -> str:
        """The displayed path of a live entry."""
        lineage = self.list_lineage(entry)
        assert lineage is not None, "only what is live has a path"
        return "".join("/" + step.name for step in lineage)

    def is_below(self, entry: Entry, folder_id: EntryId) -> bool:
        """Whether a live entry is the folder or lies in it, at any depth."""
        lineage = self.list_lineage(entry)
        return lineage is not None and any(step.entry_id == folder_id for step in lineage)

    def has_changed_below(self, folder_id: EntryId, after: Jid) -> bool:
        """Whether the folder or anything live in it has changed after a jid."""
        if after not in self._changed_after:
            raise NeedRows(changed_after=after)
        if after not in self._touched_after:
            self._touched_after[after] = {
                step.entry_id
                for entry in map(self.find_entry, self._changed_after[after])
                for step in (entry is not None and self.list_lineage(entry)) or ()
            }
        return folder_id in self._touched_after[after]

    # ---- Changing

    def put(self, entry: Entry, *, is_new: bool = False) -> None:
        """Lay a new state of an entry over what was loaded; a new entry has no children."""
        if is_new:
            self._complete.add(entry.entry_id)
        old = self._by_id.get(entry.entry_id)
        if old is not None and not old.is_deleted:
            self._by_place[old.parent_id, old.name_key] = None
        self._by_id[entry.entry_id] = entry
        if not entry.is_deleted:
            self._by_place[entry.parent_id, entry.name_key] = entry.entry_id
        for after, changed in self._changed_after.items():
            if entry.last_jid > after:
                changed.add(entry.entry_id)
            self._touch(after, old, entry)

    def _touch(self, after: Jid, old: Entry | None, entry: Entry) -> None:
        """Keep what a batch of guarded deletes looks at, rather than tell it anew for each of them."""
        touched = self._touched_after.get(after)
        if touched is None:
            return
        has_left = entry.is_deleted or (old is not None and old.parent_id != entry.parent_id)
        if has_left and entry.entry_id in touched:
            del self._touched_after[after]  # the folders that it has left may hold no change now
        elif entry.last_jid > after:
            touched.update(step.entry_id for step in self.list_lineage(entry) or ())


def walk_of(anchor: EntryId, names: Sequence[str]) -> Walk:
    """The walk along displayed names."""
    return Walk(anchor, tuple(name_key(name) for name in names))
