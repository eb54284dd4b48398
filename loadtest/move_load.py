"""The load of `make bench-move`: writers at a fixed rate, readers on their heels, and polls that are held.

Nobody tries anything twice. Writers are paced by the clock and not by the answers: a pause holds up what
falls due in it, and is not hidden by there being less to do.
"""

import asyncio
import itertools
import time
from dataclasses import dataclass, field

from loadtest.move_members import LIVE_FILES, Member, Roles, read_on, write
from loadtest.move_requests import REQUEST_DEADLINE_S, Asker, Failed
from wire.api import MAX_POLL_JITTER_S, MAX_POLL_S, GetMetadata, Longpoll, LongpollResult, Metadata

WAKE_DEADLINE_S = 5.0
"""From the acknowledgement of a commit to the answer of a poll that waits for it; it takes milliseconds."""
MAX_SHOWN_ERRORS = 20


@dataclass(slots=True)
class Acknowledged:
    """A batch that was acknowledged."""

    at_s: float
    """Of the monotonic clock."""
    wait_ms: float
    commits: int
    is_moving: bool


@dataclass(slots=True)
class Tally:
    """What the clients saw."""

    answers: list[Acknowledged] = field(default_factory=list)
    client_errors: int = 0
    reads: int = 0
    stale_reads: int = 0
    polls_held: int = 0
    polls_dropped: int = 0
    wake_ms: list[float] = field(default_factory=list)

    def note_error(self, error: Exception) -> None:
        """Count an error, and show the first ones."""
        self.client_errors += 1
        if self.client_errors <= MAX_SHOWN_ERRORS:
            print(f"    CLIENT ERROR {error}", flush=True)

    def longest_gap_ms(self, from_s: float, to_s: float) -> float:
        """The longest time between two acknowledgements of commits into what moves; 0 without any."""
        times = sorted(a.at_s for a in self.answers if a.is_moving and from_s <= a.at_s <= to_s)
        return max((later - at for at, later in itertools.pairwise(times)), default=0.0) * 1e3


class Writer:
    """Batches of commits into namespaces in turn, at a rate; half of them into what moves."""

    def __init__(self, asker: Asker, roles: Roles, tally: Tally, batch: int):
        self._asker = asker
        self._turns = {True: itertools.cycle(roles.moving), False: itertools.cycle(roles.staying)}
        self._followers = {member.ns_id: Follower(asker, member, tally) for member in roles.moving}
        self._tally = tally
        self._batch = batch

    async def run(self, rate: float, stop: asyncio.Event) -> None:
        """Send so many commits a second until told to stop; returns when all are answered."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        async with asyncio.TaskGroup() as group:
            followers = [group.create_task(follower.run()) for follower in self._followers.values()]
            async with asyncio.TaskGroup() as sending:
                for number in itertools.count():
                    due = started + number * self._batch / rate
                    await asyncio.sleep(max(0.0, due - loop.time()))
                    if stop.is_set():
                        break
                    # Both servers get batches of both kinds.
                    sending.create_task(self._send(is_moving=number % 2 == 0, server=number // 2))
            for follower in followers:
                follower.cancel()

    async def _send(self, *, is_moving: bool, server: int) -> None:
        member = next(self._turns[is_moving])
        numbers = member.ledger.begin(self._batch)
        sent = time.monotonic()
        try:
            last = await write(
                self._asker,
                member,
                member.make_batch(numbers, "live", LIVE_FILES),
                numbers,
                server=server,
                key=f"live-{numbers.start}",
            )
        except Failed as error:
            self._tally.note_error(error)
            return
        now = time.monotonic()
        self._tally.answers.append(Acknowledged(now, (now - sent) * 1e3, len(numbers), is_moving))
        if is_moving:
            # The other server, which may not have heard yet where the namespace is.
            self._followers[member.ns_id].tell(last, server + 1)


class Follower:
    """Reads a namespace after each acknowledgement, through the server that did not give it."""

    def __init__(self, asker: Asker, member: Member, tally: Tally):
        self._asker = asker
        self._member = member
        self._tally = tally
        self._news: tuple[Metadata, int] | None = None
        self._told = asyncio.Event()

    def tell(self, last: Metadata, server: int) -> None:
        """Have it look at what was acknowledged; if it is still at work, only at the newest."""
        self._news = last, server
        self._told.set()

    async def run(self) -> None:
        """Look at the file and at the whole namespace in turn, for ever."""
        for look in itertools.cycle([self._read_file, self._read_all]):
            await self._told.wait()
            self._told.clear()
            assert self._news is not None
            try:
                is_stale = await look(*self._news)
            except Failed as error:
                self._tally.note_error(error)
                continue
            self._tally.reads += 1
            self._tally.stale_reads += is_stale

    async def _read_file(self, last: Metadata, server: int) -> bool:
        token = self._member.token
        found = await self._asker.ask(
            "/v1/files/get_metadata", GetMetadata(path=last.id), Metadata, token=token, server=server
        )
        assert isinstance(found.jid, int)
        assert isinstance(last.jid, int)
        return found.jid < last.jid

    async def _read_all(self, _last: Metadata, server: int) -> bool:
        due = self._member.ledger.head
        return await read_on(self._asker, self._member, server) < due


class Holder:
    """A poll on a namespace in which nothing is written, and a commit now and then that must wake it."""

    def __init__(self, asker: Asker, notifserver: Asker, member: Member, tally: Tally):
        self.member = member
        self._asker = asker
        self._notifserver = notifserver
        self._tally = tally
        self._poll: asyncio.Task[LongpollResult] | None = None

    def hold(self) -> None:
        """Have a poll wait from now on, at the latest."""
        if self._poll is None:
            self._poll = asyncio.create_task(self._wait())

    async def probe(self) -> None:
        """Write a file, and see that the poll that was held until now is answered, and what is told then."""
        assert self._poll is not None
        poll, self._poll = self._poll, None
        self._tally.polls_held += 1
        try:
            if poll.done():
                raise Failed(f"a poll was ended before anything was written: {poll}")
            numbers = self.member.ledger.begin(1)
            batch = self.member.make_batch(numbers, "live", LIVE_FILES)
            await write(self._asker, self.member, batch, numbers, key=f"live-{numbers.start}")
            written = time.monotonic()
            async with asyncio.timeout(WAKE_DEADLINE_S):
                await poll
            self._tally.wake_ms.append((time.monotonic() - written) * 1e3)
            due = self.member.ledger.head
            self._tally.stale_reads += await read_on(self._asker, self.member, 1) < due
        except (Failed, TimeoutError) as error:
            self._tally.polls_dropped += 1
            print(f"    POLL DROPPED {error!r}", flush=True)
            poll.cancel()

    async def _wait(self) -> LongpollResult:
        """The answer that tells of a change; a poll that ends without one, in time, is sent anew."""
        while True:
            answer = await self._notifserver.ask(
                "/v1/files/list_folder/longpoll",
                Longpoll(self.member.cursor, MAX_POLL_S),
                LongpollResult,
                deadline_s=MAX_POLL_S + MAX_POLL_JITTER_S + REQUEST_DEADLINE_S,
            )
            if answer.changes:
                return answer
            await asyncio.sleep(answer.backoff or 0)

    def let_go(self) -> None:
        """End the poll."""
        if self._poll is not None:
            self._poll.cancel()
