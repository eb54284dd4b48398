"""The block API: what a client sends to a blockserver, and the pack that carries many small blocks.

    PUT  /v1/blocks/<hash>?ns=<ns_id>      one block, any transfer encoding   -> PutVerdict
    GET  /v1/blocks/<hash>?ns=<ns_id>      one block, whole or by Range (&redirect=1: 307)
    POST /v1/blocks/missing                MissingBlocks                      -> MissingResult
    POST /v1/blocks/put_pack?ns=<ns_id>    a pack                             -> PutPackResult
    POST /v1/blocks/get_pack               GetPack                            -> a pack

A pack is a run of frames, each `hash (32) | status (1) | length (4, big-endian) | bytes`.
"""

import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import NamedTuple

import msgspec

from wire.errors import BadRequest, ErrorInfo
from wire.hashes import BLOCK_BYTES, BlockHash

MAX_PACK_BLOCKS = 1_000
MAX_PACK_BYTES = 32 * 2**20
"""The bytes of one pack in either direction: what a server holds in memory for one request."""
MAX_MISSING_HASHES = 10_000
PACK_CONTENT_TYPE = "application/vnd.shardbox.pack"


class FrameStatus(IntEnum):
    """What a frame of a downloaded pack carries; uploads use OK alone."""

    OK = 0
    NOT_FOUND = 1
    UNAVAILABLE = 2
    """A retry may help: the store or a shard did not answer."""
    CORRUPT = 3
    OVER_LIMIT = 4
    """The pack was full; ask for this block in the next one."""


class Frame(NamedTuple):
    """One block of a pack; `data` is empty unless the status is OK."""

    hash: BlockHash
    status: FrameStatus
    data: memoryview


_STATUSES = frozenset(FrameStatus)
_HEAD = struct.Struct(">32sBI")
FRAME_OVERHEAD_BYTES = _HEAD.size


def format_frame_head(block_hash: BlockHash, status: FrameStatus, length: int) -> bytes:
    """What precedes a frame's bytes."""
    return _HEAD.pack(block_hash, status, length)


def iter_frames(pack: bytes | bytearray | memoryview) -> Iterator[Frame]:
    """The frames of a whole pack, without copying their bytes.

    Raises:
        BadRequest: the pack is cut short, or a frame is longer than a block.
    """
    view = memoryview(pack)
    at = 0
    while at < len(view):
        if at + _HEAD.size > len(view):
            raise BadRequest("the pack is cut short")
        digest, status, length = _HEAD.unpack_from(view, at)
        at += _HEAD.size
        if length > BLOCK_BYTES or at + length > len(view) or status not in _STATUSES:
            raise BadRequest("the pack is cut short or has a frame that is no block")
        yield Frame(BlockHash(digest), FrameStatus(status), view[at : at + length])
        at += length


class PutVerdict(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What became of one block: ready in the namespace, or an error that says whether a retry can help."""

    hash: str
    error: ErrorInfo | None = None


class PutPackResult(msgspec.Struct, frozen=True):
    """One verdict per frame, in their order."""

    blocks: list[PutVerdict]


class MissingBlocks(msgspec.Struct, frozen=True, kw_only=True):
    """Which of these has the namespace not got? (Whether anybody else has them never shows.)"""

    ns_id: str
    hashes: list[str]


class MissingResult(msgspec.Struct, frozen=True):
    """The hashes that must be sent before a commit may name them."""

    missing: list[str]


class GetPack(msgspec.Struct, frozen=True, kw_only=True):
    """Up to 1,000 blocks of a namespace in one answer."""

    ns_id: str
    hashes: list[str]
