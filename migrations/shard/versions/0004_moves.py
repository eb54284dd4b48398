"""The marker that travels in a move's streams, and the gate at which whoever applies it waits."""

import sqlalchemy as sa
from alembic import op

from sharding.locks import GATE_LOCK_CLASS

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add them to schema `ns`."""
    op.create_table(
        "move_markers",
        sa.Column("ns_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("writer", sa.Text(), nullable=False, comment="the shard whose stream it marks"),
        sa.Column("seq", sa.BigInteger(), nullable=False, comment="whoever has it has all that came before"),
        sa.Column("gate", sa.Integer(), comment="the lock that an applying worker waits for; null: none"),
        sa.PrimaryKeyConstraint("ns_id", "writer"),
        schema="ns",
    )
    op.execute(
        "CREATE FUNCTION ns.wait_at_gate() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        f" PERFORM pg_advisory_xact_lock_shared({GATE_LOCK_CLASS}, NEW.gate); RETURN NEW; END $$"
    )
    # ALWAYS: a stream's worker fires no others. On the source it passes, as nobody holds the lock there.
    op.execute(
        "CREATE TRIGGER wait_at_gate BEFORE INSERT OR UPDATE ON ns.move_markers FOR EACH ROW"
        " WHEN (NEW.gate IS NOT NULL) EXECUTE FUNCTION ns.wait_at_gate()"
    )
    op.execute("ALTER TABLE ns.move_markers ENABLE ALWAYS TRIGGER wait_at_gate")


def downgrade() -> None:
    """Take them away."""
    op.drop_table("move_markers", schema="ns")
    op.execute("DROP FUNCTION ns.wait_at_gate()")
