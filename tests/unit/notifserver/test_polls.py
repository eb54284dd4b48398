"""Polls over real connections: woken by whatever comes first, never forgotten."""

import asyncio
import random
import time
from collections.abc import AsyncIterator

import msgspec
import pytest

from notifserver.services import polls as polls_module
from notifserver.services.heads import MAX_BATCH
from notifserver.services.polls import WAKE_BURST, Ending, Poll, PollLimits
from tests.unit.notifserver.peer import DEADLINE_S, Notifserver, running_notifserver, until
from wire.api import LongpollResult
from wire.cursors import parse_cursor
from wire.ids import NsId, Slot, make_ns_id
from wire.internal import MAX_HINTS
from wire.keys import KeyRing


@pytest.fixture
async def server() -> AsyncIterator[Notifserver]:
    async with running_notifserver() as found:
        yield found


async def test_a_cursor_that_is_behind_is_answered_at_once(server: Notifserver):
    server.peer.heads[NsId(1)] = 6
    assert await server.poll({1: 5}) == LongpollResult(changes=True)
    await server.all_is_over()


async def test_a_scanning_cursor_is_answered_unasked(server: Notifserver):
    assert await server.poll({1: 5, 2: -1}) == LongpollResult(changes=True)
    assert server.peer.asked == []


async def test_a_hint_wakes_whoever_waits_for_it(server: Notifserver):
    server.peer.heads |= {NsId(1): 5, NsId(2): 9}
    one, two, both = server.start_poll({1: 5}), server.start_poll({2: 9}), server.start_poll({1: 5, 2: 9})
    await until(lambda: server.waiting == 3 and server.polls.table.find_head(NsId(2)) == 9)
    await server.publish([(3, 4), (1, 5), (2, 9)])
    assert server.waiting == 3
    started = time.monotonic()
    await server.publish([(2, 10)])
    assert (await two).changes
    assert (await both).changes
    assert time.monotonic() - started < 1
    assert not one.done()
    assert server.waiting == 1
    await server.publish([(1, 7), (1, 6)])
    assert (await one).changes
    await server.all_is_over()


async def test_a_hint_overtakes_the_answer_about_the_head(server: Notifserver):
    server.peer.heads[NsId(1)] = 5
    server.peer.gate.clear()
    poll = server.start_poll({1: 5})
    await until(lambda: len(server.peer.asked) == 1)
    await server.publish([(1, 6)])
    assert (await poll).changes
    server.peer.gate.set()
    await server.all_is_over()


async def test_an_answer_for_an_earlier_interest_does_not_count(server: Notifserver):
    """The head is read for a poll that leaves; a commit's hint meets nobody; then the next poll comes."""
    server.peer.heads[NsId(1)] = 5
    server.peer.gate.clear()
    first = server.start_poll({1: 5})
    await until(lambda: len(server.peer.asked) == 1)
    first.cancel()
    await until(lambda: server.waiting == 0)
    server.peer.heads[NsId(1)] = 6
    await server.publish([(1, 6)])
    server.peer.heads[NsId(1)] = -1
    second = server.start_poll({1: 5})
    await until(lambda: len(server.peer.asked) == 2)
    server.peer.gate.set()
    await until(lambda: len(server.peer.asked) >= 3)
    assert not second.done()
    server.peer.heads[NsId(1)] = 6
    assert (await second).changes


async def test_later_polls_of_a_namespace_are_not_asked_for(server: Notifserver):
    server.peer.heads[NsId(1)] = 5
    polls = [server.start_poll({1: 5}) for _ in range(5)]
    await until(lambda: server.waiting == 5 and server.polls.table.find_head(NsId(1)) == 5)
    assert await server.poll({1: 4}) == LongpollResult(changes=True)
    assert server.peer.asked == [[NsId(1)]]
    await server.publish([(1, 6)])
    assert all(answer.changes for answer in await asyncio.gather(*polls))
    await server.all_is_over()


