"""Our changes to the server: batches of operations, stored before they are sent, with their verdicts.

A request that was stored is sent, unchanged and under its key, until there is an answer: after a crash too.
What each operation was about is stored beside it, so the answer can be understood without anything else.
"""

import secrets
import time
from collections.abc import Sequence
from enum import StrEnum

import msgspec

from client.calls import Calls
from client.download import format_modified
from client.model import (
    ROOT,
    Kind,
    LocalNode,
    Place,
    RemoteNode,
    SendAction,
    SendDelete,
    SendFile,
    SendFolder,
    SendMove,
)
from client.selection import conflict_name
from client.settle import (
    note_deleted,
    note_file_added,
    note_file_updated,
    note_folder_sent,
    note_moved,
    undo_move,
)
from client.state import State
from client.transfer import Failed
from client.upload import Prepared
from wire.api import (
    MAX_BATCH_ENTRIES,
    Batch,
    BatchResult,
    CommitFile,
    CreateFolder,
    Delete,
    Metadata,
    Move,
    Operation,
    Tag,
    Verdict,
    WriteMode,
)
from wire.errors import (
    BlocksAbsent,
    ConflictChanged,
    ConflictFileAncestor,
    ConflictFolder,
    ConflictRev,
    ErrorInfo,
    IdempotencyMismatch,
    MoveIntoItself,
    NotAFolder,
    NotFound,
    ShardboxError,
)
from wire.ids import EntryId, NsId, format_file_id, parse_file_id

MAX_BATCH_BLOCKS = 100_000
"""Block hashes in one batch: 7 MB of JSON. A single file may have more."""

KEY_LIFE_S = 23 * 3600.0
"""The server keeps a key for 24 hours; sent later, a request would be carried out a second time."""

_LOOK_AGAIN = {
    e.code for e in (ConflictChanged, ConflictFileAncestor, ConflictFolder, ConflictRev, NotFound, NotAFolder)
}
"""The server knows something that we have not read yet: read on, then plan anew."""


class Sent(StrEnum):
    """What kind of operation a context is about."""

    FOLDER = "folder"
    MOVE = "move"
    DELETE = "delete"
    ADD = "add"
    UPDATE = "update"


class OpContext(msgspec.Struct, frozen=True, array_like=True):
    """What one operation was about; `place` is where the entry was to be."""

    sent: Sent
    id: int
    place: Place
    content: bytes = b""


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[OpContext])


