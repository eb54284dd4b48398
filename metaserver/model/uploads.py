"""What an upload session is told, as values that fit one another."""

from collections.abc import Mapping, Sequence

from wire.errors import ContentMismatch
from wire.hashes import (
    BLOCK_BYTES,
    MAX_FILE_BYTES,
    BlockHash,
    ContentHash,
    block_count,
    block_size,
    content_hash,
    parse_hash,
    parse_hashes,
)


def parse_content(size: int, checksum: str) -> ContentHash:
    """The content hash of a file that is to be uploaded.

    Raises:
        ContentMismatch: larger than a file may be, or an empty file with another hash than that of nothing.
        MalformedId: not a hash.
    """
    if size > MAX_FILE_BYTES:
        raise ContentMismatch(f"a file has at most {MAX_FILE_BYTES} bytes")
    claimed = ContentHash(parse_hash(checksum))
    if size == 0 and claimed != content_hash([]):
        raise ContentMismatch("an empty file has the SHA-256 of nothing as its checksum")
    return claimed


def parse_blocks(texts: Sequence[str], size: int, checksum: ContentHash) -> list[BlockHash]:
    """The blocks of a file in order.

    Raises:
        ContentMismatch: their number or the checksum does not fit.
        MalformedId: not a hash.
    """
    if len(texts) != block_count(size):
        raise ContentMismatch(f"a file of {size} bytes has {block_count(size)} blocks")
    blocks = parse_hashes(texts)
    if content_hash(blocks) != checksum:
        raise ContentMismatch("the checksum is not that of the blocks")
    return blocks


def sizes_of(blocks: Sequence[BlockHash], size: int) -> dict[BlockHash, int]:
    """The distinct blocks of a file in the order in which they first come, each with its length in bytes.

    Raises:
        ContentMismatch: the last block, which is shorter, has come before.
    """
    sizes = dict.fromkeys(blocks, BLOCK_BYTES)
    if blocks and (last := block_size(size, len(blocks) - 1)) < BLOCK_BYTES:
        if blocks.index(blocks[-1]) != len(blocks) - 1:
            raise ContentMismatch("the last block, which is shorter, has come before")
        sizes[blocks[-1]] = last
    return sizes


def check_lengths(counts: Mapping[int, int], size: int) -> None:
    """That a file can have so many distinct blocks of these lengths in bytes.

    Raises:
        ContentMismatch: it cannot.
    """
    full_count, last = divmod(size, BLOCK_BYTES)
    may_have = {BLOCK_BYTES: full_count, last: 1 if last else 0}
    if any(count > may_have.get(length, 0) for length, count in counts.items()):
        having = " and ".join(f"{n} of {length} bytes" for length, n in may_have.items() if n)
        raise ContentMismatch(f"blocks of a file of {size} bytes: {having or 'none'}")
