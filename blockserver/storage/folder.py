"""Objects in a folder of a local file system.

    objects/<3 hex digits of the hash>/<hash>.<generation>
    writing/<process>/          files being written; <process>.lock is held while their process lives
    layout                      written last of all when the folder is made

A write goes: file under writing/, fsync, hard link to its place (which never overwrites), fsync of that
directory, unlink of the first name. Until the link there is no object; after the last fsync it survives a
loss of power.
"""

import errno
import fcntl
import itertools
import os
import secrets
import shutil
from contextlib import suppress
from pathlib import Path

from blockserver.storage.backend import ObjectMissing, ObjectName
from wire.errors import StorageFull, UpstreamUnavailable
from wire.faults import declare, fault_point
from wire.hashes import BLOCK_BYTES

FAN_OUT_DIGITS = 3
"""4,096 directories: at 100 million objects, 25,000 files in each."""
_LAYOUT = b"shardbox blocks 1\n"
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_WRITE_BYTES = 2**20

declare(
    "blockserver.object.before_write",
    "blockserver.object.half_written",
    "blockserver.object.before_link",
    "blockserver.object.after_link",
    "blockserver.object.after_dir_sync",
    "blockserver.object.before_delete",
)


class BlockFolder:
    """A folder of objects. Blocking; methods may be called from several threads and processes at once."""

    def __init__(self, root: Path, *, min_free_bytes: int):
        self._objects = root / "objects"
        self._writing = root / "writing"
        self._layout = root / "layout"
        self._root = root
        self._min_free_bytes = min_free_bytes
        self._names = itertools.count()
        self._writing.mkdir(parents=True, exist_ok=True)
        self._own, self._own_lock = self._claim_writing_dir()
        self._make_layout()
        self._remove_leftovers()

    def close(self) -> None:
        """Give the directory for writing back."""
        shutil.rmtree(self._own, ignore_errors=True)
        self._lock_path(self._own).unlink(missing_ok=True)
        os.close(self._own_lock)

    def put(self, name: ObjectName, data: bytes | bytearray | memoryview) -> None:
        """Write an object durably, see `Backend.put`."""
        fault_point("blockserver.object.before_write")
        if self.find_free_bytes() < len(data):
            raise StorageFull("the block folder is full")
        temporary = self._own / str(next(self._names))
        try:
            _write_file(temporary, data)
            fault_point("blockserver.object.before_link")
            place = self._place(name)
            # It exists: an earlier try of this very write, which may have died before its fsync below.
            with suppress(FileExistsError):
                os.link(temporary, place)
            fault_point("blockserver.object.after_link")
            _sync_dir(place.parent)
            fault_point("blockserver.object.after_dir_sync")
        except OSError as error:
            raise _as_domain_error(error, "written") from error
        finally:
            with suppress(OSError):  # it goes with its directory at the latest
                temporary.unlink()

    def get(self, name: ObjectName) -> bytes:
        """An object's bytes, see `Backend.get`."""
        try:
            with self._place(name).open("rb", buffering=0) as file:
                return _read_up_to(file.fileno(), BLOCK_BYTES + 1)
        except FileNotFoundError:
            raise ObjectMissing(str(self._place(name).name)) from None
        except OSError as error:
            raise _as_domain_error(error, "read") from error

    def delete(self, name: ObjectName) -> None:
        """Remove an object if it is there."""
        fault_point("blockserver.object.before_delete")
        try:
            # Not synced: what comes back after a loss of power is an object too many; the sweep finds it.
            self._place(name).unlink(missing_ok=True)
        except OSError as error:
            raise _as_domain_error(error, "deleted") from error

    def exists(self, name: ObjectName) -> bool:
        """Whether the object is there."""
        return self._place(name).exists()

    def find_free_bytes(self) -> int:
        """What may still be written before the reserve is touched."""
        try:
            stat = os.statvfs(self._objects)
        except OSError as error:
            raise _as_domain_error(error, "measured") from error
        return max(0, stat.f_bavail * stat.f_frsize - self._min_free_bytes)

    def _place(self, name: ObjectName) -> Path:
        digits = name.hash.hex()
        return self._objects / digits[:FAN_OUT_DIGITS] / f"{digits}.{name.generation.hex()}"

    def _make_layout(self) -> None:
        """Make the directories once; two processes may do it side by side."""
        if self._layout.exists():
            if self._layout.read_bytes() != _LAYOUT:
                raise ValueError(f"{self._root} has a layout that this version does not know")
            return
        self._objects.mkdir(exist_ok=True)
        for i in range(16**FAN_OUT_DIGITS):
            (self._objects / f"{i:0{FAN_OUT_DIGITS}x}").mkdir(exist_ok=True)
        for folder in (self._objects, self._root, self._root.parent):
            _sync_dir(folder)
        temporary = self._own / "layout"
        _write_file(temporary, _LAYOUT)
        temporary.replace(self._layout)
        _sync_dir(self._root)

    def _claim_writing_dir(self) -> tuple[Path, int]:
        """A directory of this process's own, and the descriptor whose lock says that it lives.

        The lock's file is there before the directory: whoever cleans up never meets a directory without one
        that is not a dead process's.
        """
        own = self._writing / secrets.token_hex(8)
        lock = os.open(self._lock_path(own), os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        own.mkdir()
        return own, lock

    def _remove_leftovers(self) -> None:
        """Delete what dead processes were writing; a living one holds its lock."""
        for folder in self._writing.iterdir():
            if folder == self._own or not folder.is_dir():
                continue
            lock_path = self._lock_path(folder)
            try:
                lock = os.open(lock_path, os.O_RDWR | os.O_CLOEXEC)
            except FileNotFoundError:
                shutil.rmtree(folder, ignore_errors=True)
                continue
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            else:
                shutil.rmtree(folder, ignore_errors=True)
                lock_path.unlink(missing_ok=True)
            finally:
                os.close(lock)

    def _lock_path(self, folder: Path) -> Path:
        return folder.with_suffix(".lock")


def _write_file(path: Path, data: bytes | bytearray | memoryview) -> None:
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view[:_WRITE_BYTES]) :]
            fault_point("blockserver.object.half_written")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_dir(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read_up_to(descriptor: int, limit_bytes: int) -> bytes:
    size = min(os.fstat(descriptor).st_size, limit_bytes)
    data = os.read(descriptor, size)
    while len(data) < size and (more := os.read(descriptor, size - len(data))):
        data += more
    return data


def _as_domain_error(error: OSError, what: str) -> StorageFull | UpstreamUnavailable:
    if error.errno in _NO_ROOM:
        return StorageFull("the block folder is full")
    return UpstreamUnavailable(f"a block could not be {what}: {os.strerror(error.errno or 0)}")