class Committer:
    """Sends batches for one namespace."""

    def __init__(self, state: State, calls: Calls, ns_id: NsId):
        self._state, self._calls, self._ns_id = state, calls, ns_id

    async def send_again(self) -> bool:
        """Send what was stored and has no answer; True if something is too old for that (drop_stale)."""
        now, has_stale = time.time(), False
        for key, body, context, made_at in self._state.list_requests():
            if _is_stale(made_at, now):
                has_stale = True
            else:
                await self._send(key, body, _decoder.decode(context))
        return has_stale

    def drop_stale(self) -> None:
        """Forget requests whose key the server may have forgotten; the listing has been read since.

        Whether they were carried out shows in the trees, and the next plan goes on from there.
        """
        now = time.time()
        for key, body, context, made_at in self._state.list_requests():
            if _is_stale(made_at, now):
                operations = msgspec.json.decode(body, type=Batch).entries
                with self._state.tx("verdicts"):
                    for operation, about in zip(operations, _decoder.decode(context), strict=True):
                        if isinstance(operation, CreateFolder) and operation.autorename:
                            self._find_made(operation, about)
                    self._state.delete_request(key)

    def _find_made(self, operation: CreateFolder, about: OpContext) -> None:
        """Take an empty new folder of the name that was asked for, or one made from it, for the one made."""
        trees, name = self._state.trees, operation.path.rpartition("/")[2]
        if about.id not in trees.local:
            return
        for found in sorted(trees.remote.children(about.place.parent)):
            r = trees.remote.get(found)
            is_new = found not in trees.local and found not in trees.synced
            is_so_called = r is not None and (r.name == name or r.name.startswith(f"{name} ("))
            if r is None or not (is_new and is_so_called and r.kind is Kind.FOLDER):
                continue
            if not trees.remote.has_children(found) and not trees.hidden.has_children(found):
                note_folder_sent(trees, about.id, about.place, r)
                return

    async def send(self, actions: Sequence[SendAction], prepared: dict[int, Prepared]) -> list[Failed]:
        """One batch of the first of these actions (files need their Prepared); gives what was refused.

        Raises:
            Unreachable: no answer yet; `send_again` before anything else.
        """
        operations: list[Operation] = []
        contexts: list[OpContext] = []
        blocks = 0
        for action in actions:
            if len(operations) == MAX_BATCH_ENTRIES:
                break
            if isinstance(action, SendFile):
                blocks += len(prepared[action.id].hashed.blocks)
                if operations and blocks > MAX_BATCH_BLOCKS:
                    break
            made = self._operation(action, prepared)
            if made is not None:
                operations.append(made[0])
                contexts.append(made[1])
        if not operations:
            return []
        key = secrets.token_hex(16)
        body = msgspec.json.encode(Batch(operations))
        with self._state.tx("request"):
            self._state.put_request(key, body, _encoder.encode(contexts))
        return await self._send(key, body, contexts)

    async def _send(self, key: str, body: bytes, contexts: list[OpContext]) -> list[Failed]:
        try:
            result = await self._calls.send_batch(key, body)
        except ShardboxError as error:
            if error.status == 401:
                raise
            # The request as a whole is refused, now and for ever.
            with self._state.tx("verdicts"):
                self._state.delete_request(key)
            code = "stale_request" if isinstance(error, IdempotencyMismatch) else error.code
            return [Failed(context.id, code, str(error)) for context in contexts]
        with self._state.tx("verdicts"):
            self._state.delete_request(key)
            return self._take_verdicts(contexts, result)

    def _take_verdicts(self, contexts: list[OpContext], result: BatchResult) -> list[Failed]:
        refused: list[Failed] = []
        for context, verdict in zip(contexts, result.verdicts, strict=True):
            if verdict.error is not None:
                refused.append(self._take_refusal(context, verdict.error))
            else:
                self._take_success(context, verdict)
        return refused

    def _take_success(self, context: OpContext, verdict: Verdict) -> None:
        trees = self._state.trees
        if context.sent is Sent.DELETE:
            note_deleted(trees, context.id)
            return
        assert verdict.metadata is not None, "a verdict has metadata or an error"
        r = parse_entry(verdict.metadata, trees.find_remote(parse_entry_id(verdict.metadata.id)))
        match context.sent:
            case Sent.FOLDER:
                note_folder_sent(trees, context.id, context.place, r)
            case Sent.MOVE:
                note_moved(trees, context.id, context.place, r)
            case Sent.ADD:
                note_file_added(trees, context.id, context.place, context.content, r)
            case Sent.UPDATE:
                note_file_updated(trees, context.id, context.content, r, context.place)

    def _take_refusal(self, context: OpContext, error: ErrorInfo) -> Failed:
        trees = self._state.trees
        if context.sent is Sent.MOVE and error.code == MoveIntoItself.code:
            undo_move(trees, context.id)
        if context.sent is Sent.DELETE and error.code == NotFound.code:
            note_deleted(trees, context.id)
        reason = "look_again" if error.code in _LOOK_AGAIN else error.code
        if error.code in (BlocksAbsent.code, MoveIntoItself.code):
            reason = "plan_again"
        return Failed(context.id, reason, f"{error.code}: {error.message}")

    # ---- Operations

    def _operation(
        self, action: SendAction, prepared: dict[int, Prepared]
    ) -> tuple[Operation, OpContext] | None:
        trees = self._state.trees
        here, s = trees.local.get(action.id), trees.synced.get(action.id)
        match action:
            case SendDelete(node_id) if s is not None:
                seen_jid = int(self._state.find_fact("cursor_jid") or 0)
                operation: Operation = (
                    Delete(path=self._by_id(node_id), parent_rev=s.rev)
                    if s.kind is Kind.FILE
                    else Delete(path=self._by_id(node_id), seen_jid=seen_jid)
                )
                return operation, OpContext(Sent.DELETE, node_id, s.place)
            case SendFolder(node_id, autorename) if here is not None:
                path = self._by_place(self._free_place(here))
                operation = CreateFolder(path=path, autorename=autorename)
                return operation, OpContext(Sent.FOLDER, node_id, here.place)
            case SendMove(node_id, is_passing) if here is not None:
                place, target = here.place, self._free_place(here)
                if is_passing:
                    place = target = Place(ROOT, f"{here.name[:50]} (moving {secrets.token_hex(4)})")
                operation = Move(
                    from_path=self._by_id(node_id), to_path=self._by_place(target), autorename=True
                )
                return operation, OpContext(Sent.MOVE, node_id, place)
            case SendFile(node_id) if here is not None and node_id in prepared:
                return self._file_operation(here, s.rev if s else "", prepared[node_id])
            case _:
                return None

    def _file_operation(self, here: LocalNode, rev: str, ready: Prepared) -> tuple[Operation, OpContext]:
        node_id, is_new = here.id, here.id < 0
        hashed = ready.hashed
        operation = CommitFile(
            path=self._by_place(self._free_place(here)) if is_new else self._by_id(node_id),
            blocks=[block.hex() for block in hashed.blocks],
            size=hashed.fingerprint.size,
            content_hash=hashed.content.hex(),
            client_modified=format_modified(hashed.fingerprint.mtime_ns),
            mode=WriteMode.ADD if is_new else WriteMode.UPDATE,
            rev=None if is_new else rev,
            autorename=True,
        )
        sent = Sent.ADD if is_new else Sent.UPDATE
        return operation, OpContext(sent, node_id, here.place, hashed.content)

    def _free_place(self, here: LocalNode) -> Place:
        """Where the entry is on the disk, or beside what is hidden there; the disk then follows."""
        if self._state.trees.hidden.child(here.parent, here.name) is None:
            return here.place
        return Place(here.parent, conflict_name(here.name, is_folder=here.kind is Kind.FOLDER))

    def _by_id(self, node_id: int) -> str:
        return format_file_id(self._ns_id, EntryId(node_id))

    def _by_place(self, place: Place) -> str:
        """Below the nearest folder that the server knows, by names that this batch makes."""
        names = [place.name]
        parent = place.parent
        while parent < ROOT:
            node = self._state.trees.local.get(parent)
            assert node is not None, "a new folder is in the local tree"
            names.append(node.name)
            parent = node.parent
        return "/".join([self._by_id(parent), *reversed(names)])


