"""Idempotency keys: a retry acts once, whichever process it goes to."""

import asyncio

import psycopg
import pytest

from tests.support.databases import FreshCluster
from tests.support.services import Services, User, run_services
from wire.api import BatchResult, CreateFolder, Delete, Move, WriteMode
from wire.errors import IdempotencyMismatch


def owner_of(user: User, cluster: FreshCluster) -> psycopg.Connection:
    shard = user.services.router.placement(user.root_ns).shard
    return psycopg.connect(cluster.shard_dsns[shard], autocommit=True)


async def test_a_retry_through_another_process(services: Services, fresh_cluster: FreshCluster):
    user = await services.user()
    operations = [
        await user.put("/f", b"1"),
        CreateFolder(path="/f"),
        CreateFolder(path="/d"),
        Move(from_path="/d", to_path="/e"),
        Delete(path="/nothing"),
    ]
    first = await user.write(*operations, key="k")
    await user.ok(CreateFolder(path="/later"))
    async with run_services(fresh_cluster) as other:
        again = await other.writes.write_batch(user.caller, operations, "k")
        assert again == first
        with pytest.raises(IdempotencyMismatch):
            await other.writes.write_batch(user.caller, operations[:1], "k")
        with pytest.raises(IdempotencyMismatch):
            await other.writes.write_batch(user.caller, [*operations[1:], operations[0]], "k")
    assert first.head == 3
    assert (await user.write(CreateFolder(path="/x"))).head == 5


async def test_many_retries_at_once_act_once(services: Services, fresh_cluster: FreshCluster):
    user = await services.user()
    operation = CreateFolder(path="/n", autorename=True)
    async with run_services(fresh_cluster) as other:
        outcomes = await asyncio.gather(
            *(
                s.writes.write_batch(user.caller, [operation], "k")
                for s in (services, other)
                for _ in range(6)
            )
        )
    assert all(isinstance(o, BatchResult) and o == outcomes[0] for o in outcomes)
    assert outcomes[0].head == 1


async def test_keys_are_an_accounts_own(services: Services, fresh_cluster: FreshCluster):
    user, other = await services.user(), await services.user("bob@example.org", "Bob")
    with owner_of(user, fresh_cluster) as conn:
        conn.execute(
            "INSERT INTO ns.members (ns_id, account_id, level) VALUES (%s, %s, 'e')",
            [user.root_ns, other.caller.account_id],
        )
    first = await user.write(CreateFolder(path=f"ns:{user.root_ns}/a"), key="k")
    second = await other.write(CreateFolder(path=f"ns:{user.root_ns}/b"), key="k")
    assert (first.head, second.head) == (1, 2)


async def test_a_request_that_was_refused_leaves_no_row(services: Services, fresh_cluster: FreshCluster):
    user = await services.user()
    await user.write(Delete(path="/nothing"), Delete(path="/nothing else"), key="k")
    with owner_of(user, fresh_cluster) as conn:
        assert conn.execute("SELECT count(*) FROM ns.idempotency").fetchone() == (0,)
    assert (await user.write(CreateFolder(path="/d"), key="k")).head == 1


async def test_a_repeat_of_what_changed_nothing_overwrites_nothing(services: Services):
    user = await services.user()
    other = await services.link(user.caller.account_id)
    one = await user.put("/f", b"one", mode=WriteMode.OVERWRITE)
    await user.ok(one)
    operations = [one, Delete(path="/nothing")]
    first = await user.write(*operations, key="k")
    assert [v.changed if v.error is None else v.error.code for v in first.verdicts] == [False, "not_found"]
    two = await other.ok(await other.put("/f", b"two", mode=WriteMode.OVERWRITE))

    assert await user.write(*operations, key="k") == first
    assert (await services.reads.get_metadata(user.caller, "/f")).rev == two.rev
    with pytest.raises(IdempotencyMismatch):
        await user.write(one, key="k")


async def test_keys_expire_after_a_day_and_not_before(services: Services, fresh_cluster: FreshCluster):
    user = await services.user()
    for key in ("old", "young"):
        await user.write(CreateFolder(path=f"/{key}"), key=key)
    shard = services.router.placement(user.root_ns).shard
    with owner_of(user, fresh_cluster) as conn:
        shift = "UPDATE ns.idempotency SET created_at = created_at - %s::interval WHERE key = %s"
        conn.execute(shift, ["24 hours 1 second", "old"])
        conn.execute(shift, ["23 hours 59 minutes", "young"])
        await services.relay.sweep(shard)
        assert conn.execute("SELECT key FROM ns.idempotency").fetchall() == [("young",)]
    again = await user.write(CreateFolder(path="/young"), key="young")
    assert again.verdicts[0].error is None
    refused = await user.write(CreateFolder(path="/old"), key="old")
    assert refused.verdicts[0].error is not None
    assert refused.verdicts[0].error.code == "conflict/folder"
