"""A folder behind the asynchronous interface of a backend: writes and reads in threads of their own."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

from blockserver.storage.backend import ObjectName
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

    async def close(self) -> None:
        """See `Backend.close`."""
        await asyncio.to_thread(self._writers.shutdown)
        await asyncio.to_thread(self._readers.shutdown)
        self._folder.close()
