"""Mending: a block that is sent again puts right the object that a row promises.

A row says that there is an object; should it have been lost or damaged in the store, whoever sends the bytes
again has what is needed. It is written under the generation that the row names, never under a new one: the
rows stay as they are, so nothing else must change. That this is safe:

* The bytes have the hash that names the object, so no reader can get other ones than were promised.
* Only the collectors delete objects, each by its generation, after its row. One that is written here behind
  such a delete is an object too many, of a generation that is no row's, and is swept as such. Generations are
  never used again, so no late delete can hit an object that is needed.
"""

import asyncio
from collections.abc import Mapping

from blockserver.services.metrics import BlockMetrics
from blockserver.storage.backend import Backend, ObjectMissing, ObjectName
from blockserver.storage.index import BlockIndex
from blockserver.storage.keys import format_object
from runtime.logs import get_log
from wire.errors import ErrorInfo, HashMismatch, ShardboxError
from wire.hashes import BlockHash, block_hash
from wire.ids import NsId
from wire.internal import Caller

_log = get_log(__name__)
Data = bytes | bytearray | memoryview

ASKED_AT_ONCE = 32
"""Questions to the store at a time, of all requests: a pack of 1,000 blocks leaves turns to others' reads."""
READ_AT_ONCE = 4
"""Objects of this process read for comparison at a time: 16 MiB beside the memory set aside for uploads."""


class Mender:
    """Compares objects with bytes at hand, and writes them again where they are not what they should be."""

    def __init__(self, index: BlockIndex, backend: Backend, metrics: BlockMetrics):
        self._index = index
        self._backend = backend
        self._metrics = metrics
        self._asking = asyncio.Semaphore(ASKED_AT_ONCE)
        self._reading = asyncio.Semaphore(READ_AT_ONCE)

    async def mend_ready(
        self, caller: Caller, ns_id: NsId, blocks: Mapping[BlockHash, Data]
    ) -> dict[BlockHash, ErrorInfo]:
        """Of blocks that the namespace has ready: the errors of those that are damaged and stay so.

        Their objects are read: a client asks what is missing before it sends, so a ready block is seldom
        sent without a reason.
        """
        if not blocks:
            return {}
        try:
            places = await self._index.locate(caller, ns_id, list(blocks))
        except ShardboxError as error:
            _log.warning("mend_skipped", error=str(error))  # they are ready, whatever their objects are
            return {}
        objects = {
            ObjectName(name, place.generation): data
            for (name, data), place in zip(blocks.items(), places, strict=True)
            if place is not None
        }
        return await self._mend_all(objects, is_whole_read=True)

    async def mend_claimed(self, objects: Mapping[ObjectName, Data]) -> dict[BlockHash, ErrorInfo]:
        """The same of objects that another namespace wrote. Only their sizes are looked at: to read them
        would make every block that users share cost as much as one that they do not."""
        return await self._mend_all(objects, is_whole_read=False)

    async def mend_claimed_from(self, own: ObjectName, name: ObjectName, size: int) -> None:
        """The same of one object, by those of the caller's own in the store, which are read only if need be.

        Raises:
            ObjectMissing: of the caller's own, which was needed.
            ShardboxError: the object is damaged and stays so, or cannot be asked for. The caller's own is the
                only one that is known to be good.
        """
        async with self._asking:
            kind = await self._find_damage(name, size, is_whole_read=False)
            if kind is None:
                return
            async with self._reading:
                data = await self._backend.get(own)
                if len(data) != size or await asyncio.to_thread(block_hash, data) != name.hash:
                    raise HashMismatch("what was put there does not have this hash")
                await self._replace(name, data, kind)

    async def _mend_all(
        self, objects: Mapping[ObjectName, Data], *, is_whole_read: bool
    ) -> dict[BlockHash, ErrorInfo]:
        ends = await asyncio.gather(*(self._mend(n, data, is_whole_read) for n, data in objects.items()))
        return {name.hash: error for name, error in zip(objects, ends, strict=True) if error is not None}

    async def _mend(self, name: ObjectName, data: Data, is_whole_read: bool) -> ErrorInfo | None:
        async with self._asking:
            try:
                kind = await self._find_damage(name, len(data), is_whole_read)
            except ShardboxError as error:
                _log.warning("mend_skipped", object=format_object(name), error=str(error))
                return None
            if kind is None:
                return None
            try:
                await self._replace(name, data, kind)
            except ShardboxError as error:
                return error.info()
        return None

    async def _replace(self, name: ObjectName, data: Data, kind: str) -> None:
        self._metrics.damaged.labels(kind).inc()
        await self._backend.replace(name, data)
        _log.warning("object_mended", object=format_object(name), was=kind)
        self._metrics.mended.inc()

    async def _find_damage(self, name: ObjectName, size: int, is_whole_read: bool) -> str | None:
        """missing, corrupt, or None."""
        found_size = await self._backend.find_size(name)
        if found_size is None:
            return "missing"
        if found_size != size:
            return "corrupt"
        if is_whole_read:
            async with self._reading:
                try:
                    stored = await self._backend.get(name)
                except ObjectMissing:
                    return "missing"
                if await asyncio.to_thread(block_hash, stored) != name.hash:
                    return "corrupt"
        return None
