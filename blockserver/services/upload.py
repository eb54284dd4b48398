"""Taking blocks in.

The order is what keeps a referenced block from ever being absent (source: the design of blocks): the bytes
have been received and hashed; begin; write the object under the generation given; finish. Whoever dies in
between leaves a pending row, a claim or an object too many, which the next try or the collectors find.
"""

import asyncio
from collections.abc import Mapping, Sequence

from blockserver.services.mend import Mender
from blockserver.services.metrics import BlockMetrics
from blockserver.storage.backend import Backend, ObjectName
from blockserver.storage.index import BlockIndex
from runtime.logs import get_log
from wire.blocks import Frame, FrameStatus, PutVerdict
from wire.errors import ErrorInfo, HashMismatch, InternalError, ShardboxError, UploadExpired
from wire.faults import declare, fault_point
from wire.hashes import BlockHash, block_hash
from wire.ids import NsId
from wire.internal import BeginBlock, BlockState, Caller, FinishBlock

_log = get_log(__name__)

TRIES = 2
"""An upload overtaken by a collector starts anew; the bytes are still here, so once without the client."""
WRITES_AT_ONCE = 64
"""Objects of one request handed to the store at a time: enough for its threads, and a pack of 1,000 leaves
turns to other requests."""

declare(
    "blockserver.upload.before_begin",
    "blockserver.upload.after_begin",
    "blockserver.upload.before_finish",
    "blockserver.upload.after_finish",
    "blockserver.upload.before_answer",
)

Data = bytes | bytearray | memoryview
Outcome = ErrorInfo | None
"""What became of a block: None: it is ready in the namespace."""


