"""One byte range of a block."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockserver.model.ranges import ByteRange, parse_range
from wire.errors import RangeNotSatisfiable


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("bytes=0-0", ByteRange(0, 1)),
        ("bytes=0-9", ByteRange(0, 10)),
        ("bytes=0-99", ByteRange(0, 10)),
        ("bytes=9-", ByteRange(9, 10)),
        ("bytes=-3", ByteRange(7, 10)),
        ("bytes=-11", ByteRange(0, 10)),
        ("Bytes=2-3", ByteRange(2, 4)),
        (None, None),
        ("", None),
        ("bytes=0-1,3-4", None),
        ("bytes=5-4", None),
        ("bytes=-", None),
        ("items=0-1", None),
        ("bytes=٣-", None),
        ("bytes=1-2x", None),
        ("bytes=" + "9" * 30 + "-", None),
    ],
)
def test_ranges_of_ten_bytes(header: str | None, expected: ByteRange | None):
    assert parse_range(header, 10) == expected


@pytest.mark.parametrize("header", ["bytes=10-", "bytes=10-20", "bytes=-0"])
def test_ranges_beyond_the_end(header: str):
    with pytest.raises(RangeNotSatisfiable):
        parse_range(header, 10)


@given(st.integers(1, 300), st.integers(0, 400), st.integers(0, 400))
def test_a_range_is_what_slicing_gives(size: int, first: int, last: int):
    data = bytes(i % 251 for i in range(size))
    try:
        found = parse_range(f"bytes={first}-{last}", size)
    except RangeNotSatisfiable:
        assert first >= size
        return
    if last < first:
        assert found is None
        return
    assert found is not None
    assert data[found.start : found.end] == data[first : last + 1]
    assert found.format_content_range(size) == f"bytes {first}-{min(last, size - 1)}/{size}"
