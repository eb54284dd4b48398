"""Background tasks of a server."""

import asyncio
import contextlib
from typing import Any

AGAIN_S = 1.0


async def end(*tasks: asyncio.Task[Any] | None) -> None:
    """Cancel tasks and wait until they have ended; None stands for one that was never begun.

    A cancellation can get lost on its way, as it does in `asyncio.wait_for` of Python 3.11 when what was
    waited for happens at that moment (https://github.com/python/cpython/issues/86296): it is sent until it is
    heard.
    """
    for task in tasks:
        while task is not None and not task.done():
            task.cancel()
            await asyncio.wait([task], timeout=AGAIN_S)
        if task is not None:
            with contextlib.suppress(asyncio.CancelledError):
                task.result()
