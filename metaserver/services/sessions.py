"""Upload sessions: begun, taken up again, committed once.

    open     a row in the namespace's slot; with a block list, a target for each absent block
    commit   the file, its journal row and the session's mark, in one transaction

Blocks are made ready by blockservers (services/blocks.py); until then a commit finds them absent. Opening may
end after any of its steps: the row that it leaves is taken up again by its upload_id, or expires.
"""

import asyncio
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256

import msgspec
from msgspec import UNSET
from psycopg import sql

from metaserver.model.rows import Kind
from metaserver.model.tree import TreeView, walk_of
from metaserver.model.uploads import parse_blocks, parse_content, sizes_of
from metaserver.model.write import check_quota
from metaserver.services.access import AccessService, Who, require_read, require_write
from metaserver.services.hints import HintQueue
from metaserver.services.targets import TargetService
from metaserver.services.writes import WriteService, parse_write
from metaserver.storage import sessions as rows
from metaserver.storage.namespaces import find_for_write
from metaserver.storage.sessions import SessionKey, SessionRow, UploadPlan
from metaserver.storage.tree import list_rows
from runtime.clock import format_us, now_us
from sharding.pool import Connection
from sharding.tx import Transactions, Tx, TxKind
from wire import faults
from wire.api import BatchResult, CommitFile, WriteMode
from wire.errors import (
    BadRequest,
    ContentMismatch,
    Details,
    ErrorInfo,
    NotAFolder,
    NotFound,
    ShardboxError,
    TooManyEntries,
    UploadSessionCommitted,
    UploadSessionNotFound,
    error_from_info,
)
from wire.hashes import BlockHash, split_blocklist
from wire.ids import (
    ROOT_ENTRY,
    SESSION_ID_BYTES,
    EntryId,
    Jid,
    NsId,
    format_file_id,
    format_rev,
    format_upload_id,
    parse_file_id,
    parse_rev,
    parse_upload_id,
)
from wire.internal import Caller
from wire.names import check_name, format_child
from wire.sessions import (
    MAX_COMPLETE_HASHES,
    MAX_METADATA_BLOCKS,
    MAX_OPEN_SESSIONS,
    SESSION_LIFE_S,
    CommittedFile,
    CommitUpload,
    FileMetadata,
    FindTargets,
    FoundTarget,
    OpenUpload,
    UploadSession,
    UploadTarget,
)

faults.declare(
    "metaserver.sessions.opened",
    "metaserver.sessions.marked",
    "metaserver.sessions.committed",
)


@dataclass(frozen=True, slots=True)
class _Opened:
    """A session at work: its key, and when it expires."""

    key: SessionKey
    expires_at: datetime


