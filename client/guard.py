"""Asks before most of a tree is deleted on the server, because it has vanished from this disk."""

import time
from collections import deque
from collections.abc import Callable, Iterable

from client.model import SendAction, SendDelete
from client.trees import Trees

GUARD_ENTRIES = 20
GUARD_SHARE = 0.5
"""Local deletions of more than 20 entries and more than half of what is synced are asked about first: a
folder emptied by accident or by a disk that failed must not empty the other devices."""
GUARD_WINDOW_S = 60.0
"""Deletions within a minute count together, as they may be seen piecemeal."""

Ask = Callable[[int, int], bool]
"""Asks a person whether so many of so many entries may be deleted."""


class DeletionGuard:
    """Holds deletions back until they have been answered for; one answer is good for the whole run."""

    def __init__(self, trees: Trees, *, is_allowed: bool, ask: Ask | None):
        self._trees, self._ask = trees, ask
        self._answer: bool | None = True if is_allowed else None
        self._deleted: deque[tuple[float, int]] = deque()
        self.held = 0
        """Entries whose deletion waits for an answer."""

    def filter(self, sends: Iterable[SendAction]) -> list[SendAction]:
        """The actions without deletions that have to be answered for first."""
        sends = list(sends)
        remote = self._trees.remote
        entries = sum(1 + sum(1 for _ in remote.below(x.id)) for x in sends if isinstance(x, SendDelete))
        self.held = 0
        if not entries:
            return sends
        now = time.monotonic()
        while self._deleted and self._deleted[0][0] < now - GUARD_WINDOW_S:
            self._deleted.popleft()
        recent = sum(count for _, count in self._deleted)
        # A plan need not hold all that is gone here: later plans are about the rest.
        gone = max(entries, self._trees.count_gone_here())
        count, total = gone + recent, len(self._trees.synced) + recent
        if count > max(GUARD_ENTRIES, GUARD_SHARE * total) and not self._may_delete(count, total):
            self.held = gone
            return [x for x in sends if not isinstance(x, SendDelete)]
        self._deleted.append((now, entries))
        return sends

    def _may_delete(self, count: int, total: int) -> bool:
        if self._answer is None and self._ask is not None:
            self._answer = self._ask(count, total)
        return bool(self._answer)
