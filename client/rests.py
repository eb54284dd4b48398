"""Entries that failed and rest before they are tried again; and what `status` says of them."""

import random
import time
from collections.abc import Callable, Container
from dataclasses import dataclass

from client.transfer import Failed
from wire.errors import QuotaExceeded

SOON_S = 0.1
LASTING_S = 30.0
MAX_REST_S = 15.0
"""The first rest, the rest after what only a person can change (found out at once if the entry changes), and
the longest one of the others."""
QUICK_TRIES = 3
"""What looks lasting may have been met in passing (a name that was free again a moment later)."""
PATIENCE_S = 60.0
"""For how long a sync that is to end waits for an entry that keeps failing."""

_LASTING = {
    "unreadable",
    "occupied",
    "not_empty",
    "name_too_long",
    "disk_full",
    "malformed_path",
    "disallowed_name",
    "deletions_held",
    "io_error",
    QuotaExceeded.code,
}

_AGAIN = ("look_again", "plan_again", "changed")
"""Not failures: the next plan starts from fresher trees. Only when repeated they have to rest."""


@dataclass(slots=True)
class Rest:
    """One entry's trouble. `state` is what was known of it then: when that changes the rest is over."""

    failed: Failed
    path: bytes
    state: object
    attempts: int
    since: float
    until: float
    is_lasting: bool


class Rests:
    """All entries that rest."""

    def __init__(self) -> None:
        self._rests: dict[int, Rest] = {}

    def add(self, failed: Failed, path: bytes, state: object) -> None:
        """The entry failed (again)."""
        now = time.monotonic()
        last = self._rests.get(failed.id)
        is_repeated = last is not None and last.failed.reason == failed.reason
        attempts = last.attempts + 1 if last is not None and is_repeated else 1
        since = last.since if last is not None and is_repeated else now
        is_lasting = failed.reason in _LASTING and attempts > QUICK_TRIES
        if is_lasting:
            pause_s = LASTING_S
        elif failed.reason in _AGAIN and attempts <= 2:
            pause_s = 0.0
        else:
            pause_s = random.uniform(0.5, 1.0) * min(MAX_REST_S, SOON_S * 2 ** min(attempts, 16))  # noqa: S311
        pause_s = max(pause_s, failed.retry_after_s)
        self._rests[failed.id] = Rest(failed, path, state, attempts, since, now + pause_s, is_lasting)

    def clear(self, node_id: int) -> None:
        """The entry is fine."""
        self._rests.pop(node_id, None)

    def is_resting(self, node_id: int, state_of: Callable[[int], object]) -> bool:
        """Whether to leave it alone for now; `state_of` tells what is known of an entry now."""
        rest = self._rests.get(node_id)
        if rest is None or time.monotonic() >= rest.until:
            return False
        # A file that is being written changes all the time: that is no reason to read it all the time.
        is_due_by_time_only = rest.failed.reason == "changing" or rest.failed.retry_after_s > 0
        return is_due_by_time_only or rest.state == state_of(node_id)

    def forget_except(self, ids: Container[int]) -> None:
        """Entries that are not out of step any more have no trouble."""
        for node_id in [x for x in self._rests if x not in ids]:
            del self._rests[node_id]

    def next_s(self, since: float) -> float | None:
        """Seconds until the first rest is over that was not at `since`, when the last round began: what has
        ended meanwhile has not been tried again yet. None if nothing rests."""
        now = time.monotonic()
        return min((max(0.0, x.until - now) for x in self._rests.values() if x.until > since), default=None)

    def is_worth_waiting(self, since: float) -> bool:
        """Whether a sync that is to end should wait for one of these; `since` as for `next_s`."""
        now = time.monotonic()
        return any(
            not rest.is_lasting and rest.until > since and now - rest.since < PATIENCE_S
            for rest in self._rests.values()
        )

    def problems(self) -> list[tuple[bytes, str, str]]:
        """Path, reason and detail of what has failed more than in passing."""
        return sorted(
            (rest.path, rest.failed.reason, rest.failed.detail)
            for rest in self._rests.values()
            if rest.failed.reason not in _AGAIN or rest.attempts > 2
        )
