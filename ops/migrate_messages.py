"""What `ops/migrate.py` and its workers tell one another.

Apart from the worker, so that a command that migrates nothing does not load alembic.
"""

import msgspec

from migrations import Tree

CONNECT_TIMEOUT_S = 5


class MigrationJob(msgspec.Struct, frozen=True):
    """What a worker has to do."""

    tree: Tree
    dsn: str
    lock_timeout_ms: int
    statement_timeout_ms: int
    is_dry_run: bool


class Planned(msgspec.Struct, frozen=True, tag="planned"):
    """Where the database stands, and the steps ahead of it in order."""

    current: str | None
    head: str | None
    steps: list[str]


class Applied(msgspec.Struct, frozen=True, tag="applied"):
    """A step is committed."""

    revision: str


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """The worker gave up; what it applied before stays."""

    message: str
    is_busy: bool = False


Message = Planned | Applied | Failed
