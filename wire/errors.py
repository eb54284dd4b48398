"""Every error that a caller can meet: class = stable code + HTTP status + retryable.

The body of a failed request is `{"error": {"code", "message", "retryable", "details"}}`. Outcomes that a
caller must expect (a conflict, absent blocks) travel inside a verdict in the same shape.
"""

from typing import ClassVar

import msgspec

Details = dict[str, "str | int | bool | list[str] | None"]


class ErrorInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One error as it crosses the wire."""

    code: str
    message: str
    retryable: bool
    details: Details = {}


class ErrorBody(msgspec.Struct, frozen=True):
    """The body of every answer with a status of 400 or above."""

    error: ErrorInfo


class ShardboxError(Exception):
    """The root of the tree; `code` is stable and unique, the message is for people."""

    code: ClassVar[str] = "internal_error"
    status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False

    def __init__(
        self, message: str = "", *, details: Details | None = None, retry_after_s: int | None = None
    ):
        super().__init__(message or self.__class__.__doc__ or self.code)
        self.details: Details = details or {}
        self.retry_after_s = retry_after_s

    def info(self) -> ErrorInfo:
        """This error as it crosses the wire."""
        return ErrorInfo(code=self.code, message=str(self), retryable=self.retryable, details=self.details)


# ---- The request itself


class BadRequest(ShardboxError):
    """The request cannot be understood."""

    code, status = "bad_request", 400


class MalformedId(ShardboxError):
    """An id, rev or hash is not of its form."""

    code, status = "malformed_id", 400


class MalformedPath(ShardboxError):
    """A path or name breaks the rules for names."""

    code, status = "malformed_path", 400


class DisallowedName(ShardboxError):
    """A name that is never synced."""

    code, status = "disallowed_name", 400


class TooManyEntries(ShardboxError):
    """A batch is longer than its limit."""

    code, status = "too_many_entries", 400


class InvalidCursor(ShardboxError):
    """A cursor that is malformed, forged or another account's."""

    code, status = "invalid_cursor", 400


class ListingEnded(ShardboxError):
    """A recursive listing of a folder has told all; it cannot be followed, list afresh."""

    code, status = "listing_ended", 400


class ContentMismatch(ShardboxError):
    """Size, content_hash and block list do not fit one another."""

    code, status = "content_mismatch", 400


class HashMismatch(ShardboxError):
    """The bytes that arrived do not have the hash that they were sent under."""

    code, status = "hash_mismatch", 400


class RangeNotSatisfiable(ShardboxError):
    """The range begins beyond the end of the block."""

    code, status = "range_not_satisfiable", 416


class BodyTooLarge(ShardboxError):
    """The body is larger than its limit."""

    code, status = "body_too_large", 413


class UnsupportedEncoding(ShardboxError):
    """The body comes compressed; this service takes bodies as they are (Content-Encoding: identity)."""

    code, status = "unsupported_encoding", 415


class MethodNotAllowed(ShardboxError):
    """This address does not take that method."""

    code, status = "method_not_allowed", 405


# ---- Who asks


class Unauthenticated(ShardboxError):
    """The access token is missing, expired or not ours."""

    code, status = "invalid_access_token", 401


class DeviceRevoked(ShardboxError):
    """The device has been unlinked, or the account is disabled."""

    code, status = "device_revoked", 401


class IdentityNotLinked(ShardboxError):
    """The token is good, and its holder has no account here."""

    code, status = "identity_not_linked", 403


class InvalidRefreshToken(ShardboxError):
    """The refresh token is unknown or has been used up."""

    code, status = "invalid_refresh_token", 401


class InvalidLinkCode(ShardboxError):
    """The link code is unknown, used or expired."""

    code, status = "invalid_link_code", 401


class Forbidden(ShardboxError):
    """The caller may not do this."""

    code, status = "forbidden", 403


# ---- What is there


class NotFound(ShardboxError):
    """Nothing there that the caller may see."""

    code, status = "not_found", 404


class BlockNotFound(ShardboxError):
    """This namespace does not hold the block."""

    code, status = "block_not_found", 404


class NotAFolder(ShardboxError):
    """A folder is needed, and a file is there."""

    code, status = "not_folder", 409


class NotAFile(ShardboxError):
    """A file is needed, and a folder is there."""

    code, status = "not_file", 409


class TooDeep(ShardboxError):
    """Folders are nested deeper than a cursor of this listing can hold; list one of them."""

    code, status = "too_deep", 409