def _is_stale(made_at: float, now: float) -> bool:
    # A clock that was set back says nothing about a request's age.
    return not 0 <= now - made_at < KEY_LIFE_S


def parse_entry_id(text: str) -> int:
    """The entry id within the namespace."""
    return int(parse_file_id(text)[1])


def parse_entry(found: Metadata, known: RemoteNode | None) -> RemoteNode:
    """The remote node of a metadata record; what the record leaves out is as it was."""
    base = known or RemoteNode(0, ROOT, "", Kind.FILE)
    kind = Kind.FOLDER if found.tag is Tag.FOLDER else Kind.FILE
    return RemoteNode(
        id=parse_entry_id(found.id),
        parent=base.parent if found.parent_id is msgspec.UNSET else parse_entry_id(found.parent_id),
        name=base.name if found.name is msgspec.UNSET else found.name,
        kind=kind,
        jid=base.jid if found.jid is msgspec.UNSET else found.jid,
        rev=base.rev if found.rev is msgspec.UNSET else found.rev,
        size=base.size if found.size is msgspec.UNSET else found.size,
        content=(base.content if found.content_hash is msgspec.UNSET else bytes.fromhex(found.content_hash))
        if kind is Kind.FILE
        else b"",
        modified=base.modified if found.client_modified is msgspec.UNSET else found.client_modified,
    )
