"""alembic's entry into the shards' tree."""

from metaserver.storage.tables import metadata as ns_metadata
from migrations import Tree
from migrations.running import run_tree
from sharding.tables import local_metadata

run_tree(Tree.SHARD, [local_metadata, ns_metadata])