class SessionService:
    """The session side of writing files."""

    def __init__(
        self,
        transactions: Transactions,
        access: AccessService,
        writes: WriteService,
        targets: TargetService,
        hints: HintQueue,
        clock: Callable[[], int] = now_us,
        quota_bytes: int | None = None,
    ):
        """`quota_bytes` is that of accounts without one of their own; None: no limit."""
        self._tx = transactions
        self._access = access
        self._writes = writes
        self._targets = targets
        self._hints = hints
        self._clock = clock
        self._quota_bytes = quota_bytes

    # ---- Opening

    async def open(self, caller: Caller, request: OpenUpload) -> UploadSession:
        """A session, new or taken up again, and where its absent blocks are to be put.

        Raises:
            NotFound, NotAFolder, Forbidden: no folder there that the caller may write to.
            MalformedPath, DisallowedName, ContentMismatch, BadRequest: a name or content that cannot be.
            UploadSessionNotFound: expired, another account's, or never there.
            UploadSessionCommitted: it has been used up.
            QuotaExceeded: the account has no room for the file now.
            TooManyEntries: the account has too many open sessions.
            UpstreamUnavailable: no blockserver answers; the session may be there.
        """
        who = await self._access.identify(caller)
        ns_id, parent_id = _parse_folder(request.parent_folder_id, who.root_ns)
        content = parse_content(request.file_size, request.checksum)
        plan = UploadPlan(parent_id, check_name(request.file_name), request.file_size, content)
        blocks: list[BlockHash] | None = None
        if request.block_list is not None:
            blocks = parse_blocks(request.block_list, request.file_size, content)
            sizes_of(blocks, request.file_size)
        if request.upload_id is None:
            key = SessionKey(ns_id, os.urandom(SESSION_ID_BYTES), who.account_id)
            opened = await self._insert(key, plan, blocks)
        else:
            key = _parse_key(request.upload_id, who)
            opened, blocks = await self._resume(key, ns_id, plan, blocks)
        faults.fault_point("metaserver.sessions.opened")
        if blocks is None:
            return _answer(opened, self._targets.sign_any(key, caller), [], has_more=False)
        targets, has_more = await self._targets.issue(key, caller, sizes_of(blocks, plan.file_size))
        presigned_url = targets[0].url if len(blocks) == 1 and targets else None
        return _answer(opened, presigned_url, targets, has_more=has_more)

    async def _insert(self, key: SessionKey, plan: UploadPlan, blocks: Sequence[BlockHash] | None) -> _Opened:
        async def insert(tx: Tx) -> datetime:
            found = await find_for_write(tx.conn, key.ns_id, key.account_id, None, self._quota_bytes)
            if found is None:
                raise NotFound()
            namespace, _ = found
            require_write(namespace.level)
            growth_bytes = plan.file_size - await _find_size(tx.conn, key.ns_id, plan)
            check_quota(namespace.quota_bytes, namespace.live_bytes, growth_bytes)
            if await rows.count_open(tx.conn, key, MAX_OPEN_SESSIONS) >= MAX_OPEN_SESSIONS:
                raise TooManyEntries(
                    f"an account has at most {MAX_OPEN_SESSIONS} open uploads in a namespace"
                )
            return await rows.insert_session(tx.conn, key, plan, blocks, SESSION_LIFE_S)

        expires_at = await self._tx.run_tx([key.ns_id], "open_upload", insert, kind=TxKind.FENCE_ONLY)
        return _Opened(key, expires_at)

    async def _resume(
        self, key: SessionKey, ns_id: NsId, plan: UploadPlan, blocks: list[BlockHash] | None
    ) -> tuple[_Opened, list[BlockHash] | None]:
        """The session as it stands, and its blocks, which may first be told now."""
        session = await self._get(key)
        if (ns_id, plan) != (key.ns_id, session.plan):
            raise BadRequest("the session was begun for another folder, name, size or checksum")
        if session.commit_digest is not None:
            raise UploadSessionCommitted()
        if blocks is None:
            found = await rows.read_own(self._tx, key, "read_session_blocks", rows.SESSION_BLOCKLIST)
            if not found:
                raise UploadSessionNotFound()
            packed = found[0][0]
            return _Opened(key, session.expires_at), None if packed is None else split_blocklist(
                bytes(packed)
            )
        told = blocks

        async def tell(tx: Tx) -> None:
            await rows.set_blocklist(tx.conn, key, told)

        await self._tx.run_tx([key.ns_id], "tell_upload_blocks", tell, kind=TxKind.FENCE_ONLY)
        return _Opened(key, session.expires_at), blocks

    # ---- Completing (a blockserver asks)

    async def find_targets(self, request: FindTargets) -> list[FoundTarget | None]:
        """What the session has of each block; None: it has given out no target for it.

        Raises:
            UploadSessionNotFound: expired, another account's, or never there.
            TooManyEntries: none, or too many hashes.
        """
        if not 1 <= len(request.hashes) <= MAX_COMPLETE_HASHES:
            raise TooManyEntries(f"1 to {MAX_COMPLETE_HASHES} hashes at once")
        who = await self._access.identify(request.caller)
        key = SessionKey(request.ns_id, request.session_id, who.account_id)
        return await self._targets.find(key, request.hashes)

    # ---- Committing

    async def commit(self, caller: Caller, request: CommitUpload) -> CommittedFile:
        """The file, durable when this returns; a repeat of the request gets the same answer.

        Raises:
            UploadSessionNotFound: expired, another account's, or never there.
            UploadSessionCommitted: committed with another request.
            ConflictRev, ConflictFolder, …: details.version is the current one, None where there is no file.
            BlocksAbsent: details.hashes, details.count.
            ContentMismatch: size, checksum and blocks do not fit one another.
            NotFound, Forbidden, QuotaExceeded: as any write.
        """
        who = await self._access.identify(caller)
        key = _parse_key(request.upload_id, who)
        plan = (await self._get(key)).plan
        # The decoded form has one spelling, and nothing of the request is left out.
        digest = sha256(msgspec.msgpack.encode(request)).digest()
        await asyncio.sleep(0)
        write = await parse_write([self._operation(request, key, plan)], who, None)

        async def in_tx(tx: Tx) -> tuple[CommittedFile, BatchResult | None]:
            session = await rows.lock_session(tx.conn, key)
            if session is None:
                raise UploadSessionNotFound()
            if session.commit_digest is not None and session.commit_answer is not None:
                if session.commit_digest != digest:
                    raise UploadSessionCommitted()
                return msgspec.msgpack.decode(session.commit_answer, type=CommittedFile), None
            result = await self._writes.write_in_tx(tx, who, write)
            answer = _committed(result)
            await rows.mark_committed(tx.conn, key, digest, msgspec.msgpack.encode(answer))
            faults.fault_point("metaserver.sessions.marked")
            return answer, result

        answer, result = await self._tx.run_tx([key.ns_id], "commit_upload", in_tx)
        faults.fault_point("metaserver.sessions.committed")
        if result is not None:
            self._hints.put(key.ns_id, Jid(result.head))
        return answer

    def _operation(self, request: CommitUpload, key: SessionKey, plan: UploadPlan) -> CommitFile:
        """The same commit without a session.

        Raises:
            BadRequest: a folder or a version of another namespace.
            ContentMismatch: another size or checksum than the session's.
        """
        checksum = plan.content_hash.hex()
        if request.file_size not in (UNSET, plan.file_size) or request.checksum not in (UNSET, checksum):
            raise ContentMismatch("size and checksum are not those that the session was begun with")
        parent_id = plan.parent_id
        if request.parent_folder_id is not UNSET:
            ns_id, parent_id = _parse_folder(request.parent_folder_id, key.ns_id)
            if ns_id != key.ns_id:
                raise BadRequest("the folder lies in another namespace than the session")
        version = request.original_version
        if version is not None and parse_rev(version)[0] != key.ns_id:
            raise BadRequest("the version is of a file in another namespace than the session")
        modified = format_us(self._clock()) if request.client_modified is UNSET else request.client_modified
        return CommitFile(
            path=format_child(key.ns_id, parent_id, plan.file_name),
            blocks=request.block_list,
            size=plan.file_size,
            content_hash=checksum,
            client_modified=modified,
            mode=WriteMode.ADD if version is None else WriteMode.UPDATE,
            rev=version,
            strict_conflict=version is not None,
        )

    # ---- Reading

    async def get_metadata(self, caller: Caller, file_id: str) -> FileMetadata:
        """A file as it is now.

        Raises:
            NotFound: no live file that the caller may see.
        """
        who = await self._access.identify(caller)
        ns_id, entry_id = parse_file_id(file_id)
        params = rows.file_params(ns_id, entry_id, who.account_id, MAX_METADATA_BLOCKS)
        found = await self._tx.run_read(ns_id, "read_file", sql.SQL(rows.FILE), params)
        if not found:
            raise NotFound()
        file = rows.to_file(found[0])
        require_read(file.level)
        if not file.is_live or file.rev_jid is None or file.content_hash is None:
            raise NotFound("there is no such file")
        return FileMetadata(
            file_id=file_id,
            parent_folder_id=format_file_id(ns_id, file.parent_id),
            name=file.name,
            owner=file.owner,
            version=format_rev(ns_id, file.rev_jid),
            size=file.size or 0,
            checksum=file.content_hash.hex(),
            block_list=[block.hex() for block in split_blocklist(file.blocklist)],
            block_count=file.block_count,
        )

    # ---- Sessions

    async def _get(self, key: SessionKey) -> SessionRow:
        found = await rows.read_own(self._tx, key, "read_session", rows.SESSION)
        if not found:
            raise UploadSessionNotFound()
        return rows.to_session(found[0])


