"""What is on the disk: folders listed into records. Blocking; called in a thread. Reads no file.

A listing is whole (every folder below the root) or of some folders only; then what turned up new in them is
listed whole, and the rest is taken as it was.
"""

import errno
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from client.disk import fingerprint_of, kind_of
from client.folder import MARKER_DIR
from client.model import Fingerprint, Kind
from wire.errors import ShardboxError
from wire.names import check_name

RACY_NS = 2_000_000_000
"""A file written less than this before it was read may be written again without a new mtime: FAT counts in
2 s, ext4 and its like in 4 ms. Such a file is hashed once more at the next whole scan."""
MAX_DEPTH = 500
"""The server takes 512 components in a path."""


@dataclass(frozen=True, slots=True)
class Seen:
    """One thing in a folder; `kind` is None for what is never synced, `reason` says why."""

    disk_name: bytes
    name: str
    kind: Kind | None
    fingerprint: Fingerprint
    reason: str = ""


@dataclass(slots=True)
class Listing:
    """What a scan found: per folder (relative path) its contents, or None where it could not be read."""

    folders: dict[bytes, list[Seen] | None] = field(default_factory=dict)
    is_whole: bool = False
    problems: list[tuple[bytes, str, str]] = field(default_factory=list)
    """Path, reason, detail."""


def is_racy(mtime_ns: int, read_at_ns: int) -> bool:
    """Whether a later write could leave this mtime as it is."""
    return mtime_ns >= read_at_ns - RACY_NS


def scan_all(root: bytes) -> Listing:
    """Every folder."""
    listing = Listing(is_whole=True)
    _walk(root, [b""], listing, lambda _path, _seen: True)
    return listing


def scan_some(root: bytes, folders: Iterable[bytes], is_known: Callable[[bytes, Seen], bool]) -> Listing:
    """These folders, and whole what lies in them and is not known."""
    listing = Listing()
    _walk(root, list(folders), listing, lambda path, seen: not is_known(path, seen))
    return listing


def _walk(root: bytes, todo: list[bytes], listing: Listing, enter: Callable[[bytes, Seen], bool]) -> None:
    device = os.stat(root).st_dev
    while todo:
        folder = todo.pop()
        if folder in listing.folders:
            continue
        found = _list_folder(root, folder, device, listing.problems)
        listing.folders[folder] = found
        for seen in found or ():
            path = folder + b"/" + seen.disk_name if folder else seen.disk_name
            if seen.kind is Kind.FOLDER and enter(path, seen):
                if path.count(b"/") >= MAX_DEPTH:
                    listing.folders[path] = None
                    listing.problems.append((path, "too_deep", f"more than {MAX_DEPTH} folders deep"))
                else:
                    todo.append(path)


def _list_folder(
    root: bytes, folder: bytes, device: int, problems: list[tuple[bytes, str, str]]
) -> list[Seen] | None:
    """What is in one folder; None if it cannot be read, an empty list if it has gone."""
    found: list[Seen] = []
    prefix = folder + b"/" if folder else b""
    try:
        with os.scandir(root + b"/" + folder if folder else root) as entries:
            for entry in entries:
                if not folder and entry.name == MARKER_DIR:
                    continue
                try:
                    stat = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                seen = _see(entry.name, stat, device, root + b"/" + prefix + entry.name)
                if seen.reason:
                    problems.append((prefix + entry.name, *_explain(seen.reason)))
                found.append(seen)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            problems.append((folder, "path_too_long", "the path is longer than the system takes"))
        else:
            problems.append((folder, "unreadable", error.strerror or str(error)))
        return None
    return found


def _see(disk_name: bytes, stat: os.stat_result, device: int, path: bytes) -> Seen:
    fingerprint = fingerprint_of(stat)
    try:
        name = check_name(disk_name.decode())
    except UnicodeDecodeError:
        return Seen(disk_name, disk_name.decode(errors="surrogateescape"), None, fingerprint, "not_utf8")
    except ShardboxError as error:
        shown = disk_name.decode(errors="replace")
        return Seen(disk_name, shown, None, fingerprint, f"{error.code}: {error}")
    kind = kind_of(stat)
    if kind is None:
        reason = "symlink" if (stat.st_mode & 0o170000) == 0o120000 else "special_file"
        return Seen(disk_name, name, None, fingerprint, reason)
    if kind is Kind.FOLDER and stat.st_dev != device:
        return Seen(disk_name, name, None, fingerprint, "other_file_system")
    if kind is Kind.FOLDER and os.path.lexists(path + b"/" + MARKER_DIR + b"/marker"):
        return Seen(disk_name, name, None, fingerprint, "linked_folder_inside")
    return Seen(disk_name, name, kind, fingerprint)


_REASONS = {
    "not_utf8": "the name is not valid UTF-8",
    "symlink": "symbolic links are not synced",
    "special_file": "only files and folders are synced",
    "other_file_system": "another file system is mounted here",
    "linked_folder_inside": "a linked folder of its own",
}


def _explain(reason: str) -> tuple[str, str]:
    code, _, detail = reason.partition(": ")
    return code, detail or _REASONS.get(code, "")
