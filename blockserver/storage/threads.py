"""A blocking store as a backend: writes and reads in threads of their own."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, Protocol, TypeVar

from blockserver.storage.backend import Attested, ObjectName, SignedRequest, StagedName, StoredObject
from blockserver.storage.folder import BlockFolder
from wire.errors import UpstreamUnavailable

_P = ParamSpec("_P")
_T = TypeVar("_T")
Data = bytes | bytearray | memoryview

FOLDER_WRITE_THREADS = 16
"""fsyncs side by side share journal commits. On ext4, small objects a second: 1,900 by one thread, 4,100
by 8, 4,600 by 16, 3,800 by 32."""
FOLDER_READ_THREADS = 8
"""Apart from the writes, so that nobody's download waits behind a pack of 1,000 fsyncs."""
OTHER_THREADS = 2


class BlockingStore(Protocol):
    """`Backend` with blocking methods, called from several threads at once."""

    def put(self, name: ObjectName, data: Data) -> None:
        """See `Backend.put`."""

    def replace(self, name: ObjectName, data: Data) -> None:
        """See `Backend.replace`."""

    def get(self, name: ObjectName) -> bytes:
        """See `Backend.get`."""
        ...

    def delete(self, name: ObjectName) -> None:
        """See `Backend.delete`."""

    def find_size(self, name: ObjectName) -> int | None:
        """See `Backend.find_size`."""

    def list_objects(self, after: ObjectName | None, limit: int) -> list[StoredObject]:
        """See `Backend.list_objects`."""
        ...

    def find_free_bytes(self) -> int | None:
        """See `Backend.find_free_bytes`."""

    def find_direct_place(self, name: ObjectName, session_id: bytes) -> ObjectName | StagedName | None:
        """See `Backend.find_direct_place`; does not block."""

    def presign_put(
        self, place: ObjectName | StagedName, *, size: int, expires_s: int
    ) -> SignedRequest | None:
        """See `Backend.presign_put`."""

    def presign_get(self, name: ObjectName, *, expires_s: int) -> SignedRequest | None:
        """See `Backend.presign_get`."""

    def attest(self, name: ObjectName) -> Attested | None:
        """See `Backend.attest`."""

    def get_staged(self, name: StagedName) -> bytes:
        """See `Backend.get_staged`."""
        ...

    def delete_staged(self, name: StagedName) -> None:
        """See `Backend.delete_staged`."""

    def close(self) -> None:
        """See `Backend.close`."""


class ThreadedBackend:
    """`Backend` over a blocking store."""

    def __init__(
        self, store: BlockingStore, *, write_threads: int, read_threads: int, deadline_s: float | None
    ):
        self._store = store
        self._deadline_s = deadline_s
        self._writers = ThreadPoolExecutor(write_threads, thread_name_prefix="block-write")
        self._readers = ThreadPoolExecutor(read_threads, thread_name_prefix="block-read")
        # What needs no transfer, and the question whether the store is well, wait behind nobody's blocks.
        self._others = ThreadPoolExecutor(OTHER_THREADS, thread_name_prefix="block-other")

    async def put(self, name: ObjectName, data: Data) -> None:
        """See `Backend.put`."""
        await self._run(self._writers, self._store.put, name, data)

    async def replace(self, name: ObjectName, data: Data) -> None:
        """See `Backend.replace`."""
        await self._run(self._writers, self._store.replace, name, data)

    async def get(self, name: ObjectName) -> bytes:
        """See `Backend.get`."""
        return await self._run(self._readers, self._store.get, name)

    async def delete(self, name: ObjectName) -> None:
        """See `Backend.delete`."""
        await self._run(self._writers, self._store.delete, name)

    async def find_size(self, name: ObjectName) -> int | None:
        """See `Backend.find_size`."""
        return await self._run(self._readers, self._store.find_size, name)

    async def list_objects(self, after: ObjectName | None, limit: int) -> list[StoredObject]:
        """See `Backend.list_objects`."""
        return await self._run(self._readers, self._store.list_objects, after, limit)

    async def find_free_bytes(self) -> int | None:
        """See `Backend.find_free_bytes`."""
        return await self._run(self._others, self._store.find_free_bytes)

    def find_direct_place(self, name: ObjectName, session_id: bytes) -> ObjectName | StagedName | None:
        """See `Backend.find_direct_place`."""
        return self._store.find_direct_place(name, session_id)

    async def presign_put(
        self, place: ObjectName | StagedName, *, size: int, expires_s: int
    ) -> SignedRequest | None:
        """See `Backend.presign_put`."""
        return await self._run(
            self._others, lambda: self._store.presign_put(place, size=size, expires_s=expires_s)
        )

    async def presign_get(self, name: ObjectName, *, expires_s: int) -> SignedRequest | None:
        """See `Backend.presign_get`."""
        return await self._run(self._others, lambda: self._store.presign_get(name, expires_s=expires_s))

    async def attest(self, name: ObjectName) -> Attested | None:
        """See `Backend.attest`."""
        return await self._run(self._readers, self._store.attest, name)

    async def get_staged(self, name: StagedName) -> bytes:
        """See `Backend.get_staged`."""
        return await self._run(self._readers, self._store.get_staged, name)

    async def delete_staged(self, name: StagedName) -> None:
        """See `Backend.delete_staged`."""
        await self._run(self._writers, self._store.delete_staged, name)

    async def close(self) -> None:
        """See `Backend.close`."""
        for pool in (self._writers, self._readers, self._others):
            await asyncio.to_thread(pool.shutdown)
        self._store.close()

    async def _run(
        self,
        pool: ThreadPoolExecutor,
        operation: Callable[_P, _T],
        *args: _P.args,
        **kwargs: _P.kwargs,
    ) -> _T:
        """What the operation returns, or UpstreamUnavailable at the deadline.

        One that has not begun by then is called off; one that has runs to its own time-outs, its outcome
        unknown to the caller.
        """
        try:
            async with asyncio.timeout(self._deadline_s):
                return await asyncio.get_running_loop().run_in_executor(
                    pool, lambda: operation(*args, **kwargs)
                )
        except TimeoutError:
            raise UpstreamUnavailable("the block store is too slow") from None


class FolderBackend(ThreadedBackend):
    """`Backend` over a folder. Without a deadline: a local disk that hangs ends no thread either."""

    def __init__(self, folder: BlockFolder):
        super().__init__(
            folder,
            write_threads=FOLDER_WRITE_THREADS,
            read_threads=FOLDER_READ_THREADS,
            deadline_s=None,
        )
