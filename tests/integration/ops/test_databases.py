"""The fixtures themselves: servers, templates, fresh databases."""

from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from sharding.bootstrap import create_cluster
from tests.support.databases import FreshCluster, PgServers


@pytest.mark.parametrize("_again", range(2))
def test_a_fresh_cluster_is_migrated_and_empty(fresh_cluster: FreshCluster, _again: int) -> None:
    shard_map = create_cluster(fresh_cluster.directory_dsn, fresh_cluster.shards)

    assert set(shard_map.shards) == {"shard-1", "shard-2"}
    with psycopg.connect(fresh_cluster.directory_dsn) as conn:
        assert conn.execute("SELECT map_version FROM cluster").fetchone() == (1,)


def test_servers_are_three_and_have_what_moves_need(pg_servers: PgServers) -> None:
    def settings(server_index: int) -> tuple[str, ...]:
        with pg_servers.all[server_index].connect() as conn:
            return tuple(
                conn.execute(f"SHOW {name}").fetchone()[0]  # type: ignore[index]
                for name in ("data_directory", "wal_level", "server_encoding", "listen_addresses")
            )

    with ThreadPoolExecutor() as pool:
        shown = list(pool.map(settings, range(3)))

    assert len({row[0] for row in shown}) == 3
    assert {row[1:] for row in shown} == {("logical", "UTF8", "127.0.0.1")}
