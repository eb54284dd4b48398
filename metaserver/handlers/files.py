"""/v1/files/…: writing and reading the tree."""

from typing import Any

from metaserver.handlers.base import UserHandler
from metaserver.services.reads import ReadService
from metaserver.services.writes import WriteService
from wire.api import (
    Batch,
    CommitFile,
    CreateFolder,
    Delete,
    GetBlockList,
    GetMetadata,
    ListFolder,
    ListFolderContinue,
    Move,
    Operation,
)
from wire.errors import error_from_info


class WriteHandler(UserHandler):
    """The base of the addresses that write."""

    def initialize(self, *, writes: WriteService, **rest: Any) -> None:  # type: ignore[override]
        """Wired by the route table."""
        super().initialize(**rest)
        self._writes = writes


class BatchHandler(WriteHandler):
    """POST /v1/files/batch"""

    route = "files/batch"

    async def post(self) -> None:
        """Up to 1,000 operations, a verdict each."""
        caller = self.caller()
        batch = self.body_as(Batch)
        self.answer(await self._writes.write_batch(caller, batch.entries, self.idempotency_key()))


class SingleWriteHandler(WriteHandler):
    """One operation: its verdict becomes the answer's status."""

    operation: type[Operation]

    async def post(self) -> None:
        """The entry's metadata, or the error."""
        caller = self.caller()
        operation = self.body_as(self.operation)
        result = await self._writes.write_batch(caller, [operation], self.idempotency_key())
        verdict = result.verdicts[0]
        if verdict.error is not None:
            raise error_from_info(verdict.error, status=409)
        assert verdict.metadata is not None
        self.answer(verdict.metadata)


class CommitHandler(SingleWriteHandler):
    """POST /v1/files/commit"""

    route = "files/commit"
    operation = CommitFile


class CreateFolderHandler(SingleWriteHandler):
    """POST /v1/files/create_folder"""

    route = "files/create_folder"
    operation = CreateFolder


class MoveHandler(SingleWriteHandler):
    """POST /v1/files/move"""

    route = "files/move"
    operation = Move


class DeleteHandler(SingleWriteHandler):
    """POST /v1/files/delete"""

    route = "files/delete"
    operation = Delete


class ReadHandler(UserHandler):
    """The base of the addresses that read."""

    def initialize(self, *, reads: ReadService, **rest: Any) -> None:  # type: ignore[override]
        """Wired by the route table."""
        super().initialize(**rest)
        self._reads = reads


class GetMetadataHandler(ReadHandler):
    """POST /v1/files/get_metadata"""

    route = "files/get_metadata"

    async def post(self) -> None:
        """One entry by path or id."""
        caller = self.caller()
        self.answer(await self._reads.get_metadata(caller, self.body_as(GetMetadata).path))


class ListFolderHandler(ReadHandler):
    """POST /v1/files/list_folder"""

    route = "files/list_folder"

    async def post(self) -> None:
        """The first page of a listing."""
        caller = self.caller()
        self.answer(await self._reads.list_folder(caller, self.body_as(ListFolder)))


class ListFolderContinueHandler(ReadHandler):
    """POST /v1/files/list_folder/continue"""

    route = "files/list_folder/continue"

    async def post(self) -> None:
        """The next page of a listing, or what has changed since."""
        caller = self.caller()
        self.answer(await self._reads.list_folder_continue(caller, self.body_as(ListFolderContinue).cursor))


class GetBlockListHandler(ReadHandler):
    """POST /v1/files/get_block_list"""

    route = "files/get_block_list"

    async def post(self) -> None:
        """The blocks of a rev."""
        caller = self.caller()
        request = self.body_as(GetBlockList)
        self.answer(await self._reads.get_block_list(caller, request.rev, request.start))
