"""Table definitions of schema `ns`: everything that moves with its namespaces.

Every primary key begins with ns_id, so a slot is one contiguous range of each table. Rows that belong to no
namespace lie under the system namespace of the slot of their key's hash. No sequence and no identity column:
those do not move.
"""

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, BYTEA

from sharding.tables import ByteChar, Timestamp

metadata = sa.MetaData(schema="ns")


def _ns_id() -> sa.Column[int]:
    return sa.Column("ns_id", sa.BigInteger, primary_key=True, autoincrement=False)


namespaces = sa.Table(
    "namespaces",
    metadata,
    _ns_id(),
    sa.Column("head", sa.BigInteger, nullable=False, comment="last committed jid"),
    sa.Column("next_entry_id", sa.BigInteger, nullable=False),
    sa.Column(
        "modified_us", sa.BigInteger, nullable=False, comment="server_modified of the head; only rises"
    ),
    sa.Column("lost_ranges", ARRAY(sa.BigInteger), nullable=False, comment="pairs: old head, new start"),
    sa.Column(
        "live_bytes",
        sa.BigInteger,
        nullable=False,
        server_default="0",
        comment="sizes of the live files, and of those below `usage_debts`",
    ),
    # Every commit updates this row: room for its versions in the page keeps the updates heap-only.
    postgresql_with={"fillfactor": 50},
)

