"""What the client does to a disk: single steps, each atomic. Blocking; called in threads.

Paths are bytes throughout: a name need not be valid UTF-8.
"""

import ctypes
import errno
import os
import stat

from client.model import Fingerprint, Kind

_AT_FDCWD = -100
_RENAME_NOREPLACE = 1
_RENAME_EXCHANGE = 2
_libc = ctypes.CDLL(None, use_errno=True)


def fingerprint_of(found: os.stat_result) -> Fingerprint:
    """The part of a stat that tells whether a file has changed."""
    return Fingerprint(found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_dev)


def kind_of(found: os.stat_result) -> Kind | None:
    """File, folder, or None for what is neither."""
    if stat.S_ISREG(found.st_mode):
        return Kind.FILE
    return Kind.FOLDER if stat.S_ISDIR(found.st_mode) else None


def look(path: bytes) -> tuple[Kind | None, Fingerprint] | None:
    """What is at a path, without following symlinks; None when nothing is, or can be (a name too long)."""
    try:
        found = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return None
        raise
    return kind_of(found), fingerprint_of(found)


def rename_new(source: bytes, target: bytes) -> None:
    """Rename unless the target is there.

    Raises:
        FileExistsError: the target is there.
        OSError: as rename(2).
    """
    try:
        _renameat2(source, target, _RENAME_NOREPLACE)
    except OSError as error:
        if not _is_unsupported(error):
            raise
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, "already there", target) from error
        os.rename(source, target)


def exchange(one: bytes, other: bytes) -> None:
    """Swap two paths atomically.

    Raises:
        NotImplementedError: this file system cannot.
        OSError: as rename(2).
    """
    try:
        _renameat2(one, other, _RENAME_EXCHANGE)
    except OSError as error:
        if _is_unsupported(error):
            raise NotImplementedError("this file system cannot exchange two paths") from error
        raise


def flush_folder(path: bytes) -> None:
    """Make renames in a folder survive a power cut."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _renameat2(source: bytes, target: bytes, flags: int) -> None:
    if not hasattr(_libc, "renameat2"):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if _libc.renameat2(_AT_FDCWD, source, _AT_FDCWD, target, flags):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), source, None, target)


def _is_unsupported(error: OSError) -> bool:
    # EINVAL: a file system that does not know the flag.
    return error.errno in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP)
