"""Objects in a folder of a local file system.

    objects/<3 hex digits of the hash>/<hash>.<generation>
    writing/<process>/          files being written; <process>.lock is held while their process lives
    layout                      written last of all when the folder is made

A write goes: file under writing/, fsync, hard link to its place (which never overwrites), fsync of that
directory, unlink of the first name. Until the link there is no object; after the last fsync it survives a
loss of power. Mending a damaged object renames over it instead of linking.
"""

import errno
import fcntl
import itertools
import os
import secrets
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from blockserver.storage.backend import (
    Attested,
    ObjectMissing,
    ObjectName,
    SignedRequest,
    StagedName,
    StoredObject,
)
from blockserver.storage.keys import format_object, parse_object
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
    "blockserver.mend.before_rename",
    "blockserver.mend.after_rename",
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
        self._write(name, data, _link)

    def replace(self, name: ObjectName, data: bytes | bytearray | memoryview) -> None:
        """Write an object over what lies there, see `Backend.replace`."""
        self._write(name, data, _rename)

    def _write(
        self, name: ObjectName, data: bytes | bytearray | memoryview, publish: Callable[[Path, Path], None]
    ) -> None:
        fault_point("blockserver.object.before_write")
        if self.find_free_bytes() < len(data):
            raise StorageFull("the block folder is full")
        temporary = self._own / str(next(self._names))
        try:
            _write_file(temporary, data)
            place = self._place(name)
            publish(temporary, place)
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
            raise ObjectMissing(format_object(name)) from None
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
        return self.find_size(name) is not None

    def find_size(self, name: ObjectName) -> int | None:
        """An object's length, see `Backend.find_size`."""
        try:
            return self._place(name).stat().st_size
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _as_domain_error(error, "looked at") from error

    def list_objects(self, after: ObjectName | None, limit: int) -> list[StoredObject]:
        """Objects in order, see `Backend.list_objects`."""
        start = "" if after is None else format_object(after)
        found: list[StoredObject] = []
        try:
            for i in range(int(start[:FAN_OUT_DIGITS] or "0", 16), 16**FAN_OUT_DIGITS):
                if len(found) == limit:
                    break
                folder = self._objects / f"{i:0{FAN_OUT_DIGITS}x}"
                for text in sorted(text for text in os.listdir(folder) if text > start):  # noqa: PTH208
                    name = parse_object(text)
                    size = None if name is None else self.find_size(name)
                    if name is None or size is None:
                        continue
                    found.append(StoredObject(name, size))
                    if len(found) == limit:
                        break
        except OSError as error:
            raise _as_domain_error(error, "listed") from error
        return found

    def find_direct_place(self, name: ObjectName, session_id: bytes) -> None:
        """None: a folder has no address of its own."""

    def presign_put(self, place: ObjectName | StagedName, *, size: int, expires_s: int) -> None:
        """None, see `Backend.presign_put`."""

    def presign_get(self, name: ObjectName, *, expires_s: int) -> SignedRequest | None:
        """None, see `Backend.presign_get`."""

    def attest(self, name: ObjectName) -> Attested | None:
        """None: a file system does not know SHA-256."""
        if self.exists(name):
            return None
        raise ObjectMissing(format_object(name))

    def get_staged(self, name: StagedName) -> bytes:
        """Nothing is ever staged here."""
        raise ObjectMissing(name.hash.hex())

    def delete_staged(self, name: StagedName) -> None:
        """Nothing is ever staged here."""

    def find_free_bytes(self) -> int:
        """What may still be written before the reserve is touched."""
        try:
            stat = os.statvfs(self._objects)
        except OSError as error:
            raise _as_domain_error(error, "measured") from error
        return max(0, stat.f_bavail * stat.f_frsize - self._min_free_bytes)

    def _place(self, name: ObjectName) -> Path:
        text = format_object(name)
        return self._objects / text[:FAN_OUT_DIGITS] / text

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


def _link(temporary: Path, place: Path) -> None:
    fault_point("blockserver.object.before_link")
    # It exists: an earlier try of this very write, which may have died before its fsync.
    with suppress(FileExistsError):
        os.link(temporary, place)
    fault_point("blockserver.object.after_link")


def _rename(temporary: Path, place: Path) -> None:
    fault_point("blockserver.mend.before_rename")
    temporary.replace(place)
    fault_point("blockserver.mend.after_rename")


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
