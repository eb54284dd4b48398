"""What a restore has on the disk while it is under way, beside the data folder that it is for.

data                  the server's own, until the very end: gone, or the state that is to be left
data.restore.json     what is being restored; there from the first step to the last
data.copying          the base backup, while it is copied
data.restoring        the whole copy, which recovers here and is reconciled here
data.former-…         what `data` held, if it was there
"""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path

import msgspec

from ops.files import write_json


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """Up to where the log is replayed; neither time nor lsn: as far as the archive goes."""

    time: datetime | None = None
    lsn: str | None = None
    timeline: str = "latest"

    @property
    def text(self) -> str:
        """For people and records."""
        if self.time is not None:
            return f"time {self.time.isoformat()}"
        return f"lsn {self.lsn}" if self.lsn is not None else "the archive's end"


class Phase(StrEnum):
    """How far the work on the files is."""

    COPYING = "copying"
    COPIED = "copied"
    """From here on the log is replayed."""
    RECOVERED = "recovered"
    """It takes writes; the database itself tells how far its reconciliation is."""
    LET_IN = "let_in"
    """Past the point of no return: the directory says that it is back."""
    PLACED = "placed"
    """The data are where the server looks for them."""


class RestoreState(msgspec.Struct, frozen=True, kw_only=True):
    """The whole of `….restore.json`."""

    restore_id: str
    shard: str
    source: str
    backup_id: str
    target: Target
    phase: Phase = Phase.COPYING


@dataclass(frozen=True, slots=True)
class WorkPaths:
    """The paths beside a data folder."""

    data: Path

    def _beside(self, ending: str) -> Path:
        return self.data.with_name(self.data.name + ending)

    @property
    def state(self) -> Path:
        """The state file."""
        return self._beside(".restore.json")

    @property
    def copying(self) -> Path:
        """A copy under way."""
        return self._beside(".copying")

    @property
    def restoring(self) -> Path:
        """The copy that recovers."""
        return self._beside(".restoring")

    @property
    def log(self) -> Path:
        """The log of the server while it recovers."""
        return self._beside(".restore.log")

    def former(self, restore_id: str) -> Path:
        """Where the data go that are replaced."""
        return self._beside(f".former-{restore_id}")

    def read_state(self) -> RestoreState | None:
        """The unfinished restore; None when there is none."""
        try:
            return msgspec.json.decode(self.state.read_bytes(), type=RestoreState)
        except FileNotFoundError:
            return None

    def write_state(self, state: RestoreState) -> None:
        """Note how far it is."""
        write_json(self.state, state)


def work_of(data_dir: Path) -> WorkPaths:
    """The work beside a data folder."""
    return WorkPaths(data_dir)
