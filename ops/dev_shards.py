"""Shards of an embedded cluster that come after it was made, and go. The directory says which there are."""

from collections.abc import Callable, Collection

import msgspec

from ops.files import write_json
from ops.layout import DevLayout
from ops.session import load_map
from ops.shards import add_shard, connect_shard, find_signature
from ops.specs import DIRECTORY, ClusterRecord
from sharding.shardmap import ShardInfo


def join_shards(layout: DevLayout, record: ClusterRecord, say: Callable[[str], None]) -> ClusterRecord:
    """The record when the shards that wait for it have been added."""
    for name in record.joining:
        add_shard(record.dsn(DIRECTORY), _info(record, name), say)
        say(f"added {name}, which holds nothing yet: `shardctl rebalance` fills it")
        left = [other for other in record.joining if other != name]
        record = msgspec.structs.replace(record, joining=left)
        write_json(layout.record_file, record)
    return record


def drop_removed(layout: DevLayout, record: ClusterRecord, say: Callable[[str], None]) -> ClusterRecord:
    """The record without shards that were removed by a command that did not get to saying so here."""
    known = load_map(record.dsn(DIRECTORY)).shards
    gone = [name for name in record.member_names if name not in known and not _is_signed(record, name)]
    if gone:
        say(f"{', '.join(gone)} removed from the cluster: not started any more")
    return drop_shards(layout, record, gone)


def drop_shards(layout: DevLayout, record: ClusterRecord, names: Collection[str]) -> ClusterRecord:
    """The record without some shards."""
    gone = [name for name in record.shard_names if name in names]
    if gone:
        record = msgspec.structs.replace(
            record,
            joining=[name for name in record.joining if name not in gone],
            removed=[*record.removed, *gone],
        )
        write_json(layout.record_file, record)
    return record


def _is_signed(record: ClusterRecord, name: str) -> bool:
    """Whether a database says to be a shard: then it is not for us to drop, whatever the directory has."""
    with connect_shard(_info(record, name)) as conn:
        return find_signature(conn) is not None


def _info(record: ClusterRecord, name: str) -> ShardInfo:
    return ShardInfo(name=name, dsn=record.dsn(name), weight=1)
