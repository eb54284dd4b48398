"""Moves, pins, and the map's history."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from sharding.tables import ByteChar

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_TIMESTAMP = postgresql.TIMESTAMP(timezone=True)


def upgrade() -> None:
    """Add them."""
    op.add_column(
        "shards",
        sa.Column(
            "state",
            sa.Text(),
            server_default="in_service",
            nullable=False,
            comment="in_service, draining",
        ),
    )
    op.add_column(
        "shards",
        sa.Column(
            "replication_dsn",
            sa.Text(),
            comment="as the other shards reach it; no password; null: as dsn",
        ),
    )
    op.create_table(
        "map_history",
        sa.Column("map_version", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("at", _TIMESTAMP, server_default=sa.text("now()"), nullable=False),
        sa.Column(
            "key", sa.BigInteger(), nullable=False, comment="a slot's system namespace, or a namespace"
        ),
        sa.Column("shard", sa.Text(), comment="null: no longer placed by itself"),
        sa.Column("epoch", sa.BigInteger()),
        sa.Column("move_id", sa.BigInteger()),
        sa.PrimaryKeyConstraint("map_version"),
    )
    op.create_table(
        "pins",
        sa.Column("ns_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("shard", sa.Text(), comment="to this shard, or else by the label"),
        sa.Column("label", sa.Text()),
        sa.Column("value", sa.Text()),
        sa.Column("created_at", _TIMESTAMP, server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("(shard IS NULL) = (label IS NOT NULL) AND (label IS NULL) = (value IS NULL)"),
        sa.ForeignKeyConstraint(["shard"], ["shards.name"]),
        sa.PrimaryKeyConstraint("ns_id"),
    )
    op.create_table(
        "moves",
        sa.Column("move_id", sa.BigInteger(), sa.Identity(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("target", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False, comment="sharding/reshard/model.py"),
        sa.Column("goal", sa.Text(), nullable=False, comment="where it is to come to rest"),
        sa.Column("options", postgresql.JSONB(), nullable=False),
        sa.Column("is_paused", sa.Boolean(), server_default="false", nullable=False),
        sa.Column("error", sa.Text(), comment="why the last runner stopped"),
        sa.Column("runner", sa.Text(), comment="host and pid of the last one"),
        sa.Column("progress", postgresql.JSONB(), comment="of the work of its state"),
        sa.Column("verified", postgresql.JSONB(), comment="how far the comparison before a switch is"),
        sa.Column("created_at", _TIMESTAMP, server_default=sa.text("now()"), nullable=False),
        sa.Column("updated_at", _TIMESTAMP, server_default=sa.text("now()"), nullable=False),
        sa.Column("retired_at", _TIMESTAMP, comment="the point of no return: the quarantine begins"),
        sa.Column("ended_at", _TIMESTAMP),
        sa.PrimaryKeyConstraint("move_id"),
    )
    op.create_table(
        "move_units",
        sa.Column("move_id", sa.BigInteger(), nullable=False),
        sa.Column(
            "key", sa.BigInteger(), autoincrement=False, nullable=False, comment="of its ownership row"
        ),
        sa.Column("first", sa.BigInteger(), nullable=False),
        sa.Column("last", sa.BigInteger(), nullable=False, comment="inclusive"),
        sa.Column(
            "excluded", postgresql.ARRAY(sa.BigInteger()), nullable=False, comment="placed by themselves"
        ),
        sa.Column("holder", ByteChar(), nullable=False, comment="s source, t target: who owns it by the map"),
        sa.Column(
            "is_cutting",
            sa.Boolean(),
            nullable=False,
            comment="a cutover away from the holder was begun",
        ),
        sa.Column("is_live", sa.Boolean(), nullable=False, comment="false when only old rows are left"),
        sa.ForeignKeyConstraint(["move_id"], ["moves.move_id"]),
        sa.PrimaryKeyConstraint("move_id", "key"),
    )
    op.create_index(
        "move_units_live", "move_units", ["key"], unique=True, postgresql_where=sa.text("is_live")
    )


def downgrade() -> None:
    """Take them away."""
    for table in ("move_units", "moves", "pins", "map_history"):
        op.drop_table(table)
    op.drop_column("shards", "replication_dsn")
    op.drop_column("shards", "state")
