"""What is asked of a namespace's tree, and what came of it."""

from collections.abc import Sequence
from dataclasses import dataclass

from metaserver.model.rows import Content, Entry
from wire.api import WriteMode
from wire.hashes import BlockHash
from wire.ids import EntryId, Jid, NsId


@dataclass(frozen=True, slots=True)
class Target:
    """A place: names below an entry that is given by id (0: the root). No names: that entry itself."""

    anchor: EntryId
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CommitRequest:
    """A file to write; `rev_jid` is the expected rev's, with mode update alone."""

    target: Target
    content: Content
    blocks: Sequence[BlockHash]
    mode: WriteMode
    rev_jid: Jid | None
    autorename: bool
    strict_conflict: bool


@dataclass(frozen=True, slots=True)
class CreateFolderRequest:
    """A folder to make."""

    target: Target
    autorename: bool


@dataclass(frozen=True, slots=True)
class MoveRequest:
    """An entry to move or rename."""

    source: Target
    target: Target
    autorename: bool


@dataclass(frozen=True, slots=True)
class DeleteRequest:
    """An entry to delete; refused when it has changed after what the caller has seen."""

    target: Target
    rev_jid: Jid | None
    seen_jid: Jid | None


@dataclass(frozen=True, slots=True)
class CopyRequest:
    """An entry to copy, with all that lives in it."""

    source: Target
    target: Target
    autorename: bool


@dataclass(frozen=True, slots=True)
class RestoreRequest:
    """A rev to make current; `rev_jid` 0 is no rev of this namespace."""

    target: Target
    rev_jid: Jid


Request = CommitRequest | CreateFolderRequest | MoveRequest | DeleteRequest | CopyRequest | RestoreRequest


def list_targets(request: Request) -> list[Target]:
    """The places that a request names."""
    if isinstance(request, MoveRequest | CopyRequest):
        return [request.source, request.target]
    return [request.target]


@dataclass(frozen=True, slots=True)
class Outcome:
    """An operation that succeeded: the entry afterwards (for a delete: before), its path, its content.

    `path` is None where it is too long to be shown.
    """

    entry: Entry
    path: str | None
    is_changed: bool


@dataclass(frozen=True, slots=True)
class Start:
    """Where a batch begins: the namespace's counters and who writes.

    `quota_bytes` is None where there is no quota.
    """

    ns_id: NsId
    head: Jid
    next_entry_id: EntryId
    display_name: str
    live_bytes: int = 0
    quota_bytes: int | None = None
