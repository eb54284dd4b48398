"""Table definitions: the directory, and each shard's schema `local`, which never moves."""

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB, TIMESTAMP
from sqlalchemy.types import UserDefinedType

directory_metadata = sa.MetaData()
local_metadata = sa.MetaData(schema="local")


class ByteChar(UserDefinedType[str]):
    """PostgreSQL's "char": an enumeration in one byte."""

    cache_ok = True

    def get_col_spec(self, **_: object) -> str:
        """The type's name in DDL."""
        return '"char"'


Timestamp = TIMESTAMP(timezone=True)

cluster = sa.Table(
    "cluster",
    directory_metadata,
    sa.Column("id", sa.SmallInteger, sa.CheckConstraint("id = 1"), primary_key=True, autoincrement=False),
    sa.Column("cluster_id", sa.Text, nullable=False),
    sa.Column("slot_count", sa.Integer, nullable=False),
    sa.Column("map_version", sa.BigInteger, nullable=False),
    sa.Column("created_at", Timestamp, nullable=False, server_default=sa.func.now()),
)

shards = sa.Table(
    "shards",
    directory_metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("dsn", sa.Text, nullable=False, comment="without a password: libpq finds it by PGPASSFILE"),
    sa.Column("weight", sa.Integer, nullable=False),
    sa.Column("labels", JSONB, nullable=False, server_default="{}"),
)

shard_map = sa.Table(
    "shard_map",
    directory_metadata,
    sa.Column("slot", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("shard", sa.Text, sa.ForeignKey("shards.name"), nullable=False),
    sa.Column("epoch", sa.BigInteger, nullable=False),
)

overrides = sa.Table(
    "overrides",
    directory_metadata,
    sa.Column("ns_id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("shard", sa.Text, sa.ForeignKey("shards.name"), nullable=False),
    sa.Column("epoch", sa.BigInteger, nullable=False),
)

ownership = sa.Table(
    "ownership",
    local_metadata,
    sa.Column("ns_id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("epoch", sa.BigInteger, nullable=False),
    sa.Column("state", ByteChar, nullable=False, comment="a active, f fenced, i importing, g gone"),
    sa.Column("successor", sa.Text, comment="fenced, gone: the shard that takes or took over"),
    sa.Column("successor_epoch", sa.BigInteger),
)

leases = sa.Table(
    "leases",
    local_metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("holder", sa.Text, nullable=False),
    sa.Column("expires_at", Timestamp, nullable=False),
)

shard_cluster = sa.Table(
    "cluster",
    local_metadata,
    sa.Column("id", sa.SmallInteger, sa.CheckConstraint("id = 1"), primary_key=True, autoincrement=False),
    sa.Column("cluster_id", sa.Text, nullable=False),
    sa.Column("slot_count", sa.Integer, nullable=False),
    sa.Column("shard", sa.Text, nullable=False, comment="the name of this one"),
)

restores = sa.Table(
    "restores",
    local_metadata,
    sa.Column("restore_id", sa.Text, primary_key=True),
    sa.Column("step", sa.Text, nullable=False, comment="the last one that is done"),
    sa.Column("restored_to", sa.Text, nullable=False),
    sa.Column("original", JSONB, nullable=False, comment="ownership rows as restored"),
    sa.Column("kept", JSONB, nullable=False, comment="what stays here: key, new epoch"),
    sa.Column("counts", JSONB, nullable=False, comment="what the steps changed"),
    sa.Column("began_at", Timestamp, nullable=False, server_default=sa.func.now()),
    sa.Column("finished_at", Timestamp),
)
