"""Writing to a namespace: a batch of operations, one transaction, a verdict each."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256

import msgspec

from metaserver.model.operations import CommitRequest, Outcome, Request, Start
from metaserver.model.present import present_entry
from metaserver.model.requests import parse_operation
from metaserver.model.rows import Content, RevTimes, SameContent
from metaserver.model.tree import NeedRows
from metaserver.model.write import Batch
from metaserver.services.access import AccessService, Who, require_write
from metaserver.services.hints import HintQueue
from metaserver.services.loading import Loader
from metaserver.storage.block_rows import find_ready_sizes
from metaserver.storage.journal import Append, KeepAnswer, append_journal, keep_answer
from metaserver.storage.namespaces import find_for_write
from metaserver.storage.revs import list_times
from runtime.bodies import TURN_BYTES
from runtime.clock import now_us
from sharding.pool import Connection
from sharding.tx import Transactions, Tx
from wire import faults
from wire.api import MAX_BATCH_ENTRIES, BatchResult, Operation, Verdict
from wire.errors import BadRequest, IdempotencyMismatch, NotFound, ShardboxError, TooManyEntries
from wire.ids import Jid, NsId, pack_device_id
from wire.internal import Caller

OPERATIONS_PER_TURN = 20
"""Between so many operations other requests get their turn: an autorename looks at up to 999 names, 2 ms."""

faults.declare("metaserver.writes.planned", "metaserver.writes.written", "metaserver.writes.committed")


@dataclass(frozen=True, slots=True)
class Write:
    """A parsed batch: what each operation asks, or why it cannot even be asked."""

    ns_id: NsId
    parsed: Sequence[Request | ShardboxError]
    digest: bytes
    key: str | None


class WriteService:
    """The write side of a namespace's tree."""

    def __init__(
        self,
        transactions: Transactions,
        access: AccessService,
        hints: HintQueue,
        clock: Callable[[], int] = now_us,
        *,
        quota_bytes: int | None = None,
    ):
        self._tx = transactions
        self._access = access
        self._hints = hints
        self._clock = clock
        self._quota_bytes = quota_bytes

    async def write_batch(
        self, caller: Caller, operations: Sequence[Operation], key: str | None
    ) -> BatchResult:
        """The verdicts of up to 1,000 operations, durable when this returns.

        Args:
            caller: Whose token it is.
            operations: All on one namespace.
            key: Idempotency key: a repeat gets the first answer, and does nothing. Where all was refused no
                answer is kept, and a repeat is a first request.

        Raises:
            TooManyEntries, BadRequest: none, too many, or in several namespaces.
            IdempotencyMismatch: the key was used with another request.
            NotFound, Forbidden: no right to write there.
        """
        if not 1 <= len(operations) <= MAX_BATCH_ENTRIES:
            raise TooManyEntries(f"a batch has 1 to {MAX_BATCH_ENTRIES} entries")
        who = await self._access.identify(caller)
        write = await parse_write(operations, who, key)

        async def in_tx(tx: Tx) -> BatchResult:
            return await self.write_in_tx(tx, who, write)

        result = await self._tx.run_tx([write.ns_id], "write_batch", in_tx)
        faults.fault_point("metaserver.writes.committed")
        self._hints.put(write.ns_id, Jid(result.head))
        return result

    async def write_in_tx(self, tx: Tx, who: Who, write: Write) -> BatchResult:
        """The verdicts of a batch whose transaction the caller owns, and tells of when it is committed.

        Raises:
            IdempotencyMismatch, NotFound, Forbidden: as `write_batch`; nothing has been written.

        Tx: journalled.
        """
        found = await find_for_write(tx.conn, write.ns_id, who.account_id, write.key, self._quota_bytes)
        if found is None:
            raise NotFound()
        row, kept = found
        require_write(row.level)
        if kept is not None:
            if kept.digest != write.digest:
                raise IdempotencyMismatch()
            return msgspec.msgpack.decode(kept.answer, type=BatchResult)
        requests = [parsed for parsed in write.parsed if not isinstance(parsed, ShardboxError)]
        loader = Loader(tx.conn, write.ns_id, row.head, requests)
        view = await loader.load_view()
        blocks = {block for r in requests if isinstance(r, CommitRequest) for block in r.blocks}
        ready = await find_ready_sizes(tx.conn, write.ns_id, blocks)
        start = Start(
            write.ns_id, row.head, row.next_entry_id, who.display_name, row.live_bytes, row.quota_bytes
        )
        batch = Batch(start, view, ready)
        outcomes: list[Outcome | ShardboxError] = []
        for number, parsed in enumerate(write.parsed):
            if number % OPERATIONS_PER_TURN == OPERATIONS_PER_TURN - 1:
                await asyncio.sleep(0)
            if isinstance(parsed, ShardboxError):
                outcomes.append(parsed)
            else:
                outcomes.append(await apply_request(loader, batch, parsed))
        faults.fault_point("metaserver.writes.planned")
        at_us = max(self._clock(), row.modified_us)
        verdicts = await present_outcomes(tx.conn, write.ns_id, batch, outcomes, at_us)
        result = BatchResult(verdicts, batch.head)
        keep = _keep_of(who, write, result)
        if batch.rows:
            device = None if who.device_id is None else pack_device_id(who.device_id)
            add = Append(
                write.ns_id,
                batch.head,
                batch.next_entry_id,
                at_us,
                device,
                batch.rows,
                batch.written,
                batch.created,
                batch.grown_bytes,
                batch.debts,
            )
            await append_journal(tx.conn, add, keep)
            tx.content_bytes[write.ns_id] = sum(
                row.content.size for row in batch.rows if isinstance(row.content, Content)
            )
            faults.fault_point("metaserver.writes.written")
        elif keep is not None:
            await keep_answer(tx.conn, write.ns_id, keep)
        return result


