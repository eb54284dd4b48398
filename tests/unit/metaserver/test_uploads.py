"""What upload sessions are told."""

import os
from contextlib import nullcontext

import msgspec
import pytest

from metaserver.handlers.sessions import MAX_BLOCK_LIST_BODY_BYTES
from metaserver.model.uploads import check_lengths, parse_blocks, parse_content, sizes_of
from wire.errors import ContentMismatch
from wire.hashes import BLOCK_BYTES, MAX_FILE_BLOCKS, MAX_FILE_BYTES, block_hash, content_hash
from wire.names import MAX_NAME_CHARS
from wire.sessions import CommitUpload, OpenUpload

A, B = block_hash(b"a"), block_hash(b"b")


def test_the_largest_file_fits_into_a_request():
    hashes = [A.hex()] * MAX_FILE_BLOCKS
    name = "\N{GRINNING FACE}" * MAX_NAME_CHARS
    ids = {"upload_id": "u" * 100, "parent_folder_id": "p" * 100, "checksum": A.hex()}
    opening = OpenUpload(file_name=name, file_size=MAX_FILE_BYTES, block_list=hashes, **ids)
    commit = CommitUpload(
        block_list=hashes,
        original_version="v" * 100,
        client_modified="m" * 100,
        file_size=MAX_FILE_BYTES,
        **ids,
    )
    for request in (opening, commit):
        # As spaciously as JSON writers do: ", " and \\u escapes.
        spacious = len(msgspec.json.encode(request)) + MAX_FILE_BLOCKS + 12 * MAX_NAME_CHARS + 100
        assert spacious < MAX_BLOCK_LIST_BODY_BYTES


def test_blocks_come_once_with_their_lengths():
    assert sizes_of([A, B, A], 3 * BLOCK_BYTES) == {A: BLOCK_BYTES, B: BLOCK_BYTES}
    assert list(sizes_of([B, A], BLOCK_BYTES + 5).items()) == [(B, BLOCK_BYTES), (A, 5)]
    assert sizes_of([], 0) == {}
    with pytest.raises(ContentMismatch):
        sizes_of([A, A], BLOCK_BYTES + 5)


@pytest.mark.parametrize(
    ("size", "counts", "fits"),
    [
        (0, {}, True),
        (0, {1: 1}, False),
        (5, {5: 1}, True),
        (5, {5: 2}, False),
        (5, {4: 1}, False),
        (5, {BLOCK_BYTES: 1}, False),
        (BLOCK_BYTES, {BLOCK_BYTES: 1}, True),
        (BLOCK_BYTES, {BLOCK_BYTES: 2}, False),
        (2 * BLOCK_BYTES + 5, {BLOCK_BYTES: 2, 5: 1}, True),
        (2 * BLOCK_BYTES + 5, {BLOCK_BYTES: 3}, False),
    ],
)
def test_a_file_has_blocks_of_two_lengths(size: int, counts: dict[int, int], fits: bool):
    with nullcontext() if fits else pytest.raises(ContentMismatch):
        check_lengths(counts, size)


def test_a_list_fits_its_size_and_checksum():
    checksum = content_hash([A, B])
    texts = [A.hex(), B.hex()]
    for size in (BLOCK_BYTES + 1, 2 * BLOCK_BYTES):
        assert parse_blocks(texts, size, checksum) == [A, B]
    for size in (0, BLOCK_BYTES, 2 * BLOCK_BYTES + 1):
        with pytest.raises(ContentMismatch):
            parse_blocks(texts, size, checksum)
    with pytest.raises(ContentMismatch):
        parse_blocks(texts[::-1], BLOCK_BYTES + 1, checksum)


def test_a_file_has_a_largest_size():
    some = os.urandom(32).hex()
    assert parse_content(MAX_FILE_BYTES, some).hex() == some
    with pytest.raises(ContentMismatch):
        parse_content(MAX_FILE_BYTES + 1, some)
    assert parse_content(0, content_hash([]).hex()) == content_hash([])
    with pytest.raises(ContentMismatch):
        parse_content(0, some)
