"""How far an archive reaches."""

import pytest

from ops.backup.wal import Segment, find_reach, parse_segment, segment_of

START = Segment(1, 5)


def names(*segments: tuple[int, int]) -> list[str]:
    return [Segment(*segment).name for segment in segments]


def test_names_are_postgresqls():
    assert Segment(1, 5).name == "000000010000000000000005"
    assert Segment(0x1F, 256).name == "0000001F0000000100000000"
    assert parse_segment("0000001F0000000100000000") == Segment(0x1F, 256)
    assert segment_of(3, "16/B374D848").name == "0000000300000016000000B3"
    for other in ("00000002.history", "000000010000000000000005.partial", "x", ""):
        assert parse_segment(other) is None


@pytest.mark.parametrize(
    ("there", "last", "missing"),
    [
        ([], None, None),
        ([(1, 4)], None, None),  # older than the backup
        ([(1, 5), (1, 6)], (1, 6), None),
        ([(1, 5), (1, 7)], (1, 5), (1, 6)),
        ([(1, 6)], None, (1, 5)),
        # A restore began timeline 2 in segment 6, which both have.
        ([(1, 5), (1, 6), (1, 7), (2, 6), (2, 7), (2, 8)], (2, 8), None),
        ([(1, 5), (1, 6), (2, 6), (2, 8)], (2, 6), (2, 7)),
    ],
)
def test_the_reach_ends_at_the_first_gap(
    there: list[tuple[int, int]], last: tuple[int, int] | None, missing: tuple[int, int] | None
):
    reach = find_reach([*names(*there), "00000002.history"], START)
    assert reach.last == (Segment(*last) if last else None)
    assert reach.missing == (Segment(*missing) if missing else None)
