"""Usage and quota, deleted files by path, upload sessions, identities of outside issuers."""

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
        "namespaces",
        sa.Column(
            "live_bytes",
            sa.BigInteger(),
            server_default="0",
            nullable=False,
            comment="sizes of the live files, and of those below `usage_debts`",
        ),
        schema="ns",
    )
    op.add_column(
        "accounts",
        sa.Column("quota_bytes", sa.BigInteger(), comment="null: the cluster's default"),
        schema="ns",
    )
    op.alter_column(
        "server_file_journal",
        "op",
        comment="c content, f folder, m move, d delete, r restore",
        existing_comment="c content, f folder, m move, d delete",
        existing_type=ByteChar(),
        existing_nullable=False,
        schema="ns",
    )
    op.create_index(
        "entries_deleted",
        "entries",
        ["ns_id", "parent_id", "name_key", "entry_id"],
        schema="ns",
        postgresql_where=sa.text("is_deleted"),
    )
    op.create_table(
        "usage_debts",
        sa.Column("ns_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column(
            "entry_id", sa.BigInteger(), autoincrement=False, nullable=False, comment="a deleted folder"
        ),
        sa.Column(
            "revived_count",
            sa.BigInteger(),
            server_default="0",
            nullable=False,
            comment="what was revived from below it: a walk that this overtook begins anew",
        ),
        sa.PrimaryKeyConstraint("ns_id", "entry_id"),
        schema="ns",
    )
    op.create_table(
        "upload_sessions",
        sa.Column("ns_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("session_id", postgresql.BYTEA(), nullable=False, comment="16 random bytes"),
        sa.Column("account_id", sa.Text(), nullable=False),
        sa.Column("parent_id", sa.BigInteger(), nullable=False, comment="entry id; 0 is the root folder"),
        sa.Column("file_name", sa.Text(), nullable=False),
        sa.Column("file_size", sa.BigInteger(), nullable=False),
        sa.Column("content_hash", postgresql.BYTEA(), nullable=False),
        sa.Column(
            "blocklist",
            postgresql.BYTEA(),
            comment="concatenated digests; null: not told when the session began",
        ),
        sa.Column(
            "taken_full", sa.Integer(), nullable=False, server_default="0", comment="by the open address"
        ),
        sa.Column(
            "taken_last", sa.Integer(), nullable=False, server_default="0", comment="those of the last length"
        ),
        sa.Column("expires_at", _TIMESTAMP, nullable=False),
        sa.Column("commit_digest", postgresql.BYTEA(), comment="SHA-256 of the commit that used it up"),
        sa.Column("commit_answer", postgresql.BYTEA(), comment="its answer, as msgpack"),
        sa.PrimaryKeyConstraint("ns_id", "session_id"),
        schema="ns",
    )
    op.create_index(
        "upload_sessions_open",
        "upload_sessions",
        ["ns_id", "account_id"],
        schema="ns",
        postgresql_where=sa.text("commit_digest IS NULL"),
    )
    op.create_table(
        "upload_targets",
        sa.Column("ns_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("session_id", postgresql.BYTEA(), nullable=False),
        sa.Column("hash", postgresql.BYTEA(), nullable=False),
        sa.Column(
            "generation", postgresql.BYTEA(), nullable=False, comment="of the object that the client writes"
        ),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["ns_id", "session_id"],
            ["ns.upload_sessions.ns_id", "ns.upload_sessions.session_id"],
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("ns_id", "session_id", "hash"),
        schema="ns",
    )
    op.create_table(
        "identities",
        sa.Column("ns_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("issuer", sa.Text(collation="C"), nullable=False),
        sa.Column("subject", sa.Text(collation="C"), nullable=False),
        sa.Column(
            "account_id",
            sa.Text(),
            comment="null: removed, and not linked again by an e-mail address",
        ),
        sa.Column("since", _TIMESTAMP, server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("ns_id", "issuer", "subject"),
        schema="ns",
    )
