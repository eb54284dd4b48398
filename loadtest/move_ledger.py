"""What the writers of a namespace were told, held against its journal.

Each commit has a number, and carries it as the time at which its file was modified: so a row of the journal
tells which commit made it, whatever the answers said.
"""

import time
from array import array
from collections.abc import Iterable
from dataclasses import dataclass

FIRST_TIME_S = 1_000_000_000
"""The time that stands for commit 0; each that follows is a second later."""
_UNDER_WAY = 0
_FAILED = -1


@dataclass(frozen=True, slots=True)
class Differences:
    """What is wrong with a journal, or with several."""

    lost: int = 0
    """Acknowledged, but not in the journal under the jid that was told."""
    doubled: int = 0
    """In the journal, but more often than acknowledged."""
    disordered: int = 0
    """Rows that do not follow their predecessor: a jid is missing, or the time of writing goes back."""

    def __add__(self, other: "Differences") -> "Differences":
        return Differences(
            self.lost + other.lost, self.doubled + other.doubled, self.disordered + other.disordered
        )


class Ledger:
    """The commits of one namespace, and what became of each."""

    def __init__(self) -> None:
        self._jids = array("q")
        self.head = 0
        """The newest acknowledged jid."""

    def __len__(self) -> int:
        return len(self._jids)

    def begin(self, count: int) -> range:
        """The numbers of so many new commits."""
        first = len(self._jids)
        self._jids.extend([_UNDER_WAY] * count)
        return range(first, first + count)

    def acknowledge(self, number: int, jid: int) -> None:
        """Note that a commit was told to be a row of the journal."""
        self._jids[number] = jid
        self.head = max(self.head, jid)

    def fail(self, numbers: Iterable[int]) -> None:
        """Note commits whose outcome their client does not know: they may be in the journal, once."""
        for number in numbers:
            self._jids[number] = _FAILED

    def compare(self, rows: Iterable[tuple[int, int, int | None]]) -> Differences:
        """What the journal lacks, or has too much of.

        Args:
            rows: of the whole journal by ascending jid: the jid, when it was written, and the time that the
                row's file was modified, in µs; None for rows that are no commits.
        """
        found = bytearray(len(self._jids))
        doubled = disordered = 0
        last_jid = last_us = 0
        for jid, at_us, modified_us in rows:
            disordered += jid != last_jid + 1 or at_us < last_us
            last_jid, last_us = jid, at_us
            if modified_us is None:
                continue
            number = modified_us // 1_000_000 - FIRST_TIME_S
            if not 0 <= number < len(found) or self._jids[number] not in (jid, _FAILED) or found[number]:
                doubled += 1
            else:
                found[number] = True
        told = sum(jid > 0 for jid in self._jids)
        kept = sum(jid > 0 and is_found for jid, is_found in zip(self._jids, found, strict=True))
        return Differences(told - kept, doubled, disordered)


def format_number(number: int) -> str:
    """The time that stands for a commit's number."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(FIRST_TIME_S + number))
