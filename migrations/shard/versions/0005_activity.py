"""What is read and written how often, on this shard."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add it to schema `local`; what is lost in a crash is no loss."""
    op.create_table(
        "activity",
        sa.Column(
            "key",
            sa.BigInteger(),
            autoincrement=False,
            nullable=False,
            comment="a slot's system namespace, for its total, or a namespace",
        ),
        sa.Column(
            "at",
            postgresql.TIMESTAMP(timezone=True),
            nullable=False,
            comment="as of when the sums have faded",
        ),
        sa.Column("writes", sa.Double(), nullable=False),
        sa.Column("reads", sa.Double(), nullable=False),
        sa.Column("content_bytes", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("key"),
        schema="local",
        prefixes=["UNLOGGED"],
        postgresql_with={"fillfactor": 50},
    )


def downgrade() -> None:
    """Take it away."""
    op.drop_table("activity", schema="local")
