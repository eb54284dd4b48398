"""The synced folder itself: its marker, its identity, and the lock that keeps a second sync out.

FOLDER/.shardbox/marker     a random id and nothing else; the state knows it too
FOLDER/.shardbox/state.db   the state
FOLDER/.shardbox/tmp/       downloads on their way
FOLDER/.shardbox/trash/     what syncing replaced or deleted
FOLDER/.shardbox/lock       held while a sync runs
"""

import contextlib
import fcntl
import os
import secrets
from pathlib import Path

from client.state import State

MARKER_DIR = b".shardbox"


class FolderProblem(Exception):
    """The folder is not what it was: nothing may be concluded from what is or is not in it."""


class NotLinked(FolderProblem):
    """There is no marker."""


class AlreadyRunning(Exception):
    """Another process syncs this folder."""


class Folder:
    """A folder with a marker."""

    def __init__(self, path: Path):
        self.path = path.absolute()
        self.root = os.fsencode(self.path)
        self.private = self.root + b"/" + MARKER_DIR
        self.tmp = self.private + b"/tmp"
        self.trash = self.private + b"/trash"
        self._identity: tuple[int, int] | None = None
        self._marker: bytes | None = None
        self._lock: int | None = None

    @property
    def state_path(self) -> Path:
        """Where the state is."""
        return Path(os.fsdecode(self.private)) / "state.db"

    def is_linked(self) -> bool:
        """Whether a marker is there."""
        return os.path.lexists(self.private + b"/marker")

    def disk_path(self, relative: bytes) -> bytes:
        """The whole path of a relative one."""
        return self.root + b"/" + relative if relative else self.root

    def create(self) -> State:
        """Make folder, marker and state; what is there already stays."""
        self.path.mkdir(parents=True, exist_ok=True)
        for path in (self.private, self.tmp, self.trash):
            os.makedirs(path, mode=0o700, exist_ok=True)
        state = State(self.state_path, create=True)
        marker = state.find_fact("marker") or secrets.token_hex(16)
        handle = os.open(self.private + b"/marker", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "w") as file:
            file.write(marker)
            file.flush()
            os.fsync(file.fileno())
        with state.tx("link"):
            state.put_fact("marker", marker)
            state.put_fact("root_inode", str(os.stat(self.root).st_ino))
        return state

    def open(self, *, read_only: bool = False) -> State:
        """The state of a linked folder, once it has been seen to be this folder's.

        Raises:
            NotLinked: no marker.
            FolderProblem: the marker is another's, or the folder is a copy.
        """
        if not self.is_linked() or not self.state_path.exists():
            raise NotLinked(f"{self.path} is not linked (or its disk is not mounted)")
        state = State(self.state_path, read_only=read_only)
        try:
            self._recognise(state)
        except BaseException:
            state.close()
            raise
        return state

    def _recognise(self, state: State) -> None:
        marker = _read(self.private + b"/marker")
        if marker.decode(errors="replace") != state.get_fact("marker"):
            raise FolderProblem(f"the marker of {self.path} does not belong to its state")
        found = os.stat(self.root)
        if str(found.st_ino) != state.get_fact("root_inode"):
            # Two copies that act as one device would each delete what the other adds.
            raise FolderProblem(
                f"{self.path} looks like a copy of a linked folder: remove its {MARKER_DIR.decode()} folder"
                " and link it anew (files that are the same are not sent again)"
            )
        self._identity, self._marker = (found.st_dev, found.st_ino), marker

    def check(self) -> None:
        """That the folder is still the one that was opened. Blocking, a few system calls.

        Raises:
            FolderProblem: it has gone, was unmounted, or lost its marker.
        """
        try:
            found = os.stat(self.root)
            marker = _read(self.private + b"/marker")
        except OSError as error:
            raise FolderProblem(f"{self.path} has gone or lost its marker: {error.strerror}") from error
        if (found.st_dev, found.st_ino) != self._identity or marker != self._marker:
            raise FolderProblem(f"{self.path} is not the folder that it was")

    def lock(self) -> None:
        """Keep other syncs out until this process ends; makes the folders for it, should they have gone.

        Raises:
            AlreadyRunning: somebody else holds the lock.
        """
        for path in (self.tmp, self.trash):
            os.makedirs(path, mode=0o700, exist_ok=True)
        handle = os.open(self.private + b"/lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(handle)
            raise AlreadyRunning(f"another process syncs {self.path}") from error
        with contextlib.suppress(OSError):
            # For whoever wonders; a full disk is no reason not to start.
            os.ftruncate(handle, 0)
            os.write(handle, str(os.getpid()).encode())
        self._lock = handle

    def unlock(self) -> None:
        """Let others in."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def is_locked(self) -> bool:
        """Whether somebody syncs the folder right now."""
        try:
            handle = os.open(self.private + b"/lock", os.O_RDWR)
        except OSError:
            return False
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(handle)
        return False


def _read(path: bytes) -> bytes:
    handle = os.open(path, os.O_RDONLY)
    try:
        return os.read(handle, 4096)
    finally:
        os.close(handle)
