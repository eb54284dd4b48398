"""What lets a slot move: each table is ranges of ns_id, and no state lies beside its rows."""

import pytest
import sqlalchemy as sa

from metaserver.storage.tables import metadata as ns_metadata
from sharding.tables import local_metadata

NS_TABLES = ns_metadata.sorted_tables
SHARD_TABLES = [*NS_TABLES, *local_metadata.sorted_tables]


def _ids(table: sa.Table) -> str:
    return table.fullname


@pytest.mark.parametrize("table", NS_TABLES, ids=_ids)
def test_a_primary_key_starts_with_the_namespace(table: sa.Table):
    first = next(iter(table.primary_key.columns))
    assert (first.name, type(first.type)) == ("ns_id", sa.BigInteger)


@pytest.mark.parametrize("table", SHARD_TABLES, ids=_ids)
def test_no_column_counts_by_itself(table: sa.Table):
    assert table.autoincrement_column is None
    for column in table.columns:
        assert column.identity is None, column
        assert not isinstance(column.default, sa.Sequence), column
        default = column.server_default
        assert default is None or "nextval" not in str(getattr(default, "arg", default)), column
