"""The row steps of an upload: begin, finish, locate; races, stale claims and generations, absent shards."""

import asyncio
import itertools
from dataclasses import dataclass
from types import SimpleNamespace

import psycopg
import pytest

from metaserver.services import blocks as module
from metaserver.storage import block_rows
from sharding.tx import Tx, TxKind
from tests.support.databases import FreshCluster
from tests.support.moving import copy_range, set_ownership
from tests.support.services import Services, User, commit_of
from wire.errors import Forbidden, MalformedId, NotFound, Overloaded, TooManyEntries
from wire.hashes import BLOCK_BYTES, BlockHash, block_hash
from wire.ids import MAX_COUNT, Slot, make_ns_id, slot_of, slot_of_digest, system_ns
from wire.internal import (
    MAX_INTERNAL_BLOCKS,
    BeginBlock,
    BeginUpload,
    BegunBlock,
    BlockState,
    FinishBlock,
    FinishedBlock,
    FinishUpload,
    LocateBlocks,
)

_numbers = itertools.count()
HOUR_US = 3_600_000_000


def fresh_block(services: Services | None = None, shard: str | None = None) -> BlockHash:
    """A block that nobody has; with a shard, one whose hash lies there."""
    while True:
        found = block_hash(f"block {next(_numbers)}".encode())
        if services is None or services.router.placement(system_ns(slot_of_digest(found, 64))).shard == shard:
            return found


async def begin(user: User, *hashes: BlockHash, size: int = 5) -> list[BegunBlock]:
    request = BeginUpload(user.caller, user.root_ns, [BeginBlock(h, size) for h in hashes])
    return await user.services.blocks.begin(request)


def finishing(found: BlockHash, begun: BegunBlock, *, is_written: bool | None = None) -> FinishBlock:
    """What an uploader that did as it was told sends."""
    written = begun.state is BlockState.ABSENT if is_written is None else is_written
    return FinishBlock(found, 5, begun.claim_id, begun.generation, written)


async def finish(user: User, *blocks: FinishBlock) -> list[FinishedBlock]:
    return await user.services.blocks.finish(FinishUpload(user.caller, user.root_ns, list(blocks)))


async def locate(user: User, *hashes: BlockHash) -> list[bytes | None]:
    """The generations."""
    places = await user.services.blocks.locate(LocateBlocks(user.caller, user.root_ns, list(hashes)))
    return [place and place.generation for place in places]


@dataclass
class Tables:
    """All rows about blocks, over all shards."""

    dsns: dict[str, str]

    def rows(self, query: str) -> list[tuple]:
        """The rows of a query on every shard."""
        found: list[tuple] = []
        for dsn in self.dsns.values():
            with psycopg.connect(dsn, autocommit=True) as conn:
                found += conn.execute(query).fetchall()
        return found

    def blocks(self) -> dict[bytes, bytes]:
        """Generations by hash."""
        return dict(self.rows("SELECT hash, generation FROM ns.blocks"))

    def claims(self) -> set[tuple[bytes, int, bytes]]:
        """(hash, claimant, claim id)."""
        return set(self.rows("SELECT hash, claimant_ns_id, claim_id FROM ns.block_claims"))

    def held(self) -> dict[tuple[int, bytes], tuple[str, bytes, bytes | None]]:
        """(state, claim id, generation) by namespace and hash."""
        rows = self.rows("SELECT ns_id, hash, state, claim_id, generation FROM ns.namespace_blocks")
        return {row[:2]: row[2:] for row in rows}

    def execute(self, statement: str) -> None:
        """Change rows on every shard."""
        for dsn in self.dsns.values():
            with psycopg.connect(dsn, autocommit=True) as conn:
                conn.execute(statement)


@pytest.fixture
def tables(fresh_cluster: FreshCluster) -> Tables:
    return Tables(fresh_cluster.shard_dsns)


@pytest.fixture
async def user(services: Services) -> User:
    return await services.user()


async def test_an_upload_from_absent_to_ready(user: User, tables: Tables):
    block = fresh_block()
    (begun,) = await begin(user, block)
    assert (begun.state, len(begun.claim_id), len(begun.generation)) == (BlockState.ABSENT, 16, 16)
    assert tables.held() == {(user.root_ns, block): ("p", begun.claim_id, None)}
    assert (tables.blocks(), tables.claims()) == ({}, set())
    assert await locate(user, block) == [None]
    assert await user.refused(commit_of("/f", b"12345", [block])) == "blocks_absent"
    (done,) = await finish(user, finishing(block, begun))
    assert (done.state, done.drop_own, done.error) == (BlockState.READY, False, None)
    assert tables.held() == {(user.root_ns, block): ("r", begun.claim_id, begun.generation)}
    assert tables.blocks() == {block: begun.generation}
    assert tables.claims() == {(block, user.root_ns, begun.claim_id)}
    assert await locate(user, block, fresh_block()) == [begun.generation, None]
    await user.ok(commit_of("/f", b"12345", [block]))
    (again,) = await begin(user, block)
    assert again.state is BlockState.READY
    (repeat,) = await finish(user, finishing(block, begun))  # the answer had been lost
    assert (repeat.state, repeat.drop_own) == (BlockState.READY, False)


