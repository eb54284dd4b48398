"""One byte range of a block (RFC 9110, section 14)."""

import re
from dataclasses import dataclass

from wire.errors import RangeNotSatisfiable

_ONE_RANGE = re.compile(r"bytes=\s*(?:(\d{1,18})-(\d{0,18})|-(\d{1,18}))\s*", re.IGNORECASE | re.ASCII)


@dataclass(frozen=True, slots=True)
class ByteRange:
    """The bytes from `start` up to, not including, `end`."""

    start: int
    end: int

    def format_content_range(self, size_bytes: int) -> str:
        """The Content-Range header of a 206."""
        return f"bytes {self.start}-{self.end - 1}/{size_bytes}"


def parse_range(header: str | None, size_bytes: int) -> ByteRange | None:
    """The range asked for; None: send all of it (no range, several, or something that is not one).

    Raises:
        RangeNotSatisfiable: no byte of the block lies in it.
    """
    found = _ONE_RANGE.fullmatch(header or "")
    if found is None:
        return None
    first, last, suffix = found.groups()
    if suffix is not None:
        start, end = max(0, size_bytes - int(suffix)), size_bytes
    else:
        start, end = int(first), min(size_bytes, int(last) + 1) if last else size_bytes
        if last and int(last) < int(first):
            return None
    if start >= end:
        raise RangeNotSatisfiable(f"the block has {size_bytes} bytes")
    return ByteRange(start, end)
