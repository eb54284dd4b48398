"""Names and paths: case-insensitive, case-preserving, NFC (the rules users know from Dropbox)."""

import re
import unicodedata
from typing import NewType

from wire.errors import DisallowedName, MalformedPath
from wire.ids import EntryId, Jid, NsId, format_file_id, parse_file_id, parse_ns_id, parse_rev

NameKey = NewType("NameKey", str)
"""What makes two names the same: NFC(casefold(NFC(name)))."""

REV_PREFIX = "rev:"
MAX_NAME_CHARS = 255
MAX_PATH_DEPTH = 512
"""Components in one path. POSIX paths end at 4,096 bytes; a deeper tree would make each look-up of a
path unboundedly long."""
MAX_SHOWN_PATH_CHARS = 4_096
"""A longer path is left out of answers: it can come about where folders are named by their ids, POSIX could
not name it, and a page of 2,000 such would have no bound. A parent's id and a name say as much."""

_FORBIDDEN = re.compile(r"[/\\\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_DISALLOWED = {"desktop.ini", "thumbs.db", ".ds_store", "icon\r", ".dropbox", ".dropbox.attr"}


def name_key(name: str) -> NameKey:
    """The key under which a name is unique within its folder."""
    return NameKey(unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold()))


def check_name(name: str) -> str:
    """The name in NFC, if it may be used.

    Raises:
        MalformedPath: empty, too long, or with a forbidden character or ending.
        DisallowedName: one of the names that are never synced.
    """
    name = unicodedata.normalize("NFC", name)
    # Before the control characters: "icon\r" is a name that people really have.
    lowered = name.lower()
    if (
        lowered in _DISALLOWED
        or lowered.startswith(("~$", ".~"))
        or (lowered.startswith("~") and lowered.endswith(".tmp"))
    ):
        raise DisallowedName(f"names like {name[:40]!r} are not synced")
    if not name or len(name) > MAX_NAME_CHARS:
        raise MalformedPath(f"a name has 1 to {MAX_NAME_CHARS} characters")
    if _FORBIDDEN.search(name):
        raise MalformedPath("a name has no slash, backslash, control or surrogate character")
    if name.endswith(" ") or not name.strip("."):
        raise MalformedPath("a name does not end with a space and is not made of dots")
    if len(name_key(name)) > 4 * MAX_NAME_CHARS:
        raise MalformedPath("the name is too long once folded")
    return name


def split_path(path: str) -> tuple[str, ...]:
    """The checked names of an absolute path; the root folder, written as the empty string, has none.

    Raises:
        MalformedPath: not "" or "/a/b".
        DisallowedName: a component that is never synced.
    """
    if path == "":
        return ()
    if not path.startswith("/"):
        raise MalformedPath('a path is "" or begins with "/"')
    parts = path[1:].split("/")
    if len(parts) > MAX_PATH_DEPTH:
        raise MalformedPath(f"a path has at most {MAX_PATH_DEPTH} components")
    return tuple(check_name(part) for part in parts)


def parse_target(text: str, root_ns: NsId) -> tuple[NsId, EntryId, tuple[str, ...]]:
    """What a `path` argument names: namespace, the entry it starts from, and the names below that.

    Four forms, Dropbox's own: "" or "/a/b" (from the caller's root), "ns:1234/a/b" (from a namespace's
    root), "id:…" (an entry), "id:…/a/b" (below a folder, wherever that is by now).

    Raises:
        MalformedPath, MalformedId, DisallowedName: not of these forms.
    """
    if text.startswith("id:"):
        head, slash, rest = text.partition("/")
        ns_id, entry_id = parse_file_id(head)
        return ns_id, entry_id, split_path(slash + rest)
    if text.startswith("ns:"):
        head, slash, rest = text[3:].partition("/")
        return parse_ns_id(head), EntryId(0), split_path(slash + rest)
    return root_ns, EntryId(0), split_path(text)


def parse_rev_target(text: str) -> tuple[NsId, Jid] | None:
    """The rev that `rev:…` names; None: the text is of another form.

    Raises:
        MalformedId: not a rev behind the colon.
    """
    return parse_rev(text.removeprefix(REV_PREFIX)) if text.startswith(REV_PREFIX) else None


def format_child(ns_id: NsId, parent_id: EntryId, name: str) -> str:
    """The `path` argument for a name in a folder that is given by id."""
    return f"{format_file_id(ns_id, parent_id)}/{name}"
