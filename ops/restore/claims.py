"""The index of blocks after a restore: what the namespaces of all shards hold is claimed again.

A block's row and its claims lie in the slot of its hash, the namespace that holds it in a slot of its own.
When one of the two has gone back in time, the other has not. Both ways are made good:

    held elsewhere, indexed here   the holder has not gone back: its generation is the one that is stored
    held here, indexed anywhere    where the index has gone on, its generation is the one that is stored

Uploads that were under way when the server was lost begin anew: their pending rows are deleted, so that none
is marked ready by a server that knows nothing of the loss.
"""

from collections.abc import Iterator, Mapping, Sequence

from ops.restore.steps import Restored, Step, read_ownership
from sharding.directory import Connection, load_map_sync
from sharding.locks import SLOT_LOCK_CLASS
from sharding.shardmap import OwnershipState, ShardMap
from wire import faults
from wire.hashes import BlockHash
from wire.ids import NsId, slot_of, slot_of_digest, system_ns

BATCH = 5_000
"""Rows in a transaction; half of what a write of the cluster may have, as each block is two rows."""

Held = tuple[NsId, BlockHash, bytes, bytes, int]
"""A ready block of a namespace: ns_id, hash, claim_id, generation, size."""

faults.declare("ops.restore.pending_deleted", "ops.restore.half_claimed")


def claim_again(restored: Restored) -> None:
    """Make claims and index fit."""
    shard_map = load_map_sync(restored.directory)
    kept = set(restored.kept())
    restored.counts["pending_deleted"] = _delete_pending(restored, shard_map, kept)
    faults.fault_point("ops.restore.pending_deleted")
    claimed = 0
    for conn in restored.others.values():
        for batch in _batches(
            conn, {row.ns_id: row.state is OwnershipState.ACTIVE for row in read_ownership(conn)}
        ):
            here = [held for held in batch if _index_key(held[1], shard_map) in kept]
            _claim_here(restored.conn, here, shard_map)
            claimed += len(here)
    faults.fault_point("ops.restore.half_claimed")
    for batch in _batches(
        restored.conn, {row.ns_id: row.ns_id in kept for row in read_ownership(restored.conn)}
    ):
        claimed += _claim_of_restored(restored, batch, shard_map, kept)
    restored.counts["claims"] = claimed
    with restored.conn.transaction():
        restored.note(Step.CLAIMED)


def _index_key(block: BlockHash, shard_map: ShardMap) -> NsId:
    return system_ns(slot_of_digest(block, shard_map.slot_count))


def _delete_pending(restored: Restored, shard_map: ShardMap, kept: set[NsId]) -> int:
    """All of them here; elsewhere those whose index lies here."""
    deleted = restored.conn.execute("DELETE FROM ns.namespace_blocks WHERE state = 'p'").rowcount
    for conn in restored.others.values():
        rows = conn.execute("SELECT ns_id, hash FROM ns.namespace_blocks WHERE state = 'p'").fetchall()
        here = sorted((NsId(n), BlockHash(bytes(h))) for n, h in rows if _index_key(h, shard_map) in kept)
        for batch in _parts(here):
            with conn.transaction():
                lock_slots(conn, [ns_id for ns_id, _ in batch])
                deleted += conn.execute(
                    "DELETE FROM ns.namespace_blocks b"
                    " USING unnest(%s::bigint[], %s::bytea[]) AS t(ns_id, hash)"
                    " WHERE b.ns_id = t.ns_id AND b.hash = t.hash AND b.state = 'p'",
                    [[ns_id for ns_id, _ in batch], [block for _, block in batch]],
                ).rowcount
    return deleted


def lock_slots(conn: Connection, keys: Sequence[NsId]) -> None:
    """What a fence-only write takes. No slot moves meanwhile: a restore and a move exclude each other."""
    conn.execute(
        "SELECT pg_advisory_xact_lock_shared(%s, s) FROM unnest(%s::int[]) s",
        [SLOT_LOCK_CLASS, sorted({slot_of(key) for key in keys})],
    )


