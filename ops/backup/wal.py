"""What an archive holds: segments of the write-ahead log by timeline, and whether one is missing. Pure."""

import re
from collections.abc import Collection
from dataclasses import dataclass

SEGMENT_BYTES = 16 * 2**20
"""PostgreSQL's default, which a server of ours is not made with another of."""
_SEGMENTS_PER_LOG = 2**32 // SEGMENT_BYTES
_SEGMENT = re.compile(r"([0-9A-F]{8})([0-9A-F]{8})([0-9A-F]{8})")


@dataclass(frozen=True, slots=True, order=True)
class Segment:
    """A segment: the timeline, and its number since the beginning of the log."""

    timeline: int
    number: int

    @property
    def name(self) -> str:
        """The file's name."""
        log, at = divmod(self.number, _SEGMENTS_PER_LOG)
        return f"{self.timeline:08X}{log:08X}{at:08X}"


def parse_segment(name: str) -> Segment | None:
    """The segment that a file is; None for other files (histories, backup labels, partial segments)."""
    match = _SEGMENT.fullmatch(name)
    if match is None:
        return None
    timeline, log, at = (int(part, 16) for part in match.groups())
    return Segment(timeline, log * _SEGMENTS_PER_LOG + at)


def segment_of(timeline: int, lsn: str) -> Segment:
    """The segment that holds a position such as 16/B374D848."""
    high, _, low = lsn.partition("/")
    return Segment(timeline, (int(high, 16) << 32 | int(low, 16)) // SEGMENT_BYTES)


@dataclass(frozen=True, slots=True)
class Reach:
    """How far a recovery gets from some segment on.

    `last` is None where even that one is not archived; `missing` is the first one that is not there although
    later ones are.
    """

    last: Segment | None
    missing: Segment | None


def find_reach(names: Collection[str], start: Segment) -> Reach:
    """How far the archive goes on without a gap, over the newer timelines too."""
    there: dict[int, list[int]] = {}
    for segment in filter(None, map(parse_segment, names)):
        if segment.timeline >= start.timeline and segment.number >= start.number:
            there.setdefault(segment.number, []).append(segment.timeline)
    at, last = start, None
    # At a switch the new timeline begins with the segment that the old one ended in.
    while newer := [t for t in there.get(at.number, ()) if t >= at.timeline]:
        last = Segment(max(newer), at.number)
        at = Segment(last.timeline, last.number + 1)
    has_later = any(number > at.number for number in there)
    return Reach(last, at if has_later else None)
