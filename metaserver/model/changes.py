"""What has changed in a namespace since a jid, asked folder by folder: has anything that lives in it?"""

from collections.abc import Iterable
from itertools import chain

from metaserver.model.rows import Entry
from wire.ids import EntryId, Jid

MAX_CHANGES_LOOKED_AT = 10_000
"""Journal rows that the guards of one batch's deletes look at. A caller who has seen less than that of the
namespace's last changes is told that the folder may have changed, and reads on."""


class Changes:
    """For each entry that has changed, and each folder above one, the newest change of what lives in it.

    Invariant: newest[e] = max(own[e], newest[c] for c in below[e]).
    """

    def __init__(self, since: Jid):
        self.since = since
        self._own: dict[EntryId, Jid] = {}
        self._newest: dict[EntryId, Jid] = {}
        self._below: dict[EntryId, set[EntryId]] = {}

    def newest_in(self, entry_id: EntryId) -> Jid:
        """The jid of the newest change, or `since` if there is none after that."""
        return self._newest.get(entry_id, self.since)

    def add(self, changed: Entry, above: Iterable[Entry]) -> None:
        """A live entry has changed, or has come here, into the folders `above`, from its parent up."""
        if changed.last_jid <= self.since:
            return
        self._own[changed.entry_id] = changed.last_jid
        newest = Jid(0)
        for step in chain([changed], above):
            newest = max(newest, self._own.get(step.entry_id, Jid(0)), self.newest_in(step.entry_id))
            inside = self._below.setdefault(step.parent_id, set())
            if step.entry_id in inside and self._newest[step.entry_id] == newest:
                return  # so it has told all that is above it
            self._newest[step.entry_id] = newest
            inside.add(step.entry_id)

    def remove(self, gone: Entry, above: Iterable[Entry]) -> None:
        """An entry leaves the folders `above`, from its parent up, with all that is below it."""
        if gone.entry_id not in self._newest:
            return
        self._below[gone.parent_id].discard(gone.entry_id)
        for step in above:
            inside: Iterable[EntryId] = self._below.get(step.entry_id, ())
            newest = max(
                (self._newest[child] for child in inside), default=self._own.get(step.entry_id, Jid(0))
            )
            newest = max(newest, self._own.get(step.entry_id, Jid(0)))
            if newest == self._newest[step.entry_id]:
                return
            if newest > self.since:
                self._newest[step.entry_id] = newest
                continue
            del self._newest[step.entry_id]
            self._below[step.parent_id].discard(step.entry_id)
