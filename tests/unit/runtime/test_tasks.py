"""Ending background tasks."""

import asyncio

import pytest

from runtime import tasks
from runtime.tasks import end


async def test_a_cancellation_that_got_lost_is_sent_again(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tasks, "AGAIN_S", 0.01)
    lost = 0

    async def lose_two() -> None:
        nonlocal lost
        while True:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                if lost == 2:
                    raise
                lost += 1

    task = asyncio.create_task(lose_two())
    await asyncio.sleep(0)
    await end(None, task)
    assert (lost, task.cancelled()) == (2, True)


async def test_what_a_task_died_of_is_told():
    async def die() -> None:
        raise ValueError("why")

    task = asyncio.create_task(die())
    await asyncio.sleep(0)
    with pytest.raises(ValueError, match="why"):
        await end(task)
