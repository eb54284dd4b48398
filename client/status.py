"""What `shardbox status` shows, read from the state beside a running sync or without one."""

import msgspec

from client.control import find_limit, is_paused
from client.folder import Folder
from client.selection import list_exclusions
from client.state import State


class Skipped(msgspec.Struct, frozen=True):
    """Something that is left alone; bytes of `path` that are not UTF-8 are written \\xNN."""

    path: str
    reason: str
    detail: str


class Pending(msgspec.Struct, frozen=True):
    """Entries out of step: changed here, changed on the server, and both together."""

    up: int
    down: int
    total: int


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """One folder's state. The counters count since the link."""

    folder: str
    email: str
    display_name: str
    device_id: str
    device_name: str
    root_ns: str
    url: str
    is_running: bool
    is_paused: bool
    activity: str
    jid: int
    """How far the server's journal has been read."""
    is_listed: bool
    entries: int
    pending: Pending
    held_deletions: int
    last_error: str | None
    troubles: str | None
    skipped: list[Skipped]
    excluded: list[str]
    """Folders left out on this device."""
    limit_up: int | None
    limit_down: int | None
    """Stored limits in bytes per second."""
    blocks_sent: int
    bytes_sent: int
    blocks_fetched: int
    bytes_fetched: int
    blocks_copied: int
    """Read from elsewhere on this disk instead of being fetched."""


_COUNTERS = ("blocks_sent", "bytes_sent", "blocks_fetched", "bytes_fetched", "blocks_copied")


def read_status(folder: Folder, state: State) -> Status:
    """The status of a linked folder."""
    trees = state.trees
    up, down = trees.count_pending()
    fact = state.find_fact
    stored = state.list_counts()
    counts = {name: stored.get(name, 0) for name in _COUNTERS}
    is_running = folder.is_locked()
    return Status(
        folder=str(folder.path),
        email=fact("email") or "",
        display_name=fact("display_name") or "",
        device_id=fact("device_id") or "",
        device_name=fact("device_name") or "",
        root_ns=fact("root_ns") or "",
        url=fact("url") or "",
        is_running=is_running,
        is_paused=is_paused(state),
        activity=(fact("activity") or "new") if is_running else "stopped",
        jid=int(fact("cursor_jid") or 0),
        is_listed=fact("cursor") is not None and fact("has_more") is None,
        entries=len(trees.synced),
        pending=Pending(up, down, len(trees.dirty)),
        held_deletions=int(fact("held_deletions") or 0),
        last_error=fact("last_error"),
        troubles=fact("troubles"),
        skipped=[
            Skipped(path.decode(errors="backslashreplace"), reason, detail)
            for path, _, reason, detail in state.list_problems()
        ],
        excluded=[x.path for x in list_exclusions(state) if x.state == "excluded"],
        limit_up=find_limit(state, "limit-up"),
        limit_down=find_limit(state, "limit-down"),
        **counts,
    )