async def parse_write(operations: Sequence[Operation], who: Who, key: str | None) -> Write:
    """The operations as requests, with turns for others; what cannot be understood keeps its error."""
    parsed: list[Request | ShardboxError] = []
    ns_ids: set[NsId] = set()
    digest = sha256()
    byte_count = 0
    for operation in operations:
        # The decoded form has one spelling, and nothing of the request is left out.
        encoded = msgspec.msgpack.encode(operation)
        digest.update(encoded)
        byte_count += len(encoded)
        if byte_count > TURN_BYTES:
            byte_count = 0
            await asyncio.sleep(0)
        try:
            if len(encoded) > TURN_BYTES:  # thousands of hashes: steps that others can come between
                ns_id, request = await asyncio.to_thread(parse_operation, operation, who.root_ns)
            else:
                ns_id, request = parse_operation(operation, who.root_ns)
        except ShardboxError as error:
            parsed.append(error)
        else:
            ns_ids.add(ns_id)
            parsed.append(request)
    if len(ns_ids) > 1:
        raise BadRequest("the operations of one batch lie in one namespace")
    return Write(ns_ids.pop() if ns_ids else who.root_ns, parsed, digest.digest(), key)


async def apply_request(loader: Loader, batch: Batch, request: Request) -> Outcome | ShardboxError:
    """What became of one operation, loading what it turns out to need."""
    while True:
        try:
            return batch.apply(request)
        except NeedRows as need:
            await loader.load(need)
        except ShardboxError as error:
            return error


async def present_outcomes(
    conn: Connection,
    ns_id: NsId,
    batch: Batch,
    outcomes: Sequence[Outcome | ShardboxError],
    at_us: int,
) -> list[Verdict]:
    """The verdicts, files with the times of their revs."""
    contents = {row.jid: row.content for row in batch.rows if row.content}
    revs = {o.entry.rev_jid for o in outcomes if isinstance(o, Outcome) and o.entry.rev_jid}
    same = {rev: c.rev_jid for rev in revs if isinstance(c := contents.get(rev), SameContent)}
    older = {rev for rev in revs if rev not in contents} | set(same.values())
    times = await list_times(conn, ns_id, older) if older else {}
    times |= {rev: RevTimes(times[source].client_modified_us, at_us) for rev, source in same.items()}
    times |= {
        jid: RevTimes(c.client_modified_us, at_us) for jid, c in contents.items() if isinstance(c, Content)
    }
    return [
        Verdict(error=outcome.info())
        if isinstance(outcome, ShardboxError)
        else Verdict(
            metadata=present_entry(
                ns_id,
                outcome.entry,
                path=outcome.path,
                times=times[outcome.entry.rev_jid] if outcome.entry.rev_jid else None,
            ),
            changed=outcome.is_changed,
        )
        for outcome in outcomes
    ]


def _keep_of(who: Who, write: Write, result: BatchResult) -> KeepAnswer | None:
    """What is kept of a write under its key; None without one, and where all was refused.

    Also what succeeded without a change is kept: by the time of a repeat it might be one, of newer content.
    """
    if write.key is None or all(verdict.error is not None for verdict in result.verdicts):
        return None
    return KeepAnswer(who.account_id, write.key, write.digest, msgspec.msgpack.encode(result))
