"""The two alembic trees: `directory` for the database of the map, `shard` for each shard.

`shardctl migrate` (ops/migrate.py) drives them; there is no alembic.ini.
"""

from enum import StrEnum
from pathlib import Path


class Tree(StrEnum):
    """Which kind of database a migration is for."""

    DIRECTORY = "directory"
    SHARD = "shard"

    @property
    def folder(self) -> Path:
        """Where alembic finds env.py and versions/."""
        return Path(__file__).parent / self.value

    @property
    def version_schema(self) -> str | None:
        """The schema of alembic's own table. On a shard never `ns`: that one moves with its namespaces."""
        return "local" if self is Tree.SHARD else None
