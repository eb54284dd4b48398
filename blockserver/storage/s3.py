"""Objects in a bucket of any store that speaks S3.

<prefix>objects/<hash>.<generation>      in hex; keys need no fan-out
<prefix>staging/<session>/<hash>         put by clients, not yet looked at; expires by a lifecycle rule
"""

import io
import time
from base64 import b64decode, b64encode
from typing import IO, TYPE_CHECKING, Any, cast

from blockserver.storage.backend import (
    Attested,
    ObjectMissing,
    ObjectName,
    SignedRequest,
    StagedName,
    StoredObject,
)
from blockserver.storage.keys import format_object, format_staged, parse_object
from blockserver.storage.s3_client import DEADLINE_S, S3Options, make_client
from blockserver.storage.s3_errors import domain_errors
from blockserver.storage.threads import OTHER_THREADS, ThreadedBackend
from wire.errors import UpstreamUnavailable
from wire.hashes import BLOCK_BYTES, BlockHash

if TYPE_CHECKING:
    from types_boto3_s3.type_defs import GetObjectOutputTypeDef
    from typing_extensions import Buffer  # in collections.abc from Python 3.12 on

THREADS = 32
"""For writes, and as many for reads: a request waits 10 to 50 ms for a store's answer and costs 1 to 2 ms of
this process's one core, so more threads would only queue for that."""
CONNECTIONS = 2 * THREADS + OTHER_THREADS
"""One for each thread."""
HEALTH_CACHE_S = 3.0
"""A probe every second from several balancers is one HEAD in three seconds."""
MAX_LISTED = 1_000
"""What S3 lists at a time."""
_READ_BYTES = 64 * 1024
"""The deadline is looked at between two pieces, each of which may come as slowly as it likes. A block by
smaller ones costs more: 13 ms of CPU by 16 KiB, 9 ms by 64."""
CHECKSUM_HEADER = "x-amz-checksum-sha256"
_CONTENT_TYPE = "application/octet-stream"
_ANSWERED_WITH = {
    "ResponseContentType": _CONTENT_TYPE,
    "ResponseCacheControl": "no-store",
    "ResponseContentEncoding": "identity",
    "ResponseContentDisposition": "attachment",
}
"""Headers that are not signed, such as these, a client that put the object itself could choose for all who
share it."""


