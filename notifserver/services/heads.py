"""The upstream of a root: asks metaservers for the heads of namespaces, in batches.

Later heads come as hints, which every metaserver's commits and sweeps send to every notifserver; so a head is
asked for once, when interest begins. An answer counts only for the subscription that it was asked for: one
that was read before the present interest began says nothing about the hints that fell in between, which
nobody was there to take. A namespace whose shard does not answer is asked for again until it does.
"""

import asyncio
import itertools
import random
from collections.abc import Iterable, Sequence

from notifserver.services.metrics import NotifMetrics
from notifserver.services.upstream import Sink
from runtime.logs import get_log
from runtime.rpc import ServiceClient
from wire.errors import ShardboxError
from wire.ids import Jid, NsId, Slot, slot_of
from wire.internal import AskHeads, Heads

_log = get_log(__name__)

TICK_S = 0.0015
"""How long the first namespace of a batch waits for others: no one notices it, and 1,000 polls a second need
two requests at a time instead of one each."""
MAX_BATCH = 2_000
"""A batch is 18 kB and some ms of index look-ups; a larger one holds its first up for its last."""
MAX_CALLS = 8
"""Batches under way at once. Beyond, questions gather into fuller ones."""
CALL_TIMEOUT_S = 5.0
"""A metaserver gives a shard 2 s, so this one is in trouble."""
FIRST_RETRY_S = 0.1
LAST_RETRY_S = 2.0
"""The most that a poll's wake-up is late after a shard has come back."""


class _Question:
    __slots__ = ("ns_id", "token", "tries")

    def __init__(self, ns_id: NsId, token: int):
        self.ns_id = ns_id
        self.token = token
        self.tries = 0


class HeadsUpstream:
    """`Upstream` by asking metaservers."""

    def __init__(self, metaservers: ServiceClient, metrics: NotifMetrics):
        self._metaservers = metaservers
        self._metrics = metrics
        self._sink: Sink | None = None
        self._tokens = itertools.count(1)
        self._unanswered: dict[NsId, int] = {}
        """The token of the subscription whose head is not known yet. Answered ones are not kept at all."""
        self._queue: dict[NsId, _Question] = {}
        self._suspects: dict[NsId, _Question] = {}
        """Asked in batches of their own, as their shard holds a whole batch up until its time-out."""
        self._bad_slots: set[Slot] = set()
        self._calls: set[asyncio.Task[None]] = set()
        self._timers: set[asyncio.TimerHandle] = set()
        self._tick: asyncio.TimerHandle | None = None
        self._is_closed = False

    @property
    def unanswered_count(self) -> int:
        """How many namespaces' heads are not known yet."""
        return len(self._unanswered)

    def connect(self, sink: Sink) -> None:
        """Say who takes what is learnt; before the first `subscribe`."""
        self._sink = sink

    def subscribe(self, ns_ids: Iterable[NsId]) -> None:
        """See `Upstream.subscribe`."""
        for ns_id in ns_ids:
            token = self._unanswered[ns_id] = next(self._tokens)
            self._enqueue(_Question(ns_id, token))

    def unsubscribe(self, ns_ids: Iterable[NsId]) -> None:
        """See `Upstream.unsubscribe`."""
        for ns_id in ns_ids:
            self._unanswered.pop(ns_id, None)

    async def close(self) -> None:
        """Ask no more."""
        self._is_closed = True
        for timer in [*self._timers, *([self._tick] if self._tick else [])]:
            timer.cancel()
        for call in self._calls:
            call.cancel()
        await asyncio.gather(*self._calls, return_exceptions=True)

    def _enqueue(self, question: _Question) -> None:
        is_suspect = slot_of(question.ns_id) in self._bad_slots
        (self._suspects if is_suspect else self._queue)[question.ns_id] = question
        self._schedule()

    def _schedule(self) -> None:
        if self._tick is None and not self._is_closed:
            self._tick = asyncio.get_running_loop().call_later(TICK_S, self._on_tick)

    def _on_tick(self) -> None:
        self._tick = None
        # Suspects take half of the calls at most: a hung shard must not stand in the way of the others.
        while self._queue and len(self._calls) < MAX_CALLS:
            self._start(_take(self._queue))
        while self._suspects and len(self._calls) < MAX_CALLS // 2:
            self._start(_take(self._suspects))

    def _start(self, batch: Sequence[_Question]) -> None:
        batch = [q for q in batch if self._unanswered.get(q.ns_id) == q.token]
        if not batch:
            return
        call = asyncio.create_task(self._ask(batch), name="ask-heads")
        self._calls.add(call)
        call.add_done_callback(self._on_call_done)

    def _on_call_done(self, call: "asyncio.Task[None]") -> None:
        self._calls.discard(call)
        if not call.cancelled() and call.exception() is not None:
            _log.error("ask_heads_failed", exc_info=call.exception())
        if self._queue or self._suspects:
            self._schedule()

    async def _ask(self, batch: Sequence[_Question]) -> None:
        heads: Sequence[int] = ()
        try:
            with self._metrics.ask_seconds.time():
                answer = await self._metaservers.call(
                    "/internal/heads",
                    AskHeads([question.ns_id for question in batch]),
                    Heads,
                    timeout_s=CALL_TIMEOUT_S,
                )
            heads = answer.heads
        except ShardboxError as error:
            _log.info("heads_unknown", namespaces=len(batch), error=str(error))
        except Exception:
            # Whatever it was, the polls that wait for these heads must not be forgotten.
            _log.exception("heads_unknown", namespaces=len(batch))
        if len(heads) != len(batch):
            self._ask_again(batch)
        else:
            self._take(batch, heads)

    def _take(self, batch: Sequence[_Question], heads: Sequence[int]) -> None:
        unknown: list[_Question] = []
        known: list[tuple[NsId, Jid]] = []
        for question, head in zip(batch, heads, strict=True):
            slot = slot_of(question.ns_id)
            if head < 0:
                self._bad_slots.add(slot)
                unknown.append(question)
                continue
            self._bad_slots.discard(slot)
            known.append((question.ns_id, Jid(head)))
            if self._unanswered.get(question.ns_id) == question.token:
                del self._unanswered[question.ns_id]
        self._metrics.heads.labels("known").inc(len(known))
        self._metrics.heads.labels("unknown").inc(len(unknown))
        if self._sink is not None:
            # Also of subscriptions that are over: "at least this far" stays true.
            self._sink.take_heads(known)
        self._ask_again(unknown)

    def _ask_again(self, batch: Sequence[_Question]) -> None:
        if not batch or self._is_closed:
            return
        for question in batch:
            question.tries += 1
        tries = min(question.tries for question in batch)
        delay_s = min(LAST_RETRY_S, FIRST_RETRY_S * 2 ** min(tries - 1, 10)) * random.uniform(0.5, 1)  # noqa: S311

        def requeue() -> None:
            self._timers.discard(timer)
            for question in batch:
                # Nobody waits any more, or a later subscription has its own question.
                if self._unanswered.get(question.ns_id) == question.token:
                    self._enqueue(question)

        timer = asyncio.get_running_loop().call_later(delay_s, requeue)
        self._timers.add(timer)


def _take(queue: dict[NsId, _Question]) -> list[_Question]:
    """The first questions of a queue, taken out of it."""
    taken = [queue[ns_id] for ns_id in itertools.islice(queue, MAX_BATCH)]
    for question in taken:
        del queue[question.ns_id]
    return taken
