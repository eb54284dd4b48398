"""Activity on real shards: sums that fade, of several processes, before and after a move."""

import math

import psycopg
import pytest

from sharding.activity import (
    FADE_S,
    FORGET_S,
    Activity,
    ActivityReporter,
    Counts,
    Rates,
    add_activity,
    read_activity,
)
from sharding.tx import Tx, TxKind
from tests.support.databases import FreshCluster
from tests.support.estate import Estate
from tests.support.services import Services, run_services
from wire.api import Copy, CreateFolder, ListFolder
from wire.ids import NsId, Slot, make_ns_id, slot_of, system_ns

SLOT = Slot(7)
KEY = system_ns(SLOT)


def known_to(cluster: FreshCluster, shard: str) -> Activity:
    """What a shard knows of."""
    with psycopg.connect(cluster.shard_dsns[shard]) as conn:
        return read_activity(conn)


async def flush(services: Services) -> None:
    """What a metaserver does every few seconds."""
    await ActivityReporter(services.tx.activity, services.router).flush()


def is_about(rate_per_s: float, count: float) -> bool:
    """Whether a rate is what a count of a moment ago makes, or what little it may have faded since."""
    return count * 0.5 < rate_per_s * FADE_S <= count * 1.001


async def age(estate: Estate, seconds: float) -> None:
    await estate.conns[estate.home].execute(
        "UPDATE local.activity SET at = at - make_interval(secs => %s)", [seconds]
    )


async def add(estate: Estate, counts: dict[NsId, Counts]) -> None:
    await add_activity(estate.conns[estate.home], counts)


async def test_writes_reads_and_contents_are_counted(slot_estate: Estate):
    services, user, ns_id = slot_estate.services, slot_estate.user, slot_estate.ns_id
    services.tx.activity.take()
    data = b"x" * 5_000
    file = await user.put("/file", data)
    before = services.tx.activity.of(ns_id).writes  # the block's rows are written under this namespace, too
    await user.ok(file)
    await user.ok(CreateFolder(path="/folder"))
    await user.ok(Copy(from_path="/file", to_path="/copy"))  # brings no content
    for _ in range(3):
        await services.reads.list_folder(user.caller, ListFolder())
    counted = services.tx.activity.of(ns_id)
    assert (counted.writes - before, counted.content_bytes) == (3, len(data))
    assert counted.reads >= 3
    expected = Counts(counted.writes, counted.reads, counted.content_bytes)
    await flush(services)

    activity = known_to(slot_estate.cluster, slot_estate.home)
    rates = activity.namespaces[ns_id]
    assert is_about(rates.writes_per_s, expected.writes)
    # All kinds have faded alike.
    assert rates.reads_per_s / rates.writes_per_s == pytest.approx(expected.reads / expected.writes)
    assert rates.bytes_per_s / rates.writes_per_s == pytest.approx(len(data) / expected.writes)
    of_slot = activity.slots[slot_of(ns_id)]
    assert of_slot.bytes_per_s == pytest.approx(rates.bytes_per_s)
    assert of_slot.writes_per_s >= rates.writes_per_s
    assert system_ns(slot_of(ns_id)) not in activity.namespaces


async def test_what_fails_is_not_counted(slot_estate: Estate):
    services, ns_id = slot_estate.services, slot_estate.ns_id
    services.tx.activity.take()

    async def fail(tx: Tx) -> None:
        tx.content_bytes[ns_id] = 5
        raise RuntimeError

    with pytest.raises(RuntimeError):
        await services.tx.run_tx([ns_id], "test", fail)
    assert services.tx.activity.take() == {}


async def test_every_namespace_of_a_transaction_is_counted(slot_estate: Estate):
    services, keys = slot_estate.services, [slot_estate.ns_id, slot_estate.key]
    services.tx.activity.take()

    async def write(tx: Tx) -> None:
        tx.content_bytes[slot_estate.ns_id] = 5

    await services.tx.run_tx(keys, "test", write, kind=TxKind.FENCE_ONLY)
    assert services.tx.activity.take() == {
        slot_estate.ns_id: Counts(writes=1, content_bytes=5),
        slot_estate.key: Counts(writes=1),
    }


async def test_sums_fade(slot_estate: Estate):
    home = slot_estate.home
    await add(slot_estate, {KEY: Counts(writes=1_000, reads=500)})
    await age(slot_estate, FADE_S)
    faded = known_to(slot_estate.cluster, home).slots[SLOT]
    assert is_about(faded.writes_per_s, 1_000 / math.e)
    await add(slot_estate, {KEY: Counts(writes=1_000)})
    rates = known_to(slot_estate.cluster, home).slots[SLOT]
    assert is_about(rates.writes_per_s - faded.writes_per_s, 1_000)
    assert is_about(rates.reads_per_s, 500 / math.e)
    assert rates.bytes_per_s == pytest.approx(0, abs=1e-6)


