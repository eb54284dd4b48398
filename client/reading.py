"""Reading local files in blocks, and noticing when they change meanwhile. Blocking; called in threads."""

import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass

from client.disk import fingerprint_of
from client.model import Fingerprint
from client.scan import is_racy
from wire.hashes import BLOCK_BYTES, BlockHash, ContentHash, block_hash, content_hash


class FileChanging(Exception):
    """The file changed while it was read; a later try may find it at rest."""


class NotAFile(Exception):
    """Something else is at the path by now."""


@dataclass(frozen=True, slots=True)
class Hashed:
    """A file's content, and the stat under which it was read."""

    fingerprint: Fingerprint
    content: ContentHash
    blocks: list[BlockHash]
    is_racy: bool


class OpenFile:
    """A file open for reading, with the stat that it had at first.

    Raises (also from its methods):
        NotAFile: not a regular file.
        FileChanging: its stat is no longer what it was.
        OSError: it cannot be read.
    """

    def __init__(self, path: bytes):
        self._handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            found = os.fstat(self._handle)
            if not stat.S_ISREG(found.st_mode):
                raise NotAFile
            self.read_at_ns = time.time_ns()
            self.fingerprint = fingerprint_of(found)
        except BaseException:
            os.close(self._handle)
            raise

    def __enter__(self) -> "OpenFile":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._handle)

    def read_block(self, index: int) -> bytes:
        """Block `index`, whole as the size at opening says."""
        wanted = min(BLOCK_BYTES, self.fingerprint.size - index * BLOCK_BYTES)
        data = os.pread(self._handle, wanted, index * BLOCK_BYTES)
        while len(data) < wanted:
            more = os.pread(self._handle, wanted - len(data), index * BLOCK_BYTES + len(data))
            if not more:
                raise FileChanging
            data += more
        return data

    def iter_blocks(self) -> Iterator[bytes]:
        """All blocks in order."""
        for index in range(-(-self.fingerprint.size // BLOCK_BYTES)):
            yield self.read_block(index)

    def check(self) -> None:
        """That nothing was written since the opening, as far as stat can tell."""
        now = fingerprint_of(os.fstat(self._handle))
        if (now.size, now.mtime_ns) != (self.fingerprint.size, self.fingerprint.mtime_ns):
            raise FileChanging

    def hashed(self, blocks: list[BlockHash]) -> Hashed:
        """The result, once all blocks have been read; checks first."""
        self.check()
        racy = is_racy(self.fingerprint.mtime_ns, self.read_at_ns)
        return Hashed(self.fingerprint, content_hash(blocks), blocks, racy)


def hash_file(path: bytes) -> Hashed:
    """Read and hash a whole file; one block in memory at a time."""
    with OpenFile(path) as file:
        return file.hashed([block_hash(data) for data in file.iter_blocks()])
