"""The directory: cluster, shards, map."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make everything."""
    op.create_table(
        "cluster",
        sa.Column("id", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("cluster_id", sa.Text(), nullable=False),
        sa.Column("slot_count", sa.Integer(), nullable=False),
        sa.Column("map_version", sa.BigInteger(), nullable=False),
        sa.Column(
            "created_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False
        ),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "shards",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column(
            "dsn", sa.Text(), nullable=False, comment="without a password: libpq finds it by PGPASSFILE"
        ),
        sa.Column("weight", sa.Integer(), nullable=False),
        sa.Column("labels", postgresql.JSONB(astext_type=sa.Text()), server_default="{}", nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "overrides",
        sa.Column("ns_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("shard", sa.Text(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["shard"],
            ["shards.name"],
        ),
        sa.PrimaryKeyConstraint("ns_id"),
    )
    op.create_table(
        "shard_map",
        sa.Column("slot", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("shard", sa.Text(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["shard"],
            ["shards.name"],
        ),
        sa.PrimaryKeyConstraint("slot"),
    )


def downgrade() -> None:
    """There is nothing before this."""
    raise NotImplementedError("the first revision cannot be taken back")
