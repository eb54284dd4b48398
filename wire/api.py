"""The metadata API: what a client sends to a metaserver and gets back.

Verbs and fields are Dropbox's where Dropbox has the same notion. Every request is a POST of JSON with
`Authorization: Bearer <access token>`; a write may carry `Idempotency-Key` (1 to 64 printable ASCII
characters), kept for 24 hours with the answer unless all was refused. A write with a field that is not known
is refused (bad_request): it may be a condition, misspelt.
"""

from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, UnsetType

from wire.errors import ErrorInfo
from wire.hashes import MAX_FILE_BLOCKS
from wire.names import MAX_NAME_CHARS

# ---- Limits (docs/limits.md says why)

MAX_BATCH_ENTRIES = 1_000
MAX_BODY_BYTES = 150 * 2**20
DEFAULT_PAGE_ENTRIES = 500
MAX_PAGE_ENTRIES = 2_000
MAX_REVISIONS = 100
DEFAULT_REVISIONS = 10
MAX_METADATA_PATHS = 1_000
MAX_METADATA_NAMESPACES = 100
"""Namespaces that the paths of one get_metadata_batch lie in: each is a read of its own."""
DEFAULT_MATCHES = 100
MAX_IDEMPOTENCY_KEY_CHARS = 64
MAX_BLOCKS_PER_PAGE = 20_000
"""A block list in a page or in get_block_list: 20,000 hashes are 1.3 MB of JSON."""
MAX_INLINE_BLOCKS = 64
"""A listing with include_blocks carries the blocks of files up to this many (256 MiB); the rest is asked
for with get_block_list."""
IDEMPOTENCY_HEADER = "Idempotency-Key"
REQUEST_ID_HEADER = "X-Request-Id"

PageLimit = Annotated[int, Meta(ge=1, le=MAX_PAGE_ENTRIES)]
Text = Annotated[str, Meta(max_length=65_536)]
Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
"""What the databases can hold."""
Token = Annotated[str, Meta(min_length=32, max_length=128)]


class WriteMode(StrEnum):
    """What a commit expects at its path."""

    ADD = "add"
    OVERWRITE = "overwrite"
    UPDATE = "update"


# ---- Operations


class CommitFile(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="op", tag="commit"
):
    """Write a file: `blocks` in order, each ready in the namespace; `content_hash` is theirs.

    `path` is any form of `wire.names.parse_target`. `rev` is needed with mode update and refused otherwise.
    """

    path: Text
    blocks: list[str]
    size: Count
    content_hash: str
    client_modified: str
    mode: WriteMode = WriteMode.ADD
    rev: str | None = None
    autorename: bool = False
    strict_conflict: bool = False


class CreateFolder(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="op", tag="create_folder"
):
    """Make a folder, and the missing ones above it."""

    path: Text
    autorename: bool = False


class Move(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="op", tag="move"):
    """Move or rename a file or folder; missing parents of `to_path` are made."""

    from_path: Text
    to_path: Text
    autorename: bool = False


class Delete(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="op", tag="delete"
):
    """Delete a file or a folder with all below it.

    Refused with conflict/changed when a file is not at `parent_rev`, or a folder or anything live in it has
    changed after `seen_jid`.
    """

    path: Text
    parent_rev: str | None = None
    seen_jid: Count | None = None


class Copy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="op", tag="copy"):
    """Copy a file, or a folder with all that lives in it; missing parents of `to_path` are made.

    Each copied file has a rev of its own, with the same content. A folder of more than 10,000 entries is
    refused whole (too_many_entries), and so is a copy into the folder itself. A file copied to where its very
    content is changes nothing; only with autorename, and onto itself, does it become `name (1).ext`.
    """

    from_path: Text
    to_path: Text
    autorename: bool = False


class Restore(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="op", tag="restore"
):
    """Make a rev of a file its current content, as a new rev.

    A deleted file comes back as the entry that it was (the same id), at `path`; its missing parents are made.
    `path` may be its id: then that is where it last was. A file that lives elsewhere by now stays there, and
    a free `path` gets a new file with the rev's content. The current content changes nothing. What another
    file holds is never replaced (conflict/file), and a rev of another living file is not_found.
    """

    path: Text
    rev: str


Operation = CommitFile | CreateFolder | Move | Copy | Delete | Restore


class Tag(StrEnum):
    """The kind of a metadata record."""

    FILE = "file"
    FOLDER = "folder"
    DELETED = "deleted"


