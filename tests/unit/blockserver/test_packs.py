"""What a pack may hold, at the edges."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockserver.model.packs import MAX_UPLOAD_BYTES, parse_upload, plan_download
from wire.blocks import FRAME_OVERHEAD_BYTES, MAX_PACK_BLOCKS, MAX_PACK_BYTES, FrameStatus, format_frame_head
from wire.errors import BadRequest, BodyTooLarge, TooManyEntries
from wire.hashes import BLOCK_BYTES, BlockHash, block_hash

GENERATION = bytes(16)
HASH = block_hash(b"x")


def frame(data: bytes, status: FrameStatus = FrameStatus.OK) -> bytes:
    return format_frame_head(block_hash(data), status, len(data)) + data


def full_frame(length: int) -> bytes:
    return format_frame_head(HASH, FrameStatus.OK, length) + bytes(length)


def test_frames_come_in_their_order():
    frames = parse_upload(frame(b"a") + frame(b"bb") + frame(b"a"))
    assert [bytes(f.data) for f in frames] == [b"a", b"bb", b"a"]
    assert parse_upload(b"") == []


def test_a_pack_has_at_most_1000_blocks():
    assert len(parse_upload(frame(b"a") * MAX_PACK_BLOCKS)) == MAX_PACK_BLOCKS
    with pytest.raises(TooManyEntries):
        parse_upload(frame(b"a") * (MAX_PACK_BLOCKS + 1))


def test_the_blocks_of_a_pack_have_at_most_32_mib():
    full = full_frame(BLOCK_BYTES) * (MAX_PACK_BYTES // BLOCK_BYTES)
    assert len(full) <= MAX_UPLOAD_BYTES
    assert len(parse_upload(full)) == 8
    with pytest.raises(BodyTooLarge):
        parse_upload(full + full_frame(1))


@pytest.mark.parametrize(
    "pack",
    [
        frame(b"abc")[:-1],
        frame(b"abc") + b"\0",
        frame(b"abc")[:36],
        full_frame(BLOCK_BYTES + 1),
        frame(b"abc", FrameStatus.NOT_FOUND),
        format_frame_head(HASH, FrameStatus.OK, 0)[:32] + b"\x09" + bytes(4),
    ],
    ids=["short data", "one byte too many", "short head", "too long", "not OK", "unknown status"],
)
def test_what_is_no_pack_of_blocks(pack: bytes):
    with pytest.raises(BadRequest):
        parse_upload(pack)


def test_a_download_says_what_did_not_fit():
    hashes = [block_hash(bytes([i])) for i in range(9)]
    places = [(GENERATION, BLOCK_BYTES)] * 8 + [(GENERATION, 100)]
    statuses = [f.status for f in plan_download(hashes, places)]
    assert statuses == [FrameStatus.OK] * 7 + [FrameStatus.OVER_LIMIT, FrameStatus.OK]
    assert plan_download([], []) == []
    (alone,) = plan_download(hashes[:1], [None])
    assert (alone.status, alone.byte_count) == (FrameStatus.NOT_FOUND, FRAME_OVERHEAD_BYTES)


def test_a_download_fills_its_32_mib_to_the_byte():
    hashes = [BlockHash(bytes([i]) * 32) for i in range(8)]
    last = MAX_PACK_BYTES - 7 * BLOCK_BYTES - 8 * FRAME_OVERHEAD_BYTES
    sizes = [BLOCK_BYTES] * 7 + [last]
    frames = plan_download(hashes, [(GENERATION, size) for size in sizes])
    assert sum(f.byte_count for f in frames) == MAX_PACK_BYTES
    assert all(f.status is FrameStatus.OK for f in frames)
    sizes[-1] += 1
    assert plan_download(hashes, [(GENERATION, s) for s in sizes])[-1].status is FrameStatus.OVER_LIMIT


@given(st.lists(st.none() | st.integers(1, BLOCK_BYTES), max_size=60))
def test_a_download_stays_in_its_bounds_and_goes_on(sizes: list[int | None]):
    hashes = [BlockHash(bytes([i]) * 32) for i in range(len(sizes))]
    frames = plan_download(hashes, [(GENERATION, size) if size else None for size in sizes])
    assert [f.hash for f in frames] == hashes
    assert sum(f.byte_count for f in frames) <= MAX_PACK_BYTES
    held = [f for f in frames if f.status is not FrameStatus.NOT_FOUND]
    assert not held or held[0].status is FrameStatus.OK  # so asking again always comes to an end
