"""alembic's entry into the directory's tree."""

from migrations import Tree
from migrations.running import run_tree
from sharding.tables import directory_metadata

run_tree(Tree.DIRECTORY, [directory_metadata])
