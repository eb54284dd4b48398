"""The nodes of the three trees, and the actions that a plan is made of. Pure.

Every tree is keyed by entry id: 0 is the root folder, ids above 0 are the server's, ids below 0 are the
client's own, for what the server has not got yet.

    remote   what the server has, as far as the cursor has read
    local    what the disk has, as the last scan saw it
    synced   what both had when they last agreed: the base of every three-way decision
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

ROOT = 0
FOLDER_CONTENT = b""
"""What a folder has for a content: all folders are alike."""


class Kind(StrEnum):
    """What an entry is; it never changes for an id."""

    FILE = "file"
    FOLDER = "folder"


class Place(NamedTuple):
    """Where an entry is: its folder's id, and its name in NFC."""

    parent: int
    name: str


class Fingerprint(NamedTuple):
    """What stat says of a file; equal fingerprints mean unread bytes are the same (see scan.is_racy)."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    device: int

    def is_same_body(self, other: "Fingerprint") -> bool:
        """Equal but for ctime, which a rename changes."""
        return (self.size, self.mtime_ns, self.inode) == (other.size, other.mtime_ns, other.inode)


NO_FINGERPRINT = Fingerprint(0, 0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class RemoteNode:
    """An entry on the server; `content` is the content hash of a file."""

    id: int
    parent: int
    name: str
    kind: Kind
    jid: int = 0
    rev: str = ""
    size: int = 0
    content: bytes = FOLDER_CONTENT
    modified: str = ""

    @property
    def place(self) -> Place:
        """Folder and name."""
        return Place(self.parent, self.name)


@dataclass(frozen=True, slots=True)
class SyncedNode:
    """An entry as disk and server last agreed on it."""

    id: int
    parent: int
    name: str
    kind: Kind
    rev: str = ""
    size: int = 0
    content: bytes = FOLDER_CONTENT

    @property
    def place(self) -> Place:
        """Folder and name."""
        return Place(self.parent, self.name)


@dataclass(frozen=True, slots=True)
class LocalNode:
    """An entry on the disk.

    `content` is None while the bytes have not been hashed since they changed. `disk_name` is the name in
    bytes as it is on the disk, `name` the same in NFC.
    """

    id: int
    parent: int
    name: str
    disk_name: bytes
    kind: Kind
    fingerprint: Fingerprint = NO_FINGERPRINT
    content: bytes | None = FOLDER_CONTENT
    is_racy: bool = False
    """Written so shortly before it was hashed that a later write could have the same mtime."""
    is_blocked: bool = False
    """Something that cannot be synced is in its place (a symlink, an unreadable folder): leave it alone."""
    is_kept: bool = False
    """Deleted on the server, it stays for what cannot be synced in it; sent only with new company."""
    is_parked: bool = False
    """Moved aside to break a cycle of renames; its place on the disk is nobody's wish."""

    @property
    def place(self) -> Place:
        """Folder and name."""
        return Place(self.parent, self.name)


# ---- Actions on the trees alone


@dataclass(frozen=True, slots=True)
class Agree:
    """Where remote and local are the same, synced becomes that too."""

    id: int


@dataclass(frozen=True, slots=True)
class Adopt:
    """The local entry `temp` is the server's entry `id`."""

    temp: int
    id: int


@dataclass(frozen=True, slots=True)
class Detach:
    """The local entry lives on as a new one, as the server's is gone.

    `is_kept`: a folder that stays only for what is in it (LocalNode.is_kept).
    """

    id: int
    is_kept: bool = False


@dataclass(frozen=True, slots=True)
class Forget:
    """Synced no longer knows the entry: it is gone on both sides, or comes back as new.

    `was_moved`: what lies in it was moved along on the server, and comes back, too.
    """

    id: int
    was_moved: bool = False


@dataclass(frozen=True, slots=True)
class Undo:
    """The local move cannot be made on the server: let the server's place win."""

    id: int


Settlement = Agree | Adopt | Detach | Forget | Undo

# ---- Actions on the disk


@dataclass(frozen=True, slots=True)
class MakeFolder:
    """Create the remote folder on the disk."""

    id: int


@dataclass(frozen=True, slots=True)
class MoveLocal:
    """Rename on the disk to where the server has it."""

    id: int


@dataclass(frozen=True, slots=True)
class Park:
    """Rename on the disk to a passing name, to break a cycle."""

    id: int


@dataclass(frozen=True, slots=True)
class RemoveFile:
    """Into the trash with it."""

    id: int


@dataclass(frozen=True, slots=True)
class RemoveFolder:
    """Remove the folder if nothing at all is in it."""

    id: int


@dataclass(frozen=True, slots=True)
class Fetch:
    """Bring the remote content to the disk, as a new file or in place of the synced one."""

    id: int


DiskAction = MakeFolder | MoveLocal | Park | RemoveFile | RemoveFolder | Fetch

# ---- Actions on the server


@dataclass(frozen=True, slots=True)
class SendFolder:
    """Create the folder on the server."""

    id: int
    autorename: bool = False


@dataclass(frozen=True, slots=True)
class SendMove:
    """Move on the server to where the disk has it, or, to break a cycle, to a passing name in the root."""

    id: int
    is_passing: bool = False


@dataclass(frozen=True, slots=True)
class SendDelete:
    """Delete on the server, with all below."""

    id: int


@dataclass(frozen=True, slots=True)
class SendFile:
    """Send the content; commit it too if `is_ready`, else its name or folder is not there yet."""

    id: int
    is_ready: bool = True


@dataclass(frozen=True, slots=True)
class Hash:
    """Read the file: what to do depends on its content."""

    id: int


SendAction = SendFolder | SendMove | SendDelete | SendFile
Action = Settlement | DiskAction | SendAction | Hash
