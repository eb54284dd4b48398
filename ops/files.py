"""Small files that must be whole or absent, and locks that die with their holder."""

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from ops.errors import ClusterBusy

PRIVATE = 0o600
PUBLIC = 0o644


def write_file(path: Path, content: bytes, *, mode: int = PRIVATE) -> None:
    """Replace a file as one step, durably: a reader meets the old content or the new."""
    fd, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(fd, "wb") as file:
            os.fchmod(fd, mode)
            file.write(content)
            file.flush()
            os.fsync(fd)
        Path(temporary).replace(path)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_json(path: Path, value: object, *, mode: int = PUBLIC) -> None:
    """Replace a file by the JSON form of a value."""
    write_file(path, msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n", mode=mode)


@contextmanager
def locked(path: Path, *, wait: bool = True, what: str = "another run") -> Iterator[None]:
    """Hold an exclusive lock on a file; the kernel lets go of it when the holder dies.

    Raises:
        ClusterBusy: the lock is held and `wait` is off.
    """
    # The descriptor is not inherited: a child that outlives us must not keep the lock.
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise ClusterBusy(f"{what} holds {path}") from None
        yield


def tail(path: Path, line_count: int = 20) -> str:
    """The last lines of a log, for an error message; empty when there is none."""
    try:
        # 64 KiB hold far more than 20 lines, and a log may be large.
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 65536))
            return "\n".join(file.read().decode(errors="replace").splitlines()[-line_count:])
    except FileNotFoundError:
        return ""
