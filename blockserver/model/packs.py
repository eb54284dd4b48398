"""What a pack may hold, in either direction.

A pack that is sent out stays within 32 MiB with its frame heads; a pack that is taken in may have its heads
on top, so that whichever way a client counts, what it sends within the limit is taken.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from wire.blocks import (
    FRAME_OVERHEAD_BYTES,
    MAX_PACK_BLOCKS,
    MAX_PACK_BYTES,
    Frame,
    FrameStatus,
    iter_frames,
)
from wire.errors import BadRequest, BodyTooLarge, TooManyEntries
from wire.hashes import BlockHash

MAX_UPLOAD_BYTES = MAX_PACK_BYTES + MAX_PACK_BLOCKS * FRAME_OVERHEAD_BYTES


def parse_upload(pack: bytes | bytearray | memoryview) -> list[Frame]:
    """The frames of an uploaded pack; nothing of a pack that breaks a limit is looked at further.

    Raises:
        TooManyEntries, BodyTooLarge, BadRequest: too many frames, too many bytes, or not a pack of blocks.
    """
    frames: list[Frame] = []
    for frame in iter_frames(pack):
        if len(frames) == MAX_PACK_BLOCKS:
            raise TooManyEntries(f"a pack has at most {MAX_PACK_BLOCKS} blocks")
        if frame.status is not FrameStatus.OK:
            raise BadRequest("a frame that is uploaded has status 0")
        frames.append(frame)
    if len(pack) - len(frames) * FRAME_OVERHEAD_BYTES > MAX_PACK_BYTES:
        raise BodyTooLarge(f"the blocks of a pack have at most {MAX_PACK_BYTES} bytes")
    return frames


@dataclass(frozen=True, slots=True)
class PlannedFrame:
    """One frame of an answer: a block to be read (`status` OK), or why there is none."""

    hash: BlockHash
    status: FrameStatus
    generation: bytes = b""
    size: int = 0

    @property
    def byte_count(self) -> int:
        """The frame's length at most; a block that turns out unreadable leaves its head alone."""
        return FRAME_OVERHEAD_BYTES + self.size


def plan_download(
    wanted: Sequence[BlockHash], places: Sequence[tuple[bytes, int] | None]
) -> list[PlannedFrame]:
    """One frame for each hash asked for, in that order; `places` are (generation, size), None where not held.

    Invariant: all frames together have at most MAX_PACK_BYTES. A block that does not fit is OVER_LIMIT, and a
    smaller one behind it may still go along.
    """
    room = MAX_PACK_BYTES - len(wanted) * FRAME_OVERHEAD_BYTES
    frames: list[PlannedFrame] = []
    for block_hash, place in zip(wanted, places, strict=True):
        if place is None:
            frames.append(PlannedFrame(block_hash, FrameStatus.NOT_FOUND))
            continue
        generation, size = place
        if size > room:
            frames.append(PlannedFrame(block_hash, FrameStatus.OVER_LIMIT))
            continue
        room -= size
        frames.append(PlannedFrame(block_hash, FrameStatus.OK, generation, size))
    return frames