async def test_another_namespaces_block_is_absent_until_claimed(
    services: Services, user: User, tables: Tables
):
    other = await services.user("bob@example.org", "Bob")
    block = fresh_block()
    (mine,) = await begin(user, block)
    await finish(user, finishing(block, mine))
    assert await locate(other, block) == [None]
    assert await other.refused(commit_of("/f", b"12345", [block])) == "blocks_absent"
    (theirs,) = await begin(other, block)
    assert (theirs.state, theirs.generation) == (BlockState.CLAIMED, mine.generation)
    assert await locate(other, block) == [None]
    (done,) = await finish(other, finishing(block, theirs))
    assert done.state is BlockState.READY
    assert await locate(other, block) == [mine.generation]
    assert tables.claims() == {
        (block, user.root_ns, mine.claim_id),
        (block, other.root_ns, theirs.claim_id),
    }
    with pytest.raises(NotFound):
        await services.blocks.locate(LocateBlocks(other.caller, user.root_ns, [block]))
    with pytest.raises(NotFound):
        await services.blocks.begin(BeginUpload(other.caller, user.root_ns, [BeginBlock(block, 5)]))
    with pytest.raises(NotFound):
        await services.blocks.finish(FinishUpload(other.caller, user.root_ns, [finishing(block, mine)]))


async def test_two_uploaders_of_one_namespace(user: User, tables: Tables):
    block = fresh_block()
    (one,), (two,) = await begin(user, block), await begin(user, block)
    assert one.claim_id == two.claim_id
    assert one.generation != two.generation
    (second,) = await finish(user, finishing(block, two))
    (first,) = await finish(user, finishing(block, one))
    assert (second.state, second.drop_own) == (BlockState.READY, False)
    assert (first.state, first.drop_own) == (BlockState.READY, True)
    assert tables.blocks() == {block: two.generation}
    assert await locate(user, block) == [two.generation]
    assert len(tables.claims()) == 1


async def test_two_namespaces_write_one_block(services: Services, user: User, tables: Tables):
    other = await services.user("bob@example.org", "Bob")
    block = fresh_block()
    (one,), (two,) = await begin(user, block), await begin(other, block)
    assert {one.state, two.state} == {BlockState.ABSENT}
    (winner,) = await finish(user, finishing(block, one))
    (loser,) = await finish(other, finishing(block, two))
    assert (winner.state, winner.drop_own) == (BlockState.READY, False)
    assert (loser.state, loser.drop_own) == (BlockState.READY, True)
    assert await locate(other, block) == await locate(user, block) == [one.generation]
    assert len(tables.claims()) == 2


async def test_many_upload_the_same_blocks_at_once(services: Services, user: User, tables: Tables):
    other = await services.user("bob@example.org", "Bob")
    hashes = [fresh_block() for _ in range(40)]

    async def upload(who: User, order: list[BlockHash]) -> list[FinishedBlock]:
        while True:
            try:
                return await try_upload(who, order)
            except Overloaded:
                continue

    async def try_upload(who: User, order: list[BlockHash]) -> list[FinishedBlock]:
        begun = await begin(who, *order)
        blocks = [
            finishing(h, b) for h, b in zip(order, begun, strict=True) if b.state is not BlockState.READY
        ]
        return await finish(who, *blocks)

    results = await asyncio.gather(
        *(upload(who, hashes[::way]) for who in (user, other) for way in (1, -1) for _ in range(3))
    )
    assert all(done.state is BlockState.READY for result in results for done in result)
    generations = tables.blocks()
    for who in (user, other):
        assert await locate(who, *hashes) == [generations[h] for h in hashes]
        held = tables.held()
        claims = {(h, who.root_ns, held[who.root_ns, h][1]) for h in hashes}
        assert claims <= tables.claims()
    assert len(tables.claims()) == 2 * len(hashes)


async def test_a_claim_that_has_been_replaced_is_refused(user: User, tables: Tables):
    block = fresh_block()
    (begun,) = await begin(user, block)
    # A collector let the pending row go, and another upload began anew.
    tables.execute("DELETE FROM ns.namespace_blocks")
    (again,) = await begin(user, block)
    assert again.claim_id != begun.claim_id
    (late,) = await finish(user, finishing(block, begun))
    assert (late.state, late.drop_own) == (BlockState.FAILED, False)
    assert late.error is not None
    assert (late.error.code, late.error.retryable) == ("upload_expired", True)
    assert await locate(user, block) == [None]
    (done,) = await finish(user, finishing(block, again))
    assert (done.state, done.drop_own) == (BlockState.READY, True)
    assert await locate(user, block) == [begun.generation]


