"""Commits through a real metaserver wake polls at a real notifserver, whoever dies in between."""

import asyncio
import contextlib
import signal
import time
from collections.abc import Awaitable, Callable

import aiohttp
import msgspec
import pytest

from tests.integration.blockserver.servers import Stack
from tests.support.services import User
from wire.api import CreateFolder, LongpollResult
from wire.cursors import Cursor, Following, Position, format_cursor
from wire.ids import AccountId, Jid, NsId

pytestmark = pytest.mark.xdist_group("notifserver")  # they share their servers
DEADLINE_S = 60.0


async def commit(stack: Stack, user: User, name: str, key: str | None = None) -> int:
    """Make a folder through the metaserver's API; its jid."""
    url = f"{stack.metaserver.url}/v1/files/create_folder"
    headers = stack.auth(user) | ({"Idempotency-Key": key} if key else {})
    async with stack.http.post(url, json={"path": f"/{name}"}, headers=headers) as answer:
        assert answer.status == 200, await answer.text()
        return int(msgspec.json.decode(await answer.read())["jid"])


def cursor(stack: Stack, seen: dict[NsId, int]) -> str:
    positions = tuple(Position(ns_id, Following(Jid(jid))) for ns_id, jid in seen.items())
    return format_cursor(Cursor(AccountId("dbid:test"), positions, 100), stack.cursor_keys)


async def poll(stack: Stack, seen: dict[NsId, int]) -> LongpollResult:
    """One poll's answer."""
    url = f"{stack.notifserver.url}/v1/files/list_folder/longpoll"
    body = {"cursor": cursor(stack, seen), "timeout": 480}
    async with asyncio.timeout(DEADLINE_S), stack.http.post(url, json=body) as answer:
        text = await answer.read()
        assert answer.status == 200, text
        return msgspec.json.decode(text, type=LongpollResult)


async def wait_woken(stack: Stack, seen: dict[NsId, int]) -> None:
    """Poll as a client does, over servers that come and go, until there are changes."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            with contextlib.suppress(aiohttp.ClientError):
                if (await poll(stack, seen)).changes:
                    return
            await asyncio.sleep(0.02)


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not await condition():
            await asyncio.sleep(0.01)


async def metric(stack: Stack, name: str) -> float:
    """One of the notifserver's gauges."""
    async with stack.http.get(f"{stack.notifserver.url}/metrics") as answer:
        lines = (await answer.text()).splitlines()
    return next(float(line.split()[-1]) for line in lines if line.startswith(f"{name} "))


async def wait_held(stack: Stack, count: int) -> None:
    """That many polls are held, and every head is known."""

    async def is_so() -> bool:
        held = await metric(stack, "shardbox_polls_waiting")
        return held == count and await metric(stack, "shardbox_poll_namespaces_unknown") == 0

    await until(is_so)


async def test_commits_wake_whoever_waits(stack: Stack):
    ada, bob = await stack.new_user(), await stack.new_user()
    seen = {user.root_ns: await commit(stack, user, "first") for user in (ada, bob)}
    one = asyncio.create_task(poll(stack, {ada.root_ns: seen[ada.root_ns]}))
    other = asyncio.create_task(poll(stack, {bob.root_ns: seen[bob.root_ns]}))
    both = asyncio.create_task(poll(stack, seen))
    await wait_held(stack, 3)
    await commit(stack, bob, "b2")
    assert (await other).changes
    assert (await both).changes
    assert not one.done()
    assert (await poll(stack, seen)).changes
    await commit(stack, ada, "a2")
    assert (await one).changes
    await wait_held(stack, 0)


