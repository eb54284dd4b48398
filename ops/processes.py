"""Processes that outlive whoever started them, and are found again without mistaking a stranger for them.

A pid alone proves nothing: the kernel gives it to somebody else once it is free. Each process of a cluster
carries a mark in its environment, which lies in the kernel's record of that very process, and is signalled
through a pidfd, which never comes to mean another one.
"""

import os
import select
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from ops.errors import StartFailed
from ops.osuser import OsUser, caller

MARK_VARIABLE = "SHARDBOX_PROCESS"
PRIVATE_UMASK = 0o077
_PROC = Path("/proc")
_FOREIGN_PREFIXES = ("SHARDBOX_", "PG")
"""What the caller's shell has set for itself must not reach a server: a fault point, PGHOST, PGSERVICE."""


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """One process for ever: the pid, and when the kernel started it."""

    pid: int
    start_ticks: int
    boot_id: str

    @classmethod
    def find(cls, pid: int) -> Self | None:
        """The process that has a pid now; None when it is free or only a zombie is left."""
        try:
            # The name stands in brackets and may itself hold spaces and brackets.
            fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return None
        return None if fields[0] in "ZX" else cls(pid, int(fields[19]), boot_id())

    @classmethod
    def own(cls) -> Self:
        """This process."""
        identity = cls.find(os.getpid())
        assert identity is not None
        return identity

    def is_alive(self) -> bool:
        """Whether that process, and no later one of the same pid, is running."""
        return ProcessIdentity.find(self.pid) == self


def boot_id() -> str:
    """Which boot of the machine this is: start times count from it."""
    return (_PROC / "sys/kernel/random/boot_id").read_text().strip()


class ProcessHandle:
    """A hold on one process, child or not."""

    def __init__(self, identity: ProcessIdentity, child: "subprocess.Popen[bytes] | None" = None):
        """Take hold of a process.

        Raises:
            ProcessLookupError: it is gone.
        """
        self.identity = identity
        self._child = child
        self._fd = os.pidfd_open(identity.pid)
        # The pid may have changed hands before the descriptor was opened; from here on it cannot.
        if child is None and not identity.is_alive():
            self.close()
            raise ProcessLookupError(identity.pid)

    @property
    def pid(self) -> int:
        """The pid, for display."""
        return self.identity.pid

    def fileno(self) -> int:
        """A descriptor that becomes readable when the process ends."""
        return self._fd

    def wait(self, timeout_s: float) -> bool:
        """Whether the process ended within the time."""
        poller = select.poll()  # select() fails beyond 1,024 descriptors
        poller.register(self._fd, select.POLLIN)
        ended = bool(poller.poll(timeout_s * 1000))
        if ended and self._child is not None:
            self._child.wait()
        return ended

    def exit_text(self) -> str:
        """How an ended process ended, for people; unknown when it was not our child."""
        code = self._child.poll() if self._child is not None else None
        if code is None:
            return "ended"
        return f"exit status {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"

    def send(self, number: signal.Signals) -> None:
        """Send a signal; nothing happens when the process has ended."""
        try:
            signal.pidfd_send_signal(self._fd, number)
        except ProcessLookupError:
            return

    def close(self) -> None:
        """Let go of the process, which goes on."""
        if self._child is not None and self._child.poll() is None:
            # It is meant to go on without us; Popen would warn that nobody waits for it.
            self._child.returncode = 0
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def base_environment() -> dict[str, str]:
    """The caller's environment without what was meant for the caller alone."""
    return {k: v for k, v in os.environ.items() if not k.startswith(_FOREIGN_PREFIXES)}


def spawn(
    argv: Sequence[str],
    *,
    mark: str,
    env: Mapping[str, str],
    log: Path,
    cwd: Path,
    user: OsUser | None = None,
    umask: int = PRIVATE_UMASK,
) -> ProcessHandle:
    """Start a process of its own session whose output goes to a file, so that it needs nobody above it.

    Args:
        argv: the program's full path and its arguments.
        mark: what `find_marked` finds it by.
        env: its whole environment, but for the mark.
        log: the file that its output is appended to.
        cwd: the folder that it starts in.
        user: whom it runs as; None for the caller.
        umask: of the files that it makes.

    Raises:
        StartFailed: the program cannot be run.
    """
    with log.open("ab") as output:
        try:
            child = subprocess.Popen(
                argv,
                env={**env, MARK_VARIABLE: mark},
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                umask=umask,
                **(user or caller()).popen_options(),
            )
        except OSError as error:
            raise StartFailed(f"cannot run {argv[0]}: {error}") from error
    # It is our child, so its pid stays taken until we wait for it, even if it has ended already.
    identity = ProcessIdentity.find(child.pid) or ProcessIdentity(child.pid, 0, boot_id())
    return ProcessHandle(identity, child)


def find_marked(prefix: str) -> dict[str, ProcessIdentity]:
    """The running processes whose mark starts so, by the rest of the mark.

    Of a process and its forks, which inherit the mark, the eldest counts.
    """
    marked: dict[int, tuple[str, ProcessIdentity]] = {}
    for pid in _pids():
        # The identity first: whoever proves later to be that process has had this mark all along.
        identity = ProcessIdentity.find(pid)
        mark = _mark_of(pid) if identity is not None else None
        if identity is not None and mark is not None and mark.startswith(prefix):
            marked[pid] = (mark.removeprefix(prefix), identity)
    found: dict[str, ProcessIdentity] = {}
    for pid, (name, identity) in marked.items():
        parent = marked.get(_parent_of(pid))
        if (parent is None or parent[0] != name) and _leads_session(pid):
            found[name] = min(found.get(name, identity), identity, key=lambda p: p.start_ticks)
    return found


def _pids() -> Iterator[int]:
    return (int(p.name) for p in _PROC.iterdir() if p.name.isdigit())


def _mark_of(pid: int) -> str | None:
    wanted = MARK_VARIABLE.encode() + b"="
    try:
        variables = (_PROC / str(pid) / "environ").read_bytes().split(b"\0")
    except OSError:  # gone, or somebody else's
        return None
    return next(
        (v.removeprefix(wanted).decode(errors="replace") for v in variables if v.startswith(wanted)), None
    )


def _parent_of(pid: int) -> int:
    try:
        return int((_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def _leads_session(pid: int) -> bool:
    try:
        return os.getsid(pid) == pid
    except OSError:
        return False


def processes_in(folder: Path) -> list[ProcessIdentity]:
    """The running processes whose working directory this is: a PostgreSQL server with all its backends."""
    found: list[ProcessIdentity] = []
    for pid in _pids():
        try:
            is_inside = (_PROC / str(pid) / "cwd").readlink() == folder
        except OSError:
            continue
        identity = ProcessIdentity.find(pid) if is_inside else None
        if identity is not None:
            found.append(identity)
    return found


def stop(handle: ProcessHandle, number: signal.Signals, *, grace_s: float) -> bool:
    """Ask a process to end and, after the grace, make it end.

    Returns:
        Whether it ended by itself.
    """
    handle.send(number)
    # A stopped process (SIGSTOP) does not even see the request.
    handle.send(signal.SIGCONT)
    if handle.wait(grace_s):
        return True
    handle.send(signal.SIGKILL)
    handle.wait(10)  # only a process stuck in the kernel takes longer
    return False
