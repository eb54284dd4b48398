"""Blocks that clients put into the store by themselves.

    1  sign       an address for each block, good for less than an hour
    2             the client puts the bytes there
    3  complete   verify them; then the steps of every upload: begin, finish

A store that checks what is put takes the bytes as the object itself, and says so later (`attest`). Any other
takes them as staged: they are read, hashed, and written as the object by us, since whoever holds the address
could replace them after they were looked at. Whoever dies in between leaves something too many, never too
few.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from blockserver.services.mend import Mender
from blockserver.services.metrics import BlockMetrics
from blockserver.services.upload import Outcome, UploadService
from blockserver.storage.backend import Backend, ObjectMissing, ObjectName, StagedName
from blockserver.storage.index import BlockIndex
from blockserver.storage.keys import format_object
from blockserver.storage.sessions import SessionIndex
from runtime.bodies import ByteBudget
from runtime.logs import get_log
from wire.blocks import PutVerdict
from wire.errors import (
    BlockNotFound,
    HashMismatch,
    InternalError,
    ShardboxError,
    TooManyEntries,
    UpstreamUnavailable,
)
from wire.faults import declare, fault_point
from wire.hashes import BLOCK_BYTES, BlockHash
from wire.ids import NsId
from wire.internal import BeginBlock, BlockState, Caller, FinishBlock, FinishedBlock
from wire.sessions import MAX_COMPLETE_HASHES, FoundTarget, SignedTarget, SignTargets

_log = get_log(__name__)
_Name = TypeVar("_Name", ObjectName, StagedName)

VERIFIES_SETTING = "SHARDBOX_S3_VERIFIES_CHECKSUMS"
ASKED_AT_ONCE = 32
"""Questions of one request to the store at a time: each is a round trip and holds nothing."""
READ_AT_ONCE = 4
"""Staged blocks of one request in memory at a time: 16 MiB, and their writing overlaps the reading."""

declare(
    "blockserver.direct.asked",
    "blockserver.direct.verified",
    "blockserver.direct.begun",
    "blockserver.direct.finished",
    "blockserver.direct.staged_stored",
    "blockserver.direct.answered",
)


@dataclass(frozen=True, slots=True)
class _Job:
    """Whose blocks are completed, by whose memory, in which session."""

    caller: Caller
    owner: str | None
    ns_id: NsId
    session_id: bytes


class DirectService:
    """Signs the targets of upload sessions, and makes what was put there ready."""

    def __init__(
        self,
        sessions: SessionIndex,
        index: BlockIndex,
        backend: Backend,
        uploads: UploadService,
        mender: Mender,
        budget: ByteBudget,
        metrics: BlockMetrics,
    ):
        self._sessions = sessions
        self._index = index
        self._backend = backend
        self._uploads = uploads
        self._mender = mender
        self._budget = budget
        self._metrics = metrics

    async def sign(self, request: SignTargets) -> list[SignedTarget | None]:
        """Where a client may put each block; None: not into this store.

        Raises:
            UpstreamUnavailable: the store's credentials cannot be had.
        """
        targets: list[SignedTarget | None] = []
        for block in request.blocks:
            name = ObjectName(block.hash, block.generation)
            place = self._backend.find_direct_place(name, request.session_id)
            signed = None
            if place is not None:
                signed = await self._backend.presign_put(place, size=block.size, expires_s=block.expires_s)
            targets.append(
                None if signed is None else SignedTarget(signed.method, signed.url, dict(signed.headers))
            )
        return targets

    async def complete(
        self, caller: Caller, owner: str | None, ns_id: NsId, session_id: bytes, hashes: Sequence[BlockHash]
    ) -> list[PutVerdict]:
        """One verdict per hash, in their order: None where the block is ready in the namespace.

        `owner`: whose part of the memory is taken.

        Raises:
            TooManyEntries: none, or too many.
            UploadSessionNotFound: expired, another account's, or never there.
            ShardboxError: nothing is known of any of them. The same call may be made again.
        """
        if not 1 <= len(hashes) <= MAX_COMPLETE_HASHES:
            raise TooManyEntries(f"1 to {MAX_COMPLETE_HASHES} hashes a request")
        distinct = list(dict.fromkeys(hashes))
        found = await self._sessions.find(caller, ns_id, session_id, distinct)
        fault_point("blockserver.direct.asked")
        outcomes: dict[BlockHash, Outcome] = {
            name: BlockNotFound("the session has no target for this block").info()
            for name in distinct
            if name not in found
        }
        outcomes |= {name: None for name, target in found.items() if target.is_ready}
        work = {name: target for name, target in found.items() if not target.is_ready}
        outcomes |= await self._complete(_Job(caller, owner, ns_id, session_id), work)
        absent = [name for name, error in outcomes.items() if error and error.code == BlockNotFound.code]
        if any(name in work for name in absent):
            # Another request for the same blocks may have been faster, and has removed what was staged.
            again = await self._sessions.find(caller, ns_id, session_id, absent)
            outcomes |= {name: None for name, target in again.items() if target.is_ready}
        fault_point("blockserver.direct.answered")
        return [PutVerdict(hash=name.hex(), error=outcomes[name]) for name in hashes]

    async def _complete(self, job: _Job, work: Mapping[BlockHash, FoundTarget]) -> dict[BlockHash, Outcome]:
        direct: dict[ObjectName, int] = {}
        staged: list[StagedName] = []
        outcomes: dict[BlockHash, Outcome] = {}
        for name, target in work.items():
            place = self._backend.find_direct_place(ObjectName(name, target.generation), job.session_id)
            if isinstance(place, ObjectName):
                direct[place] = target.size
            elif isinstance(place, StagedName):
                staged.append(place)
            else:
                outcomes[name] = BlockNotFound("the block has not been sent").info()
        verified = await _each(direct, ASKED_AT_ONCE, lambda name: self._verify(name, direct[name]))
        fault_point("blockserver.direct.verified")
        outcomes |= {name.hash: error for name, error in verified.items() if error is not None}
        good = {name: direct[name] for name, error in verified.items() if error is None}
        outcomes |= await self._record(job, good)
        stored = await _each(staged, READ_AT_ONCE, lambda name: self._store(job, name))
        return outcomes | {name.hash: error for name, error in stored.items()}

    async def _verify(self, name: ObjectName, size: int) -> Outcome:
        """What is wrong with an object that a client has put, by the store's word.

        Raises:
            UpstreamUnavailable: the store gives none. To read the bytes would not do: the address that they
                came by is good for a while, and others could follow.
        """
        attested = await self._backend.attest(name)
        if attested is None:
            _log.error("store_tells_no_checksum", object=format_object(name), setting=VERIFIES_SETTING)
            raise UpstreamUnavailable(
                f"the block store tells no SHA-256 of what was put, so {VERIFIES_SETTING} must be false"
            )
        if (attested.sha256, attested.size) == (name.hash, size):
            return None
        self._metrics.uploaded.labels("mismatch").inc()
        return HashMismatch("what was put there does not have this hash").info()

    async def _store(self, job: _Job, name: StagedName) -> Outcome:
        """Take staged bytes in like those of any upload; what was staged then is of no use."""
        with self._budget.take(BLOCK_BYTES, job.owner):
            data = await self._backend.get_staged(name)
            verdict = await self._uploads.put_block(job.caller, job.ns_id, name.hash, data)
        if verdict.error is not None:
            return verdict.error
        fault_point("blockserver.direct.staged_stored")
        try:
            await self._backend.delete_staged(name)
        except ShardboxError as error:
            _log.info("staged_left", block=name.hash.hex(), error=str(error))  # it expires
        return None

    async def _record(self, job: _Job, objects: Mapping[ObjectName, int]) -> dict[BlockHash, Outcome]:
        """Begin and finish, with objects that are there already under generations of their own."""
        if not objects:
            return {}
        blocks = [BeginBlock(name.hash, size) for name, size in objects.items()]
        begun = dict(zip(objects, await self._index.begin(job.caller, job.ns_id, blocks), strict=True))
        fault_point("blockserver.direct.begun")
        outcomes: dict[BlockHash, Outcome] = {}
        to_finish: dict[ObjectName, FinishBlock] = {}
        for name, step in begun.items():
            if step.state is BlockState.READY:
                outcomes[name.hash] = None
            elif step.state is BlockState.FAILED:
                outcomes[name.hash] = step.error or InternalError("begin failed without an error").info()
            else:
                is_own = step.state is BlockState.ABSENT
                generation = name.generation if is_own else step.generation
                to_finish[name] = FinishBlock(name.hash, objects[name], step.claim_id, generation, is_own)
        claimed = [name for name, block in to_finish.items() if block.generation != name.generation]
        looked_at = await _each(
            claimed, ASKED_AT_ONCE, lambda name: self._check_claimed(name, to_finish[name])
        )
        for name, error in looked_at.items():
            if error is not None:
                outcomes[name.hash] = error
                del to_finish[name]
        if to_finish:
            ends = await self._index.finish(job.caller, job.ns_id, list(to_finish.values()))
            fault_point("blockserver.direct.finished")
            for (name, block), end in zip(to_finish.items(), ends, strict=True):
                outcomes[name.hash] = await self._end(name, block, end)
        return outcomes

    async def _check_claimed(self, name: ObjectName, block: FinishBlock) -> None:
        """Have the object that the row names stand there before the client's own may go."""
        await self._mender.mend_claimed_from(name, ObjectName(name.hash, block.generation), block.size)

    async def _end(self, name: ObjectName, block: FinishBlock, end: FinishedBlock) -> Outcome:
        """The outcome of a finish.

        Another object may stand for the hash; then the client's goes. Only once the block is ready, though: a
        client that must try again may be sent to the same place, and a DELETE that is late would hit that.
        """
        if end.state is not BlockState.READY:
            return end.error or InternalError("finish failed without an error").info()
        is_ours = not end.drop_own if block.is_written else block.generation == name.generation
        self._metrics.uploaded.labels("stored" if is_ours else "claimed").inc()
        if not is_ours:
            try:
                await self._backend.delete(name)
            except ShardboxError as error:
                _log.warning("object_left", object=format_object(name), error=str(error))
        return None


async def _each(
    names: Collection[_Name], width: int, step: Callable[[_Name], Awaitable[Outcome]]
) -> dict[_Name, Outcome]:
    """What came of each, `width` of them at a time."""
    outcomes: dict[_Name, Outcome] = {}
    todo = iter(names)

    async def work() -> None:
        for name in todo:
            try:
                outcomes[name] = await step(name)
            except ObjectMissing:
                outcomes[name] = BlockNotFound("nothing has been put at the block's target").info()
            except ShardboxError as error:
                outcomes[name] = error.info()

    await asyncio.gather(*(work() for _ in range(min(width, len(names)))))
    return outcomes
