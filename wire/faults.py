"""Named fault points: where a test may cut a process short.

A point costs one set look-up while nothing is armed. `SHARDBOX_FAULT=name` kills the process, as `kill -9`
would, the first time that it comes by; `name:3` the third time. `name@PATH` kills only if it can remove
PATH first, so that a restarted process passes the same point unharmed.
"""

import os
import signal
from pathlib import Path

_POINTS: set[str] = set()
_armed: dict[str, int] = {}
_token: dict[str, str] = {}


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
        name, _, token = spec.partition("@")
        name, _, count = name.partition(":")
        if name not in _POINTS:
            raise ValueError(f"no fault point {name!r}")
        _armed[name] = int(count or 1)
        if token:
            _token[name] = token


def fault_point(name: str) -> None:
    """Die here if a test asked for it."""
    if not _armed or name not in _armed:
        return
    _armed[name] -= 1
    if _armed[name] > 0:
        return
    del _armed[name]
    if name in _token:
        try:
            Path(_token[name]).unlink()
        except FileNotFoundError:
            return
    os.kill(os.getpid(), signal.SIGKILL)
