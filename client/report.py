"""What a running sync writes down for `status`."""

import time
from collections import Counter

from client.rests import Rests
from client.state import State

EVERY_S = 1.0
"""While much is going on a report per second is enough, as each is a flush of the disk."""


class Reporter:
    """Counters and the present activity, written when they have changed."""

    def __init__(self, state: State, rests: Rests):
        self._state, self._rests = state, rests
        self.counts: Counter[str] = Counter()
        """What has been moved since the last report; added to the stored counters."""
        self.last_error: str | None = None
        self._written: object = None
        self._activity, self._reported_at = "", 0.0

    def report(self, activity: str, *, held_deletions: int, troubles: list[str]) -> None:
        """Write it down, if it is news."""
        problems = self._rests.problems()
        if held_deletions:
            detail = f"{held_deletions} local deletions wait for an answer: sync --allow-mass-delete"
            problems.append((b"", "deletions_held", detail))
        if activity in ("idle", "syncing"):
            self.last_error = None
        news = (activity, held_deletions, tuple(problems), tuple(troubles), self.last_error)
        now = time.monotonic()
        is_soon = activity == self._activity == "syncing" and now < self._reported_at + EVERY_S
        if is_soon or (news == self._written and not self.counts):
            return
        self._activity, self._reported_at = activity, now
        with self._state.tx("report"):
            self._state.add_counts(self.counts)
            self._state.replace_problems("sync", problems)
            self._state.put_fact("activity", activity)
            self._state.put_fact("held_deletions", str(held_deletions))
            self._state.put_fact("troubles", "; ".join(troubles) or None)
            self._state.put_fact("last_error", self.last_error)
        self.counts.clear()
        self._written = news