class S3Bucket:
    """A bucket of objects. Blocking; methods may be called from several threads at once."""

    def __init__(self, options: S3Options, *, max_connections: int):
        self._options = options
        self._bucket = options.bucket
        self._client = make_client(options, options.endpoint_url, max_connections=max_connections)
        self._signer = self._client
        if options.public_endpoint_url not in (None, options.endpoint_url):
            self._signer = make_client(options, options.public_endpoint_url, max_connections=1)
        self._healthy_until_s = 0.0

    def close(self) -> None:
        """Close the connections."""
        self._client.close()
        self._signer.close()

    def put(self, name: ObjectName, data: bytes | bytearray | memoryview) -> None:
        """Write an object, see `Backend.put`. The store compares what arrives with the hash, if it can."""
        key = self._key(name)
        with domain_errors("put", key):
            self._client.put_object(
                Bucket=self._bucket,
                Key=key,
                Body=cast("IO[bytes]", _Body(data)),  # what it needs of one
                ContentLength=len(data),
                ContentType=_CONTENT_TYPE,
                ChecksumSHA256=_checksum(name.hash),
            )

    def replace(self, name: ObjectName, data: bytes | bytearray | memoryview) -> None:
        """Write an object anew, see `Backend.replace`: to S3 it is the same."""
        self.put(name, data)

    def get(self, name: ObjectName) -> bytes:
        """An object's bytes, see `Backend.get`."""
        return self._get(self._key(name))

    def delete(self, name: ObjectName) -> None:
        """Remove an object, see `Backend.delete`."""
        self._delete(self._key(name))

    def find_size(self, name: ObjectName) -> int | None:
        """An object's length, see `Backend.find_size`."""
        key = self._key(name)
        try:
            with domain_errors("head", key):
                return self._client.head_object(Bucket=self._bucket, Key=key)["ContentLength"]
        except ObjectMissing:
            return None

    def list_objects(self, after: ObjectName | None, limit: int) -> list[StoredObject]:
        """Objects in order, see `Backend.list_objects`."""
        folder = f"{self._options.prefix}objects/"
        start = folder if after is None else self._key(after)
        found: list[StoredObject] = []
        while True:
            with domain_errors("list", folder):
                page = self._client.list_objects_v2(
                    Bucket=self._bucket, Prefix=folder, StartAfter=start, MaxKeys=min(limit, MAX_LISTED)
                )
            for item in page.get("Contents", []):
                start = item.get("Key", "")
                name = parse_object(start.removeprefix(folder))
                if name is not None:
                    found.append(StoredObject(name, item.get("Size", 0)))
            # A page may hold nothing but keys that are not ours.
            if found or not page.get("IsTruncated"):
                return found

    def find_free_bytes(self) -> None:
        """None: a bucket has no bound that it knows; the question is whether it answers."""
        if time.monotonic() < self._healthy_until_s:
            return
        try:
            with domain_errors("head_bucket", self._bucket):
                self._client.head_bucket(Bucket=self._bucket)
        except ObjectMissing:
            raise UpstreamUnavailable("the block store has no such bucket") from None
        self._healthy_until_s = time.monotonic() + HEALTH_CACHE_S

    def find_direct_place(self, name: ObjectName, session_id: bytes) -> ObjectName | StagedName | None:
        """Where a client puts a block itself, see `Backend.find_direct_place`."""
        if not self._options.is_direct:
            return None
        return name if self._options.is_verifying else StagedName(session_id, name.hash)

    def presign_put(
        self, place: ObjectName | StagedName, *, size: int, expires_s: int
    ) -> SignedRequest | None:
        """A PUT for a client, see `Backend.presign_put`."""
        if not self._options.is_direct:
            return None
        checksum = _checksum(place.hash)
        url = self._sign("put_object", place, expires_s, ContentLength=size, ChecksumSHA256=checksum)
        return SignedRequest("PUT", url, {"Content-Length": str(size), CHECKSUM_HEADER: checksum})

    def presign_get(self, name: ObjectName, *, expires_s: int) -> SignedRequest | None:
        """A GET for a client, see `Backend.presign_get`."""
        if not self._options.is_direct:
            return None
        url = self._sign("get_object", name, expires_s, **_ANSWERED_WITH)
        return SignedRequest("GET", url, {})

    def attest(self, name: ObjectName) -> Attested | None:
        """What the store has verified, see `Backend.attest`."""
        key = self._key(name)
        with domain_errors("attest", key):
            # Asked of a store that does not verify, too: it says whether the object is there.
            head = self._client.head_object(Bucket=self._bucket, Key=key, ChecksumMode="ENABLED")
        checksum = head.get("ChecksumSHA256")
        if not self._options.is_verifying or not checksum:
            return None
        return Attested(b64decode(checksum), head["ContentLength"])

    def get_staged(self, name: StagedName) -> bytes:
        """What a client has put, see `Backend.get_staged`."""
        return self._get(self._key(name))

    def delete_staged(self, name: StagedName) -> None:
        """Remove what was staged, see `Backend.delete_staged`."""
        self._delete(self._key(name))

    def _key(self, place: ObjectName | StagedName) -> str:
        if isinstance(place, StagedName):
            return f"{self._options.prefix}staging/{format_staged(place)}"
        return f"{self._options.prefix}objects/{format_object(place)}"

    def _get(self, key: str) -> bytes:
        with domain_errors("get", key):
            return _read_body(self._client.get_object(Bucket=self._bucket, Key=key))

    def _delete(self, key: str) -> None:
        with domain_errors("delete", key):
            self._client.delete_object(Bucket=self._bucket, Key=key)

    def _sign(self, operation: str, place: ObjectName | StagedName, expires_s: int, **params: Any) -> str:
        key = self._key(place)
        with domain_errors("sign", key):
            return self._signer.generate_presigned_url(
                operation, Params={"Bucket": self._bucket, "Key": key, **params}, ExpiresIn=expires_s
            )


class _Body(io.RawIOBase):
    """A block on its way out, without a copy of it, that stops when the operation has taken too long."""

    def __init__(self, data: bytes | bytearray | memoryview):
        self._view = memoryview(data).cast("B")
        self._at = 0
        self._deadline_s = time.monotonic() + DEADLINE_S

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: len(self._view)}[whence]
        self._at = base + offset
        return self._at

    def readinto(self, buffer: "Buffer") -> int:
        _check_deadline(self._deadline_s)
        target = memoryview(buffer)
        piece = self._view[self._at : self._at + len(target)]
        target[: len(piece)] = piece
        self._at += len(piece)
        return len(piece)


def _read_body(answer: "GetObjectOutputTypeDef") -> bytes:
    """The body up to one byte more than a block has: then it is none of ours, and found out by its hash."""
    deadline_s = time.monotonic() + DEADLINE_S
    data = bytearray()
    body = answer["Body"]
    try:
        while len(data) <= BLOCK_BYTES and (piece := body.read(_READ_BYTES)):
            data += piece
            _check_deadline(deadline_s)
    finally:
        if len(data) != answer["ContentLength"]:
            body.close()  # what has not been read to its end cannot carry another request
    return bytes(data) if len(data) <= BLOCK_BYTES else bytes(data[: BLOCK_BYTES + 1])


def _check_deadline(deadline_s: float) -> None:
    if time.monotonic() > deadline_s:
        raise TimeoutError("the block store is too slow")


def _checksum(name: BlockHash) -> str:
    return b64encode(name).decode()


class S3Backend(ThreadedBackend):
    """`Backend` over a bucket."""

    def __init__(self, options: S3Options):
        super().__init__(
            S3Bucket(options, max_connections=CONNECTIONS),
            write_threads=THREADS,
            read_threads=THREADS,
            deadline_s=DEADLINE_S,
        )
