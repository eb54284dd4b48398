"""What the planner knows nothing of is read by keys all the same: a namespace that has just grown."""

import secrets
from collections.abc import Sequence
from typing import LiteralString

import psycopg
from psycopg import sql

from metaserver.services.reads import ReadService
from tests.support.databases import FreshCluster
from tests.support.services import User, run_services
from tests.support.waiting import wait_for
from wire.api import CreateFolder, ListFolder, Move

FOLDERS = 4_000
BATCH = 500
MOST_CREATING = FOLDERS * BATCH
"""Rows and index entries looked at. As long as nothing is there, plans look at all of a batch for each."""
MOST_READING = 8
"""By row that is told or moved: itself in the journal and among the entries, as a row and in the index."""


def freeze_statistics(dsns: Sequence[str]) -> None:
    """Have the planner know what is there now, and no more than that."""
    for dsn in dsns:
        with psycopg.connect(dsn, autocommit=True) as conn:
            for table in ("entries", "server_file_journal"):
                conn.execute(
                    sql.SQL("ALTER TABLE {} SET (autovacuum_enabled = false)").format(
                        sql.Identifier("ns", table)
                    )
                )
            conn.execute("ANALYZE")


def count_looked_at(dsns: Sequence[str]) -> int:
    """Rows and index entries of entries and journal that were read, once all sessions have ended."""
    total = 0
    for dsn in dsns:
        with psycopg.connect(dsn, autocommit=True) as conn:
            wait_for(lambda c=conn: not c.execute(_OTHERS).fetchall(), "the end of the sessions")
            row = conn.execute(_LOOKED_AT).fetchone()
            assert row is not None
            total += int(row[0])
    return total


_OTHERS: LiteralString = (
    "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    " AND backend_type = 'client backend'"
)
_LOOKED_AT: LiteralString = (
    "SELECT (SELECT sum(seq_tup_read + idx_tup_fetch) FROM pg_stat_user_tables"
    "  WHERE relname IN ('entries', 'server_file_journal'))"
    " + (SELECT sum(idx_tup_read) FROM pg_stat_user_indexes"
    "  WHERE relname IN ('entries', 'server_file_journal'))"
)


async def beside(other: User) -> User:
    """A user whose namespace is on another's shard, where the planner knows that one alone."""
    shard_of = other.services.router.placement
    while True:
        user = await other.services.user(f"{secrets.token_hex(4)}@example.org")
        if shard_of(user.root_ns).shard == shard_of(other.root_ns).shard:
            return user


async def test_a_namespace_that_has_just_grown(fresh_cluster: FreshCluster):
    dsns = [dsn for _, dsn, _ in fresh_cluster.shards]
    async with run_services(fresh_cluster) as services:
        other = await services.user("grace@example.org", "Grace")
        await other.write(*[CreateFolder(path=f"/{i}") for i in range(100)])
        user = await beside(other)
        start = await services.reads.list_folder(user.caller, ListFolder(path="", recursive=True))
        freeze_statistics(dsns)
        for first in range(0, FOLDERS, BATCH):
            await user.write(*[CreateFolder(path=f"/all/{i}") for i in range(first, first + BATCH)])
        keys = services.cursor_keys
    created = count_looked_at(dsns)
    assert FOLDERS <= created < MOST_CREATING
    told = 0
    async with run_services(fresh_cluster) as services:
        user = User(services, user.caller, user.root_ns)
        reads = ReadService(services.tx, services.access, keys)
        page = await reads.list_folder_continue(user.caller, start.cursor)
        told += len(page.entries)
        while page.has_more:
            page = await reads.list_folder_continue(user.caller, page.cursor)
            told += len(page.entries)
        assert told == FOLDERS + 1
        page = await reads.list_folder(user.caller, ListFolder(path="", recursive=True, limit=2000))
        told += len(page.entries)
        await user.write(*[Move(from_path=f"/all/{i}", to_path=f"/all/to {i}") for i in range(BATCH)])
        told += BATCH
    assert told <= count_looked_at(dsns) - created < MOST_READING * told
