"""The shards as they were migrated: alembic compares neither primary keys nor sequences with the tables."""

import psycopg

from tests.support.databases import FreshCluster

_KEYS = """
SELECT c.relname, a.attname
  FROM pg_class c JOIN pg_index i ON i.indrelid = c.oid AND i.indisprimary
  JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = i.indkey[0]
 WHERE c.relnamespace = 'ns'::regnamespace
"""
_TABLES = "SELECT relname FROM pg_class WHERE relnamespace = 'ns'::regnamespace AND relkind IN ('r', 'p')"
_SEQUENCES = "SELECT schemaname, sequencename FROM pg_sequences WHERE schemaname IN ('ns', 'local')"


def test_a_shard_has_keys_that_start_with_the_namespace_and_no_sequence(fresh_cluster: FreshCluster):
    for dsn in fresh_cluster.shard_dsns.values():
        with psycopg.connect(dsn, autocommit=True) as conn:
            keys = dict(conn.execute(_KEYS).fetchall())
            assert keys == {table: "ns_id" for (table,) in conn.execute(_TABLES).fetchall()}
            assert len(keys) > 10
            assert conn.execute(_SEQUENCES).fetchall() == []