def _parse_key(upload_id: str, who: Who) -> SessionKey:
    ns_id, session_id = parse_upload_id(upload_id)
    return SessionKey(ns_id, session_id, who.account_id)


def _parse_folder(folder_id: str | None, root_ns: NsId) -> tuple[NsId, EntryId]:
    return (root_ns, ROOT_ENTRY) if folder_id is None else parse_file_id(folder_id)


async def _find_size(conn: Connection, ns_id: NsId, plan: UploadPlan) -> int:
    """The bytes of the file that now is where the session's is to be, 0 where there is none.

    Refuse early what the commit would refuse, before a client sends gigabytes.
    """
    walk = walk_of(plan.parent_id, [plan.file_name])
    loaded = await list_rows(conn, ns_id, [plan.parent_id], [walk])
    view = TreeView()
    view.load(loaded, ids=[plan.parent_id], walks=[walk])
    view.load([], ids={entry.parent_id for entry in loaded})
    folder = view.find_live(plan.parent_id)
    if folder is None:
        raise NotFound("the folder is not there")
    if folder.kind is not Kind.FOLDER:
        raise NotAFolder()
    there = view.find_child(plan.parent_id, walk.keys[0])
    return (there and there.size) or 0


def _answer(
    opened: _Opened, presigned_url: str | None, targets: list[UploadTarget], *, has_more: bool
) -> UploadSession:
    return UploadSession(
        upload_id=format_upload_id(opened.key.ns_id, opened.key.session_id),
        presigned_url=presigned_url,
        targets=targets,
        has_more=has_more,
        expires_at=format_us(int(opened.expires_at.timestamp()) * 1_000_000),
    )


def _committed(result: BatchResult) -> CommittedFile:
    """The answer to a commit.

    Raises:
        ShardboxError: what the only operation was refused with.
    """
    verdict = result.verdicts[0]
    if verdict.error is not None:
        raise _refusal(verdict.error)
    metadata = verdict.metadata
    assert metadata is not None
    assert isinstance(metadata.rev, str)
    return CommittedFile(file_id=metadata.id, version=metadata.rev)


def _refusal(info: ErrorInfo) -> ShardboxError:
    """The error of a verdict; a conflict also says by this API's word which version is there."""
    if info.code.startswith("conflict/"):
        details: Details = {**info.details, "version": info.details.get("rev")}
        info = msgspec.structs.replace(info, details=details)
    return error_from_info(info, status=409)
