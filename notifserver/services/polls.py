"""Holding polls: from a cursor to an answer."""

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from notifserver.model.interest import InterestTable
from notifserver.services.metrics import NotifMetrics
from notifserver.services.upstream import Upstream
from wire.api import MAX_POLL_JITTER_S
from wire.cursors import Cursor, parse_cursor, seen_jid
from wire.errors import Overloaded
from wire.ids import AccountId, Jid, NsId
from wire.keys import KeyRing

WAKE_BURST = 500
"""Waiters woken in one turn of the loop: some 20 ms of writing answers, in which nothing else is done."""
WAKE_INTERVAL_S = 0.05
"""Between the bursts of one herd: metaservers see 10,000 requests a second and not all at once."""
REASK_S = 30.0
"""Hints come to every notifserver, and the outbox waits until each has taken them. Should one be lost all the
same (a metaserver that was not told of this server), the next poll that begins after this time finds it."""
RETRY_AFTER_S = (5, 30)
"""Where whoever is refused comes again: spread, as they were all refused in one moment."""
DRAIN_SHARE = 0.7
"""Of the time to drain, what answering is spread over; the rest is for the answers to leave."""


class Ending(StrEnum):
    """How a poll ended."""

    AT_ONCE = "at_once"
    WOKEN = "woken"
    TIMED_OUT = "timed_out"
    LEFT = "left"
    DRAINED = "drained"


@dataclass(frozen=True, slots=True)
class PollAnswer:
    """What a poll's holder is told; `backoff_s`: how long to stay away."""

    ending: Ending
    backoff_s: int | None = None

    @property
    def has_changes(self) -> bool:
        """Whether a namespace has gone beyond the cursor."""
        return self.ending in (Ending.AT_ONCE, Ending.WOKEN)


@dataclass(frozen=True, slots=True)
class PollLimits:
    """How many polls a process holds, in all and for one account."""

    polls: int
    polls_per_account: int


class Poll:
    """One poll that waits; its answer comes once."""

    __slots__ = ("account_id", "id", "outcome")

    def __init__(self, poll_id: int, account_id: AccountId):
        self.id = poll_id
        self.account_id = account_id
        self.outcome: asyncio.Future[PollAnswer] = asyncio.get_running_loop().create_future()

    def leave(self) -> None:
        """The client has gone."""
        self.end(PollAnswer(Ending.LEFT))

    def end(self, answer: PollAnswer) -> None:
        """Give the answer, if none has been given."""
        if not self.outcome.done():
            self.outcome.set_result(answer)


