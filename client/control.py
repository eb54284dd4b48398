"""What the command line tells a sync, running or to come, through the state: pause, limits, orders."""

import asyncio
from collections.abc import Callable

from client.limits import MIN_RATE
from client.state import State

LOOK_S = 0.5
"""How often a running sync asks SQLite whether anybody else has written: one read of shared memory."""
SETTINGS = ("limit-up", "limit-down")
"""What `shardbox config` sets."""


def set_paused(state: State, *, is_paused: bool) -> None:
    """Have every sync of the folder rest, until told otherwise."""
    with state.tx("config"):
        state.put_fact("paused", "1" if is_paused else None)


def is_paused(state: State) -> bool:
    """Whether syncs of the folder rest."""
    return state.find_fact("paused") is not None


def put_setting(state: State, name: str, value: str | None) -> None:
    """Keep a setting (checked by the caller); None: as if it had never been set."""
    with state.tx("config"):
        state.put_fact(f"setting.{name}", value)


def find_limit(state: State, name: str) -> int | None:
    """A stored limit in bytes per second, None if there is none."""
    value = state.find_fact(f"setting.{name}")
    # It may have been stored when less was allowed.
    return None if value is None else max(MIN_RATE, int(value))


class ControlWatch:
    """Notices what other processes have written into the state."""

    def __init__(self, state: State, wake: Callable[[], None]):
        self._state, self._wake = state, wake

    async def run(self) -> None:
        """Wake the sync when there may be news."""
        last = self._state.data_version()
        while True:
            await asyncio.sleep(LOOK_S)
            version = self._state.data_version()
            if version != last:
                last = version
                self._wake()
