"""Rows about blocks: the index of a hash's slot, its claims, and what a namespace holds."""

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import LiteralString

from sharding.pool import Connection
from wire.hashes import BlockHash
from wire.ids import NsId

PENDING = "p"
READY = "r"

HASHES_PER_PIECE = 2_000
"""A few ms of the loop; the largest file's 524,287 at once would be seconds."""

# One value with all hashes in it: an array is made up item by item, which takes many times as long.
_READY_SIZES: LiteralString = """
SELECT hash, size FROM ns.namespace_blocks
 WHERE hash = ANY(ARRAY(SELECT substr(p.packed, i * 32 + 1, 32)
                          FROM (SELECT %s::bytea AS packed) p, generate_series(0, %s::int) i))
   AND ns_id = %s AND state = 'r'
"""


@dataclass(frozen=True, slots=True)
class NamespaceBlock:
    """What a namespace has of a block after step 1."""

    is_ready: bool
    claim_id: bytes


async def find_ready_sizes(
    conn: Connection, ns_id: NsId, hashes: Collection[BlockHash]
) -> dict[BlockHash, int]:
    """The lengths of those blocks that the namespace holds ready; others get their turn between pieces."""
    sizes: dict[BlockHash, int] = {}
    left = iter(hashes)
    for start in range(0, len(hashes), HASHES_PER_PIECE):
        if start:
            await asyncio.sleep(0)
        piece = list(islice(left, HASHES_PER_PIECE))
        packed = b"".join(piece)
        cursor = await conn.execute(_READY_SIZES, [packed, len(piece) - 1, ns_id], binary=True)
        sizes.update(await cursor.fetchall())
    return sizes


# Step 1. A pending row's claim_id is taken over as it is: the upload that finishes first makes it ready, and
# the other finds it ready or, should it have gone meanwhile, starts anew. Sorted, so that two batches lock
# rows in one order.
_UPSERT_PENDING: LiteralString = """
INSERT INTO ns.namespace_blocks (ns_id, hash, state, size, claim_id)
SELECT %s, t.hash, 'p', t.size, t.claim_id
  FROM unnest(%s::bytea[], %s::int[], %s::bytea[]) AS t(hash, size, claim_id)
 ORDER BY t.hash
ON CONFLICT (ns_id, hash) DO UPDATE SET claim_id = namespace_blocks.claim_id
RETURNING hash, state, claim_id
"""


async def ensure_pending(
    conn: Connection, ns_id: NsId, blocks: Sequence[tuple[BlockHash, int, bytes]]
) -> dict[BlockHash, NamespaceBlock]:
    """A row for each (hash, size, new claim_id): the one given, or the one that was there."""
    cursor = await conn.execute(
        _UPSERT_PENDING,
        [ns_id, [b[0] for b in blocks], [b[1] for b in blocks], [b[2] for b in blocks]],
        binary=True,
    )
    return {row[0]: NamespaceBlock(row[1] == READY, row[2]) for row in await cursor.fetchall()}


# Step 3.
_MARK_READY: LiteralString = """
UPDATE ns.namespace_blocks b SET state = 'r', generation = t.generation, size = t.size
  FROM unnest(%s::bytea[], %s::bytea[], %s::bytea[], %s::int[]) AS t(hash, claim_id, generation, size)
 WHERE b.ns_id = %s AND b.hash = t.hash AND b.claim_id = t.claim_id AND b.state = 'p'
"""
_STANDING: LiteralString = """
SELECT t.hash FROM unnest(%s::bytea[], %s::bytea[]) AS t(hash, claim_id)
  JOIN ns.namespace_blocks b ON b.ns_id = %s AND b.hash = t.hash AND b.claim_id = t.claim_id AND b.state = 'r'
"""


async def mark_ready(
    conn: Connection, ns_id: NsId, blocks: Sequence[tuple[BlockHash, bytes, bytes, int]]
) -> set[BlockHash]:
    """Those of (hash, claim_id, generation, size) that now are ready under this very claim_id."""
    hashes, claims = [b[0] for b in blocks], [b[1] for b in blocks]
    await conn.execute(_MARK_READY, [hashes, claims, [b[2] for b in blocks], [b[3] for b in blocks], ns_id])
    cursor = await conn.execute(_STANDING, [hashes, claims, ns_id], binary=True)
    return {row[0] for row in await cursor.fetchall()}


# Step 2. The row locks come first and the claims in a later statement, whose snapshot sees whatever a
# collector did before it let go of the lock.
_LOCK_BLOCKS: LiteralString = """
SELECT b.hash, b.generation FROM unnest(%s::bigint[], %s::bytea[]) AS t(ns_id, hash)
  JOIN ns.blocks b ON b.ns_id = t.ns_id AND b.hash = t.hash
 ORDER BY b.ns_id, b.hash FOR UPDATE OF b
"""
_INSERT_CLAIMS: LiteralString = """
INSERT INTO ns.block_claims (ns_id, hash, claimant_ns_id, claim_id)
SELECT t.ns_id, t.hash, %s, t.claim_id
  FROM unnest(%s::bigint[], %s::bytea[], %s::bytea[]) AS t(ns_id, hash, claim_id)
ON CONFLICT DO NOTHING
"""
_INSERT_BLOCKS: LiteralString = """
INSERT INTO ns.blocks (ns_id, hash, generation, size)
SELECT t.*
  FROM unnest(%s::bigint[], %s::bytea[], %s::bytea[], %s::int[]) AS t(ns_id, hash, generation, size)
 ORDER BY t.ns_id, t.hash
ON CONFLICT DO NOTHING
"""


@dataclass(frozen=True, slots=True)
class Claim:
    """A block that a namespace claims: `system_ns` is that of the hash's slot."""

    system_ns: NsId
    hash: BlockHash
    claim_id: bytes


@dataclass(frozen=True, slots=True)
class WrittenBlock:
    """An object that has been written for a hash under a generation."""

    system_ns: NsId
    hash: BlockHash
    generation: bytes
    size: int


async def lock_blocks(conn: Connection, claims: Sequence[Claim]) -> dict[BlockHash, bytes]:
    """The generations of those that are there, their rows locked."""
    cursor = await conn.execute(
        _LOCK_BLOCKS, [[c.system_ns for c in claims], [c.hash for c in claims]], binary=True
    )
    return {row[0]: row[1] for row in await cursor.fetchall()}


async def insert_claims(conn: Connection, claimant: NsId, claims: Sequence[Claim]) -> None:
    """Add claims of one namespace."""
    if claims:
        await conn.execute(
            _INSERT_CLAIMS,
            [claimant, [c.system_ns for c in claims], [c.hash for c in claims], [c.claim_id for c in claims]],
        )


async def insert_blocks(conn: Connection, blocks: Sequence[WrittenBlock]) -> None:
    """Record objects, each unless somebody was faster."""
    if blocks:
        await conn.execute(
            _INSERT_BLOCKS,
            [
                [b.system_ns for b in blocks],
                [b.hash for b in blocks],
                [b.generation for b in blocks],
                [b.size for b in blocks],
            ],
        )


async def get_clock_us(conn: Connection) -> int:
    """This database's clock, in microseconds since 1970: the one that generations are made and judged by."""
    cursor = await conn.execute("SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint")
    row = await cursor.fetchone()
    assert row is not None
    return int(row[0])
