"""Named fault points: where a test may cut a process short, or hold it.

A point costs a look at two names while nothing is armed. `SHARDBOX_FAULT=name` kills the process, as
`kill -9` would, the first time that it comes by; `name:3` the third time. `name@PATH` kills only if it can
remove PATH first, so that a restarted process passes the same point unharmed. `name!PATH` kills nobody: the
process makes PATH and stands still until somebody removes it, which is the time to kill another one; for
programs without an event loop.

`SHARDBOX_FAULT_TRACE=PATH` has the process append the name of each point that it passes to PATH, a line each.
"""

import os
import signal
import time
from pathlib import Path

MEETING_TIMEOUT_S = 60.0
"""A process that nobody lets go on ends by itself; killing a database server takes a test under a second."""
_POLL_S = 0.005

_POINTS: set[str] = set()
_armed: dict[str, int] = {}
_token: dict[str, Path] = {}
_meeting: dict[str, Path] = {}
_trace: list[Path] = []


def declare(*names: str) -> None:
    """Add points to the registry, which tests enumerate."""
    for name in names:
        if name in _POINTS:
            raise ValueError(f"fault point {name} is declared twice")
        _POINTS.add(name)


def declared() -> list[str]:
    """All points of the modules imported so far, sorted."""
    return sorted(_POINTS)


def arm_from_environment() -> None:
    """Arm what SHARDBOX_FAULT names (comma-separated); called once by a process's main."""
    for spec in filter(None, os.environ.get("SHARDBOX_FAULT", "").split(",")):
        spec, _, meeting = spec.partition("!")
        spec, _, token = spec.partition("@")
        name, _, count = spec.partition(":")
        if name not in _POINTS:
            raise ValueError(f"no fault point {name!r}")
        _armed[name] = int(count or 1)
        if token:
            _token[name] = Path(token)
        if meeting:
            _meeting[name] = Path(meeting)
    if trace := os.environ.get("SHARDBOX_FAULT_TRACE"):
        _trace.append(Path(trace))


def fault_point(name: str) -> None:
    """Die here, or stand still, if a test asked for it."""
    if _armed or _trace:
        _pass(name)


def _pass(name: str) -> None:
    for path in _trace:
        with path.open("a") as file:
            file.write(name + "\n")
    if name not in _armed:
        return
    _armed[name] -= 1
    if _armed[name] > 0:
        return
    del _armed[name]
    if name in _meeting:
        _meet(name, _meeting[name])
        return
    if name in _token:
        try:
            _token[name].unlink()
        except FileNotFoundError:
            return
    os.kill(os.getpid(), signal.SIGKILL)


def _meet(name: str, path: Path) -> None:
    path.touch()
    deadline = time.monotonic() + MEETING_TIMEOUT_S
    while path.exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"nobody came to {name} within {MEETING_TIMEOUT_S:g} s")
        time.sleep(_POLL_S)