class CursorReset(ShardboxError):
    """The cursor points where its namespace has never been; list afresh."""

    code, status = "reset", 409


class ConflictRev(ShardboxError):
    """The file is not at the expected rev; details carry the current one."""

    code, status = "conflict/file", 409


class ConflictFolder(ShardboxError):
    """A folder is at the place."""

    code, status = "conflict/folder", 409


class ConflictFileAncestor(ShardboxError):
    """A file is among the ancestors."""

    code, status = "conflict/file_ancestor", 409


class ConflictChanged(ShardboxError):
    """What is to be deleted has changed since it was seen."""

    code, status = "conflict/changed", 409


class MoveIntoItself(ShardboxError):
    """A folder cannot go into itself."""

    code, status = "cant_move_folder_into_itself", 409


class BlocksAbsent(ShardboxError):
    """Blocks that the namespace does not hold ready: details.count, the first 1,000 in details.hashes."""

    code, status = "blocks_absent", 409


class IdempotencyMismatch(ShardboxError):
    """The idempotency key was used with another request."""

    code, status = "idempotency_key_reused", 422


class AlreadyExists(ShardboxError):
    """Something with that key is there already."""

    code, status = "already_exists", 409


class QuotaExceeded(ShardboxError):
    """The account's quota has no room for this."""

    code, status = "insufficient_space", 409


class UploadSessionNotFound(ShardboxError):
    """There is no such upload session, or it has expired."""

    code, status = "upload_session_not_found", 404


class UploadSessionCommitted(ShardboxError):
    """The upload session has been committed already, with another request if this is a commit."""

    code, status = "upload_session_committed", 409


class InvalidUploadUrl(ShardboxError):
    """A signed upload address that is forged, or has expired: ask for a new one."""

    code, status = "invalid_upload_url", 403


class UploadExpired(ShardboxError):
    """The upload of this block was overtaken; send it again."""

    code, status, retryable = "upload_expired", 409, True


# ---- What a retry can help


class ShardUnavailable(ShardboxError):
    """The database of this namespace does not answer."""

    code, status, retryable = "shard_unavailable", 503, True


class SpansShards(ShardboxError):
    """What was to be one transaction has come to lie on several shards."""

    code, status, retryable = "spans_shards", 503, True


class Overloaded(ShardboxError):
    """Too much at once; try again later."""

    code, status, retryable = "overloaded", 503, True


class TooManyWriteOperations(ShardboxError):
    """Too many writers wait for this namespace; come again after Retry-After."""

    code, status, retryable = "too_many_write_operations", 429, True


class TooManyRequests(ShardboxError):
    """The account, or the address, asks more often than its rate; come again after Retry-After."""

    code, status, retryable = "too_many_requests", 429, True


class UpstreamUnavailable(ShardboxError):
    """A server that this one depends on does not answer."""

    code, status, retryable = "upstream_unavailable", 503, True


class NotReady(ShardboxError):
    """The server has not loaded its shard map yet, or is draining."""

    code, status, retryable = "not_ready", 503, True


class StorageFull(ShardboxError):
    """The block store has no room for new blocks."""

    code, status, retryable = "storage_full", 507, True


class BlockCorrupt(ShardboxError):
    """The stored block no longer has its hash."""

    code, status, retryable = "block_corrupt", 500, True


class InternalError(ShardboxError):
    """Something unforeseen; the request id finds it in the logs."""

    code, status, retryable = "internal_error", 500, True


def all_errors() -> dict[str, type[ShardboxError]]:
    """Every error class by its code.

    Raises:
        AssertionError: two classes share a code.
    """
    found: dict[str, type[ShardboxError]] = {}
    todo = list(ShardboxError.__subclasses__())
    while todo:
        cls = todo.pop()
        todo += cls.__subclasses__()
        assert cls.code not in found, f"{cls.__name__} repeats {cls.code}"
        found[cls.code] = cls
    return found


def error_from_info(info: ErrorInfo, *, status: int, retry_after_s: int | None = None) -> ShardboxError:
    """The error object of an answer; an unknown code keeps its status and message."""
    cls = all_errors().get(info.code, ShardboxError)
    error = cls(info.message, details=info.details, retry_after_s=retry_after_s)
    if error.code != info.code:
        error.__dict__.update(code=info.code, status=status, retryable=info.retryable)
    return error
