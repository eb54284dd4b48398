"""Where a client sends the blocks of a session: to the store, or to a blockserver at a signed address.

A target is a row, so that a blockserver later knows which generation the client's object has, and an address,
which is made anew each time: a young target keeps its generation, and what has been put there counts.
"""

import random
import time
from collections.abc import Mapping, Sequence
from itertools import islice

import msgspec

from metaserver.services.access import require_read
from metaserver.services.blocks import generation_made_us, new_generation
from metaserver.storage import sessions as rows
from metaserver.storage.block_rows import get_clock_us
from metaserver.storage.listing import NamespaceReader
from metaserver.storage.sessions import SessionKey, TargetRow
from runtime.clock import format_us
from runtime.rpc import ServiceClient
from sharding.tx import Transactions, Tx, TxKind
from wire import faults
from wire.errors import UploadSessionNotFound, UpstreamUnavailable
from wire.grants import UploadGrant, format_upload_url
from wire.hashes import BLOCK_BYTES, BlockHash
from wire.internal import Caller, IdentityCaller
from wire.keys import KeyRing
from wire.sessions import (
    KEEP_TARGET_S,
    MAX_TARGETS,
    TARGET_LIFE_S,
    FoundTarget,
    SignedTarget,
    SignedTargets,
    SignTargets,
    TargetBlock,
    UploadTarget,
)

SIGNED_AT_ONCE = 250
SIGN_TIMEOUT_S = 8.0
"""Signing asks nobody else. An address of S3 was measured to take 1.7 ms of a processor, so that many take a
blockserver half a second, or a few where eight others want the processor too."""
HASHES_AT_ONCE = 10_000
"""Hashes of a block list that are looked up in one statement."""

faults.declare("metaserver.targets.issued", "metaserver.targets.signed")


