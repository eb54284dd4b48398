"""The rows of blocks. They lie with the metaservers; these are the three questions that one may ask there."""

from collections.abc import Sequence
from typing import TypeVar

from runtime.owners import Owners
from runtime.rpc import ServiceClient
from wire.errors import IdentityNotLinked, UpstreamUnavailable
from wire.hashes import BlockHash
from wire.ids import NsId
from wire.internal import (
    BeginBlock,
    BeginResult,
    BeginUpload,
    BegunBlock,
    BlockPlace,
    Caller,
    FinishBlock,
    FinishedBlock,
    FinishResult,
    FinishUpload,
    LocateBlocks,
    LocateResult,
)

_T = TypeVar("_T")
_A = TypeVar("_A", BeginResult, LocateResult)

CALL_TIMEOUT_S = 8.0
"""A shard that hangs is given up by the metaserver within 2 s, and a batch visits namespace and hashes one
after the other; what takes twice as long will not come."""


class BlockIndex:
    """Row steps for batches of blocks of one namespace. Each may be repeated.

    All raise what the metaserver refuses with (no right to the namespace, its shard is down), and
    UpstreamUnavailable when no metaserver answers; the outcome is unknown then.
    """

    def __init__(self, metaservers: ServiceClient, owners: Owners | None = None):
        """`owners` is told whose account a caller is found to have."""
        self._metaservers = metaservers
        self._owners = owners or Owners()

    async def begin(
        self, caller: Caller, ns_id: NsId, blocks: Sequence[BeginBlock], session_id: bytes | None = None
    ) -> list[BegunBlock]:
        """Steps 1 and 2a, in the order of `blocks`, which are distinct; of an upload session, if they came by
        its address."""
        request = BeginUpload(caller, ns_id, list(blocks), session_id)
        answer = await self._ask("/internal/blocks/begin", request, BeginResult)
        return _as_many(answer.blocks, len(blocks))

    async def finish(self, caller: Caller, ns_id: NsId, blocks: Sequence[FinishBlock]) -> list[FinishedBlock]:
        """Steps 2b and 3, in the order of `blocks`."""
        request = FinishUpload(caller, ns_id, list(blocks))
        answer = await self._metaservers.call(
            "/internal/blocks/finish", request, FinishResult, timeout_s=CALL_TIMEOUT_S
        )
        return _as_many(answer.blocks, len(blocks))

    async def locate(
        self, caller: Caller, ns_id: NsId, hashes: Sequence[BlockHash]
    ) -> list[BlockPlace | None]:
        """Where each block of the namespace lies; None: the namespace has not got it ready."""
        request = LocateBlocks(caller, ns_id, list(hashes))
        answer = await self._ask("/internal/blocks/locate", request, LocateResult)
        return _as_many(answer.blocks, len(hashes))

    async def _ask(self, path: str, request: BeginUpload | LocateBlocks, kind: type[_A]) -> _A:
        try:
            answer = await self._metaservers.call(path, request, kind, timeout_s=CALL_TIMEOUT_S)
        except IdentityNotLinked:
            self._owners.forget(request.caller)
            raise
        if answer.owner is not None:  # an older metaserver does not say
            self._owners.learn(request.caller, answer.owner)
        return answer


def _as_many(found: list[_T], count: int) -> list[_T]:
    if len(found) != count:
        raise UpstreamUnavailable(f"a metaserver answered for {len(found)} of {count} blocks")
    return found
