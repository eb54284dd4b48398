"""Between SQL rows and the model's values."""

from typing import LiteralString

from psycopg.rows import TupleRow

from metaserver.model.rows import Entry, Kind

ENTRY_COLUMNS: LiteralString = (
    "e.entry_id, e.parent_id, e.name, e.name_key, e.kind, e.is_deleted, e.created_jid, e.last_jid,"
    " e.rev_jid, e.size, e.content_hash"
)
ENTRY_COLUMN_COUNT = 11


def to_entry(row: TupleRow) -> Entry:
    """An entry from its columns in the order of ENTRY_COLUMNS."""
    return Entry(row[0], row[1], row[2], row[3], Kind(row[4]), *row[5:11])
