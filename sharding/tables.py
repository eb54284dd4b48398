"""Table definitions: the directory, and each shard's schema `local`, which never moves."""

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, TIMESTAMP
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
    sa.Column("state", sa.Text, nullable=False, server_default="in_service", comment="in_service, draining"),
    sa.Column("replication_dsn", sa.Text, comment="as the other shards reach it; no password; null: as dsn"),
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

map_history = sa.Table(
    "map_history",
    directory_metadata,
    sa.Column("map_version", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("at", Timestamp, nullable=False, server_default=sa.func.now()),
    sa.Column("key", sa.BigInteger, nullable=False, comment="a slot's system namespace, or a namespace"),
    sa.Column("shard", sa.Text, comment="null: no longer placed by itself"),
    sa.Column("epoch", sa.BigInteger),
    sa.Column("move_id", sa.BigInteger),
)

pins = sa.Table(
    "pins",
    directory_metadata,
    sa.Column("ns_id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("shard", sa.Text, sa.ForeignKey("shards.name"), comment="to this shard, or else by the label"),
    sa.Column("label", sa.Text),
    sa.Column("value", sa.Text),
    sa.Column("created_at", Timestamp, nullable=False, server_default=sa.func.now()),
    sa.CheckConstraint("(shard IS NULL) = (label IS NOT NULL) AND (label IS NULL) = (value IS NULL)"),
)

moves = sa.Table(
    "moves",
    directory_metadata,
    sa.Column("move_id", sa.BigInteger, sa.Identity(), primary_key=True),
    sa.Column("source", sa.Text, nullable=False),
    sa.Column("target", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False, comment="sharding/reshard/model.py"),
    sa.Column("goal", sa.Text, nullable=False, comment="where it is to come to rest"),
    sa.Column("options", JSONB, nullable=False),
    sa.Column("is_paused", sa.Boolean, nullable=False, server_default="false"),
    sa.Column("error", sa.Text, comment="why the last runner stopped"),
    sa.Column("runner", sa.Text, comment="host and pid of the last one"),
    sa.Column("progress", JSONB, comment="of the work of its state"),
    sa.Column("verified", JSONB, comment="how far the comparison before a switch is"),
    sa.Column("created_at", Timestamp, nullable=False, server_default=sa.func.now()),
    sa.Column("updated_at", Timestamp, nullable=False, server_default=sa.func.now()),
    sa.Column("retired_at", Timestamp, comment="the point of no return: the quarantine begins"),
    sa.Column("ended_at", Timestamp),
)

move_units = sa.Table(
    "move_units",
    directory_metadata,
    sa.Column("move_id", sa.BigInteger, sa.ForeignKey("moves.move_id"), primary_key=True),
    sa.Column("key", sa.BigInteger, primary_key=True, autoincrement=False, comment="of its ownership row"),
    sa.Column("first", sa.BigInteger, nullable=False),
    sa.Column("last", sa.BigInteger, nullable=False, comment="inclusive"),
    sa.Column("excluded", ARRAY(sa.BigInteger), nullable=False, comment="placed by themselves"),
    sa.Column("holder", ByteChar, nullable=False, comment="s source, t target: who owns it by the map"),
    sa.Column("is_cutting", sa.Boolean, nullable=False, comment="a cutover away from the holder was begun"),
    sa.Column("is_live", sa.Boolean, nullable=False, comment="false when only old rows are left"),
    # No unit is in two moves.
    sa.Index("move_units_live", "key", unique=True, postgresql_where=sa.text("is_live")),
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

activity = sa.Table(
    "activity",
    local_metadata,
    sa.Column(
        "key",
        sa.BigInteger,
        primary_key=True,
        autoincrement=False,
        comment="a slot's system namespace, for its total, or a namespace",
    ),
    sa.Column("at", Timestamp, nullable=False, comment="as of when the sums have faded"),
    sa.Column("writes", sa.Double, nullable=False),
    sa.Column("reads", sa.Double, nullable=False),
    sa.Column("content_bytes", sa.Double, nullable=False),
    # Written every few seconds: without a log, and without a new place for each version.
    prefixes=["UNLOGGED"],
    postgresql_with={"fillfactor": 50},
)
