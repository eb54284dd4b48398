"""What a store's failures mean to us."""

from collections.abc import Generator
from contextlib import contextmanager

from botocore.exceptions import BotoCoreError, ClientError

from blockserver.storage.backend import ObjectMissing
from runtime.logs import get_log
from wire.errors import ShardboxError, StorageFull, UpstreamUnavailable

_log = get_log(__name__)

_NO_OBJECT = {"NoSuchKey", "NotFound", "404"}
"""HEAD has no body, so its code is the bare status."""
_NO_ROOM = {
    "InsufficientCapacity",  # SwiftStack, StorageGRID
    "InsufficientStorage",
    "InsufficientStorageSpace",
    "QuotaExceeded",  # Ceph, SeaweedFS
    "ServiceQuotaExceeded",
    "XMinioAdminBucketQuotaExceeded",
    "XMinioStorageFull",
}
_HTTP_INSUFFICIENT_STORAGE = 507


@contextmanager
def domain_errors(operation: str, key: str) -> Generator[None]:
    """Let the body's failures come out as the errors of `Backend`; the log has what the caller is not told.

    Raises:
        ObjectMissing: there is no such object.
        StorageFull: the store says that it, or a quota on it, is full.
        UpstreamUnavailable: anything else.
    """
    try:
        yield
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        if code in _NO_OBJECT:
            raise ObjectMissing(key) from None
        _log.warning("store_refused", operation=operation, object=key, code=code, status=status)
        raise _from_code(code, status) from error
    except (BotoCoreError, OSError) as error:
        _log.warning("store_failed", operation=operation, object=key, error=type(error).__name__)
        raise UpstreamUnavailable("the block store does not answer") from error


def _from_code(code: str, status: int) -> ShardboxError:
    if code in _NO_ROOM or status == _HTTP_INSUFFICIENT_STORAGE:
        return StorageFull("the block store is full")
    return UpstreamUnavailable("the block store does not do this now")
