"""What a move that has ended must not leave behind: asked of the servers, and not of the code of moves."""

from collections.abc import Iterator, Mapping
from typing import LiteralString

import psycopg
from psycopg import sql

from sharding.locks import (
    GATE_LOCK_CLASS,
    MAP_LOCK_CLASS,
    MIGRATION_LOCK_CLASS,
    MOVE_LOCK_CLASS,
    SLOT_LOCK_CLASS,
)

Connection = psycopg.Connection

_CATALOGS: Mapping[str, LiteralString] = {
    "replication slot": "SELECT slot_name FROM pg_replication_slots"
    " WHERE database IS NULL OR database = current_database()",
    "publication": "SELECT pubname FROM pg_publication",
    "subscription": "SELECT subname FROM pg_subscription"
    " WHERE subdbid = (SELECT oid FROM pg_database WHERE datname = current_database())",
    "replication origin": "SELECT roname FROM pg_replication_origin",
    "prepared transaction": "SELECT gid FROM pg_prepared_xacts WHERE database = current_database()",
    "session of a move": "SELECT pid, application_name, state FROM pg_stat_activity"
    " WHERE application_name LIKE 'shardctl%' AND datname = current_database()",
}
_LOCKS: LiteralString = (
    "SELECT classid, objid, mode, pid FROM pg_locks"
    " WHERE locktype = 'advisory' AND objsubid = 2 AND classid = ANY(%s)"
    " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
)
_LOCK_CLASSES = (SLOT_LOCK_CLASS, MIGRATION_LOCK_CLASS, MOVE_LOCK_CLASS, GATE_LOCK_CLASS, MAP_LOCK_CLASS)
_TABLES: LiteralString = (
    "SELECT relname FROM pg_class WHERE relnamespace = 'ns'::regnamespace AND relkind IN ('r', 'p')"
    " ORDER BY relname"
)
# The effective row of a namespace is its own, else that of its slot.
_FOREIGN_ROWS: LiteralString = (
    "SELECT count(*) FROM {} t WHERE coalesce("
    "(SELECT o.state FROM local.ownership o WHERE o.ns_id = t.ns_id),"
    " (SELECT o.state FROM local.ownership o WHERE o.ns_id = (t.ns_id >> 51) << 51)) IS DISTINCT FROM 'a'"
)
_LIVE: Mapping[str, LiteralString] = {
    "live move": "SELECT move_id, state, goal, error FROM moves"
    " WHERE state NOT IN ('completed', 'cancelled')",
    "live unit of a move": "SELECT move_id, key FROM move_units WHERE is_live",
    "half-done cutover": "SELECT move_id, key FROM move_units WHERE is_cutting",
}


def find_leftovers(directory: Connection, shards: Mapping[str, Connection]) -> list[str]:
    """Everything that somebody left, a line each.

    A session whose client was killed goes some moments later, with its locks: ask again before complaining.

    Args:
        directory: in autocommit mode, as the shards' are, which are by name.
        shards: all of the cluster, each on a server of its own.
    """
    found = [f"directory: {line}" for line in _find_in_catalogs(directory, _LIVE)]
    found += [f"directory: {line}" for line in _find_in_server(directory)]
    for name, conn in shards.items():
        found += [f"{name}: {line}" for line in (*_find_in_server(conn), *_find_rows(conn))]
    return found + check_owners(directory, shards) + _find_states(shards)


def _find_in_server(conn: Connection) -> Iterator[str]:
    yield from _find_in_catalogs(conn, _CATALOGS)
    for row in conn.execute(_LOCKS, [list(_LOCK_CLASSES)]):
        yield "lock: class {}, key {}, {} by {}".format(*row)


def _find_in_catalogs(conn: Connection, queries: Mapping[str, LiteralString]) -> Iterator[str]:
    for what, query in queries.items():
        for row in conn.execute(query):
            yield f"{what}: {' '.join(map(str, row))}"


def _find_rows(conn: Connection) -> Iterator[str]:
    """Rows of namespaces that are not owned here, and what marked the streams."""
    for (table,) in conn.execute(_TABLES).fetchall():
        identifier = sql.Identifier("ns", table)
        row = conn.execute(sql.SQL(_FOREIGN_ROWS).format(identifier)).fetchone()
        if row is not None and row[0]:
            yield f"{row[0]} rows of {table} that are not owned here"
    for key, writer in conn.execute("SELECT ns_id, writer FROM ns.move_markers"):
        yield f"marker of {key} by {writer}"


def check_owners(directory: Connection, shards: Mapping[str, Connection]) -> list[str]:
    """Complaints about slots, and namespaces by themselves, that are not active just where the map has them.

    The epoch counts, too. There are none unless somebody is between an activation and the map.
    """
    slots = directory.execute("SELECT slot, shard, epoch FROM shard_map")
    placed = {slot << 51: (shard, epoch) for slot, shard, epoch in slots}
    for ns_id, shard, epoch in directory.execute("SELECT ns_id, shard, epoch FROM overrides"):
        placed[ns_id] = (shard, epoch)
    active: dict[int, list[tuple[str, int]]] = {key: [] for key in placed}
    for name, conn in shards.items():
        for key, epoch in conn.execute("SELECT ns_id, epoch FROM local.ownership WHERE state = 'a'"):
            active.setdefault(key, []).append((name, epoch))
    return [
        f"owners: {key} is active at {owners or 'nobody'}, by the map at {placed.get(key, 'nobody')}"
        for key, owners in sorted(active.items())
        if owners != [placed.get(key)]
    ]


def _find_states(shards: Mapping[str, Connection]) -> list[str]:
    """Rows that only a move under way has."""
    return [
        f"{name}: {key} is {state} at epoch {epoch}"
        for name, conn in shards.items()
        for key, state, epoch in conn.execute(
            "SELECT ns_id, state, epoch FROM local.ownership WHERE state IN ('f', 'i') ORDER BY ns_id"
        )
    ]


def find_doubled(shards: Mapping[str, Connection]) -> list[str]:
    """Keys that two shards own, which must never be, whoever is amid whatever."""
    # One shard after the other: a cutover in between would show a key at both, or at neither.
    owners: dict[int, list[str]] = {}
    for name, conn in shards.items():
        for (key,) in conn.execute("SELECT ns_id FROM local.ownership WHERE state = 'a'"):
            owners.setdefault(key, []).append(name)
    return [f"{key} is active on {', '.join(names)}" for key, names in owners.items() if len(names) > 1]
