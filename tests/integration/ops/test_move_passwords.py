"""A database's password changes while a move streams from it."""

import asyncio
import threading

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from ops.moves import renew_streams
from sharding.directory import load_map_sync
from sharding.reshard.model import Goal, MoveOptions, slot_unit
from sharding.reshard.records import insert_move
from sharding.reshard.runner import MoveRunner
from sharding.reshard.stream import stream_name
from tests.support.estate import Estate, slot_estate

__all__ = ["slot_estate"]


async def test_a_stream_connects_with_the_new_password(
    slot_estate: Estate, monkeypatch: pytest.MonkeyPatch
) -> None:
    estate = slot_estate
    dsn = estate.cluster.directory_dsn
    with psycopg.connect(dsn, autocommit=True) as directory:
        move = insert_move(
            directory, estate.home, estate.away, [slot_unit(estate.key)], MoveOptions(), Goal.READY
        )
        cluster_id = load_map_sync(directory).cluster_id
    runner = MoveRunner(dsn, lambda _: None, threading.Event())
    await asyncio.to_thread(runner.run, move.move_id, Goal.READY)

    async def password(shard: str, *, is_back: bool) -> object:
        cursor = await estate.conns[shard].execute(
            "SELECT subconninfo FROM pg_subscription WHERE subname = %s",
            [stream_name(cluster_id, move.move_id, is_back=is_back)],
        )
        row = await cursor.fetchone()
        assert row is not None
        return conninfo_to_dict(row[0])["password"]

    before = await password(estate.home, is_back=True)
    with monkeypatch.context() as patch:
        # The servers here keep their passwords: what counts is what the subscription is told.
        patch.setattr(
            "sharding.reshard.sites.Site.subscription_conninfo", lambda site: f"{site.dsn}?password=new"
        )
        renew_streams(dsn, estate.home)
    assert await password(estate.away, is_back=False) == "new"
    assert await password(estate.home, is_back=True) == before
    renew_streams(dsn, estate.home)
    assert await password(estate.away, is_back=False) != "new"
    await asyncio.to_thread(runner.run, move.move_id, Goal.CANCELLED)
