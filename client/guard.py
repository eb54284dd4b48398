"""Asks before most of a tree is deleted on the server, because it has vanished from this disk."""

import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable

from client.model import SendAction, SendDelete
from client.trees import Trees

GUARD_ENTRIES = 20
GUARD_SHARE = 0.5
"""Local deletions of more than 20 entries and more than half of what is synced are asked about first: a
folder emptied by accident or by a disk that failed must not empty the other devices."""
GUARD_WINDOW_S = 60.0
"""Deletions within a minute count together, as they may be seen piecemeal."""

Ask = Callable[[int, int], Awaitable[bool]]
"""Asks a person whether so many of so many entries may be deleted."""


class DeletionGuard:
    """Holds deletions back until they have been answered for; an answer is about what was asked."""

    def __init__(self, trees: Trees, *, is_allowed: bool, ask: Ask | None):
        self._trees, self._ask = trees, ask
        self._is_allowed = is_allowed
        self._answer: bool | None = None
        self._allowed = 0
        """Entries that were asked about and are not deleted yet."""
        self._passed: dict[int, int] = {}
        """What was let through and may not have been sent yet: entry → how many go with it."""
        self._deleted: deque[tuple[float, int]] = deque()
        self.held = 0
        """Entries whose deletion waits for an answer."""

    async def filter(self, sends: Iterable[SendAction]) -> list[SendAction]:
        """The actions without deletions that have to be answered for first."""
        sends = list(sends)
        remote = self._trees.remote
        going = {x.id: 1 + sum(1 for _ in remote.below(x.id)) for x in sends if isinstance(x, SendDelete)}
        recent = self._count_recent()
        self.held = 0
        if self._answer is not None and not self._trees.count_gone_here():
            self._answer = None
        if not going:
            return sends
        # A plan need not hold all that is gone here: later plans are about the rest.
        gone = max(sum(going.values()), self._trees.count_gone_here())
        count, total = gone + recent, len(self._trees.synced) + recent
        if count > max(GUARD_ENTRIES, GUARD_SHARE * total) and not await self._may_delete(gone, count, total):
            self.held = gone
            return [x for x in sends if not isinstance(x, SendDelete)]
        self._passed |= going
        return sends

    def _count_recent(self) -> int:
        """Entries deleted within the last minute; a plan that was not sent to its end comes again."""
        now = time.monotonic()
        done = sum(self._passed.pop(x) for x in list(self._passed) if x not in self._trees.remote)
        if done:
            self._deleted.append((now, done))
            self._allowed = max(0, self._allowed - done)
        self._passed.clear()
        while self._deleted and self._deleted[0][0] < now - GUARD_WINDOW_S:
            self._deleted.popleft()
        return sum(count for _, count in self._deleted)

    async def _may_delete(self, gone: int, count: int, total: int) -> bool:
        if self._is_allowed or self._ask is None:
            return self._is_allowed
        # While more is being deleted a few more are none to ask about.
        is_covered = self._answer is False or gone <= self._allowed + GUARD_ENTRIES
        if self._answer is None or not is_covered:
            self._answer, self._allowed = await self._ask(count, total), gone
        return self._answer