def _batches(conn: Connection, owned: Mapping[NsId, bool]) -> Iterator[list[Held]]:
    """All ready blocks of a shard's namespaces; what lies there of those that it does not own is past."""
    at: tuple[int, bytes] = (-1, b"")
    while True:
        rows = conn.execute(
            "SELECT ns_id, hash, claim_id, generation, size FROM ns.namespace_blocks"
            " WHERE state = 'r' AND (ns_id, hash) > (%s, %s) ORDER BY ns_id, hash LIMIT %s",
            [*at, BATCH],
        ).fetchall()
        if not rows:
            return
        yield [
            (NsId(r[0]), BlockHash(bytes(r[1])), bytes(r[2]), bytes(r[3]), r[4])
            for r in rows
            if owned.get(NsId(r[0]), owned.get(system_ns(slot_of(NsId(r[0]))), False))
        ]
        at = (rows[-1][0], bytes(rows[-1][1]))


def _parts(rows: Sequence[tuple[NsId, BlockHash]]) -> Iterator[Sequence[tuple[NsId, BlockHash]]]:
    return (rows[i : i + BATCH] for i in range(0, len(rows), BATCH))


_ARRAYS = (
    "unnest(%(key)s::bigint[], %(hash)s::bytea[], %(generation)s::bytea[], %(size)s::int[],"
    " %(claimant)s::bigint[], %(claim)s::bytea[]) AS t(key, hash, generation, size, claimant, claim)"
)
_BLOCKS = (
    "INSERT INTO ns.blocks (ns_id, hash, generation, size)"
    " SELECT DISTINCT ON (t.key, t.hash) t.key, t.hash, t.generation, t.size FROM "
    + _ARRAYS
    + " ORDER BY t.key, t.hash ON CONFLICT (ns_id, hash) DO "
)
_CLAIMS = (
    "INSERT INTO ns.block_claims (ns_id, hash, claimant_ns_id, claim_id)"
    " SELECT t.key, t.hash, t.claimant, t.claim FROM " + _ARRAYS + " ON CONFLICT DO NOTHING"
)


def _params(batch: Sequence[Held], shard_map: ShardMap) -> dict[str, object]:
    return {
        "key": [_index_key(held[1], shard_map) for held in batch],
        "claimant": [held[0] for held in batch],
        "hash": [held[1] for held in batch],
        "claim": [held[2] for held in batch],
        "generation": [held[3] for held in batch],
        "size": [held[4] for held in batch],
    }


def _claim_here(conn: Connection, batch: Sequence[Held], shard_map: ShardMap) -> None:
    if not batch:
        return
    params = _params(batch, shard_map)
    with conn.transaction():
        newer = "UPDATE SET generation = excluded.generation, size = excluded.size"
        conn.execute(_BLOCKS + newer, params)
        conn.execute(_CLAIMS, params)


def _claim_of_restored(
    restored: Restored, batch: Sequence[Held], shard_map: ShardMap, kept: set[NsId]
) -> int:
    """Claim what namespaces here hold; where the index names another generation, they hold that one now."""
    by_shard: dict[str, list[Held]] = {}
    for held in batch:
        key = _index_key(held[1], shard_map)
        shard = restored.name if key in kept else shard_map.slots[slot_of(key)].shard
        if shard == restored.name or shard in restored.others:
            by_shard.setdefault(shard, []).append(held)
    for shard, some in by_shard.items():
        conn = restored.conn if shard == restored.name else restored.others[shard]
        params = _params(some, shard_map)
        with conn.transaction():
            lock_slots(conn, [_index_key(held[1], shard_map) for held in some])
            conn.execute(_BLOCKS + "NOTHING", params)
            conn.execute(_CLAIMS, params)
            stored = conn.execute(
                "SELECT DISTINCT b.hash, b.generation FROM ns.blocks b JOIN "
                + _ARRAYS
                + " ON b.ns_id = t.key AND b.hash = t.hash AND b.generation <> t.generation",
                params,
            ).fetchall()
        if stored:
            restored.conn.execute(
                "UPDATE ns.namespace_blocks b SET generation = t.generation"
                " FROM unnest(%s::bytea[], %s::bytea[]) AS t(hash, generation)"
                " WHERE b.hash = t.hash AND b.state = 'r' AND b.ns_id = ANY(%s)",
                [[row[0] for row in stored], [row[1] for row in stored], sorted({held[0] for held in some})],
            )
    return sum(map(len, by_shard.values()))