class TargetService:
    """Gives out upload targets. Only blockservers know the store, so they are asked for addresses first."""

    def __init__(
        self,
        transactions: Transactions,
        blockservers: ServiceClient,
        public_urls: Sequence[str],
        service_keys: KeyRing,
    ):
        """`public_urls` are the blockservers' as clients reach them."""
        self._tx = transactions
        self._blockservers = blockservers
        self._public_urls = public_urls
        self._keys = service_keys

    async def issue(
        self, key: SessionKey, caller: Caller, sizes: Mapping[BlockHash, int]
    ) -> tuple[list[UploadTarget], bool]:
        """Targets for the first MAX_TARGETS blocks that the namespace does not hold ready; are there more?

        Raises:
            UploadSessionNotFound: it has just expired.
            UpstreamUnavailable: no blockserver answers.
        """
        absent, has_more = await self._list_absent(key, sizes)
        if not absent:
            return [], False
        issued = await self._ensure(key, absent)
        faults.fault_point("metaserver.targets.issued")
        targets = await self._sign(key, caller, issued)
        faults.fault_point("metaserver.targets.signed")
        return targets, has_more

    async def find(self, key: SessionKey, hashes: Sequence[BlockHash]) -> list[FoundTarget | None]:
        """What the session has of each block, one or more; None: it has given out no target for it.

        Raises:
            UploadSessionNotFound: expired, another account's, or never there.
        """
        found = await rows.read_own(self._tx, key, "find_targets", rows.FOUND_TARGETS, sorted(set(hashes)))
        if not found:
            raise UploadSessionNotFound()
        by_hash = {
            row[0]: FoundTarget(bool(row[1]), row[2], row[3] or b"") for row in found if row[2] is not None
        }
        return [by_hash.get(block) for block in hashes]

    def sign_any(self, key: SessionKey, caller: Caller) -> str:
        """An address of a blockserver that takes any block of the session, its hash appended.

        Raises:
            UpstreamUnavailable: there are no blockservers.
        """
        return self._url(key, caller, None, TARGET_LIFE_S)

    async def _list_absent(
        self, key: SessionKey, sizes: Mapping[BlockHash, int]
    ) -> tuple[list[TargetRow], bool]:
        """The first blocks that the namespace does not hold ready, without a generation; are there more?"""
        absent: list[TargetRow] = []
        hashes = iter(sizes)
        reader = NamespaceReader(self._tx, key.ns_id, key.account_id)
        while len(absent) <= MAX_TARGETS and (some := list(islice(hashes, HASHES_AT_ONCE))):
            state, found = await reader.list_ready_blocks(some)
            require_read(state.level)
            ready = {block for block, _, _ in found}
            absent += [TargetRow(block, b"", sizes[block]) for block in some if block not in ready]
        return absent[:MAX_TARGETS], len(absent) > MAX_TARGETS

    async def _ensure(self, key: SessionKey, absent: Sequence[TargetRow]) -> list[tuple[TargetRow, int]]:
        """The targets' rows, and how many seconds each is good for."""

        async def ensure(tx: Tx) -> list[tuple[TargetRow, int]]:
            if await rows.lock_session(tx.conn, key) is None:
                raise UploadSessionNotFound()
            at_us = await get_clock_us(tx.conn)
            fresh = [TargetRow(row.hash, new_generation(at_us), row.size) for row in absent]
            oldest = (at_us - KEEP_TARGET_S * 1_000_000).to_bytes(8, "big")
            found = await rows.ensure_targets(tx.conn, key, fresh, oldest)
            return [(found[row.hash], _life_s(found[row.hash], at_us)) for row in absent]

        return await self._tx.run_tx([key.ns_id], "issue_targets", ensure, kind=TxKind.FENCE_ONLY)

    async def _sign(
        self, key: SessionKey, caller: Caller, issued: Sequence[tuple[TargetRow, int]]
    ) -> list[UploadTarget]:
        self._require_blockservers()
        signed: list[SignedTarget | None] = []
        for start in range(0, len(issued), SIGNED_AT_ONCE):
            signed += await self._ask(key, issued[start : start + SIGNED_AT_ONCE])
        return [
            _present(row, life_s, target or self._sign_here(key, caller, row, life_s))
            for (row, life_s), target in zip(issued, signed, strict=True)
        ]

    async def _ask(
        self, key: SessionKey, issued: Sequence[tuple[TargetRow, int]]
    ) -> list[SignedTarget | None]:
        blocks = [TargetBlock(row.hash, row.size, row.generation, life_s) for row, life_s in issued]
        request = SignTargets(key.ns_id, key.session_id, blocks)
        answer = await self._blockservers.call(
            "/internal/targets", request, SignedTargets, timeout_s=SIGN_TIMEOUT_S
        )
        if len(answer.targets) != len(issued):
            raise UpstreamUnavailable("a blockserver answered for other blocks")
        return answer.targets

    def _sign_here(self, key: SessionKey, caller: Caller, row: TargetRow, life_s: int) -> SignedTarget:
        return SignedTarget("PUT", self._url(key, caller, row, life_s), {})

    def _url(self, key: SessionKey, caller: Caller, row: TargetRow | None, life_s: int) -> str:
        self._require_blockservers()
        if isinstance(caller, IdentityCaller):
            # It is of use at the first sign-in alone, and addresses end up in logs.
            caller = msgspec.structs.replace(caller, email=None)
        grant = UploadGrant(
            key.ns_id,
            key.session_id,
            caller,
            None if row is None else row.hash,
            BLOCK_BYTES if row is None else row.size,
            int(time.time()) + life_s,
        )
        return format_upload_url(random.choice(self._public_urls), grant, self._keys)  # noqa: S311

    def _require_blockservers(self) -> None:
        if not self._public_urls:
            raise UpstreamUnavailable("this metaserver has not been told of any blockserver")


def _life_s(target: TargetRow, at_us: int) -> int:
    """How much longer a target is good for; a generation from before a clock was set back counts as new."""
    age_s = max(0, at_us - generation_made_us(target.generation)) // 1_000_000
    return max(1, TARGET_LIFE_S - age_s)


def _present(row: TargetRow, life_s: int, signed: SignedTarget) -> UploadTarget:
    return UploadTarget(
        hash=row.hash.hex(),
        size=row.size,
        method=signed.method,
        url=signed.url,
        headers=signed.headers,
        expires_at=format_us((int(time.time()) + life_s) * 1_000_000),
    )