async def test_a_pending_row_that_has_gone_is_refused(user: User, tables: Tables):
    block = fresh_block()
    (begun,) = await begin(user, block)
    tables.execute("DELETE FROM ns.namespace_blocks")
    (late,) = await finish(user, finishing(block, begun))
    assert late.state is BlockState.FAILED
    assert tables.held() == {}


@pytest.mark.parametrize(("age_us", "is_taken"), [(HOUR_US - 60_000_000, True), (HOUR_US + 1_000_000, False)])
async def test_a_generation_is_good_for_an_hour(user: User, tables: Tables, age_us: int, is_taken: bool):
    block = fresh_block()
    (begun,) = await begin(user, block)
    made_us = int.from_bytes(begun.generation[:8], "big") - age_us
    old = made_us.to_bytes(8, "big") + begun.generation[8:]
    (done,) = await finish(user, FinishBlock(block, 5, begun.claim_id, old, is_written=True))
    if is_taken:
        assert done.state is BlockState.READY
        assert tables.blocks() == {block: old}
    else:
        assert (done.state, done.drop_own) == (BlockState.FAILED, True)
        assert done.error is not None
        assert done.error.code == "upload_expired"
        assert (tables.blocks(), tables.claims()) == ({}, set())
        (again,) = await begin(user, block)
        (done,) = await finish(user, finishing(block, again))
        assert done.state is BlockState.READY


async def test_an_old_generation_still_claims_what_is_there(services: Services, user: User, tables: Tables):
    other = await services.user("bob@example.org", "Bob")
    block = fresh_block()
    (begun,) = await begin(user, block)
    (theirs,) = await begin(other, block)
    await finish(other, finishing(block, theirs))
    (done,) = await finish(user, FinishBlock(block, 5, begun.claim_id, bytes(16), is_written=True))
    assert (done.state, done.drop_own) == (BlockState.READY, True)
    assert await locate(user, block) == [theirs.generation]


async def test_a_claimed_block_that_was_collected_and_written_anew(
    services: Services, user: User, tables: Tables
):
    """The claim pinned a generation that is gone: the caller has no object of its own and starts anew."""
    other = await services.user("bob@example.org", "Bob")
    block = fresh_block()
    (theirs,) = await begin(other, block)
    await finish(other, finishing(block, theirs))
    (mine,) = await begin(user, block)
    assert mine.state is BlockState.CLAIMED
    tables.execute("DELETE FROM ns.block_claims")
    (gone,) = await _collected(user, tables, block, mine)
    assert gone.state is BlockState.FAILED
    tables.execute("DELETE FROM ns.namespace_blocks")
    (anew,) = await begin(other, block)
    await finish(other, finishing(block, anew))
    (late,) = await finish(user, finishing(block, mine))
    assert (late.state, late.drop_own) == (BlockState.FAILED, False)


async def _collected(user: User, tables: Tables, block: BlockHash, mine: BegunBlock) -> list[FinishedBlock]:
    tables.execute("DELETE FROM ns.blocks")
    return await finish(user, finishing(block, mine))


async def test_a_claimed_block_cannot_be_deleted(user: User, tables: Tables):
    block = fresh_block()
    (begun,) = await begin(user, block)
    await finish(user, finishing(block, begun))
    with pytest.raises(psycopg.errors.ForeignKeyViolation):
        tables.execute("DELETE FROM ns.blocks")


async def test_one_shard_out_costs_the_blocks_whose_hashes_lie_there(
    services: Services, user: User, fresh_cluster: FreshCluster
):
    home = services.router.placement(user.root_ns).shard
    away = next(name for name in fresh_cluster.shard_dsns if name != home)
    here, there = fresh_block(services, home), fresh_block(services, away)
    (_, begun_there) = await begin(user, here, there)
    async with await psycopg.AsyncConnection.connect(fresh_cluster.shard_dsns[away], autocommit=True) as conn:
        for slot in services.router.map.slots_of(away):
            await set_ownership(conn, system_ns(slot), 2, "f")
        new_here, new_there = fresh_block(services, home), fresh_block(services, away)
        begun = await begin(user, new_here, new_there)
        assert [block.state for block in begun] == [BlockState.ABSENT, BlockState.FAILED]
        assert begun[1].error is not None
        assert begun[1].error.retryable
        done = await finish(user, finishing(there, begun_there), finishing(new_here, begun[0]))
        assert [block.state for block in done] == [BlockState.FAILED, BlockState.READY]
        assert done[0].error is not None
        assert (done[0].error.retryable, done[0].drop_own) == (True, False)
        for slot in services.router.map.slots_of(away):
            await set_ownership(conn, system_ns(slot), 3, "a")
    (done_there,) = await finish(user, finishing(there, begun_there))
    assert done_there.state is BlockState.READY


