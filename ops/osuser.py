"""Who PostgreSQL runs as: it refuses root, so root lends it a user of its own."""

import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from ops.errors import AccessDenied, OpsError
from ops.files import locked

SERVER_USER = "shardbox"
_ROOT_STATE_DIR = Path("/var/lib/shardbox")


class PopenUser(TypedDict, total=False):
    """The options of `subprocess` that start a process as another user."""

    user: int
    group: int
    extra_groups: list[int]


@dataclass(frozen=True, slots=True)
class OsUser:
    """A user of the machine that processes are started as."""

    name: str
    uid: int
    gid: int

    @property
    def is_caller(self) -> bool:
        """Whether nothing has to be switched."""
        return self.uid == os.geteuid()

    def can_use(self, path: Path) -> bool:
        """Whether this user may enter a folder or run a file."""
        command = ["test", "-x", str(path)]
        return subprocess.run(command, check=False, **self.popen_options()).returncode == 0

    def popen_options(self) -> PopenUser:
        """What `subprocess` needs to start a process as this user."""
        return {} if self.is_caller else {"user": self.uid, "group": self.gid, "extra_groups": []}

    def give(self, path: Path) -> None:
        """Make this user the owner of a file or folder."""
        if not self.is_caller:
            os.chown(path, self.uid, self.gid)


def root_state_dir() -> Path:
    """Where root keeps programs and data: outside its home, which the server user cannot read."""
    return Path(os.environ.get("SHARDBOX_STATE_DIR", _ROOT_STATE_DIR))


def ensure_root_state_dir() -> Path:
    """The folder of `root_state_dir`, there and open to be walked through."""
    folder = root_state_dir()
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o755)  # whatever root's umask is
    return folder


def caller() -> OsUser:
    """The user of this process."""
    entry = pwd.getpwuid(os.geteuid())
    return OsUser(entry.pw_name, entry.pw_uid, entry.pw_gid)


def _say(message: str) -> None:
    print(message, file=sys.stderr)


def ensure_server_user(notify: Callable[[str], None] = _say) -> OsUser:
    """The user that PostgreSQL runs as: the caller, or for root a system user, created when absent.

    Raises:
        OpsError: the user cannot be created.
    """
    if os.geteuid() != 0:
        return caller()
    with locked(ensure_root_state_dir() / ".user.lock"):
        try:
            entry = pwd.getpwnam(SERVER_USER)
        except KeyError:
            notify(f"PostgreSQL does not run as root: creating the system user {SERVER_USER!r} for it")
            _add_user()
            entry = pwd.getpwnam(SERVER_USER)
    if entry.pw_uid == 0:
        raise OpsError(f"the user {SERVER_USER!r} is root; PostgreSQL refuses to run as root")
    return OsUser(entry.pw_name, entry.pw_uid, entry.pw_gid)


def _add_user() -> None:
    # A plain `su` leaves the sbin folders out of PATH.
    program = shutil.which("useradd", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if program is None:
        raise OpsError(f"useradd is not installed; create a system user named {SERVER_USER!r}")
    options = ["--system", "--user-group", "--no-create-home", "--home-dir", "/nonexistent"]
    done = subprocess.run(
        [program, *options, "--shell", "/usr/sbin/nologin", SERVER_USER],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise OpsError(f"useradd could not create {SERVER_USER!r}: {done.stderr.strip()}")


def check_can_enter(user: OsUser, folder: Path) -> None:
    """Pass when the user can walk into a folder.

    Raises:
        AccessDenied: a folder on the way is closed to that user; the message names it.
    """
    if user.can_use(folder):
        return
    closed = next((p for p in reversed([folder, *folder.parents]) if not user.can_use(p)), folder)
    raise AccessDenied(
        f"PostgreSQL runs as the user {user.name!r}, who may not enter {closed}; "
        f"choose a folder outside it, or leave the choice to shardctl"
    )
