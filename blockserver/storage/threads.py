"""A folder behind the asynchronous interface of a backend: writes and reads in threads of their own."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

from blockserver.storage.backend import Attested, ObjectMissing, ObjectName, SignedRequest, StagedName
from blockserver.storage.folder import BlockFolder

WRITE_THREADS = 16
"""fsyncs side by side share journal commits. On ext4, small objects a second: 1,900 by one thread, 4,100
by 8, 4,600 by 16, 3,800 by 32."""
READ_THREADS = 8
"""Apart from the writes, so that nobody's download waits behind a pack of 1,000 fsyncs."""


class FolderBackend:
    """`Backend` over a folder."""

    def __init__(self, folder: BlockFolder):
        self._folder = folder
        self._writers = ThreadPoolExecutor(WRITE_THREADS, thread_name_prefix="block-write")
        self._readers = ThreadPoolExecutor(READ_THREADS, thread_name_prefix="block-read")

    async def put(self, name: ObjectName, data: bytes | bytearray | memoryview) -> None:
        """See `Backend.put`."""
        await asyncio.get_running_loop().run_in_executor(self._writers, self._folder.put, name, data)

    async def get(self, name: ObjectName) -> bytes:
        """See `Backend.get`."""
        return await asyncio.get_running_loop().run_in_executor(self._readers, self._folder.get, name)

    async def delete(self, name: ObjectName) -> None:
        """See `Backend.delete`."""
        await asyncio.get_running_loop().run_in_executor(self._writers, self._folder.delete, name)

    async def exists(self, name: ObjectName) -> bool:
        """See `Backend.exists`."""
        return await asyncio.get_running_loop().run_in_executor(self._readers, self._folder.exists, name)

    async def find_free_bytes(self) -> int:
        """See `Backend.find_free_bytes`."""
        return await asyncio.get_running_loop().run_in_executor(self._readers, self._folder.find_free_bytes)

    def find_direct_place(self, name: ObjectName, session_id: bytes) -> None:
        """None: a folder has no address of its own."""

    async def presign_put(
        self, place: ObjectName | StagedName, *, size: int, expires_s: int
    ) -> SignedRequest | None:
        """None, see `Backend.presign_put`."""
        return None

    async def presign_get(self, name: ObjectName, *, expires_s: int) -> SignedRequest | None:
        """None, see `Backend.presign_get`."""
        return None

    async def attest(self, name: ObjectName) -> Attested | None:
        """None: a file system does not know SHA-256."""
        if not await self.exists(name):
            raise ObjectMissing(name.hash.hex())
        return None

    async def get_staged(self, name: StagedName) -> bytes:
        """Nothing is ever staged here."""
        raise ObjectMissing(name.hash.hex())

    async def delete_staged(self, name: StagedName) -> None:
        """Nothing is ever staged here."""

    async def close(self) -> None:
        """See `Backend.close`."""
        await asyncio.to_thread(self._writers.shutdown)
        await asyncio.to_thread(self._readers.shutdown)
        self._folder.close()
