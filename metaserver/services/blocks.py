"""The row steps of an upload, batched (wire/internal.py has them), and where a namespace's blocks are."""

import asyncio
import os
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import TypeVar

from metaserver.model.uploads import check_lengths
from metaserver.services.access import AccessService, Who, require_read, require_write
from metaserver.storage.block_rows import (
    Claim,
    WrittenBlock,
    ensure_pending,
    get_clock_us,
    insert_blocks,
    insert_claims,
    lock_blocks,
    mark_ready,
)
from metaserver.storage.listing import NamespaceReader
from metaserver.storage.namespaces import find_level
from metaserver.storage.sessions import SessionKey, TargetRow, count_taken, ensure_targets, lock_session
from sharding.pool import Connection
from sharding.tx import Transactions, Tx, TxKind
from wire import faults
from wire.errors import (
    MalformedId,
    ShardboxError,
    SpansShards,
    TooManyEntries,
    UploadExpired,
    UploadSessionCommitted,
    UploadSessionNotFound,
)
from wire.hashes import BLOCK_BYTES, DIGEST_BYTES, BlockHash
from wire.ids import NsId, slot_of_digest, system_ns
from wire.internal import (
    MAX_INTERNAL_BLOCKS,
    BeginBlock,
    BeginUpload,
    BegunBlock,
    BlockPlace,
    BlockState,
    FinishBlock,
    FinishedBlock,
    FinishUpload,
    LocateBlocks,
)

T = TypeVar("T")

GENERATION_MAX_AGE_US = 3_600_000_000
"""A generation older than an hour is refused, so that the sweep, which takes objects that are a day old and
belong to no row, never takes one that is about to get its row."""
CLAIM_BYTES = 16

faults.declare(
    "metaserver.blocks.pending",
    "metaserver.blocks.claimed",
    "metaserver.blocks.recorded",
    "metaserver.blocks.ready",
)


