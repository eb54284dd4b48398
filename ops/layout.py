"""Where an embedded cluster keeps what: one folder, chosen once."""

import contextlib
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from ops.osuser import root_state_dir

DATA_DIR_VARIABLE = "SHARDBOX_DEV_DIR"
CODE_ROOT = Path(__file__).parents[1]
"""The checkout, or site-packages; servers start here, so that `python -m` finds them either way."""


def default_data_dir() -> Path:
    """The folder for a cluster that nobody named a folder for.

    `.dev` in the checkout; for root a folder outside its home, a different one for each checkout, as
    PostgreSQL does not run as root and its user cannot look into that home.
    """
    anchor = CODE_ROOT if (CODE_ROOT / "pyproject.toml").is_file() else Path.cwd()
    if os.geteuid() != 0:
        return anchor / ".dev"
    return root_state_dir() / f"dev-{hashlib.sha256(os.fsencode(anchor)).hexdigest()[:12]}"


def link_from_checkout(data_dir: Path) -> Path | None:
    """Let `.dev` in the checkout lead to root's cluster, so that it is found in one place whoever runs it.

    Returns:
        The link; None when the cluster is not the checkout's own, or `.dev` is something else already.
    """
    link = CODE_ROOT / ".dev"
    if os.geteuid() != 0 or data_dir != default_data_dir() or not (CODE_ROOT / "pyproject.toml").is_file():
        return None
    with contextlib.suppress(FileExistsError):
        link.symlink_to(data_dir)
    return link if link.is_symlink() and link.readlink() == data_dir else None


def choose_data_dir(option: Path | None) -> Path:
    """The option, else SHARDBOX_DEV_DIR, else the default; absolute, whether or not it exists."""
    named = option or (Path(os.environ[DATA_DIR_VARIABLE]) if os.environ.get(DATA_DIR_VARIABLE) else None)
    return (named or default_data_dir()).absolute()


@dataclass(frozen=True, slots=True)
class DevLayout:
    """The files of one embedded cluster.

    * `cluster.json`: how many processes of each kind, and their ports. Written when the cluster is made.
    * `processes.json`: what the supervisor has to keep running. Absent while the cluster is down.
    * `state.json`: what the supervisor sees. Written by it alone.
    * `config.json`: yours, and optional: `{"env": {"metaserver-1": {"NAME": "value"}}}` adds variables to a
      process, by its name or its kind, from its next start on.
    """

    root: Path

    @property
    def record_file(self) -> Path:
        """What the cluster consists of."""
        return self.root / "cluster.json"

    @property
    def processes_file(self) -> Path:
        """What should run."""
        return self.root / "processes.json"

    @property
    def state_file(self) -> Path:
        """What does run."""
        return self.root / "state.json"

    @property
    def config_file(self) -> Path:
        """The owner's own variables for single processes."""
        return self.root / "config.json"

    @property
    def demo_file(self) -> Path:
        """The demonstration's devices."""
        return self.root / "demo.json"

    @property
    def command_lock(self) -> Path:
        """Held by each `shardctl dev` command that changes something."""
        return self.root / "command.lock"

    @property
    def supervisor_lock(self) -> Path:
        """Held by the supervisor while it lives."""
        return self.root / "supervisor.lock"

    @property
    def secrets(self) -> Path:
        """Keys and passwords, for the caller alone."""
        return self.root / "secrets"

    @property
    def passfile(self) -> Path:
        """libpq's password file."""
        return self.secrets / "pgpass"

    @property
    def postgres(self) -> Path:
        """A folder for each PostgreSQL server."""
        return self.root / "postgres"

    @property
    def blocks(self) -> Path:
        """The block store."""
        return self.root / "blocks"

    @property
    def backups(self) -> Path:
        """Base backups and archives, unless a command is told another folder."""
        return self.root / "backups"

    @property
    def archiver(self) -> Path:
        """The program that PostgreSQL archives with."""
        return self.root / "archive-wal"

    @property
    def whole_file(self) -> Path:
        """There once all databases have been made: from then on a data folder that is missing was lost."""
        return self.root / "databases-made"

    @property
    def maps(self) -> Path:
        """The last shard map of each metaserver."""
        return self.root / "maps"

    def log(self, name: str) -> Path:
        """The log of a process."""
        return self.root / "logs" / f"{name}.log"

    def mark(self, name: str) -> str:
        """What a process of this cluster is found by (`ops.processes.find_marked`)."""
        return f"{self.mark_prefix}{name}"

    @property
    def mark_prefix(self) -> str:
        """What the marks of all processes of this cluster begin with."""
        return f"{self.root}:"

    def make_folders(self) -> None:
        """Create the folders; PostgreSQL's user may walk through, and look into nothing but its own."""
        self.root.mkdir(parents=True, exist_ok=True)
        self.root.chmod(0o711)
        for folder in (self.secrets, self.blocks, self.maps, self.root / "logs"):
            folder.mkdir(exist_ok=True)
            folder.chmod(0o700)
        self.postgres.mkdir(exist_ok=True)
        self.postgres.chmod(0o711)
