"""Usage and quota: counted in the commit, a deleted folder's debt paid by the sweep."""

from typing import Any

import psycopg
import pytest

from metaserver.services import debts as module
from metaserver.services.writes import WriteService
from metaserver.storage.usage import Debt, find_owing
from tests.support.databases import FreshCluster
from tests.support.moving import set_ownership
from tests.support.services import Services, User
from wire import faults
from wire.api import UNLIMITED_BYTES, CreateFolder, Delete, Move, WriteMode
from wire.errors import BadRequest, NotFound
from wire.ids import AccountId, EntryId, parse_file_id, slot_of, system_ns

OVER = WriteMode.OVERWRITE
POINTS = [name for name in faults.declared() if name.startswith("metaserver.debts.")]


class Cut(Exception):
    """Where a process would have died."""


async def used(user: User) -> int:
    """What the account is said to use."""
    return (await user.services.usage.get_own(user.caller)).used


async def pay_all(services: Services, shard: str) -> None:
    """Sweep to the end of the table, and once from its beginning."""
    for _ in range(2):
        while await services.debts.step(shard):
            pass


async def test_an_operation_that_grows_is_held_to_the_quota(services: Services):
    user = await services.user()
    await services.usage.set_quota(user.caller.account_id, 10)
    first = await user.ok(await user.put("/a", b"1" * 6))
    assert await user.refused(await user.put("/b", b"2" * 5)) == "insufficient_space"
    await user.ok(await user.put("/b", b"2" * 4))  # exactly
    assert await user.refused(await user.put("/a", b"3" * 7, mode=OVER)) == "insufficient_space"
    await user.ok(await user.put("/a", b"4" * 6, mode=OVER))
    assert (await services.usage.get_own(user.caller)).allocation == 10

    # What does not grow is never refused, also beyond the quota: the quota was lowered.
    await services.usage.set_quota(user.caller.account_id, 3)
    await user.ok(await user.put("/a", b"5" * 5, mode=OVER))
    await user.ok(await user.put("/empty", b""))
    await user.ok(CreateFolder(path="/dir"))
    await user.ok(Move(from_path="/a", to_path="/dir/a"))
    assert await user.refused(await user.put("/x", b"1")) == "insufficient_space"
    absent = (await user.put("/x", b"1")).blocks
    assert len(absent) == 1  # stored, and room comes before the blocks all the same

    # Later operations of a batch see what the earlier ones freed.
    freed = await user.write(Delete(path="/dir/a"), Delete(path="/b"), await user.put("/c", b"678"))
    assert [verdict.error for verdict in freed.verdicts] == [None] * 3
    assert await used(user) == 3
    assert first.rev is not None


async def test_the_quota_is_the_accounts_else_the_clusters(services: Services):
    user = await services.user()
    writes = services.writes
    limited = WriteService(writes._tx, writes._access, writes._hints, quota_bytes=2)

    async def code(path: str) -> str | None:
        (verdict,) = (await limited.write_batch(user.caller, [await user.put(path, b"abc")], None)).verdicts
        return verdict.error and verdict.error.code

    assert await code("/1") == "insufficient_space"
    await services.usage.set_quota(user.caller.account_id, UNLIMITED_BYTES)
    assert await code("/2") is None
    assert (await services.usage.get_own(user.caller)).allocation is None
    await services.usage.set_quota(user.caller.account_id, None)
    assert await code("/3") == "insufficient_space"
    for wrong in (-1, UNLIMITED_BYTES + 1):
        with pytest.raises(BadRequest):
            await services.usage.set_quota(user.caller.account_id, wrong)
    nobody = AccountId(user.caller.account_id[:-4] + "AAAA")
    with pytest.raises(NotFound):
        await services.usage.get_usage(nobody)


async def make_tree(user: User) -> None:
    """Files of many sizes in /dead, in many folders, and 7 bytes beside it."""
    for i in range(5):
        puts = [await user.put(f"/dead/{i}/{j}/f", bytes(10 * i + j)) for j in range(4)]
        result = await user.write(*puts, await user.put(f"/dead/{i}/g", bytes(14 - i)))
        assert not any(verdict.error for verdict in result.verdicts)
    await user.ok(await user.put("/alive", bytes(7)))


async def test_a_deleted_folder_is_walked_and_subtracted(
    services: Services, fresh_cluster: FreshCluster, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "WALK_ROWS", 3)
    monkeypatch.setattr(module, "WALK_FOLDERS", 2)
    user = await services.user()
    shard = services.router.placement(user.root_ns).shard
    await make_tree(user)
    total = await used(user)
    assert total == 4 * (0 + 10 + 20 + 30 + 40) + 5 * (0 + 1 + 2 + 3) + (14 + 13 + 12 + 11 + 10) + 7

    await user.ok(Delete(path="/dead/4/3"))
    await user.ok(Delete(path="/dead/4/2/f"))
    assert await used(user) == total - 42  # the file at once, the folder not yet
    await user.ok(Delete(path="/dead"))
    assert await used(user) == total - 42
    # A namespace that is elsewhere by now is passed over: its new owner pays.
    async with await psycopg.AsyncConnection.connect(
        fresh_cluster.shard_dsns[shard], autocommit=True
    ) as conn:
        slot_ns = system_ns(slot_of(user.root_ns))
        await set_ownership(conn, slot_ns, 2, "f")
        await pay_all(services, shard)
        assert len(await debts_of(conn)) == 2
        await set_ownership(conn, slot_ns, 3, "a")
        # Cut at each point: nothing is subtracted twice, and nothing is forgotten.
        for point in POINTS:
            with monkeypatch.context() as patch:
                cut_at(patch, point)
                with pytest.raises(Cut):
                    await pay_all(services, shard)
            owing = await debts_of(conn)
            assert (await used(user) == 7) == (owing == [])
            assert await used(user) >= 7
        await pay_all(services, shard)
        assert await debts_of(conn) == []
    assert await used(user) == 7


async def test_what_is_revived_meanwhile_makes_the_walk_begin_anew(
    services: Services, fresh_cluster: FreshCluster, monkeypatch: pytest.MonkeyPatch
):
    user = await services.user()
    folder = (await user.ok(CreateFolder(path="/dead"))).id
    await user.ok(await user.put("/dead/f", bytes(5)))
    await user.ok(Delete(path="/dead"))
    entry_id = parse_file_id(folder)[1]
    shard = services.router.placement(user.root_ns).shard
    walked = Debt(user.root_ns, entry_id, 0)
    async with await psycopg.AsyncConnection.connect(
        fresh_cluster.shard_dsns[shard], autocommit=True
    ) as conn:
        owing = await find_owing(conn, user.root_ns, [entry_id, EntryId(99)])
        assert owing == {entry_id}
        assert not await services.debts.settle(walked)
        assert (await used(user), await debts_of(conn)) == (5, [entry_id])
        await pay_all(services, shard)
        assert (await used(user), await debts_of(conn)) == (0, [])
        assert await find_owing(conn, user.root_ns, [entry_id]) == set()


async def debts_of(conn: psycopg.AsyncConnection) -> list[int]:
    """The folders that owe, on one shard."""
    cursor = await conn.execute("SELECT entry_id FROM ns.usage_debts ORDER BY entry_id")
    return [row[0] for row in await cursor.fetchall()]


def cut_at(patch: pytest.MonkeyPatch, point: str) -> None:
    """Die at a point."""

    def fault_point(name: str, *_: Any) -> None:
        if name == point:
            raise Cut(name)

    patch.setattr(module.faults, "fault_point", fault_point)
