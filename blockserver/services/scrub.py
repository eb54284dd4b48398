"""Scrubbing: every object of a store is read and compared with its name, slowly, all over again.

What is damaged is told and left where it is: its rows promise it, a backup or another upload of the block can
mend it, and half a block may be worth more than none.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence

import msgspec

from blockserver.storage.backend import Backend, ObjectMissing, ObjectName, StoredObject
from blockserver.storage.keys import format_object, parse_object
from runtime.logs import get_log
from wire.errors import ShardboxError
from wire.faults import declare, fault_point
from wire.hashes import block_hash

_log = get_log(__name__)

PAGE_OBJECTS = 256
"""What is looked at between two notes of how far it has come: at most 1 GiB is read twice after a crash."""
READ_AT_ONCE = 4
"""Hides a store's latency behind the rate, which is what is meant to bound it; 16 MiB of memory."""
MAX_NAMED = 1_000
"""Damaged objects that a report names; beyond them they are counted. The log has each."""

declare("scrub.page.checked", "scrub.page.saved")


class Damage(msgspec.Struct, frozen=True):
    """One object that is not what its name says."""

    object: str
    kind: str
    """corrupt: other bytes; unreadable: the store answers, but not for this one."""
    size: int


class ScrubState(msgspec.Struct, frozen=True, kw_only=True):
    """How far a pass over the store has come, and what it has found."""

    started_at: str
    after: str | None = None
    """The last object looked at."""
    is_complete: bool = False
    object_count: int = 0
    byte_count: int = 0
    corrupt_count: int = 0
    unreadable_count: int = 0
    damaged: list[Damage] = []

    @property
    def damaged_count(self) -> int:
        """All that is not well."""
        return self.corrupt_count + self.unreadable_count


class Scrubber:
    """Goes through a store, page by page."""

    def __init__(self, backend: Backend, *, rate_bytes: int):
        self._backend = backend
        self._pace = _Pace(rate_bytes)
        self._turns = asyncio.Semaphore(READ_AT_ONCE)

    async def iter_states(self, state: ScrubState) -> AsyncGenerator[ScrubState, None]:
        """The state after each page, from `state` on; the last one is complete.

        Each is to be kept before the next is asked for: with the last one kept a pass goes on where it was.

        Raises:
            UpstreamUnavailable: the store does not answer; what was yielded last still holds.
        """
        while not state.is_complete:
            after = None if state.after is None else parse_object(state.after)
            page = await self._backend.list_objects(after, PAGE_OBJECTS)
            if not page:
                yield msgspec.structs.replace(state, is_complete=True)
                return
            state = _add_page(state, page, await self._check_page(page))
            fault_point("scrub.page.checked")
            yield state
            fault_point("scrub.page.saved")

    async def _check_page(self, page: Sequence[StoredObject]) -> list[Damage]:
        found = await asyncio.gather(*(self._check(each) for each in page))
        damaged = [damage for damage in found if damage is not None]
        if any(damage.kind == "unreadable" for damage in damaged):
            await self._backend.find_free_bytes()  # a store that is down is no finding
        for damage in damaged:
            _log.error("object_damaged", object=damage.object, kind=damage.kind, size_bytes=damage.size)
        return damaged

    async def _check(self, stored: StoredObject) -> Damage | None:
        async with self._turns:
            await self._pace.take(stored.size)
            try:
                data = await self._backend.get(stored.name)
            except ObjectMissing:
                return None  # deleted since it was listed
            except ShardboxError:
                return _damage(stored.name, "unreadable", stored.size)
            is_well = await asyncio.to_thread(block_hash, data) == stored.name.hash
            return None if is_well else _damage(stored.name, "corrupt", len(data))


class _Pace:
    """So many bytes a second, evenly; time that was not used is not made up for."""

    def __init__(self, rate_bytes: int):
        self._rate_bytes = rate_bytes
        self._free_at_s = 0.0

    async def take(self, byte_count: int) -> None:
        """Wait for one's turn."""
        now_s = time.monotonic()
        turn_s = max(self._free_at_s, now_s)
        self._free_at_s = turn_s + byte_count / self._rate_bytes
        await asyncio.sleep(turn_s - now_s)


def _damage(name: ObjectName, kind: str, size: int) -> Damage:
    return Damage(format_object(name), kind, size)


def _add_page(state: ScrubState, page: Sequence[StoredObject], damaged: Sequence[Damage]) -> ScrubState:
    corrupt = sum(damage.kind == "corrupt" for damage in damaged)
    return msgspec.structs.replace(
        state,
        after=format_object(page[-1].name),
        object_count=state.object_count + len(page),
        byte_count=state.byte_count + sum(each.size for each in page),
        corrupt_count=state.corrupt_count + corrupt,
        unreadable_count=state.unreadable_count + len(damaged) - corrupt,
        damaged=[*state.damaged, *damaged][:MAX_NAMED],
    )
