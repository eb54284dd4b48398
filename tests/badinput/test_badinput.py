"""Every case, one after another; after each, no row of any shard has changed."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import pytest

from tests.badinput import api_cases, http_cases, twin_cases
from tests.badinput.case import Case, Outcome, Twins
from tests.badinput.results import is_collected, save_result
from tests.badinput.world import BURST, World, open_shards, run_servers, settle_world
from tests.support.dev import DevCluster
from wire.errors import TooManyRequests


@pytest.fixture
async def world(
    shared_cluster: DevCluster, own_passfile: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[World]:
    monkeypatch.setenv("PGPASSFILE", str(shared_cluster.layout.passfile))
    with run_servers(shared_cluster, tmp_path) as found:
        await settle_world(found, shared_cluster.status().directory_dsn)
        yield found


@pytest.mark.timeout(600)
async def test_bad_input_has_its_error_and_changes_nothing(world: World):
    wrong: list[str] = []
    changed: list[str] = []
    count = 0
    async with open_shards(world.dsns) as shards:
        await shards.rest()
        before = await shards.read()
        async for name, told in _results(world):
            count += 1
            wrong += told
            after = await shards.read()
            if after != before:
                changed.append(name)
                before = after
        await _flood(world, wrong)
        changed += ["the flood"] * (await shards.read() != before)
    save_result(
        cases=count + 1,
        wrong_status=len(wrong),
        changed_rows=len(changed),
        server_errors=len(world.list_errors()),
    )
    told = [*wrong, *(f"{name}: rows have changed" for name in changed), *world.list_errors()]
    assert not told, "\n".join(told)


async def _results(world: World) -> AsyncIterator[tuple[str, list[str]]]:
    """The name of each case, and what was wrong with its answer."""
    cases = [*http_cases.CASES, *api_cases.CASES]
    if not is_collected():  # `make test` takes every third of the long tables
        cases = [*http_cases.CASES, *api_cases.LONG_TABLES[::3], *api_cases.SHORT_TABLES]
    for case in cases:
        yield case.name, _compare(case, await _outcome(case, world))
    slow = http_cases.SLOW
    for case, got in zip(slow, await asyncio.gather(*(_outcome(case, world) for case in slow)), strict=True):
        yield case.name, _compare(case, got)
    for pair in twin_cases.TWINS:
        yield pair.name, await _compare_twins(pair, world)


async def _outcome(case: Case, world: World) -> Outcome | Exception:
    try:
        return await case.send(world)
    except (OSError, EOFError, TimeoutError, ValueError) as error:
        return error


def _compare(case: Case, got: Outcome | Exception) -> list[str]:
    return [] if got == case.want else [f"{case.name}: {got!r} instead of {case.want}"]


async def _compare_twins(pair: Twins, world: World) -> list[str]:
    first, second = await pair.first.send(world), await pair.second.send(world)
    bodies = [_mask(answer.body, pair.words(world)) for answer in (first, second)]
    outcomes = [(answer.status, answer.code) for answer in (first, second)]
    if outcomes == [pair.want] * 2 and bodies[0] == bodies[1]:
        return []
    return [f"{pair.name}: {outcomes} {bodies}"]


def _mask(body: bytes, words: Iterable[tuple[str, str]]) -> bytes:
    """The body without what was asked for."""
    for pair in words:
        for word in pair:
            body = body.replace(word.encode(), b"WORD")
    return body


async def _flood(world: World, wrong: list[str]) -> None:
    """Carol asks more often than she may."""
    token = world.people["carol"].device.access_token
    connection = await world.connect("metaserver")
    asked, answer = 0, None
    while asked < 2 * BURST and (answer is None or answer.status != TooManyRequests.status):
        asked += 1
        await connection.head("GET /v1/files/commit", f"Authorization: Bearer {token}")
        answer = await connection.answer()
    await connection.close()
    assert answer is not None
    has_time = answer.headers.get("retry-after", "").isdigit()
    if (answer.code, has_time) != (TooManyRequests.code, True) or asked < BURST - 100:
        wrong.append(f"the flood: {answer} after {asked}")
