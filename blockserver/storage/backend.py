"""What a block store must do. A folder does it; S3 will."""

from dataclasses import dataclass
from typing import Protocol

from wire.hashes import DIGEST_BYTES, BlockHash

GENERATION_BYTES = 16


@dataclass(frozen=True, slots=True)
class ObjectName:
    """One object: a block's hash and the generation that this copy was written under."""

    hash: BlockHash
    generation: bytes

    def __post_init__(self) -> None:
        if len(self.hash) != DIGEST_BYTES or len(self.generation) != GENERATION_BYTES:
            raise ValueError("an object is named by 32 bytes of hash and 16 of generation")


class ObjectMissing(Exception):
    """There is no such object."""


class Backend(Protocol):
    """A store of objects that are written once and never overwritten."""

    async def put(self, name: ObjectName, data: bytes | bytearray | memoryview) -> None:
        """Write an object; on return it is durable. Nobody ever sees a part of it.

        An object of that name that is there already is left as it is: it has these very bytes.

        Raises:
            StorageFull: there is no room, or too little would be left.
            UpstreamUnavailable: the store failed; the object may be there or not.
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

    async def exists(self, name: ObjectName) -> bool:
        """Whether the object is there."""
        ...

    async def find_free_bytes(self) -> int | None:
        """The room left for new objects, never below 0; None if the store knows no bound.

        Raises:
            UpstreamUnavailable: the store does not answer.
        """
        ...

    async def close(self) -> None:
        """Let go of the store, once what is under way is done."""
        ...
