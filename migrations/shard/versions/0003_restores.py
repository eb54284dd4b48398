"""What a shard knows of its cluster, and the restores that it has gone through."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_TIMESTAMP = postgresql.TIMESTAMP(timezone=True)


def upgrade() -> None:
    """Add them to schema `local`."""
    op.create_table(
        "cluster",
        sa.Column("id", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("cluster_id", sa.Text(), nullable=False),
        sa.Column("slot_count", sa.Integer(), nullable=False),
        sa.Column("shard", sa.Text(), nullable=False, comment="the name of this one"),
        sa.PrimaryKeyConstraint("id"),
        schema="local",
    )
    op.create_table(
        "restores",
        sa.Column("restore_id", sa.Text(), nullable=False),
        sa.Column("step", sa.Text(), nullable=False, comment="the last one that is done"),
        sa.Column("restored_to", sa.Text(), nullable=False),
        sa.Column("original", postgresql.JSONB(), nullable=False, comment="ownership rows as restored"),
        sa.Column("kept", postgresql.JSONB(), nullable=False, comment="what stays here: key, new epoch"),
        sa.Column("counts", postgresql.JSONB(), nullable=False, comment="what the steps changed"),
        sa.Column("began_at", _TIMESTAMP, server_default=sa.text("now()"), nullable=False),
        sa.Column("finished_at", _TIMESTAMP),
        sa.PrimaryKeyConstraint("restore_id"),
        schema="local",
    )


def downgrade() -> None:
    """Take them away."""
    op.drop_table("restores", schema="local")
    op.drop_table("cluster", schema="local")