entries = sa.Table(
    "entries",
    metadata,
    _ns_id(),
    sa.Column("entry_id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("parent_id", sa.BigInteger, nullable=False, comment="0 is the root folder, which has no row"),
    sa.Column("created_jid", sa.BigInteger, nullable=False),
    sa.Column("last_jid", sa.BigInteger, nullable=False),
    sa.Column("rev_jid", sa.BigInteger, comment="a file's: the journal row with its content"),
    sa.Column("size", sa.BigInteger),
    sa.Column("kind", ByteChar, nullable=False, comment="f file, d folder"),
    sa.Column("is_deleted", sa.Boolean, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("name_key", sa.Text(collation="C"), nullable=False),
    sa.Column("content_hash", BYTEA),
    sa.Index(
        "entries_by_name",
        "ns_id",
        "parent_id",
        "name_key",
        unique=True,
        postgresql_where=sa.text("NOT is_deleted"),
    ),
    # Deleted files by their path (ADR 0013). An edit changes none of these columns, and stays heap-only.
    sa.Index(
        "entries_deleted",
        "ns_id",
        "parent_id",
        "name_key",
        "entry_id",
        postgresql_where=sa.text("is_deleted"),
    ),
    postgresql_with={"fillfactor": 85},
)

journal = sa.Table(
    "server_file_journal",
    metadata,
    _ns_id(),
    sa.Column("jid", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("entry_id", sa.BigInteger, nullable=False),
    sa.Column("parent_id", sa.BigInteger, nullable=False),
    sa.Column("prev_jid", sa.BigInteger, comment="the same entry's row before this one"),
    sa.Column("rev_jid", sa.BigInteger, comment="on every row of a file"),
    sa.Column("at_us", sa.BigInteger, nullable=False, comment="server_modified"),
    sa.Column("op", ByteChar, nullable=False, comment="c content, f folder, m move, d delete, r restore"),
    sa.Column("kind", ByteChar, nullable=False),
    sa.Column("is_deleted", sa.Boolean, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("device", BYTEA, comment="who: the device id, which carries its account's root"),
    sa.Column("old_path", sa.Text, comment="on moves and deletes only"),
    sa.Column("size", sa.BigInteger, comment="this and the next three: in the row that made a rev"),
    sa.Column("client_modified_us", sa.BigInteger),
    sa.Column("content_hash", BYTEA),
    sa.Column("blocklist", BYTEA, comment="concatenated digests"),
)

usage_debts = sa.Table(
    "usage_debts",
    metadata,
    _ns_id(),
    # A deleted folder is one row, whatever lies below it: what its files took is given back afterwards.
    sa.Column("entry_id", sa.BigInteger, primary_key=True, autoincrement=False, comment="a deleted folder"),
    sa.Column(
        "revived_count",
        sa.BigInteger,
        nullable=False,
        server_default="0",
        comment="what was revived from below it: a walk that this overtook begins anew",
    ),
)

upload_sessions = sa.Table(
    "upload_sessions",
    metadata,
    _ns_id(),
    sa.Column("session_id", BYTEA, primary_key=True, comment="16 random bytes"),
    sa.Column("account_id", sa.Text, nullable=False),
    sa.Column("parent_id", sa.BigInteger, nullable=False, comment="entry id; 0 is the root folder"),
    sa.Column("file_name", sa.Text, nullable=False),
    sa.Column("file_size", sa.BigInteger, nullable=False),
    sa.Column("content_hash", BYTEA, nullable=False),
    sa.Column("blocklist", BYTEA, comment="concatenated digests; null: not told when the session began"),
    sa.Column("taken_full", sa.Integer, nullable=False, server_default="0", comment="by the open address"),
    sa.Column(
        "taken_last", sa.Integer, nullable=False, server_default="0", comment="those of the last length"
    ),
    sa.Column("expires_at", Timestamp, nullable=False),
    sa.Column("commit_digest", BYTEA, comment="SHA-256 of the commit that used it up"),
    sa.Column("commit_answer", BYTEA, comment="its answer, as msgpack"),
    # Those that are committed are many, and what is counted is the others.
    sa.Index(
        "upload_sessions_open",
        "ns_id",
        "account_id",
        postgresql_where=sa.text("commit_digest IS NULL"),
    ),
)

upload_targets = sa.Table(
    "upload_targets",
    metadata,
    _ns_id(),
    sa.Column("session_id", BYTEA, primary_key=True),
    sa.Column("hash", BYTEA, primary_key=True),
    sa.Column("generation", BYTEA, nullable=False, comment="of the object that the client writes"),
    sa.Column("size", sa.Integer, nullable=False),
    sa.ForeignKeyConstraint(
        ["ns_id", "session_id"],
        ["ns.upload_sessions.ns_id", "ns.upload_sessions.session_id"],
        ondelete="CASCADE",
    ),
)

outbox = sa.Table(
    "outbox",
    metadata,
    _ns_id(),
    sa.Column("jid", sa.BigInteger, nullable=False),
    postgresql_with={"fillfactor": 50},
)

members = sa.Table(
    "members",
    metadata,
    _ns_id(),
    sa.Column("account_id", sa.Text, primary_key=True),
    sa.Column("level", ByteChar, nullable=False, comment="o owner, e editor, v viewer"),
)

idempotency = sa.Table(
    "idempotency",
    metadata,
    _ns_id(),
    sa.Column("account_id", sa.Text, primary_key=True),
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("digest", BYTEA, nullable=False, comment="SHA-256 of the request"),
    sa.Column("answer", BYTEA, nullable=False, comment="the verdicts, as msgpack"),
    sa.Column("created_at", Timestamp, nullable=False, server_default=sa.func.now()),
)

slot_counters = sa.Table(
    "slot_counters",
    metadata,
    _ns_id(),
    sa.Column("next_count", sa.BigInteger, nullable=False, comment="of the next namespace born in this slot"),
)

accounts = sa.Table(
    "accounts",
    metadata,
    _ns_id(),
    sa.Column("account_id", sa.Text, nullable=False),
    sa.Column("state", ByteChar, nullable=False, comment="a active, d disabled, c cancelled"),
    sa.Column("email", sa.Text, nullable=False),
    sa.Column("display_name", sa.Text, nullable=False),
    sa.Column("created_at", Timestamp, nullable=False, server_default=sa.func.now()),
    sa.Column("quota_bytes", sa.BigInteger, comment="null: the cluster's default"),
)

identities = sa.Table(
    "identities",
    metadata,
    _ns_id(),
    # Under the system namespace of the slot of the SHA-256 of issuer, NUL, subject.
    sa.Column("issuer", sa.Text(collation="C"), primary_key=True),
    sa.Column("subject", sa.Text(collation="C"), primary_key=True),
    sa.Column("account_id", sa.Text, comment="null: removed, and not linked again by an e-mail address"),
    sa.Column("since", Timestamp, nullable=False, server_default=sa.func.now()),
)

emails = sa.Table(
    "emails",
    metadata,
    _ns_id(),
    sa.Column("email_key", sa.Text(collation="C"), primary_key=True, comment="trimmed, NFC, case-folded"),
    sa.Column("account_id", sa.Text, nullable=False),
    sa.Column("is_confirmed", sa.Boolean, nullable=False),
    sa.Column("since", Timestamp, nullable=False, server_default=sa.func.now()),
)

link_codes = sa.Table(
    "link_codes",
    metadata,
    _ns_id(),
    sa.Column("code_hash", BYTEA, primary_key=True),
    sa.Column("expires_at", Timestamp, nullable=False),
    sa.Column("request_hash", BYTEA, comment="of the request that used it up"),
    sa.Column("device_id", sa.Text, comment="that it made"),
)

devices = sa.Table(
    "devices",
    metadata,
    _ns_id(),
    sa.Column("device_id", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("created_at", Timestamp, nullable=False, server_default=sa.func.now()),
    sa.Column("revoked_at", Timestamp),
)

refresh_tokens = sa.Table(
    "refresh_tokens",
    metadata,
    _ns_id(),
    sa.Column("token_hash", BYTEA, primary_key=True),
    sa.Column("device_id", sa.Text, nullable=False),
    sa.Column("state", ByteChar, nullable=False, comment="c current, n next, u used up"),
    sa.Column("since", Timestamp, nullable=False, server_default=sa.func.now()),
)

blocks = sa.Table(
    "blocks",
    metadata,
    _ns_id(),
    sa.Column("hash", BYTEA, primary_key=True),
    sa.Column("generation", BYTEA, nullable=False, comment="8 bytes of time in µs, 8 random ones"),
    sa.Column("size", sa.Integer, nullable=False),
)

block_claims = sa.Table(
    "block_claims",
    metadata,
    _ns_id(),
    sa.Column("hash", BYTEA, primary_key=True),
    sa.Column("claimant_ns_id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("claim_id", BYTEA, primary_key=True),
    # A backstop: a collector that deletes a claimed block fails here.
    sa.ForeignKeyConstraint(["ns_id", "hash"], ["ns.blocks.ns_id", "ns.blocks.hash"]),
)

namespace_blocks = sa.Table(
    "namespace_blocks",
    metadata,
    _ns_id(),
    sa.Column("hash", BYTEA, primary_key=True),
    sa.Column("state", ByteChar, nullable=False, comment="p pending, r ready"),
    sa.Column("size", sa.Integer, nullable=False),
    sa.Column("claim_id", BYTEA, nullable=False),
    sa.Column("generation", BYTEA, comment="of the object that this namespace reads; null while pending"),
    sa.Column("since", Timestamp, nullable=False, server_default=sa.func.now()),
)

move_markers = sa.Table(
    "move_markers",
    metadata,
    # Under the key of what moves, so that the row travels in the move's own streams.
    _ns_id(),
    sa.Column("writer", sa.Text, primary_key=True, comment="the shard whose stream it marks"),
    sa.Column("seq", sa.BigInteger, nullable=False, comment="whoever has it has all that came before"),
    sa.Column("gate", sa.Integer, comment="the lock that an applying worker waits for; null: none"),
)