async def test_a_lost_hint_is_found_by_the_next_poll(server: Notifserver, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(server.polls.table, "_reask_s", 0.0)
    server.peer.heads[NsId(1)] = 5
    first = server.start_poll({1: 5})
    await until(lambda: server.polls.table.find_head(NsId(1)) == 5)
    server.peer.heads[NsId(1)] = 6
    assert (await server.poll({1: 5})).changes
    assert (await first).changes


async def test_an_unknown_head_is_asked_for_until_it_is_known(server: Notifserver):
    bad, good = make_ns_id(Slot(1), 1), make_ns_id(Slot(2), 1)
    server.peer.heads |= {bad: -1, good: 5}
    poll = server.start_poll({bad: 5, good: 5})
    await until(lambda: len(server.peer.asked) >= 4)
    assert sorted(server.peer.asked[0]) == [bad, good]
    assert server.peer.asked[1:4] == [[bad]] * 3
    server.peer.heads[bad] = 6
    assert (await poll).changes


async def test_a_shard_that_hangs_holds_up_no_other(server: Notifserver):
    """Once its slots are known, namespaces of a hung shard are asked for in batches of their own."""
    bad = [make_ns_id(Slot(1), i) for i in range(1, 30)]
    server.peer.heads |= dict.fromkeys(bad, -1)
    hung = asyncio.Event()

    async def before_answer(asked: list[NsId]) -> None:
        if any(ns in server.peer.heads and server.peer.heads[ns] < 0 for ns in asked) and len(asked) > 1:
            await hung.wait()

    first = server.start_poll({bad[0]: 0})
    await until(lambda: len(server.peer.asked) >= 1)
    server.peer.before_answer = before_answer  # type: ignore[method-assign]
    polls = [server.start_poll({ns: 0}) for ns in bad[1:]]
    await until(lambda: server.waiting == len(bad))
    good = [make_ns_id(Slot(2), i) for i in range(1, 6)]
    server.peer.heads |= dict.fromkeys(good, 1)
    for ns in good:
        assert (await server.poll({ns: 0})).changes
    server.peer.heads |= dict.fromkeys(bad, 1)
    hung.set()
    assert all(answer.changes for answer in await asyncio.gather(first, *polls))


async def test_polls_are_held_without_a_metaserver(server: Notifserver):
    await server.peer.stop()
    by_hint, by_head = server.start_poll({1: 5}), server.start_poll({2: 5})
    await until(lambda: server.waiting == 2)
    await server.publish([(1, 6)])
    assert (await by_hint).changes
    server.peer.heads[NsId(2)] = 6
    server.peer.start()
    assert (await by_head).changes
    await server.all_is_over()


async def test_questions_are_gathered_into_bounded_batches(server: Notifserver):
    count = MAX_BATCH + 500
    waiting = [server.polls.start(server.cursor({i: 0})) for i in range(1, count)]
    await until(lambda: sum(map(len, server.peer.asked)) == count - 1)
    assert len(server.peer.asked) == 2
    assert max(map(len, server.peer.asked)) == MAX_BATCH
    for poll in waiting:
        assert isinstance(poll, Poll)
        poll.leave()
        assert (await server.polls.finish(poll, 30)).ending is Ending.LEFT
    await server.all_is_over()


async def test_who_leaves_is_forgotten(server: Notifserver):
    server.peer.heads |= {NsId(1): 5, NsId(2): 5}
    polls = [server.start_poll({1: 5}) for _ in range(20)]
    await until(lambda: server.waiting == 20)
    server.start_poll({1: 5, 2: 5})
    await until(lambda: server.waiting == 21)
    for poll in polls:
        poll.cancel()
    await until(lambda: server.waiting == 1)
    server.tasks[-1].cancel()
    await server.all_is_over()


async def test_cursors_of_others_are_refused(server: Notifserver):
    stranger = KeyRing.parse(KeyRing.generate())
    good = server.cursor({1: 5})
    for cursor in ("", "nonsense", good[:-2], good + "A", server.cursor({1: 5}, keys=stranger)):
        status, error, _ = await server.refused(cursor)
        assert (status, error.code, error.retryable) == (400, "invalid_cursor", False)
    for timeout in (29, 481, -1):
        status, error, _ = await server.refused(good, timeout)
        assert (status, error.code) == (400, "bad_request")


async def test_any_key_of_the_ring_verifies(server: Notifserver):
    server.peer.heads[NsId(1)] = 6
    old = server.cursor_keys
    ring = KeyRing([KeyRing.parse(KeyRing.generate()).current, old.current])
    server.polls.cursor_keys = ring
    for keys in (ring, old):
        assert parse_cursor(server.cursor({1: 5}, keys=keys), ring)
        status, _, _ = await server.post(server.cursor({1: 5}, keys=keys))
        assert status == 200


async def test_publish_is_for_servers(server: Notifserver):
    assert await server.publish([(1, 1)]) == 200
    assert await server.publish([], "Service x:y") == 401
    assert await server.publish([], "Bearer x") == 403
    assert await server.publish([(1, 1)] * (MAX_HINTS + 1)) == 400


async def test_limits():
    async with running_notifserver(PollLimits(polls=3, polls_per_account=2)) as server:
        first = server.start_poll({1: 5})
        server.start_poll({1: 5})
        await until(lambda: server.waiting == 2)
        status, error, headers = await server.refused(server.cursor({1: 5}))
        assert (status, error.code, error.retryable) == (503, "overloaded", True)
        assert int(headers["Retry-After"]) >= 5
        third = asyncio.create_task(server.poll({1: 5}, account="dbid:b"))
        await until(lambda: server.waiting == 3)
        status, error, _ = await server.refused(server.cursor({1: 5}, account="dbid:c"))
        assert (status, error.code) == (503, "overloaded")
        first.cancel()
        await until(lambda: server.waiting == 2)
        fourth = server.start_poll({1: 5})
        await until(lambda: server.waiting == 3)
        await server.publish([(1, 6)])
        assert (await third).changes
        assert (await fourth).changes


async def test_time_runs_out(server: Notifserver, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(polls_module, "MAX_POLL_JITTER_S", 0)
    poll = server.polls.start(server.cursor({1: 5}))
    assert isinstance(poll, Poll)
    answer = await server.polls.finish(poll, 0.01)
    assert (answer.ending, answer.has_changes, answer.backoff_s) == (Ending.TIMED_OUT, False, None)
    await server.all_is_over()


async def test_a_herd_is_woken_in_bursts(server: Notifserver):
    count = 3 * WAKE_BURST + 7
    started = [server.polls.start(server.cursor({1: 5})) for _ in range(count)]
    polls = [poll for poll in started if isinstance(poll, Poll)]
    assert len(polls) == count
    server.polls.take_hints([(NsId(1), 6)])  # type: ignore[list-item]
    assert sum(poll.outcome.done() for poll in polls) == WAKE_BURST
    async with asyncio.timeout(DEADLINE_S):
        answers = await asyncio.gather(*(server.polls.finish(poll, 30) for poll in polls))
    assert all(answer.ending is Ending.WOKEN for answer in answers)
    await server.all_is_over()


async def test_a_drain_answers_everybody_in_time(server: Notifserver):
    polls = [server.start_poll({1: 5}) for _ in range(30)]
    await until(lambda: server.waiting == 30)
    done: list[float] = []
    for poll in polls:
        poll.add_done_callback(lambda _: done.append(time.monotonic()))
    started = time.monotonic()
    await server.polls.drain(1.0)
    answers = await asyncio.gather(*polls)
    assert all(not answer.changes and answer.backoff and answer.backoff >= 1 for answer in answers)
    assert time.monotonic() - started < 1
    assert max(done) - min(done) > 0.3
    assert not (await server.poll({1: 5})).changes
    await server.all_is_over()


async def test_no_wake_up_is_lost_in_any_race(server: Notifserver):
    """Commits, hints that come late, twice or out of order, answers that are late, polls that come and go."""
    namespaces, commits, devices = 6, 60, 30
    rng = random.Random(7)
    late: set[asyncio.Task[object]] = set()

    async def before_answer(asked: list[NsId]) -> None:
        await asyncio.sleep(rng.uniform(0, 0.02))

    server.peer.before_answer = before_answer  # type: ignore[method-assign]
    server.peer.heads |= {NsId(ns): 0 for ns in range(1, namespaces + 1)}

    async def hint(ns: int, jid: int) -> None:
        await asyncio.sleep(rng.choice([0, 0.001, 0.01, 0.05]))
        assert await server.publish([(ns, jid)]) == 200

    async def commit_all() -> None:
        for _ in range(commits):
            for ns in range(1, namespaces + 1):
                jid = server.peer.heads[NsId(ns)] = server.peer.heads[NsId(ns)] + 1
                for _ in range(rng.choice([1, 1, 2])):
                    late.add(asyncio.create_task(hint(ns, jid)))
            await asyncio.sleep(rng.uniform(0, 0.02))

    async def follow(device: int) -> None:
        seen = dict.fromkeys(rng.sample(range(1, namespaces + 1), rng.choice([1, 1, 3])), 0)
        while any(jid < commits for jid in seen.values()):
            poll = asyncio.create_task(server.poll(seen))
            if rng.random() < 0.2:
                await asyncio.wait([poll], timeout=rng.uniform(0, 0.01))
                poll.cancel()
                await asyncio.gather(poll, return_exceptions=True)
            elif (await poll).changes:
                await asyncio.sleep(rng.uniform(0, 0.005))
                seen = {ns: server.peer.heads[NsId(ns)] for ns in seen}

    async with asyncio.timeout(60):
        await asyncio.gather(commit_all(), *map(follow, range(devices)))
        await asyncio.gather(*late)
    await server.all_is_over()


async def test_ready_and_metrics(server: Notifserver):
    server.start_poll({1: 5})
    await until(lambda: server.waiting == 1)
    async with server.http.get(f"{server.url}/metrics") as answer:
        assert "shardbox_polls_waiting 1.0" in await answer.text()
    async with server.http.get(f"{server.url}/readyz") as answer:
        assert msgspec.json.decode(await answer.read()) == {"status": "ready"}
