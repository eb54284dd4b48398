"""How far a walk down a folder has come.

level 1: the folder that is listed, after "docs"
level 2:     /docs, after "letters"
level 3:         /docs/letters, after "2026.txt"
"""

from collections.abc import Iterable

from metaserver.model.rows import Entry, Kind
from wire.cursors import Walking, WalkLevel
from wire.ids import EntryId
from wire.names import NameKey


def start_walk(folder: EntryId) -> Walking:
    """Before the first name of a folder."""
    return Walking((WalkLevel(folder, NameKey("")),))


def after_walk(state: Walking, steps: Iterable[tuple[int, Entry | None]]) -> Walking:
    """Where a walk goes on after steps: (how many folders deep, what was found).

    A depth below the walk's own says that the deeper folders have been left. None found: the deepest folder
    has no more.
    """
    levels = list(state.levels)
    for depth, entry in steps:
        del levels[depth:]
        if entry is None:
            levels.pop()
            continue
        levels[-1] = WalkLevel(levels[-1].folder, entry.name_key)
        if entry.kind is Kind.FOLDER:
            levels.append(WalkLevel(entry.entry_id, NameKey("")))
    return Walking(tuple(levels))
