"""Single disk steps: each can be cut anywhere and be judged afterwards. Blocking; run in threads.

What is to be replaced or deleted is compared with what was synced, moved into the trash, and compared again;
if it changed in between it goes back, and nothing has happened.
"""

import contextlib
import os
import secrets
import time
from enum import StrEnum

import msgspec

from client.disk import exchange, flush_folder, look, rename_new
from client.model import Fingerprint, Kind
from wire.faults import declare, fault_point

declare(
    "client.steps.mkdir_before",
    "client.steps.mkdir_after",
    "client.steps.move_before",
    "client.steps.move_after",
    "client.steps.place_before",
    "client.steps.place_after",
    "client.steps.replace_before",
    "client.steps.replace_exchanged",
    "client.steps.replace_after",
    "client.steps.trash_before",
    "client.steps.trash_after",
    "client.steps.rmdir_before",
    "client.steps.rmdir_after",
)

TRASH_KEPT_S = 30 * 86_400
"""As long as the server keeps deleted files by default."""


class StepKind(StrEnum):
    """What a step does."""

    MKDIR = "mkdir"
    MOVE = "move"
    PARK = "park"
    PLACE = "place"
    TRASH = "trash"
    RMDIR = "rmdir"


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """A disk step as it is stored before it is done; paths are absolute.

    place: `source` is the temporary file (`inode` is its), `target` where it goes; `expected` is what it
    replaces there, None if the place is free. trash: `source` goes. move: `source` (`inode`) to `target`.
    """

    kind: StepKind
    id: int
    source: bytes = b""
    target: bytes = b""
    trash: bytes = b""
    inode: int = 0
    expected: Fingerprint | None = None
    sealed: Fingerprint | None = None
    """The temporary file's stat, under which its content is known."""
    place: tuple[int, str] = (0, "")
    disk_name: bytes = b""
    rev: str = ""
    size: int = 0
    content: bytes = b""


class Outcome(StrEnum):
    """What became of a step."""

    DONE = "done"
    CHANGED = "changed"
    """The disk is not as it was when last scanned: look again."""
    OCCUPIED = "occupied"
    """Something that is not synced holds the name, or is in the folder."""


def trash_name(trash: bytes, name: bytes) -> bytes:
    """A fresh path in the trash that still shows what it was."""
    stamp = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{secrets.token_hex(4)}-".encode()
    return trash + b"/" + stamp + name[:180]


def do_step(step: Step) -> Outcome:
    """Carry out one step.

    Raises:
        OSError: the disk refuses; nothing has happened.
    """
    match step.kind:
        case StepKind.MKDIR:
            return _make_folder(step)
        case StepKind.MOVE | StepKind.PARK:
            return _move(step)
        case StepKind.PLACE:
            return _place(step) if step.expected is None else _replace(step)
        case StepKind.TRASH:
            return _trash(step)
        case StepKind.RMDIR:
            return _remove_folder(step)


def _make_folder(step: Step) -> Outcome:
    fault_point("client.steps.mkdir_before")
    try:
        os.mkdir(step.target)
    except FileExistsError:
        return Outcome.OCCUPIED
    except FileNotFoundError:
        return Outcome.CHANGED
    fault_point("client.steps.mkdir_after")
    return Outcome.DONE


def _move(step: Step) -> Outcome:
    found = look(step.source)
    if found is None or found[1].inode != step.inode:
        return Outcome.CHANGED
    fault_point("client.steps.move_before")
    try:
        rename_new(step.source, step.target)
    except FileExistsError:
        held = look(step.target)
        if held is None or held[1].inode != step.inode:
            return Outcome.OCCUPIED
        # A change of case on a disk that does not tell them apart.
        os.rename(step.source, step.target)
    except FileNotFoundError:
        return Outcome.CHANGED
    fault_point("client.steps.move_after")
    return Outcome.DONE


def _place(step: Step) -> Outcome:
    fault_point("client.steps.place_before")
    try:
        rename_new(step.source, step.target)
    except FileExistsError:
        return Outcome.OCCUPIED
    except FileNotFoundError:
        return Outcome.CHANGED
    fault_point("client.steps.place_after")
    return Outcome.DONE


