"""A shard: schema `local`, which stays, and schema `ns`, which moves with its namespaces."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from sharding.tables import ByteChar

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make everything."""
    op.execute("CREATE SCHEMA IF NOT EXISTS local")
    op.execute("CREATE SCHEMA ns")
    op.create_table(
        "leases",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("holder", sa.Text(), nullable=False),
        sa.Column("expires_at", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("name"),
        schema="local",
    )
    op.create_table(
        "ownership",
        sa.Column("ns_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("state", ByteChar(), nullable=False, comment="a active, f fenced, i importing, g gone"),
        sa.Column("successor", sa.Text(), comment="fenced, gone: the shard that takes or took over"),
        sa.Column("successor_epoch", sa.BigInteger()),
        sa.PrimaryKeyConstraint("ns_id"),
        schema="local",
    )
    op.create_table(
        "accounts",
        sa.Column("ns_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("account_id", sa.Text(), nullable=False),
        sa.Column("state", ByteChar(), nullable=False, comment="a active, d disabled, c cancelled"),
        sa.Column("email", sa.Text(), nullable=False),
        sa.Column("display_name", sa.Text(), nullable=False),
        sa.Column(
            "created_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False
        ),
        sa.PrimaryKeyConstraint("ns_id"),
        schema="ns",
    )
    op.create_table(
        "blocks",
        sa.Column("ns_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("hash", postgresql.BYTEA(), nullable=False),
        sa.Column(
            "generation", postgresql.BYTEA(), nullable=False, comment="8 bytes of time in µs, 8 random ones"
        ),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("ns_id", "hash"),
        schema="ns",
    )
    op.create_table(
        "devices",
        sa.Column("ns_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("device_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column(
            "created_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False
        ),
        sa.Column("revoked_at", postgresql.TIMESTAMP(timezone=True)),
        sa.PrimaryKeyConstraint("ns_id", "device_id"),
        schema="ns",
    )
    op.create_table(
        "emails",
        sa.Column("ns_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("email_key", sa.Text(collation="C"), nullable=False, comment="trimmed, NFC, case-folded"),
        sa.Column("account_id", sa.Text(), nullable=False),
        sa.Column("is_confirmed", sa.Boolean(), nullable=False),
        sa.Column(
            "since", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False
        ),
        sa.PrimaryKeyConstraint("ns_id", "email_key"),
        schema="ns",
    )
    op.create_table(
        "entries",
        sa.Column("ns_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("entry_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column(
            "parent_id", sa.BigInteger(), nullable=False, comment="0 is the root folder, which has no row"
        ),
        sa.Column("created_jid", sa.BigInteger(), nullable=False),
        sa.Column("last_jid", sa.BigInteger(), nullable=False),
        sa.Column("rev_jid", sa.BigInteger(), comment="a file's: the journal row with its content"),
        sa.Column("size", sa.BigInteger()),
        sa.Column("kind", ByteChar(), nullable=False, comment="f file, d folder"),
        sa.Column("is_deleted", sa.Boolean(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("name_key", sa.Text(collation="C"), nullable=False),
        sa.Column("content_hash", postgresql.BYTEA()),
        sa.PrimaryKeyConstraint("ns_id", "entry_id"),
        schema="ns",
        postgresql_with={"fillfactor": 85},
    )
    op.create_index(
        "entries_by_name",
        "entries",
        ["ns_id", "parent_id", "name_key"],
        unique=True,
        schema="ns",
        postgresql_where=sa.text("NOT is_deleted"),
    )
    op.create_table(
        "idempotency",
        sa.Column("ns_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("account_id", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("digest", postgresql.BYTEA(), nullable=False, comment="SHA-256 of the request"),
        sa.Column("answer", postgresql.BYTEA(), nullable=False, comment="the verdicts, as msgpack"),
        sa.Column(
            "created_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False
        ),
        sa.PrimaryKeyConstraint("ns_id", "account_id", "key"),
        schema="ns",
    )
    op.create_table(
        "link_codes",
        sa.Column("ns_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("code_hash", postgresql.BYTEA(), nullable=False),
        sa.Column("expires_at", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("request_hash", postgresql.BYTEA(), comment="of the request that used it up"),
        sa.Column("device_id", sa.Text(), comment="that it made"),
        sa.PrimaryKeyConstraint("ns_id", "code_hash"),
        schema="ns",
    )
    op.create_table(
        "members",
        sa.Column("ns_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("account_id", sa.Text(), nullable=False),
        sa.Column("level", ByteChar(), nullable=False, comment="o owner, e editor, v viewer"),
        sa.PrimaryKeyConstraint("ns_id", "account_id"),
        schema="ns",
    )
    op.create_table(
        "namespace_blocks",
        sa.Column("ns_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("hash", postgresql.BYTEA(), nullable=False),
        sa.Column("state", ByteChar(), nullable=False, comment="p pending, r ready"),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.Column("claim_id", postgresql.BYTEA(), nullable=False),
        sa.Column(
            "generation",
            postgresql.BYTEA(),
            comment="of the object that this namespace reads; null while pending",
        ),
        sa.Column(
            "since", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False
        ),
        sa.PrimaryKeyConstraint("ns_id", "hash"),
        schema="ns",
    )
    op.create_table(
        "namespaces",
        sa.Column("ns_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("head", sa.BigInteger(), nullable=False, comment="last committed jid"),
        sa.Column("next_entry_id", sa.BigInteger(), nullable=False),
        sa.Column(
            "modified_us", sa.BigInteger(), nullable=False, comment="server_modified of the head; only rises"
        ),
        sa.Column(
            "lost_ranges",
            postgresql.ARRAY(sa.BigInteger()),
            nullable=False,
            comment="pairs: old head, new start",
        ),
        sa.PrimaryKeyConstraint("ns_id"),
        schema="ns",
        postgresql_with={"fillfactor": 50},
    )
    op.create_table(
        "outbox",
        sa.Column("ns_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("jid", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("ns_id"),
        schema="ns",
        postgresql_with={"fillfactor": 50},
    )
    op.create_table(
        "refresh_tokens",
        sa.Column("ns_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("token_hash", postgresql.BYTEA(), nullable=False),
        sa.Column("device_id", sa.Text(), nullable=False),
        sa.Column("state", ByteChar(), nullable=False, comment="c current, n next, u used up"),
        sa.Column(
            "since", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False
        ),
        sa.PrimaryKeyConstraint("ns_id", "token_hash"),
        schema="ns",
    )
    op.create_table(
        "server_file_journal",
        sa.Column("ns_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("jid", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("entry_id", sa.BigInteger(), nullable=False),
        sa.Column("parent_id", sa.BigInteger(), nullable=False),
        sa.Column("prev_jid", sa.BigInteger(), comment="the same entry's row before this one"),
        sa.Column("rev_jid", sa.BigInteger(), comment="on every row of a file"),
        sa.Column("at_us", sa.BigInteger(), nullable=False, comment="server_modified"),
        sa.Column("op", ByteChar(), nullable=False, comment="c content, f folder, m move, d delete"),
        sa.Column("kind", ByteChar(), nullable=False),
        sa.Column("is_deleted", sa.Boolean(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column(
            "device", postgresql.BYTEA(), comment="who: the device id, which carries its account's root"
        ),
        sa.Column("old_path", sa.Text(), comment="on moves and deletes only"),
        sa.Column("size", sa.BigInteger(), comment="this and the next three: in the row that made a rev"),
        sa.Column("client_modified_us", sa.BigInteger()),
        sa.Column("content_hash", postgresql.BYTEA()),
        sa.Column("blocklist", postgresql.BYTEA(), comment="concatenated digests"),
        sa.PrimaryKeyConstraint("ns_id", "jid"),
        schema="ns",
    )
    op.create_table(
        "slot_counters",
        sa.Column("ns_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column(
            "next_count", sa.BigInteger(), nullable=False, comment="of the next namespace born in this slot"
        ),
        sa.PrimaryKeyConstraint("ns_id"),
        schema="ns",
    )
    op.create_table(
        "block_claims",
        sa.Column("ns_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("hash", postgresql.BYTEA(), nullable=False),
        sa.Column("claimant_ns_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("claim_id", postgresql.BYTEA(), nullable=False),
        sa.ForeignKeyConstraint(
            ["ns_id", "hash"],
            ["ns.blocks.ns_id", "ns.blocks.hash"],
        ),
        sa.PrimaryKeyConstraint("ns_id", "hash", "claimant_ns_id", "claim_id"),
        schema="ns",
    )


def downgrade() -> None:
    """There is nothing before this."""
    raise NotImplementedError("the first revision cannot be taken back")