class Metadata(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A file, a folder, or the news that an entry is gone. `.tag` tells which.

    In a listing of a whole namespace, paths are left out (a path changes without its entry changing): a
    reader has `id`, `parent_id` and `name`; so are those of more than 4,096 characters. A nameless `deleted`
    has only `id`.
    """

    tag: Tag = msgspec.field(name=".tag")
    id: str
    parent_id: str | UnsetType = UNSET
    name: str | UnsetType = UNSET
    path_display: str | UnsetType = UNSET
    path_lower: str | UnsetType = UNSET
    jid: int | UnsetType = UNSET
    """The jid of the entry's last change."""
    rev: str | UnsetType = UNSET
    size: int | UnsetType = UNSET
    content_hash: str | UnsetType = UNSET
    client_modified: str | UnsetType = UNSET
    server_modified: str | UnsetType = UNSET
    blocks: list[str] | UnsetType = UNSET


class Verdict(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What became of one operation: exactly one of `metadata` and `error` is set.

    `changed` is False when the place already held the same and nothing was written.
    """

    metadata: Metadata | None = None
    changed: bool = True
    error: ErrorInfo | None = None


class Batch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Up to 1,000 operations on one namespace, one transaction; each has its verdict.

    An operation that fails does not undo the others. Later ones see what earlier ones did.
    """

    entries: list[Operation]


class BatchResult(msgspec.Struct, frozen=True):
    """Verdicts in the order of the operations, and the namespace's head after them."""

    verdicts: list[Verdict]
    head: int


# ---- Reading


class GetMetadata(msgspec.Struct, frozen=True, kw_only=True):
    """One live entry by any form of path, or by `rev:` and a rev: that version of a live file."""

    path: Text


class GetMetadataBatch(msgspec.Struct, frozen=True):
    """Live entries by the paths that get_metadata takes: 1 to 1,000, in at most 100 namespaces."""

    paths: list[Text]


class MetadataVerdict(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is at one path: exactly one of the two is set."""

    metadata: Metadata | None = None
    error: ErrorInfo | None = None


class MetadataBatch(msgspec.Struct, frozen=True):
    """In the order of the paths. All of one namespace is as of one moment."""

    entries: list[MetadataVerdict]


class ListRevisions(msgspec.Struct, frozen=True, kw_only=True):
    """The revs of a file, live or deleted, by its path or id; with `before_rev` those older than that one.

    By path, a file that lives comes before a deleted one, and of those the one that was made last.
    """

    path: Text
    limit: Annotated[int, Meta(ge=1, le=MAX_REVISIONS)] = DEFAULT_REVISIONS
    before_rev: str | None = None


class ListRevisionsResult(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Revs, the newest first.

    Name and path are the file's, as they are or last were; rev, size, content_hash, the times and `jid` are
    each rev's own. With `has_more` ask again with the last one's rev as `before_rev`.
    """

    is_deleted: bool
    entries: list[Metadata]
    has_more: bool
    server_deleted: str | UnsetType = UNSET
    """When the file itself was deleted; unset also where a folder above it was."""


class ListFolder(msgspec.Struct, frozen=True, kw_only=True):
    """List a folder; with `recursive` all below it.

    A whole namespace (recursive, from its root) and the children of a folder can be followed afterwards. A
    recursive listing of a folder cannot: it ends with has_more false, and its last cursor is refused with
    `listing_ended`. What does not change while it is read is told once. What is made, moved, renamed or
    deleted meanwhile may be told in its old place or in its new one, twice, or not at all.
    """

    path: Text = ""
    recursive: bool = False
    limit: PageLimit = DEFAULT_PAGE_ENTRIES
    include_blocks: bool = False


class ListFolderContinue(msgspec.Struct, frozen=True):
    """Read on from a cursor."""

    cursor: Text


class ListFolderResult(msgspec.Struct, frozen=True, kw_only=True):
    """One page. With `has_more` read on at once; without it the reader's tree equals the server's.

    A page may be short or empty with has_more true. `restarted`: the reading began anew, as the cursor's
    place was lost with a server; what this listing does not show is not there.
    """

    entries: list[Metadata]
    cursor: str
    has_more: bool
    restarted: bool = False
    jid: int = 0
    """How far the cursor has read the namespace; 0 while it scans or walks."""


class GetBlockList(msgspec.Struct, frozen=True, kw_only=True):
    """The blocks of a rev, from the one at index `start`."""

    rev: str
    start: Annotated[int, Meta(ge=0, le=MAX_FILE_BLOCKS)] = 0


class BlockList(msgspec.Struct, frozen=True):
    """Hashes in order; `total` is the rev's whole count."""

    blocks: list[str]
    total: int


class Search(msgspec.Struct, frozen=True, kw_only=True):
    """Live entries of a namespace whose names hold `query`, whatever the case; below `path`."""

    query: Annotated[str, Meta(min_length=1, max_length=MAX_NAME_CHARS, pattern=r"^[^\x00]*$")]
    path: Text = ""
    limit: PageLimit = DEFAULT_MATCHES


class SearchContinue(msgspec.Struct, frozen=True):
    """Search on from a cursor."""

    cursor: Text


class SearchResult(msgspec.Struct, frozen=True, kw_only=True):
    """One page, in no order that means anything. It may be short or empty with has_more true."""

    matches: list[Metadata]
    has_more: bool
    cursor: str


# ---- Long-poll (answered by a notifserver)

MIN_POLL_S = 30
MAX_POLL_S = 480
MAX_POLL_JITTER_S = 75


class Longpoll(msgspec.Struct, frozen=True):
    """Wait until a cursor is behind; needs no token. Up to 75 s of jitter come on top of the timeout."""

    cursor: Text
    timeout: Annotated[int, Meta(ge=MIN_POLL_S, le=MAX_POLL_S)] = MIN_POLL_S


class LongpollResult(msgspec.Struct, frozen=True, omit_defaults=True):
    """`changes`: call list_folder/continue; `backoff`: seconds to wait before the next poll."""

    changes: bool
    backoff: int | None = None


# ---- Devices


class LinkDevice(msgspec.Struct, frozen=True, kw_only=True):
    """Use a link code up for a new device.

    The client draws `request_id` and `refresh_token` and stores both before it sends them: a repeat with the
    same pair gets the same device.
    """

    code: Annotated[str, Meta(max_length=128)]
    request_id: Token
    refresh_token: Token
    device_name: Annotated[str, Meta(min_length=1, max_length=255, pattern=r"^[^\x00]*$")]


class LinkIdentity(msgspec.Struct, frozen=True, kw_only=True):
    """Link a new device to the account that the bearer token of an outside issuer stands for.

    The client draws `request_id` and `refresh_token` and stores both before it sends them: a repeat with the
    same pair gets the same device.
    """

    request_id: Token
    refresh_token: Token
    device_name: Annotated[str, Meta(min_length=1, max_length=255, pattern=r"^[^\x00]*$")]


class LinkedDevice(msgspec.Struct, frozen=True, kw_only=True):
    """The device that a link made, and whose it is."""

    device_id: str
    account_id: str
    email: str
    display_name: str
    root_ns: str
    access_token: str
    expires_in: int


class RefreshAccess(msgspec.Struct, frozen=True, kw_only=True):
    """A new access token. The client stores `next_refresh_token` before it sends it.

    The old token stays good until the next one is used; its use after that revokes the device, and so does
    that of a next token which another one has displaced.
    """

    device_id: str
    refresh_token: Token
    next_refresh_token: Token


class AccessGranted(msgspec.Struct, frozen=True):
    """A bearer token and its life in seconds."""

    access_token: str
    expires_in: int


class RevokeDevice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Unlink a device of the caller's account; None is the calling one."""

    device_id: str | None = None


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """A linked device; `revoked_at` is None while it may act."""

    device_id: str
    name: str
    created_at: str
    revoked_at: str | None = None


class DeviceList(msgspec.Struct, frozen=True):
    """The devices of the caller's account."""

    devices: list[Device]


class CurrentDevice(msgspec.Struct, frozen=True, kw_only=True):
    """Whom the access token stands for; `device_id` is None for one of an outside issuer."""

    account_id: str
    device_id: str | None
    display_name: str
    root_ns: str


class Empty(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`{}`."""


# ---- Account

UNLIMITED_BYTES = 2**63 - 1
"""The quota of an account that has none although the cluster has a default: more than can be stored."""


class AccountUsage(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes of the live files, and how many there may be; `allocation` is None without a quota.

    For a moment after a folder was deleted, `used` still counts what was in it.
    """

    used: int
    allocation: int | None


# ---- Discovery


class Discovery(msgspec.Struct, frozen=True, kw_only=True):
    """GET /.well-known/shardbox: the servers of each kind, any of which may be asked."""

    cluster_id: str
    metaservers: list[str]
    blockservers: list[str]
    notifservers: list[str]