def _replace(step: Step) -> Outcome:
    if not _is_as_synced(step.target, step):
        return Outcome.CHANGED
    with contextlib.suppress(OSError):
        os.chmod(step.source, os.lstat(step.target).st_mode & 0o7777)
    fault_point("client.steps.replace_before")
    try:
        exchange(step.source, step.target)
    except NotImplementedError:
        return _replace_slowly(step)
    except FileNotFoundError:
        return Outcome.CHANGED
    fault_point("client.steps.replace_exchanged")
    return finish_exchange(step)


def finish_exchange(step: Step) -> Outcome:
    """The second half of a replacement: what was replaced lies at the temporary path."""
    if not _is_same_body(step.source, step):
        exchange(step.source, step.target)
        return Outcome.CHANGED
    try:
        _rename_to_trash(step.source, step.trash)
    except OSError:
        exchange(step.source, step.target)
        raise
    fault_point("client.steps.replace_after")
    return Outcome.DONE


def _replace_slowly(step: Step) -> Outcome:
    """Where two paths cannot be exchanged the place is empty for a moment; recover.py knows."""
    try:
        _rename_to_trash(step.target, step.trash)
    except FileNotFoundError:
        return Outcome.CHANGED
    fault_point("client.steps.replace_exchanged")
    return finish_slowly(step)


def finish_slowly(step: Step) -> Outcome:
    """The second half of that: what was replaced is in the trash, and the place is empty."""
    if not _is_same_body(step.trash, step) or look(step.source) is None:
        rename_new(step.trash, step.target)
        return Outcome.CHANGED
    try:
        rename_new(step.source, step.target)
    except FileExistsError:
        return Outcome.CHANGED
    except OSError:
        rename_new(step.trash, step.target)
        raise
    fault_point("client.steps.replace_after")
    return Outcome.DONE


def _trash(step: Step) -> Outcome:
    if not _is_as_synced(step.source, step):
        return Outcome.CHANGED
    fault_point("client.steps.trash_before")
    try:
        _rename_to_trash(step.source, step.trash)
    except FileNotFoundError:
        return Outcome.CHANGED
    fault_point("client.steps.trash_after")
    return finish_trash(step)


def finish_trash(step: Step) -> Outcome:
    """The second half of a deletion: the file is in the trash."""
    if not _is_same_body(step.trash, step):
        with contextlib.suppress(FileExistsError):
            rename_new(step.trash, step.source)
        return Outcome.CHANGED
    return Outcome.DONE


def _remove_folder(step: Step) -> Outcome:
    fault_point("client.steps.rmdir_before")
    try:
        os.rmdir(step.source)
    except FileNotFoundError:
        return Outcome.DONE
    except OSError:
        if os.path.lexists(step.source):
            return Outcome.OCCUPIED
        raise
    fault_point("client.steps.rmdir_after")
    return Outcome.DONE


def _rename_to_trash(source: bytes, target: bytes) -> None:
    """Rename; a trash that somebody has removed is made again."""
    try:
        os.rename(source, target)
    except FileNotFoundError:
        os.makedirs(os.path.dirname(target), mode=0o700, exist_ok=True)
        os.rename(source, target)


def _is_as_synced(path: bytes, step: Step) -> bool:
    found = look(path)
    return (
        found is not None
        and found[0] is Kind.FILE
        and step.expected is not None
        and (found[1][:4] == step.expected[:4])
    )


def _is_same_body(path: bytes, step: Step) -> bool:
    found = look(path)
    return found is not None and step.expected is not None and found[1].is_same_body(step.expected)


def flush_folders(steps: list[Step]) -> None:
    """Make what the steps did survive a power cut, before it is called synced."""
    paths = {path for step in steps for path in (step.source, step.target, step.trash) if path}
    for folder in {os.path.dirname(path) for path in paths}:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            flush_folder(folder)


def empty_trash(trash: bytes, now_s: float) -> None:
    """Remove what has lain in the trash for long; ctime says since when."""
    with os.scandir(trash) as entries:
        for entry in entries:
            if entry.is_file(follow_symlinks=False) and entry.stat(follow_symlinks=False).st_ctime < (
                now_s - TRASH_KEPT_S
            ):
                with contextlib.suppress(OSError):
                    os.unlink(entry.path)
