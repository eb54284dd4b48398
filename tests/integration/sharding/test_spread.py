"""200 accounts lie where the ring says."""

import asyncio

import psycopg

from sharding.ring import LOAD_BOUND, place_slots
from tests.support.databases import FreshCluster
from tests.support.services import Services
from wire.ids import slot_of

ACCOUNTS = 200


async def test_accounts_are_spread_as_the_ring_says(services: Services, fresh_cluster: FreshCluster):
    made = []
    for first in range(0, ACCOUNTS, 10):
        made += await asyncio.gather(
            *(
                services.accounts.create_account(f"user{i}@example.org", f"User {i}")
                for i in range(first, first + 10)
            )
        )
    wish = place_slots({name: weight for name, _, weight in fresh_cluster.shards}, 64)
    assert {slot: p.shard for slot, p in enumerate(services.router.map.slots)} == wish
    found: dict[int, str] = {}
    for shard, dsn in fresh_cluster.shard_dsns.items():
        with psycopg.connect(dsn) as conn:
            found |= {row[0]: shard for row in conn.execute("SELECT ns_id FROM ns.namespaces").fetchall()}
    assert found == {account.root_ns: wish[slot_of(account.root_ns)] for account in made}
    assert len(found) == ACCOUNTS
    shares = [list(found.values()).count(shard) for shard in fresh_cluster.shard_dsns]
    # Slots differ by the bound; accounts fall into slots at random, ± 4 standard deviations.
    assert all(abs(share - 100) <= 100 * (LOAD_BOUND - 1) + 4 * 7.1 for share in shares), shares
    listed = [account.root_ns async for account in services.accounts.iter_accounts()]
    assert listed == sorted(found)
    for account in made[::20]:
        assert await services.accounts.find_by_email(account.email) == account