async def test_slots_that_part_while_their_blocks_come(
    services: Services, user: User, fresh_cluster: FreshCluster
):
    home = services.router.placement(user.root_ns).shard
    away = next(name for name in fresh_cluster.shard_dsns if name != home)
    by_slot: dict[int, BlockHash] = {}
    while len(by_slot) < 3:
        block = fresh_block(services, home)
        if (slot := slot_of_digest(block, 64)) != slot_of(user.root_ns):
            by_slot[slot] = block
    first, second, _ = by_slot

    async def move(slot: int) -> None:
        key, last = system_ns(Slot(slot)), make_ns_id(Slot(slot), MAX_COUNT)
        async with (
            await psycopg.AsyncConnection.connect(fresh_cluster.shard_dsns[home], autocommit=True) as here,
            await psycopg.AsyncConnection.connect(fresh_cluster.shard_dsns[away], autocommit=True) as there,
        ):
            await set_ownership(here, key, 2, "f", (away, 2))
            await copy_range(here, there, key, last)
            await set_ownership(there, key, 2, "a")

    # Nobody has told the router: it thinks that all three are on one shard, and learns better in mid request.
    await move(first)
    begun = await begin(user, *by_slot.values())
    assert [block.state for block in begun] == [BlockState.ABSENT] * 3
    await move(second)
    done = await finish(
        user, *(finishing(block, b) for block, b in zip(by_slot.values(), begun, strict=True))
    )
    assert [block.state for block in done] == [BlockState.READY] * 3
    assert services.router.placement(system_ns(Slot(second))).shard == away


async def test_what_is_no_batch(user: User):
    block = fresh_block()
    for hashes in ([block, block], [BlockHash(b"short")]):
        with pytest.raises(MalformedId):
            await begin(user, *hashes)
    for size in (0, -1, BLOCK_BYTES + 1):
        with pytest.raises(MalformedId):
            await begin(user, block, size=size)
    with pytest.raises(TooManyEntries):
        await locate(user, *[block] * (MAX_INTERNAL_BLOCKS + 1))
    assert await begin(user) == []
    assert await finish(user) == []


async def test_a_viewer_reads_blocks_and_brings_none(services: Services, user: User, tables: Tables):
    other = await services.user("bob@example.org", "Bob")
    block = fresh_block()
    (begun,) = await begin(user, block)
    await finish(user, finishing(block, begun))
    with psycopg.connect(tables.dsns[services.router.placement(user.root_ns).shard], autocommit=True) as conn:
        conn.execute(
            "INSERT INTO ns.members (ns_id, account_id, level) VALUES (%s, %s, 'v')",
            [user.root_ns, other.caller.account_id],
        )
    (place,) = await services.blocks.locate(LocateBlocks(other.caller, user.root_ns, [block]))
    assert place is not None
    with pytest.raises(Forbidden):
        await services.blocks.begin(BeginUpload(other.caller, user.root_ns, [BeginBlock(block, 5)]))


async def test_the_length_of_a_block_must_fit_the_file(user: User):
    block = fresh_block()
    (begun,) = await begin(user, block)
    await finish(user, finishing(block, begun))
    assert await user.refused(commit_of("/f", b"1234", [block])) == "content_mismatch"
    assert module.GENERATION_MAX_AGE_US == HOUR_US


async def test_others_get_their_turn_between_pieces_alone(user: User, monkeypatch: pytest.MonkeyPatch):
    blocks = [fresh_block() for _ in range(5)]
    begun = await begin(user, *blocks)
    await finish(user, *map(finishing, blocks, begun))
    turns: list[float] = []

    async def sleep(delay_s: float) -> None:
        turns.append(delay_s)

    monkeypatch.setattr(block_rows, "HASHES_PER_PIECE", 2)
    monkeypatch.setattr(block_rows, "asyncio", SimpleNamespace(sleep=sleep))
    for count, turn_count in ((0, 0), (1, 0), (2, 0), (3, 1), (4, 1), (5, 2)):
        asked = set(blocks[:count])

        async def find(tx: Tx, asked: set[BlockHash] = asked) -> dict[BlockHash, int]:
            return await block_rows.find_ready_sizes(tx.conn, user.root_ns, asked)

        turns.clear()
        found = await user.services.tx.run_tx([user.root_ns], "find", find, kind=TxKind.FENCE_ONLY)
        assert (found, len(turns)) == (dict.fromkeys(asked, 5), turn_count)
