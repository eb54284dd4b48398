"""What is on the disk: folders listed into records. Blocking; called in a thread. Reads no file."""

import errno
import os
from dataclasses import dataclass

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


def is_racy(mtime_ns: int, read_at_ns: int) -> bool:
    """Whether a later write could leave this mtime as it is."""
    return mtime_ns >= read_at_ns - RACY_NS


class Lister:
    """Lists folders below a root, one at a time, and collects what in them cannot be synced."""

    def __init__(self, root: bytes):
        self._root, self._device = root, os.stat(root).st_dev
        self.problems: dict[bytes, tuple[str, str]] = {}
        """Path → reason and detail."""

    def list_folder(self, folder: bytes) -> list[Seen] | None:
        """What is in a folder (relative path); None if it cannot be read, an empty list if it has gone."""
        if folder.count(b"/") >= MAX_DEPTH:
            self.problems[folder] = ("too_deep", f"more than {MAX_DEPTH} folders deep")
            return None
        try:
            return self._list(folder)
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                self.problems[folder] = ("path_too_long", "the path is longer than the system takes")
            else:
                self.problems[folder] = ("unreadable", error.strerror or str(error))
            return None

    def _list(self, folder: bytes) -> list[Seen]:
        found: list[Seen] = []
        prefix = folder + b"/" if folder else b""
        with os.scandir(self._root + b"/" + folder if folder else self._root) as entries:
            for entry in entries:
                if not folder and entry.name == MARKER_DIR:
                    continue
                try:
                    stat = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                seen = _see(entry.name, stat, self._device, self._root + b"/" + prefix + entry.name)
                if seen.reason:
                    self.problems[prefix + entry.name] = _explain(seen.reason)
                found.append(seen)
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
