"""Where things are and where they would go: parents that are missing, names that are taken."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice

from metaserver.model.names import iter_renames
from metaserver.model.operations import Target
from metaserver.model.rows import Entry, Kind
from metaserver.model.tree import TreeView
from wire.errors import (
    ConflictFileAncestor,
    ConflictFolder,
    ConflictRev,
    Details,
    MalformedPath,
    NotAFolder,
    NotFound,
    ShardboxError,
)
from wire.ids import ROOT_ENTRY, EntryId, NsId, format_file_id, format_rev
from wire.names import name_key

RENAMES_AT_ONCE = 50
"""Names that autorename looks up in one round trip: the first one is mostly free, and 1,000 round trips
under the namespace's lock were seen to take 9 s."""


@dataclass(frozen=True, slots=True)
class Place:
    """A name in a folder; `missing` are the folders still to be made between `parent_id` and the name."""

    parent_id: EntryId
    missing: tuple[str, ...]
    name: str


class Places:
    """The places of one namespace, as a batch sees them."""

    def __init__(self, ns_id: NsId, view: TreeView):
        self._ns_id = ns_id
        self._view = view

    def get_live(self, target: Target) -> Entry:
        """The live entry at a target.

        Raises:
            NotFound: nothing lives there.
        """
        entry = self._view.find_live(target.anchor)
        for name in target.names:
            if entry is None or entry.kind is not Kind.FOLDER:
                raise NotFound()
            entry = self._view.find_child(entry.entry_id, name_key(name))
        if entry is None:
            raise NotFound()
        return entry

    def of_file(self, target: Target) -> Place:
        """The place of a file that is to be written: it may be named by its id, wherever it is by now."""
        if target.names:
            return self.of(target)
        entry = self._view.find_entry(target.anchor)
        if entry is None or entry.entry_id == ROOT_ENTRY or self._view.find_live(entry.parent_id) is None:
            raise NotFound()
        return Place(entry.parent_id, (), entry.name)

    def of_restored(self, target: Target, file: Entry) -> Place:
        """The place of a file that comes back: by its own id, that is where it is or last was.

        Raises:
            NotFound: another file's id, or one that nothing is left of.
        """
        if target.names or target.anchor == ROOT_ENTRY:
            return self.of(target)
        if target.anchor != file.entry_id:
            other = self._view.find_live(target.anchor)
            if other is None or other.kind is not Kind.FOLDER:
                raise NotFound()
            raise self.conflict(other)
        if self._view.is_live(file):
            return Place(file.parent_id, (), file.name)
        steps = self._view.list_places(file)
        if steps is None:
            raise NotFound()
        return self.of(Target(ROOT_ENTRY, tuple(step.name for step in steps)))

    def of(self, target: Target) -> Place:
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
                return Place(at.entry_id, tuple(folders[depth:]), name)
            if child.kind is not Kind.FOLDER:
                raise ConflictFileAncestor(details=self.details(child))
            at = child
        return Place(at.entry_id, (), name)

    def find_at(self, place: Place) -> Entry | None:
        """Who holds a place."""
        return None if place.missing else self._view.find_child(place.parent_id, name_key(place.name))

    def iter_beside(self, place: Place, label: str | None) -> Iterator[Place]:
        """The places that autorename tries, looked up some at a time."""
        names = iter_renames(place.name, label)
        while some := list(islice(names, RENAMES_AT_ONCE)):
            self._view.require_children(place.parent_id, [name_key(name) for name in some])
            for name in some:
                yield replace(place, name=name)

    def get_free(self, place: Place, autorename: bool, mover: Entry | None) -> Place:
        """The place, or the first free one beside it; an entry does not stand in its own way.

        Raises:
            ConflictRev, ConflictFolder: it is taken.
        """
        there = self.find_at(place)
        if there is None or (mover is not None and there.entry_id == mover.entry_id):
            return place
        if autorename:
            for other in self.iter_beside(place, None):
                taken = self.find_at(other)
                if taken is None or (mover is not None and taken.entry_id == mover.entry_id):
                    return other
        raise self.conflict(there)

    def is_inside(self, place: Place, entry: Entry) -> bool:
        """Whether a place lies in an entry, at any depth."""
        parent = self._view.find_entry(place.parent_id)
        return (
            entry.kind is Kind.FOLDER and parent is not None and self._view.is_below(parent, entry.entry_id)
        )

    # ---- Refusals

    def details(self, entry: Entry) -> Details:
        """Who stands in the way."""
        details: Details = {"id": format_file_id(self._ns_id, entry.entry_id)}
        if entry.rev_jid is not None:
            details["rev"] = format_rev(self._ns_id, entry.rev_jid)
        return details

    def conflict(self, there: Entry | None) -> ShardboxError:
        """The refusal of a place that is taken, or of an update of what is gone."""
        if there is None:
            return ConflictRev("the file has been deleted")
        kind = ConflictFolder if there.kind is Kind.FOLDER else ConflictRev
        return kind(details=self.details(there))