class PollService:
    """Waits for cursors to fall behind.

    The order that leaves no gap between commit and poll: register the interest, then learn the head (or know
    it from those who wait already, whom every hint since has reached), then compare.
    """

    def __init__(self, cursor_keys: KeyRing, upstream: Upstream, limits: PollLimits, metrics: NotifMetrics):
        self.cursor_keys = cursor_keys
        self._upstream = upstream
        self._limits = limits
        self._metrics = metrics
        self.table = InterestTable(REASK_S)
        self._polls: dict[int, Poll] = {}
        self._accounts: Counter[AccountId] = Counter()
        self._ids = itertools.count(1)
        self._is_draining = False
        metrics.polls.set_function(lambda: len(self._polls))
        metrics.namespaces.set_function(lambda: self.table.namespace_count)

    async def wait(self, cursor_text: str, timeout_s: float) -> PollAnswer:
        """The answer to a poll, when there is one; `start` and `finish` in one.

        Raises:
            InvalidCursor, Overloaded: see `start`.
        """
        started = self.start(cursor_text)
        return started if isinstance(started, PollAnswer) else await self.finish(started, timeout_s)

    def start(self, cursor_text: str) -> PollAnswer | Poll:
        """The answer, if it is known already, else a poll that waits; it must be brought to `finish`.

        Raises:
            InvalidCursor: not signed by a key of ours.
            Overloaded: too many polls are held here, or for this account.
        """
        cursor = parse_cursor(cursor_text, self.cursor_keys)
        seen = _lowest_seen(cursor)
        if any(jid < 0 for jid in seen.values()) or not seen:
            return self._count(PollAnswer(Ending.AT_ONCE))
        if self._is_draining:
            return self._count(_drained())
        self._check_limits(cursor.account_id)
        poll = Poll(next(self._ids), cursor.account_id)
        added = self.table.add(poll.id, seen, asyncio.get_running_loop().time())
        if added.is_behind:
            return self._count(PollAnswer(Ending.AT_ONCE))
        self._polls[poll.id] = poll
        self._accounts[poll.account_id] += 1
        self._upstream.subscribe(added.to_ask)
        return poll

    async def finish(self, poll: Poll, timeout_s: float) -> PollAnswer:
        """The answer, at the latest after the timeout and up to 75 s of jitter, which keeps polls that began
        together from ending together."""
        timeout_s += random.uniform(0, MAX_POLL_JITTER_S)  # noqa: S311
        timer = asyncio.get_running_loop().call_later(timeout_s, poll.end, PollAnswer(Ending.TIMED_OUT))
        try:
            return self._count(await poll.outcome)
        finally:
            timer.cancel()
            self._forget(poll)

    def take_heads(self, heads: Iterable[tuple[NsId, Jid]]) -> None:
        """Wake whoever is behind these: hints, and what the upstream has learnt."""
        woken: list[int] = []
        for ns_id, head in heads:
            woken += self.table.learn(ns_id, head)
        polls = [poll for poll in map(self._polls.get, woken) if poll is not None]
        for poll in polls:
            # Out of the table at once, whenever its answer goes out: learn must not name it again.
            self._release(poll)
        self._wake(polls)

    def take_hints(self, hints: Sequence[tuple[NsId, Jid]]) -> None:
        """Take what a metaserver publishes."""
        self._metrics.hints.inc(len(hints))
        self.take_heads(hints)

    async def drain(self, drain_s: float) -> None:
        """Answer all polls, spread over most of the time given; new ones are answered at once from now on."""
        self._is_draining = True
        deadline_s = asyncio.get_running_loop().time() + drain_s * DRAIN_SHARE
        polls = list(self._polls.values())
        random.shuffle(polls)
        while polls:
            left_s = deadline_s - asyncio.get_running_loop().time()
            step_s = 0.05
            count = len(polls) if left_s <= step_s else max(1, int(len(polls) * step_s / left_s))
            for poll in polls[-count:]:
                poll.end(_drained())
            del polls[-count:]
            if polls:
                await asyncio.sleep(step_s)

    def _wake(self, polls: Sequence[Poll]) -> None:
        for poll in polls[:WAKE_BURST]:
            poll.end(PollAnswer(Ending.WOKEN))
        if len(polls) > WAKE_BURST:
            asyncio.get_running_loop().call_later(WAKE_INTERVAL_S, self._wake, polls[WAKE_BURST:])

    def _check_limits(self, account_id: AccountId) -> None:
        is_full = len(self._polls) >= self._limits.polls
        if is_full or self._accounts[account_id] >= self._limits.polls_per_account:
            self._metrics.answers.labels("refused").inc()
            raise Overloaded(
                "too many polls are held here" if is_full else "too many polls of this account",
                retry_after_s=random.randint(*RETRY_AFTER_S),  # noqa: S311
            )

    def _release(self, poll: Poll) -> None:
        self._upstream.unsubscribe(self.table.remove(poll.id))

    def _forget(self, poll: Poll) -> None:
        self._release(poll)
        if self._polls.pop(poll.id, None) is not None:
            self._accounts[poll.account_id] -= 1
            if not self._accounts[poll.account_id]:
                del self._accounts[poll.account_id]

    def _count(self, answer: PollAnswer) -> PollAnswer:
        self._metrics.answers.labels(answer.ending.value).inc()
        return answer


def _lowest_seen(cursor: Cursor) -> dict[NsId, Jid]:
    """By namespace, the least that the cursor has seen of it; below 0 where it still scans."""
    seen: dict[NsId, Jid] = {}
    for position in cursor.positions:
        jid = Jid(seen_jid(position))
        seen[position.ns_id] = min(seen.get(position.ns_id, jid), jid)
    return seen


def _drained() -> PollAnswer:
    # A restart takes a second or two; spread, so that nobody is met by all of them at once.
    return PollAnswer(Ending.DRAINED, backoff_s=random.randint(1, 5))  # noqa: S311
