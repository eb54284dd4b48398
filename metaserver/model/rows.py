"""The rows of a namespace's tree and journal, as values."""

from dataclasses import dataclass
from enum import StrEnum

from wire.hashes import ContentHash
from wire.ids import ROOT_ENTRY, EntryId, Jid
from wire.names import NameKey


class Kind(StrEnum):
    """What an entry is."""

    FILE = "f"
    FOLDER = "d"


class JournalOp(StrEnum):
    """Why a journal row was written."""

    CONTENT = "c"
    FOLDER = "f"
    MOVE = "m"
    DELETE = "d"
    RESTORE = "r"


class Level(StrEnum):
    """A member's right in a namespace."""

    OWNER = "o"
    EDITOR = "e"
    VIEWER = "v"

    @property
    def can_write(self) -> bool:
        """Owners and editors write; viewers read."""
        return self is not Level.VIEWER


@dataclass(frozen=True, slots=True)
class Entry:
    """The current state of a file or folder.

    `is_deleted` is its own mark: an entry is live when neither it nor any ancestor has it. `rev_jid`, `size`
    and `content_hash` are set for files alone.
    """

    entry_id: EntryId
    parent_id: EntryId
    name: str
    name_key: NameKey
    kind: Kind
    is_deleted: bool
    created_jid: Jid
    last_jid: Jid
    rev_jid: Jid | None = None
    size: int | None = None
    content_hash: ContentHash | None = None


@dataclass(frozen=True, slots=True)
class Content:
    """What makes a rev: stored once, in the journal row that made it. `blocklist` is concatenated digests."""

    size: int
    content_hash: ContentHash
    client_modified_us: int
    blocklist: bytes


@dataclass(frozen=True, slots=True)
class SameContent:
    """The content of another rev of this namespace: time and blocks are taken over from its row."""

    size: int
    content_hash: ContentHash
    rev_jid: Jid


@dataclass(frozen=True, slots=True)
class RevTimes:
    """When a file's current content was made, by its device's clock and by ours."""

    client_modified_us: int
    server_modified_us: int


@dataclass(frozen=True, slots=True)
class Rev:
    """One version of a file: the row that made it, without its blocklist."""

    jid: Jid
    entry_id: EntryId
    size: int
    content_hash: ContentHash
    times: RevTimes


@dataclass(frozen=True, slots=True)
class JournalRow:
    """The full new state of one entry, appended by one operation."""

    jid: Jid
    op: JournalOp
    entry: Entry
    prev_jid: Jid | None
    old_path: str | None = None
    content: Content | SameContent | None = None


ROOT = Entry(
    entry_id=ROOT_ENTRY,
    parent_id=ROOT_ENTRY,
    name="",
    name_key=NameKey(""),
    kind=Kind.FOLDER,
    is_deleted=False,
    created_jid=Jid(0),
    last_jid=Jid(0),
)
"""The root folder, which has no row."""