class BlockService:
    """What a namespace holds and claims."""

    def __init__(self, transactions: Transactions, access: AccessService):
        self._tx = transactions
        self._access = access

    async def begin(self, request: BeginUpload) -> list[BegunBlock]:
        """Steps 1 and 2a. A shard that does not answer costs the blocks whose hashes lie there, no others.

        Raises:
            NotFound, Forbidden: no right to write to the namespace.
            UploadSessionNotFound, UploadSessionCommitted: the session that they came by is no longer open.
            ContentMismatch: its file cannot have them.
            ShardUnavailable: the namespace's own shard does not answer.
        """
        _check_batch([block.hash for block in request.blocks])
        who = await self._access.identify(request.caller)
        fresh = [(b.hash, _checked_size(b), os.urandom(CLAIM_BYTES)) for b in request.blocks]

        async def pend(tx: Tx) -> dict[BlockHash, tuple[bool, bytes]]:
            require_write(await find_level(tx.conn, request.ns_id, who.account_id))
            if request.session_id is not None:
                key = SessionKey(request.ns_id, request.session_id, who.account_id)
                await _admit_to_session(tx.conn, key, request.blocks)
            rows = await ensure_pending(tx.conn, request.ns_id, fresh)
            return {found: (row.is_ready, row.claim_id) for found, row in rows.items()}

        pending = await self._tx.run_tx([request.ns_id], "begin_blocks", pend, kind=TxKind.FENCE_ONLY)
        faults.fault_point("metaserver.blocks.pending")
        claims = [self._claim(found, claim) for found, (is_ready, claim) in pending.items() if not is_ready]

        async def claim(tx: Tx, batch: Sequence[Claim]) -> dict[BlockHash, BegunBlock]:
            there = await lock_blocks(tx.conn, batch)
            await insert_claims(tx.conn, request.ns_id, [c for c in batch if c.hash in there])
            now_us = await get_clock_us(tx.conn)
            return {
                c.hash: BegunBlock(BlockState.CLAIMED, c.claim_id, there[c.hash])
                if c.hash in there
                else BegunBlock(BlockState.ABSENT, c.claim_id, new_generation(now_us))
                for c in batch
            }

        begun, failed = await self._by_shard("claim_blocks", claims, claim)
        faults.fault_point("metaserver.blocks.claimed")
        begun |= {found: BegunBlock(BlockState.FAILED, error=error.info()) for found, error in failed.items()}
        begun |= {found: BegunBlock(BlockState.READY) for found, (is_ready, _) in pending.items() if is_ready}
        return [begun[block.hash] for block in request.blocks]

    async def finish(self, request: FinishUpload) -> list[FinishedBlock]:
        """Steps 2b and 3.

        Raises:
            NotFound, Forbidden: no right to write to the namespace.
            ShardUnavailable: the namespace's own shard does not answer.
        """
        _check_batch([block.hash for block in request.blocks])
        who = await self._access.identify(request.caller)
        by_hash = {block.hash: block for block in request.blocks}
        claims = [self._claim(block.hash, block.claim_id) for block in request.blocks]

        async def record(tx: Tx, batch: Sequence[Claim]) -> dict[BlockHash, bytes | None]:
            oldest_us = await get_clock_us(tx.conn) - GENERATION_MAX_AGE_US
            written = [
                WrittenBlock(c.system_ns, c.hash, by_hash[c.hash].generation, by_hash[c.hash].size)
                for c in batch
                if by_hash[c.hash].is_written and generation_made_us(by_hash[c.hash].generation) >= oldest_us
            ]
            await insert_blocks(tx.conn, written)
            there = await lock_blocks(tx.conn, batch)
            await insert_claims(tx.conn, request.ns_id, [c for c in batch if c.hash in there])
            return {c.hash: there.get(c.hash) for c in batch}

        recorded, failed = await self._by_shard("record_blocks", claims, record)
        faults.fault_point("metaserver.blocks.recorded")
        # What was claimed at begin may have been collected since, under its pinned generation: start anew.
        to_mark = [
            (found, by_hash[found].claim_id, generation, by_hash[found].size)
            for found, generation in recorded.items()
            if generation is not None
            and (by_hash[found].is_written or generation == by_hash[found].generation)
        ]
        ready = await self._mark_ready(request.ns_id, who, to_mark)
        faults.fault_point("metaserver.blocks.ready")
        return [_finished(block, recorded, failed, ready) for block in request.blocks]

    async def locate(self, request: LocateBlocks) -> list[BlockPlace | None]:
        """The objects of those blocks that the namespace holds ready; None for the others.

        Raises:
            NotFound: no right to read the namespace.
        """
        _check_batch(request.hashes)
        who = await self._access.identify(request.caller)
        reader = NamespaceReader(self._tx, request.ns_id, who.account_id)
        state, found = await reader.list_ready_blocks(request.hashes)
        require_read(state.level)
        places = {block: BlockPlace(generation, size) for block, generation, size in found}
        return [places.get(block) for block in request.hashes]

    async def _mark_ready(
        self, ns_id: NsId, who: Who, blocks: Sequence[tuple[BlockHash, bytes, bytes, int]]
    ) -> set[BlockHash]:
        async def mark(tx: Tx) -> set[BlockHash]:
            require_write(await find_level(tx.conn, ns_id, who.account_id))
            return await mark_ready(tx.conn, ns_id, blocks)

        if not blocks:
            return set()
        # Sorted, so that two batches lock rows in one order.
        blocks = sorted(blocks)
        return await self._tx.run_tx([ns_id], "ready_blocks", mark, kind=TxKind.FENCE_ONLY)

    async def _by_shard(
        self,
        name: str,
        claims: Sequence[Claim],
        step: Callable[[Tx, Sequence[Claim]], Awaitable[dict[BlockHash, T]]],
    ) -> tuple[dict[BlockHash, T], dict[BlockHash, ShardboxError]]:
        """One transaction per shard; what the shards that answered say, and the failures of the others."""
        done: dict[BlockHash, T] = {}
        failed: dict[BlockHash, ShardboxError] = {}

        async def one_shard(ns_ids: list[NsId]) -> None:
            here = set(ns_ids)
            batch = sorted((c for c in claims if c.system_ns in here), key=lambda c: (c.system_ns, c.hash))
            try:
                done.update(
                    await self._tx.run_tx(ns_ids, name, lambda tx: step(tx, batch), kind=TxKind.FENCE_ONLY)
                )
            except SpansShards:
                # One of them has moved meanwhile. Each part is smaller, so this ends.
                await each_shard(self._split(ns_ids))
            except ShardboxError as error:
                failed.update((claim.hash, error) for claim in batch)

        async def each_shard(groups: Collection[list[NsId]]) -> None:
            async with asyncio.TaskGroup() as group:
                for ns_ids in groups:
                    group.create_task(one_shard(ns_ids))

        await each_shard(self._tx.router.group_by_shard(claim.system_ns for claim in claims).values())
        return done, failed

    def _split(self, ns_ids: list[NsId]) -> Collection[list[NsId]]:
        """Namespaces that were on one shard, by where they are now; should they be together again, singly."""
        groups = self._tx.router.group_by_shard(ns_ids).values()
        return groups if len(groups) > 1 else [[ns_id] for ns_id in ns_ids]

    def _claim(self, block: BlockHash, claim_id: bytes) -> Claim:
        slot = slot_of_digest(block, self._tx.router.map.slot_count)
        return Claim(system_ns(slot), block, claim_id)


