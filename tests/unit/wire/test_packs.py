"""Packs and hashes."""

from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire.blocks import FRAME_OVERHEAD_BYTES, FrameStatus, format_frame_head, iter_frames
from wire.errors import BadRequest, MalformedId
from wire.hashes import (
    BLOCK_BYTES,
    BlockHash,
    block_count,
    block_hash,
    block_size,
    content_hash,
    parse_hash,
    parse_hashes,
    split_blocklist,
)

FRAMES = st.lists(
    st.tuples(st.binary(min_size=32, max_size=32), st.sampled_from(FrameStatus), st.binary(max_size=50)),
    max_size=6,
)


def pack_of(frames) -> bytes:
    return b"".join(format_frame_head(h, status, len(data)) + data for h, status, data in frames)


@given(FRAMES)
def test_packs_come_back(frames):
    pack = pack_of(frames)
    assert len(pack) == sum(FRAME_OVERHEAD_BYTES + len(data) for _, _, data in frames)
    for form in (pack, bytearray(pack), memoryview(pack)):
        assert [(f.hash, f.status, bytes(f.data)) for f in iter_frames(form)] == frames


@given(FRAMES.filter(bool), st.data())
def test_a_pack_that_is_cut_short_is_refused(frames, data):
    pack = pack_of(frames)
    ends = {len(pack_of(frames[:i])) for i in range(len(frames))}
    cut = data.draw(st.integers(0, len(pack) - 1).filter(lambda n: n not in ends))
    with pytest.raises(BadRequest):
        list(iter_frames(pack[:cut]))


def test_frames_that_are_no_blocks():
    head = format_frame_head(BlockHash(bytes(32)), FrameStatus.OK, BLOCK_BYTES + 1)
    with pytest.raises(BadRequest):
        list(iter_frames(head + bytes(BLOCK_BYTES + 1)))
    with pytest.raises(BadRequest):
        list(iter_frames(bytes(32) + b"\x07" + bytes(4)))
    whole = format_frame_head(BlockHash(bytes(32)), FrameStatus.OK, BLOCK_BYTES) + bytes(BLOCK_BYTES)
    assert len(next(iter_frames(whole)).data) == BLOCK_BYTES


def test_content_hashes():
    assert content_hash([]).hex() == sha256(b"").hexdigest()
    one, two = block_hash(b"a"), block_hash(b"b")
    assert content_hash([one, two]) == sha256(one + two).digest()
    assert split_blocklist(one + two) == [one, two]
    assert split_blocklist(b"") == []


@given(st.integers(0, 2**41))
def test_blocks_cover_a_file(size):
    count = block_count(size)
    assert (count == 0) == (size == 0)
    if count:
        last = block_size(size, count - 1)
        assert 0 < last <= BLOCK_BYTES
        assert (count - 1) * BLOCK_BYTES + last == size
    if count > 1:
        assert block_size(size, 0) == BLOCK_BYTES


@pytest.mark.parametrize(
    "text", ["", "a" * 63, "a" * 65, "A" * 64, "g" * 64, "a" * 64 + "\n", "à" + "a" * 63]
)
def test_what_is_no_hash(text):
    with pytest.raises(MalformedId):
        parse_hash(text)
    for among in ([text], ["0" * 64, text], [text, "0" * 64], [text[:32], text[32:]]):
        with pytest.raises(MalformedId):
            parse_hashes(among)


@given(st.binary(min_size=32, max_size=32))
def test_hashes_come_back(digest):
    assert parse_hash(digest.hex()) == digest
    assert parse_hashes([digest.hex(), "0" * 64]) == [digest, bytes(32)]
    assert parse_hashes([]) == []
