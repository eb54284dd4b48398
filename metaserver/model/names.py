"""The names that autorename tries, in their order."""

import unicodedata
from collections.abc import Iterator
from itertools import count

from wire.names import MAX_NAME_CHARS

MAX_RENAME_TRIES = 1_000
"""After `name (999).ext` the search gives up: each try is a look-up under the namespace's lock."""


def iter_renames(name: str, label: str | None) -> Iterator[str]:
    """Names to try for one that is taken, up to the bound.

    `name (1).ext`, `name (2).ext`, … or, with a label, `name (label).ext`, `name (label 1).ext`, …
    """
    stem, dot, extension = name.rpartition(".")
    if not stem:
        stem, dot, extension = name, "", ""
    for number in count(0 if label else 1):
        if number >= MAX_RENAME_TRIES:
            return
        text = f"{label} {number}" if label and number else label or str(number)
        suffix = f" ({text}){dot}{extension}"
        if len(suffix) >= MAX_NAME_CHARS:
            suffix = f" ({number or 1})"
        yield stem[: MAX_NAME_CHARS - len(suffix)] + suffix


def conflict_label(display_name: str) -> str:
    """What tells a lost update's copy from the winner: `Display Name's conflicted copy`."""
    # A display name may hold what a file name may not.
    display_name = unicodedata.normalize("NFC", display_name)
    clean = "".join(c for c in display_name if c not in "/\\" and c.isprintable()).strip()
    return f"{clean[:80] or 'Somebody'}'s conflicted copy"