def _check_batch(hashes: Sequence[BlockHash]) -> None:
    if len(hashes) > MAX_INTERNAL_BLOCKS:
        raise TooManyEntries(f"at most {MAX_INTERNAL_BLOCKS} blocks at once")
    if any(len(block) != DIGEST_BYTES for block in hashes) or len(set(hashes)) != len(hashes):
        raise MalformedId("hashes are distinct and have 32 bytes")


async def _admit_to_session(conn: Connection, key: SessionKey, blocks: Sequence[BeginBlock]) -> None:
    """Take blocks of an open session as its targets, which are as many as its file can have."""
    session = await lock_session(conn, key)
    if session is None:
        raise UploadSessionNotFound()
    if session.commit_digest is not None:
        raise UploadSessionCommitted()
    at_us = await get_clock_us(conn)
    fresh = [TargetRow(block.hash, new_generation(at_us), block.size) for block in blocks]
    there = await ensure_targets(conn, key, fresh, oldest_generation=b"")
    # What was there has been counted, or was given out block by block.
    added = Counter(row.size for row in fresh if there[row.hash] == row)
    if added:
        file_size = session.plan.file_size
        check_lengths(added, file_size)
        full, last = await count_taken(conn, key, added[BLOCK_BYTES], added[file_size % BLOCK_BYTES])
        check_lengths({BLOCK_BYTES: full, file_size % BLOCK_BYTES: last}, file_size)


def _checked_size(block: BeginBlock) -> int:
    if not 0 < block.size <= BLOCK_BYTES:
        raise MalformedId(f"a block has 1 to {BLOCK_BYTES} bytes")
    return block.size


def new_generation(now_us: int) -> bytes:
    """Time of allocation by the database's clock, then 8 random bytes."""
    return now_us.to_bytes(8, "big") + os.urandom(8)


def generation_made_us(generation: bytes) -> int:
    """When a generation was allocated, in microseconds since 1970 by a database's clock."""
    return int.from_bytes(generation[:8], "big")


def _finished(
    block: FinishBlock,
    recorded: dict[BlockHash, bytes | None],
    failed: dict[BlockHash, ShardboxError],
    ready: set[BlockHash],
) -> FinishedBlock:
    if block.hash in failed:
        # Whether the row was inserted is unknown: the object stays, the sweep finds it if it is nobody's.
        return FinishedBlock(BlockState.FAILED, error=failed[block.hash].info())
    is_own = recorded[block.hash] == block.generation
    if block.hash in ready:
        return FinishedBlock(BlockState.READY, drop_own=block.is_written and not is_own)
    return FinishedBlock(
        BlockState.FAILED, drop_own=block.is_written and not is_own, error=UploadExpired().info()
    )