async def test_what_is_old_is_forgotten(slot_estate: Estate):
    other = make_ns_id(SLOT, 3)
    await add(slot_estate, {KEY: Counts(writes=1), other: Counts(writes=1)})
    await age(slot_estate, FORGET_S + 1)
    assert known_to(slot_estate.cluster, slot_estate.home) == Activity({}, {})
    await add(slot_estate, {KEY: Counts(reads=1)})
    cursor = await slot_estate.conns[slot_estate.home].execute("SELECT key FROM local.activity")
    assert await cursor.fetchall() == [(KEY,)]


async def test_a_kind_that_has_ended_fades_for_ever(slot_estate: Estate):
    """PostgreSQL refuses a result that underflows: days of writes without a read must not come to that."""
    await add(slot_estate, {KEY: Counts(reads=1)})
    for _ in range(150):
        await age(slot_estate, FORGET_S * 0.9)
        await add(slot_estate, {KEY: Counts(writes=1)})
    rates = known_to(slot_estate.cluster, slot_estate.home).slots[SLOT]
    assert rates.reads_per_s == pytest.approx(0, abs=1e-6)
    assert rates.writes_per_s > 0


async def test_processes_add_up(slot_estate: Estate):
    async with run_services(slot_estate.cluster) as second:
        for services in (slot_estate.services, second):
            services.tx.activity.take()
            services.tx.activity.of(slot_estate.ns_id).writes += 1_000
            await flush(services)
    activity = known_to(slot_estate.cluster, slot_estate.home)
    assert is_about(activity.namespaces[slot_estate.ns_id].writes_per_s, 2_000)
    assert is_about(activity.slots[slot_of(slot_estate.ns_id)].writes_per_s, 2_000)


async def test_a_shard_that_takes_nothing_keeps_nothing_from_the_others(slot_estate: Estate):
    services, home, away = slot_estate.services, slot_estate.home, slot_estate.away
    there = next(slot for slot in services.router.map.slots_of(away))
    services.tx.activity.take()
    services.tx.activity.of(slot_estate.key).writes += 5
    services.tx.activity.of(system_ns(there)).writes += 5
    await slot_estate.conns[home].execute("ALTER TABLE local.activity RENAME TO elsewhere")
    await flush(services)
    assert is_about(known_to(slot_estate.cluster, away).slots[there].writes_per_s, 5)
    await slot_estate.conns[home].execute("ALTER TABLE local.elsewhere RENAME TO activity")
    assert known_to(slot_estate.cluster, home) == Activity({}, {})
    services.tx.activity.of(slot_estate.key).writes += 5
    await flush(services)
    assert is_about(known_to(slot_estate.cluster, home).slots[slot_of(slot_estate.key)].writes_per_s, 5)


async def test_after_a_move_it_is_counted_where_the_namespace_is(estate: Estate):
    async def work(count: int) -> None:
        estate.services.tx.activity.take()
        estate.services.tx.activity.of(estate.ns_id).writes += count
        await flush(estate.services)

    await work(1_000)
    await estate.move(estate.home, estate.away, 2)
    await estate.publish(estate.away, 2)
    assert await estate.services.router.refresh()
    await work(300)
    home, away = (known_to(estate.cluster, shard) for shard in (estate.home, estate.away))
    assert is_about(home.namespaces[estate.ns_id].writes_per_s, 1_000)
    assert is_about(away.namespaces[estate.ns_id].writes_per_s, 300)
    both = home.namespaces[estate.ns_id] + away.namespaces[estate.ns_id]
    assert is_about(both.writes_per_s, 1_300)
    # A namespace that is placed by itself is in no slot's total.
    totals = [known.slots.get(slot_of(estate.ns_id), Rates()).writes_per_s for known in (home, away)]
    is_slot = estate.key != estate.ns_id
    assert is_about(totals[0], 1_000)
    assert is_about(totals[1], 300) if is_slot else totals[1] == 0


async def test_the_table_is_not_in_the_log(slot_estate: Estate):
    cursor = await slot_estate.conns[slot_estate.home].execute(
        "SELECT relpersistence FROM pg_class WHERE oid = 'local.activity'::regclass"
    )
    assert await cursor.fetchone() == ("u",)
