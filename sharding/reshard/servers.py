"""What a PostgreSQL server must be, and have free, before a move: refused here, not hours later."""

from collections.abc import Iterator
from typing import LiteralString

from sharding.directory import Connection
from sharding.reshard.errors import MoveError, MoveRefused

MIN_VERSION = 160000
"""`origin = none` and `streaming = parallel` came with it."""
OLD_TRANSACTION_S = 60.0
"""A slot is made when every transaction under way has ended. Ours take milliseconds, so this one is stuck, or
somebody's import."""
_SHOWN_QUERY = 100


class TransactionsOpen(MoveError):
    """Transactions that do not end hold off the creation of a replication slot."""

    code = "transactions_open"


def check_server(conn: Connection) -> list[str]:
    """Warnings about a server that can take part in a move, as publisher and as subscriber.

    Raises:
        MoveRefused: it cannot; names everything that is missing.
        TransactionsOpen: transactions, prepared or not, have been open for long.
    """
    missing = list(_missing(conn))
    if missing:
        raise MoveRefused(f"{_place(conn)} cannot take part in a move: {'; '.join(missing)}")
    stuck = list_transactions(conn, OLD_TRANSACTION_S)
    if stuck:
        raise TransactionsOpen(f"{_place(conn)} has open transactions, which a move would wait for: {stuck}")
    return list(_warnings(conn))


def check_different_servers(source: Connection, target: Connection) -> None:
    """Nothing, if two shards are on different servers: within one, a subscription would wait for itself.

    Raises:
        MoveRefused: they are databases of one server.
    """
    # A copy of a server's files has its identifier, and was not started in the same microsecond.
    if source.execute(_IDENTITY).fetchone() == target.execute(_IDENTITY).fetchone():
        raise MoveRefused(f"both shards are on one server ({_place(source)}): a move needs two")


def list_transactions(conn: Connection, older_than_s: float) -> str:
    """Who writes for longer than that, or has prepared, anywhere on the server; "" if nobody does."""
    rows = conn.execute(_TRANSACTIONS, {"age": older_than_s, "shown": _SHOWN_QUERY}).fetchall()
    return "; ".join(row[0] for row in rows)


def _place(conn: Connection) -> str:
    return f"{conn.info.dbname} at {conn.info.host}:{conn.info.port}"


def _missing(conn: Connection) -> Iterator[str]:
    """What a server lacks, in words that name the remedy."""
    if conn.info.server_version < MIN_VERSION:
        yield f"it is PostgreSQL {conn.info.server_version // 10000}, and 16 is needed"
        return
    level, is_standby = _one(conn, "SELECT current_setting('wal_level'), pg_is_in_recovery()")
    if level != "logical":
        yield f"wal_level is {level}: set it to logical and restart"
    if is_standby:
        yield "it is a standby: name its primary"
        return
    for setting, needed, free in conn.execute(_FREE).fetchall():
        if free < needed:
            yield f"{max(free, 0)} of {setting} are free, and {needed} needed: raise it, or end other moves"
    yield from (remedy for has_it, remedy in zip(_one(conn, _RIGHTS), _REMEDIES, strict=True) if not has_it)


def _warnings(conn: Connection) -> Iterator[str]:
    keep, timestamps = _one(
        conn, "SELECT current_setting('max_slot_wal_keep_size'), current_setting('track_commit_timestamp')"
    )
    if keep == "-1":
        yield f"{_place(conn)}: max_slot_wal_keep_size is -1, so a forgotten slot would fill the disk"
    if timestamps == "on":
        yield f"{_place(conn)}: track_commit_timestamp is on, which slows the subscriber down"


def _one(conn: Connection, query: LiteralString) -> tuple[object, ...]:
    row = conn.execute(query).fetchone()
    assert row is not None
    return row


_IDENTITY: LiteralString = (
    "SELECT (SELECT system_identifier FROM pg_control_system()), pg_postmaster_start_time()"
)
# A reader has no transaction id, and nothing waits for it.
_TRANSACTIONS: LiteralString = """
SELECT format('pid %%s, %%s s, %%s: %%s', pid, round(extract(epoch FROM clock_timestamp() - xact_start)),
              coalesce(nullif(application_name, ''), backend_type),
              left(regexp_replace(query, '\\s+', ' ', 'g'), %(shown)s))
  FROM pg_stat_activity
 WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid()
   AND clock_timestamp() - xact_start > make_interval(secs => %(age)s)
UNION ALL
SELECT format('prepared transaction %%L, %%s s, of %%s in %%s: COMMIT PREPARED it or ROLLBACK PREPARED',
              gid, round(extract(epoch FROM clock_timestamp() - prepared)), owner, database)
  FROM pg_prepared_xacts WHERE clock_timestamp() - prepared > make_interval(secs => %(age)s)
"""
# One sender streams, another makes the next slot; one worker applies, another one a large transaction.
_FREE: LiteralString = """
SELECT 'max_replication_slots', 1,
       current_setting('max_replication_slots')::int - (SELECT count(*) FROM pg_replication_slots)
UNION ALL
SELECT 'max_wal_senders', 2,
       current_setting('max_wal_senders')::int - (SELECT count(*) FROM pg_stat_activity
                                                   WHERE backend_type = 'walsender')
UNION ALL
SELECT 'max_logical_replication_workers', 2,
       current_setting('max_logical_replication_workers')::int
         - greatest((SELECT count(*) FROM pg_subscription WHERE subenabled),
                    (SELECT count(*) FROM pg_stat_activity
                      WHERE backend_type ~ '^logical replication .*worker$'))
UNION ALL
SELECT coalesce((SELECT name FROM pg_settings WHERE name = 'max_active_replication_origins'),
                'max_replication_slots'), 1,
       coalesce(current_setting('max_active_replication_origins', true),
                current_setting('max_replication_slots'))::int
         - (SELECT count(*) FROM pg_replication_origin)
"""
_RIGHTS: LiteralString = """
SELECT r.rolsuper OR r.rolreplication,
       r.rolsuper OR pg_has_role(current_user, 'pg_create_subscription', 'MEMBER'),
       has_database_privilege(current_database(), 'CREATE'),
       r.rolsuper OR NOT EXISTS (SELECT 1 FROM pg_class c WHERE c.relnamespace = to_regnamespace('ns')
                                    AND c.relkind IN ('r', 'p') AND NOT pg_has_role(c.relowner, 'USAGE'))
  FROM pg_roles r WHERE r.rolname = current_user
"""
_REMEDIES = (
    "the role may not replicate: ALTER ROLE … REPLICATION",
    "the role may not subscribe: GRANT pg_create_subscription TO …",
    "the role may not publish: GRANT CREATE ON DATABASE … TO …",
    "the role does not own the tables of schema ns, and may not publish them: grant it their owner",
)
