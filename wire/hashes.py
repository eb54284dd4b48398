"""Block and content hashes.

Source: Dropbox's content_hash: SHA-256 over the concatenated SHA-256 digests of the 4 MiB blocks.
"""

import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from hashlib import sha256
from typing import NewType, cast

from wire.errors import MalformedId

BlockHash = NewType("BlockHash", bytes)
"""A block's name: the 32 bytes of its SHA-256."""
ContentHash = NewType("ContentHash", bytes)

BLOCK_BYTES = 4_194_304
DIGEST_BYTES = 32
MAX_FILE_BYTES = 2**41 - 2**22
MAX_FILE_BLOCKS = MAX_FILE_BYTES // BLOCK_BYTES
_HEX = re.compile(r"[0-9a-f]{64}")


def block_hash(data: bytes | bytearray | memoryview) -> BlockHash:
    """The name of a block."""
    return BlockHash(sha256(data).digest())


def content_hash(blocks: Iterable[BlockHash]) -> ContentHash:
    """The content hash of a file with these blocks; an empty file has none, and the hash of nothing."""
    return ContentHash(sha256(b"".join(blocks)).digest())


def parse_hash(text: str) -> BlockHash:
    """A hash from 64 lower-case hex digits.

    Raises:
        MalformedId: anything else.
    """
    if not _HEX.fullmatch(text):
        raise MalformedId(f"not a SHA-256 in lower-case hex: {text[:70]!r}")
    return BlockHash(bytes.fromhex(text))


def parse_hashes(texts: Sequence[str]) -> list[BlockHash]:
    """Many hashes, in less than half the time of one by one: the largest file has 524,287.

    Raises:
        MalformedId: one is not 64 lower-case hex digits.
    """
    joined = "".join(texts)
    with suppress(ValueError):
        packed = bytes.fromhex(joined)
        # fromhex takes upper case and spaces, too.
        if set(map(len, texts)) <= {2 * DIGEST_BYTES} and packed.hex() == joined:
            return split_blocklist(packed)
    return [parse_hash(text) for text in texts]  # which tells of the first wrong one


def split_blocklist(packed: bytes) -> list[BlockHash]:
    """The hashes of a stored blocklist (concatenated digests)."""
    # BlockHash(…) would be a call for each of up to 524,287.
    digests = [packed[i : i + DIGEST_BYTES] for i in range(0, len(packed), DIGEST_BYTES)]
    return cast("list[BlockHash]", digests)


def block_count(size_bytes: int) -> int:
    """How many blocks a file of this size has."""
    return -(-size_bytes // BLOCK_BYTES)


def block_size(size_bytes: int, index: int) -> int:
    """The length in bytes of the block at `index` of a file of this size."""
    return min(BLOCK_BYTES, size_bytes - index * BLOCK_BYTES)
