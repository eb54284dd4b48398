"""Upload sessions: a file's metadata first, then its blocks straight to where they are kept, then the commit.

    POST /files/upload_session      OpenUpload    -> UploadSession      metaserver
    PUT  <a target's url>           one block                           the store, or a blockserver
    POST /blocks/complete           CompleteBlocks -> CompleteResult    blockserver
    POST /files/commit              CommitUpload  -> CommittedFile      metaserver
    GET  /files/metadata?file_id=…                -> FileMetadata       metaserver

All but the PUT carry `Authorization: Bearer <access token>`. `version` is a rev, `checksum` a content_hash.
docs/upload-sessions.md follows one file.

Servers ask one another, in msgpack:

    blockserver POST /internal/targets          SignTargets   -> SignedTargets
    metaserver  POST /internal/uploads/targets  FindTargets   -> FoundTargets
"""

import msgspec
from msgspec import UNSET, UnsetType

from wire.api import Count, Text
from wire.blocks import PutVerdict
from wire.hashes import BlockHash
from wire.ids import NsId
from wire.internal import Caller

SESSION_LIFE_S = 7 * 24 * 3_600
"""Long enough for the largest file over a slow line with pauses; then what was begun is forgotten."""
MAX_OPEN_SESSIONS = 1_000
"""Of one account in one namespace, not committed: each may keep a block list of up to 16 MB for a week."""
MAX_TARGETS = 1_000
"""Targets of one answer: 4 GB of blocks, and some 600 KB of addresses. For more, ask again."""
MAX_COMPLETE_HASHES = 1_000
"""As many as one answer has targets."""
TARGET_LIFE_S = 3_000
"""A block must be recorded within an hour of its target's issue; ten minutes are left for completing."""
KEEP_TARGET_S = 1_200
"""Asked again within this time a target stays the same, so that what has been put but not completed still
counts; so every address is good for half an hour when it is handed out."""
MAX_METADATA_BLOCKS = 20_000
"""Of a block list in one answer, 1.3 MB; files/get_block_list has the rest."""


class OpenUpload(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Begin an upload, or with `upload_id` take one up again (the rest is then as it was at the beginning).

    `block_list` are the hashes of the file's blocks in order, where they are known yet.
    """

    file_name: Text
    file_size: Count
    checksum: str
    parent_folder_id: str | None = None
    """None: the caller's root folder."""
    block_list: list[str] | None = None
    upload_id: str | None = None


class UploadTarget(msgspec.Struct, frozen=True, kw_only=True):
    """Where to send one absent block: the request to make, with these headers, until `expires_at`."""

    hash: str
    size: int
    method: str
    url: str
    headers: dict[str, str]
    expires_at: str


class UploadSession(msgspec.Struct, frozen=True, kw_only=True):
    """What is still to be sent.

    With a block list, `targets` has the absent blocks in their order, the first 1,000 of them; `has_more`:
    ask again when these are complete. `presigned_url` is the target of a file of one block, None if it is
    there. Without a block list it is an address of a blockserver; `/<hash>` is appended for each block,
    of which it takes what a file of this size can have.
    """

    upload_id: str
    presigned_url: str | None
    targets: list[UploadTarget]
    has_more: bool
    expires_at: str


class CompleteBlocks(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """These have been put to their targets: verify them and make them ready."""

    upload_id: str
    hashes: list[str]


class CompleteResult(msgspec.Struct, frozen=True):
    """One verdict per hash, in their order: ready, or why not."""

    blocks: list[PutVerdict]


class CommitUpload(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Make the file. A repeat with the same body gets the same answer.

    Where the file is not at `original_version`, or has been deleted, it is a conflict.
    `parent_folder_id`, `file_size` and `checksum` may be left out: they are the session's. Another folder of
    the same namespace may be named, None is its root; size and checksum can only be repeated.
    """

    upload_id: str
    block_list: list[str]
    parent_folder_id: str | UnsetType | None = UNSET
    original_version: str | None = None
    """The version that this one replaces; None: there is no such file yet."""
    client_modified: str | UnsetType = UNSET
    """2015-05-12T15:50:38Z; the time of the commit where it is left out."""
    file_size: Count | UnsetType = UNSET
    checksum: str | UnsetType = UNSET


class CommittedFile(msgspec.Struct, frozen=True, kw_only=True):
    """The file, and the version that the commit made."""

    file_id: str
    version: str


class FileMetadata(msgspec.Struct, frozen=True, kw_only=True):
    """A file as it is now. `block_list` has the first 20,000 of `block_count` blocks."""

    file_id: str
    parent_folder_id: str
    name: str
    owner: str | None
    """The account id of the namespace's owner."""
    version: str
    size: int
    checksum: str
    block_list: list[str]
    block_count: int


# ---- Between servers


class TargetBlock(msgspec.Struct, frozen=True, array_like=True):
    """A block that is to be put, and the generation of the object that it will be."""

    hash: BlockHash
    size: int
    generation: bytes
    expires_s: int


class SignTargets(msgspec.Struct, frozen=True):
    """Where may a client put these by itself?"""

    ns_id: NsId
    session_id: bytes
    blocks: list[TargetBlock]


class SignedTarget(msgspec.Struct, frozen=True, array_like=True):
    """A request that anybody may send to the store until it expires."""

    method: str
    url: str
    headers: dict[str, str]


class SignedTargets(msgspec.Struct, frozen=True):
    """In the order of the request; None: this store takes no uploads of clients."""

    targets: list[SignedTarget | None]


class FindTargets(msgspec.Struct, frozen=True):
    """What has the session of these blocks?"""

    caller: Caller
    ns_id: NsId
    session_id: bytes
    hashes: list[BlockHash]


class FoundTarget(msgspec.Struct, frozen=True, array_like=True):
    """A block of the session: ready in its namespace, or to be looked for under this generation."""

    is_ready: bool
    size: int = 0
    generation: bytes = b""


class FoundTargets(msgspec.Struct, frozen=True):
    """In the order of the request; None: the session has no target for it."""

    targets: list[FoundTarget | None]
