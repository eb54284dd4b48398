"""/v1/files/…: writing and reading the tree."""

from typing import Any

import msgspec

from metaserver.handlers.base import IDEMPOTENCY_KEY, UserHandler
from metaserver.services.reads import ReadService
from metaserver.services.writes import WriteService
from runtime.openapi import Kind, endpoint
from wire.api import (
    MAX_BODY_BYTES,
    Batch,
    BatchResult,
    BlockList,
    CommitFile,
    Copy,
    CreateFolder,
    Delete,
    GetBlockList,
    GetMetadata,
    GetMetadataBatch,
    ListFolder,
    ListFolderContinue,
    ListFolderResult,
    Metadata,
    MetadataBatch,
    Move,
    Operation,
    Restore,
)
from wire.errors import (
    BlocksAbsent,
    ConflictChanged,
    ConflictFileAncestor,
    ConflictFolder,
    ConflictRev,
    ContentMismatch,
    CursorReset,
    DisallowedName,
    Forbidden,
    IdempotencyMismatch,
    InvalidCursor,
    ListingEnded,
    MalformedId,
    MalformedPath,
    MoveIntoItself,
    NotAFolder,
    NotFound,
    QuotaExceeded,
    TooDeep,
    TooManyEntries,
    TooManyWriteOperations,
    error_from_info,
)

PATH_ERRORS = (MalformedPath, MalformedId, DisallowedName)
CONFLICTS = (ConflictRev, ConflictFolder, ConflictFileAncestor)


class WriteHandler(UserHandler):
    """The base of the addresses that write."""

    kind = Kind((IdempotencyMismatch, TooManyWriteOperations), (IDEMPOTENCY_KEY,))

    def initialize(self, *, writes: WriteService, **rest: Any) -> None:  # type: ignore[override]
        """Wired by the route table."""
        super().initialize(**rest)
        self._writes = writes


class _RawBatch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A Batch whose operations are still to be decoded."""

    entries: list[msgspec.Raw]


class BatchHandler(WriteHandler):
    """POST /v1/files/batch"""

    route = "files/batch"
    limit_bytes = MAX_BODY_BYTES

    @endpoint(Batch, BatchResult, NotFound, Forbidden, TooManyEntries)
    async def post(self) -> None:
        """Up to 1,000 operations, a verdict each."""
        caller = self.caller()
        operations = await self.list_as(self.body_as(_RawBatch).entries, Operation)
        self.answer(await self._writes.write_batch(caller, operations, self.idempotency_key()))


class SingleWriteHandler(WriteHandler):
    """One operation: its verdict becomes the answer's status."""

    kind = Kind((*PATH_ERRORS, NotFound, NotAFolder, Forbidden))

    async def write_one(self, cls: type[Operation]) -> None:
        """Answer the entry's metadata, or the error.

        Raises:
            ShardboxError: the verdict's.
        """
        caller = self.caller()
        operation = self.body_as(cls)
        result = await self._writes.write_batch(caller, [operation], self.idempotency_key())
        verdict = result.verdicts[0]
        if verdict.error is not None:
            raise error_from_info(verdict.error, status=409)
        assert verdict.metadata is not None
        self.answer(verdict.metadata)


class CommitHandler(SingleWriteHandler):
    """POST /v1/files/commit"""

    route = "files/commit"
    limit_bytes = MAX_BODY_BYTES

    @endpoint(CommitFile, Metadata, *CONFLICTS, ContentMismatch, BlocksAbsent, QuotaExceeded)
    async def post(self) -> None:
        """Write a file whose blocks are there already."""
        await self.write_one(CommitFile)


class CreateFolderHandler(SingleWriteHandler):
    """POST /v1/files/create_folder"""

    route = "files/create_folder"

    @endpoint(CreateFolder, Metadata, *CONFLICTS)
    async def post(self) -> None:
        """Make a folder, and the missing ones above it."""
        await self.write_one(CreateFolder)


class MoveHandler(SingleWriteHandler):
    """POST /v1/files/move"""

    route = "files/move"

    @endpoint(Move, Metadata, *CONFLICTS, MoveIntoItself)
    async def post(self) -> None:
        """Move or rename a file or folder."""
        await self.write_one(Move)


class DeleteHandler(SingleWriteHandler):
    """POST /v1/files/delete"""

    route = "files/delete"

    @endpoint(Delete, Metadata, *CONFLICTS, ConflictChanged)
    async def post(self) -> None:
        """Delete a file, or a folder with all below it."""
        await self.write_one(Delete)


class CopyHandler(SingleWriteHandler):
    """POST /v1/files/copy"""

    route = "files/copy"

    @endpoint(Copy, Metadata, *CONFLICTS, MoveIntoItself, TooManyEntries, QuotaExceeded)
    async def post(self) -> None:
        """Copy a file, or a folder with all that lives in it."""
        await self.write_one(Copy)


class RestoreHandler(SingleWriteHandler):
    """POST /v1/files/restore"""

    route = "files/restore"

    @endpoint(Restore, Metadata, *CONFLICTS, TooManyEntries, QuotaExceeded)
    async def post(self) -> None:
        """Make an earlier version of a file its current one, or bring a deleted file back."""
        await self.write_one(Restore)


class ReadHandler(UserHandler):
    """The base of the addresses that read."""

    def initialize(self, *, reads: ReadService, **rest: Any) -> None:  # type: ignore[override]
        """Wired by the route table."""
        super().initialize(**rest)
        self._reads = reads


class GetMetadataHandler(ReadHandler):
    """POST /v1/files/get_metadata"""

    route = "files/get_metadata"

    @endpoint(GetMetadata, Metadata, *PATH_ERRORS, NotFound)
    async def post(self) -> None:
        """One entry by path or id."""
        caller = self.caller()
        self.answer(await self._reads.get_metadata(caller, self.body_as(GetMetadata).path))


class GetMetadataBatchHandler(ReadHandler):
    """POST /v1/files/get_metadata_batch"""

    route = "files/get_metadata_batch"

    @endpoint(GetMetadataBatch, MetadataBatch, TooManyEntries)
    async def post(self) -> None:
        """Many entries by path or id, each with its metadata or its error."""
        caller = self.caller()
        paths = self.body_as(GetMetadataBatch).paths
        self.answer(await self._reads.get_metadata_batch(caller, paths))


class ListFolderHandler(ReadHandler):
    """POST /v1/files/list_folder"""

    route = "files/list_folder"

    @endpoint(ListFolder, ListFolderResult, *PATH_ERRORS, NotFound, NotAFolder)
    async def post(self) -> None:
        """The first page of a listing."""
        caller = self.caller()
        self.answer(await self._reads.list_folder(caller, self.body_as(ListFolder)))


class ListFolderContinueHandler(ReadHandler):
    """POST /v1/files/list_folder/continue"""

    route = "files/list_folder/continue"

    @endpoint(
        ListFolderContinue, ListFolderResult, InvalidCursor, CursorReset, NotFound, ListingEnded, TooDeep
    )
    async def post(self) -> None:
        """The next page of a listing, or what has changed since."""
        caller = self.caller()
        self.answer(await self._reads.list_folder_continue(caller, self.body_as(ListFolderContinue).cursor))


class GetBlockListHandler(ReadHandler):
    """POST /v1/files/get_block_list"""

    route = "files/get_block_list"

    @endpoint(GetBlockList, BlockList, MalformedId, NotFound)
    async def post(self) -> None:
        """The blocks of a rev."""
        caller = self.caller()
        request = self.body_as(GetBlockList)
        self.answer(await self._reads.get_block_list(caller, request.rev, request.start))