async def test_a_commit_wakes_within_milliseconds(stack: Stack):
    user = await stack.new_user()
    jid = await commit(stack, user, "first")
    took_ms: list[float] = []
    for i in range(30):
        waiting = asyncio.create_task(poll(stack, {user.root_ns: jid}))
        await wait_held(stack, 1)
        jid = await commit(stack, user, f"folder {i}")
        committed = time.monotonic()
        assert (await waiting).changes
        took_ms.append((time.monotonic() - committed) * 1e3)
    # The median, as this machine may be busy; the sweep alone would take hundreds of milliseconds.
    assert sorted(took_ms)[len(took_ms) // 2] < 100


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_a_notifserver_that_restarts_loses_nothing(stack: Stack, number: signal.Signals):
    users = [await stack.new_user() for _ in range(4)]
    seen = {user.root_ns: await commit(stack, user, "first") for user in users}
    waiting = [asyncio.create_task(wait_woken(stack, {ns: jid})) for ns, jid in seen.items()]
    await wait_held(stack, len(users))
    stack.notifserver.signal(number)
    await commit(stack, users[0], "while it ends")
    assert stack.notifserver.wait() == (0 if number == signal.SIGTERM else -signal.SIGKILL)
    await commit(stack, users[1], "while it is gone")
    stack.notifserver.start()
    await commit(stack, users[2], "when it is back")
    await wait_held(stack, 1)
    await commit(stack, users[3], "later")
    await asyncio.gather(*waiting)


async def test_a_term_answers_polls_with_a_backoff(stack: Stack):
    users = [await stack.new_user() for _ in range(3)]
    seen = {user.root_ns: await commit(stack, user, "first") for user in users}
    waiting = [asyncio.create_task(poll(stack, {ns: jid})) for ns, jid in seen.items()]
    await wait_held(stack, 3)
    started = time.monotonic()
    stack.notifserver.signal(signal.SIGTERM)
    answers = await asyncio.gather(*waiting)
    assert stack.notifserver.wait() == 0
    assert time.monotonic() - started < 8
    assert all(not answer.changes and answer.backoff for answer in answers)
    assert "drain_timeout" not in stack.notifserver.log_text()
    stack.notifserver.start()


async def test_a_metaserver_that_is_gone_when_the_poll_comes(stack: Stack):
    user, other = await stack.new_user(), await stack.new_user()
    jid, other_jid = await commit(stack, user, "first"), await commit(stack, other, "first")
    stack.metaserver.kill()
    behind = asyncio.create_task(poll(stack, {user.root_ns: jid - 1}))
    waiting = asyncio.create_task(poll(stack, {other.root_ns: other_jid}))

    async def both_wait() -> bool:
        return await metric(stack, "shardbox_poll_namespaces_unknown") == 2

    await until(both_wait)
    stack.metaserver.start()
    assert (await behind).changes
    await wait_held(stack, 1)
    await commit(stack, other, "second")
    assert (await waiting).changes


@pytest.mark.parametrize("point", ["metaserver.relay.read", "metaserver.relay.published"])
async def test_a_commit_without_a_hint_is_swept(stack: Stack, point: str):
    """Nobody publishes this commit but the sweep, and that dies at its first try."""
    user = await stack.new_user()
    jid = await commit(stack, user, "first")
    waiting = asyncio.create_task(poll(stack, {user.root_ns: jid}))
    await wait_held(stack, 1)
    stack.metaserver.kill()
    await user.ok(CreateFolder(path="/second"))  # by services in this process, which publish nothing
    assert not waiting.done()
    stack.metaserver.start_unready(SHARDBOX_FAULT=point)
    assert stack.metaserver.wait() == -signal.SIGKILL
    stack.metaserver.start()
    assert (await waiting).changes


async def test_a_poll_held_all_along_is_woken_by_the_sweep(stack: Stack):
    """The metaserver dies between its commit and the hint; the poll is held by one notifserver throughout."""
    user, other = await stack.new_user(), await stack.new_user()
    stack.metaserver.kill()
    stack.metaserver.start(SHARDBOX_FAULT="metaserver.writes.committed:3")
    jid, other_jid = await commit(stack, user, "first"), await commit(stack, other, "first")
    waiting = asyncio.create_task(poll(stack, {user.root_ns: jid, other.root_ns: other_jid}))
    await wait_held(stack, 1)
    with pytest.raises(aiohttp.ClientError):
        await commit(stack, user, "second")
    assert stack.metaserver.wait() == -signal.SIGKILL
    assert not waiting.done()
    stack.metaserver.start()
    assert (await waiting).changes


async def test_forged_cursors_and_users_tokens(stack: Stack):
    url = f"{stack.notifserver.url}/v1/files/list_folder/longpoll"
    async with stack.http.post(url, json={"cursor": "AAAA"}) as answer:
        assert (answer.status, (await answer.json())["error"]["code"]) == (400, "invalid_cursor")
    user = await stack.new_user()
    url = f"{stack.notifserver.url}/internal/publish"
    async with stack.http.post(url, data=b"", headers=stack.auth(user)) as answer:
        assert answer.status == 403
