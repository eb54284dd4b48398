"""A shard as a move sees it: how to reach it, and how its peers do. No address holds a password."""

from dataclasses import dataclass

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from sharding.directory import Connection
from sharding.shardmap import ShardMap

APPLICATION = "shardctl move"
CONNECT_TIMEOUT_S = 5
_WITH_TRANSACTION_TIMEOUT = 170_000
"""The first version that has the setting, which for others is an error."""
_SESSION = {
    # A copy may stand still for as long as its throttle wants; what must be bounded sets a bound of its own.
    "statement_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "timezone": "UTC",
    "jit": "off",
    # By default a server notices after two hours that a machine is gone, and keeps its locks until then.
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
}


@dataclass(frozen=True, slots=True)
class Site:
    """One shard of a move."""

    name: str
    dsn: str
    replication_dsn: str | None = None
    """As the other shards reach it, where that differs."""

    def connect(self, **options: str) -> Connection:
        """A connection in autocommit mode.

        Args:
            options: settings of the session, such as `lock_timeout="200ms"`.
        """
        settings = " ".join(f"-c {name}={value}" for name, value in (_SESSION | options).items())
        return _without_end(
            psycopg.connect(
                make_conninfo(
                    self.dsn,
                    options=settings,
                    application_name=APPLICATION,
                    connect_timeout=CONNECT_TIMEOUT_S,
                    keepalives_idle=5,
                    tcp_user_timeout=10_000,
                ),
                autocommit=True,
            )
        )

    def connect_replication(self, **options: str) -> Connection:
        """A connection that also takes the commands of the replication protocol; without parameters only."""
        settings = " ".join(f"-c {name}={value}" for name, value in options.items())
        return _without_end(
            psycopg.connect(
                make_conninfo(
                    self.replication_dsn or self.dsn,
                    replication="database",
                    options=settings,
                    application_name=APPLICATION,
                    connect_timeout=CONNECT_TIMEOUT_S,
                ),
                autocommit=True,
            )
        )

    def subscription_conninfo(self) -> str:
        """What a subscription at another shard connects with, password included: not for any log or record.

        The password is the one that libpq finds for the address here, by PGPASSFILE or the like.
        """
        address = self.replication_dsn or self.dsn
        with self.connect() as conn:
            password = conn.pgconn.password.decode()
            # An address without a user is about this process's; the subscriber's server has another one.
            user = conninfo_to_dict(address).get("user", conn.info.user)
        return make_conninfo(
            address,
            user=user,
            password=password or None,
            connect_timeout=CONNECT_TIMEOUT_S,
            keepalives_idle=5,
            # A slot waits for every transaction under way: one that never ends is to be heard of.
            options="-c lock_timeout=5s -c statement_timeout=0",
        )


def site_of(shard_map: ShardMap, name: str) -> Site:
    """A shard of the map, as a move reaches it."""
    info = shard_map.shards[name]
    return Site(name, info.dsn, info.replication_dsn)


def _without_end(conn: Connection) -> Connection:
    """The connection, whose transactions may last for as long as a copy does."""
    if conn.info.server_version >= _WITH_TRANSACTION_TIMEOUT:
        conn.execute("SET transaction_timeout = 0")
    return conn