class UploadService:
    """Puts blocks into a namespace."""

    def __init__(self, index: BlockIndex, backend: Backend, mender: Mender, metrics: BlockMetrics):
        self._index = index
        self._backend = backend
        self._metrics = metrics
        self._mender = mender

    async def put_block(
        self, caller: Caller, ns_id: NsId, name: BlockHash, data: Data, *, session_id: bytes | None = None
    ) -> PutVerdict:
        """The verdict on one block."""
        frame = Frame(name, FrameStatus.OK, memoryview(data))
        return (await self.put_pack(caller, ns_id, [frame], session_id=session_id))[0]

    async def put_pack(
        self, caller: Caller, ns_id: NsId, frames: Sequence[Frame], *, session_id: bytes | None = None
    ) -> list[PutVerdict]:
        """One verdict per frame, in their order; a hash may come several times.

        Args:
            session_id: The upload session by whose address they came, which bounds them.

        Raises:
            ShardboxError: nothing is known of any of them: no right to the namespace, its shard or all
                metaservers are out of reach. The same call may be made again.
        """
        problems = await asyncio.to_thread(_find_problems, frames)
        blocks = {
            frame.hash: frame.data for frame, problem in zip(frames, problems, strict=True) if not problem
        }
        outcomes = await self._store(caller, ns_id, blocks, session_id) if blocks else {}
        fault_point("blockserver.upload.before_answer")
        self._metrics.uploaded.labels("mismatch").inc(sum(problem is not None for problem in problems))
        return [
            PutVerdict(hash=frame.hash.hex(), error=problem or outcomes[frame.hash])
            for frame, problem in zip(frames, problems, strict=True)
        ]

    async def _store(
        self, caller: Caller, ns_id: NsId, blocks: Mapping[BlockHash, Data], session_id: bytes | None
    ) -> dict[BlockHash, Outcome]:
        outcomes: dict[BlockHash, Outcome] = {}
        left = dict(blocks)
        for _ in range(TRIES):
            outcomes |= await self._store_once(caller, ns_id, left, session_id)
            left = {name: data for name, data in left.items() if _is_overtaken(outcomes[name])}
            if not left:
                break
        self._metrics.uploaded.labels("failed").inc(sum(error is not None for error in outcomes.values()))
        return outcomes

    async def _store_once(
        self, caller: Caller, ns_id: NsId, blocks: Mapping[BlockHash, Data], session_id: bytes | None
    ) -> dict[BlockHash, Outcome]:
        fault_point("blockserver.upload.before_begin")
        asked = [BeginBlock(name, len(data)) for name, data in blocks.items()]
        begun = dict(zip(blocks, await self._index.begin(caller, ns_id, asked, session_id), strict=True))
        fault_point("blockserver.upload.after_begin")
        outcomes: dict[BlockHash, Outcome] = {
            name: step.error or _unexplained("begin")
            for name, step in begun.items()
            if step.state is BlockState.FAILED
        }
        ready = [name for name, step in begun.items() if step.state is BlockState.READY]
        outcomes |= dict.fromkeys(ready)
        outcomes |= await self._mender.mend_ready(caller, ns_id, {name: blocks[name] for name in ready})
        claimed = {
            ObjectName(name, step.generation): blocks[name]
            for name, step in begun.items()
            if step.state is BlockState.CLAIMED
        }
        outcomes |= await self._mender.mend_claimed(claimed)
        absent = {
            ObjectName(name, step.generation): blocks[name]
            for name, step in begun.items()
            if step.state is BlockState.ABSENT
        }
        outcomes |= await self._write_all(absent)
        self._metrics.uploaded.labels("ready").inc(len(ready))
        to_finish = [
            FinishBlock(
                name, len(blocks[name]), step.claim_id, step.generation, step.state is BlockState.ABSENT
            )
            for name, step in begun.items()
            if name not in outcomes
        ]
        return outcomes | await self._finish(caller, ns_id, to_finish)

    async def _finish(
        self, caller: Caller, ns_id: NsId, blocks: Sequence[FinishBlock]
    ) -> dict[BlockHash, Outcome]:
        if not blocks:
            return {}
        fault_point("blockserver.upload.before_finish")
        finished = await self._index.finish(caller, ns_id, blocks)
        fault_point("blockserver.upload.after_finish")
        outcomes: dict[BlockHash, Outcome] = {}
        for block, end in zip(blocks, finished, strict=True):
            is_ready = end.state is BlockState.READY
            outcomes[block.hash] = None if is_ready else end.error or _unexplained("finish")
            if is_ready:
                is_stored = block.is_written and not end.drop_own
                self._metrics.uploaded.labels("stored" if is_stored else "claimed").inc()
            if end.drop_own and block.is_written:
                await self._drop(ObjectName(block.hash, block.generation))
        return outcomes

    async def _write_all(self, objects: Mapping[ObjectName, Data]) -> dict[BlockHash, Outcome]:
        """The errors of those that could not be written; all others are durable."""
        failed: dict[BlockHash, Outcome] = {}
        todo = iter(objects.items())

        async def write_some() -> None:
            for name, data in todo:
                try:
                    with self._metrics.store_seconds.labels("put").time():
                        await self._backend.put(name, data)
                    self._metrics.uploaded_bytes.inc(len(data))
                except ShardboxError as error:
                    failed[name.hash] = error.info()

        await asyncio.gather(*(write_some() for _ in range(min(WRITES_AT_ONCE, len(objects)))))
        return failed

    async def _drop(self, name: ObjectName) -> None:
        """Remove an object that lost the race; if that fails, the sweep finds it."""
        try:
            await self._backend.delete(name)
        except ShardboxError as error:
            _log.warning("object_left", object=f"{name.hash.hex()}.{name.generation.hex()}", error=str(error))


def _find_problems(frames: Sequence[Frame]) -> list[ErrorInfo | None]:
    """For each frame, what is wrong with its bytes. A second or so for a full pack, so in a thread."""
    return [_find_problem(frame) for frame in frames]


def _find_problem(frame: Frame) -> ErrorInfo | None:
    if not frame.data:
        return HashMismatch("an empty file has no blocks; a block has at least one byte").info()
    if block_hash(frame.data) != frame.hash:
        return HashMismatch("the bytes that arrived do not have this hash").info()
    return None


def _is_overtaken(outcome: Outcome) -> bool:
    return outcome is not None and outcome.code == UploadExpired.code


def _unexplained(step: str) -> ErrorInfo:
    return InternalError(f"the {step} of this upload failed without an error").info()
