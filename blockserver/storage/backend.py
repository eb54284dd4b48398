"""What a block store must do. A folder does it, and S3."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from wire.hashes import DIGEST_BYTES, BlockHash

GENERATION_BYTES = 16
SESSION_BYTES = 16


@dataclass(frozen=True, slots=True)
class ObjectName:
    """One object: a block's hash and the generation that this copy was written under."""

    hash: BlockHash
    generation: bytes

    def __post_init__(self) -> None:
        if len(self.hash) != DIGEST_BYTES or len(self.generation) != GENERATION_BYTES:
            raise ValueError("an object is named by 32 bytes of hash and 16 of generation")


@dataclass(frozen=True, slots=True)
class StagedName:
    """Bytes that a client has put for one upload session, which nobody has looked at yet.

    Whoever holds the address can write there until it expires: nothing staged is ever handed out. It is read,
    hashed, and written anew under the object's own name.
    """

    session_id: bytes
    hash: BlockHash

    def __post_init__(self) -> None:
        if len(self.session_id) != SESSION_BYTES or len(self.hash) != DIGEST_BYTES:
            raise ValueError("a staged block is named by 16 bytes of session and 32 of hash")


@dataclass(frozen=True, slots=True)
class SignedRequest:
    """A request that anybody may send to the store, without further credentials, until it expires."""

    method: str
    url: str
    headers: Mapping[str, str]
    """To be sent exactly so, besides Host: they are part of what is signed. Empty for GET."""


@dataclass(frozen=True, slots=True)
class Attested:
    """What the store itself vouches for."""

    sha256: bytes
    size: int


@dataclass(frozen=True, slots=True)
class StoredObject:
    """One object of a listing."""

    name: ObjectName
    size: int


class ObjectMissing(Exception):
    """There is no such object."""


class Backend(Protocol):
    """A store of objects that are written once and never overwritten."""

    async def put(self, name: ObjectName, data: bytes | bytearray | memoryview) -> None:
        """Write an object; on return it is durable. Nobody ever sees a part of it.

        `data` has the hash that names it, so an object that is there already has these very bytes; it is left
        as it is, or written again with the same.

        Raises:
            StorageFull: there is no room, or too little would be left.
            UpstreamUnavailable: the store failed; the object may be there or not.
        """
        ...

    async def replace(self, name: ObjectName, data: bytes | bytearray | memoryview) -> None:
        """Write an object anew, whatever lies there: for one that was found missing or damaged.

        Until it returns, a reader gets what lay there before or the new bytes, never a part.

        Raises:
            StorageFull, UpstreamUnavailable: as for `put`; what lay there before may still do so.
        """
        ...

    async def get(self, name: ObjectName) -> bytes:
        """The bytes as they lie there, unchecked.

        Raises:
            ObjectMissing: there is no such object.
            UpstreamUnavailable: it cannot be read now.
        """
        ...

    async def delete(self, name: ObjectName) -> None:
        """Remove an object, if it is there.

        Raises:
            UpstreamUnavailable: the store failed; it may still be there.
        """
        ...

    async def find_size(self, name: ObjectName) -> int | None:
        """The object's length in bytes; None: there is no such object.

        Raises:
            UpstreamUnavailable: it cannot be asked now.
        """
        ...

    async def list_objects(self, after: ObjectName | None, limit: int) -> list[StoredObject]:
        """Up to `limit` objects behind `after` (None: from the first), by hash and then generation.

        Empty: there are no more. What lies there and is no object of ours is passed over.

        Raises:
            UpstreamUnavailable: it cannot be asked now.
        """
        ...

    async def find_free_bytes(self) -> int | None:
        """The room left for new objects, never below 0; None if the store knows no bound.

        It asks the store in any case: whether it answers is what readiness hangs on. What it said a few
        seconds ago may be repeated.

        Raises:
            UpstreamUnavailable: the store does not answer.
        """
        ...

    def find_direct_place(self, name: ObjectName, session_id: bytes) -> ObjectName | StagedName | None:
        """Where a client may put this block's bytes by itself; None: this store takes no direct uploads.

        The object's own name only where the setting says that the store checks what is put against the
        checksum sent with it: an address that is still valid then cannot change the object. Else a staged
        one.
        """
        ...

    async def presign_put(
        self, place: ObjectName | StagedName, *, size: int, expires_s: int
    ) -> SignedRequest | None:
        """A PUT of `size` bytes whose SHA-256 is `place.hash`; None: this store cannot.

        Both are signed in, as Content-Length and x-amz-checksum-sha256: another length or header is refused
        by the store. Whether the *bytes* have that checksum only a store that verifies checks. The request
        may be sent several times until it expires.

        Raises:
            UpstreamUnavailable: there are no credentials to sign with now.
        """
        ...

    async def presign_get(self, name: ObjectName, *, expires_s: int) -> SignedRequest | None:
        """A GET of the object's bytes, unchecked on their way; None: this store cannot.

        That the object is there is not looked at.

        Raises:
            UpstreamUnavailable: there are no credentials to sign with now.
        """
        ...

    async def attest(self, name: ObjectName) -> Attested | None:
        """What the store has verified itself of an object when it took it in, without its bytes being read.

        None: the store does not verify, or keeps no checksum of this object, and nobody vouches for it.

        Raises:
            ObjectMissing: there is no such object.
            UpstreamUnavailable: it cannot be asked now.
        """
        ...

    async def get_staged(self, name: StagedName) -> bytes:
        """What a client has put there, unchecked; at most one byte more than a block has.

        Raises:
            ObjectMissing: nothing has been put, or it has expired.
            UpstreamUnavailable: it cannot be read now.
        """
        ...

    async def delete_staged(self, name: StagedName) -> None:
        """Remove what was staged, if it is there. What nobody removes expires by the store's own rule
        (docs/blocks.md).

        Raises:
            UpstreamUnavailable: the store failed; it may still be there.
        """
        ...

    async def close(self) -> None:
        """Let go of the store, once what is under way is done."""
        ...
