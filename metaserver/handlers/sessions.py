"""/files/upload_session, /files/commit and /files/metadata; and what a blockserver asks about a session."""

import asyncio
from typing import Any

import msgspec

from metaserver.handlers.base import UserHandler
from metaserver.services.sessions import SessionService
from runtime.bodies import TURN_BYTES
from runtime.openapi import Parameter, endpoint
from runtime.web import UNREADABLE, InternalHandler
from wire.errors import (
    BadRequest,
    BlocksAbsent,
    ConflictFileAncestor,
    ConflictFolder,
    ConflictRev,
    ContentMismatch,
    DisallowedName,
    Forbidden,
    MalformedId,
    MalformedPath,
    NotAFolder,
    NotFound,
    QuotaExceeded,
    TooManyEntries,
    TooManyWriteOperations,
    UploadSessionCommitted,
    UploadSessionNotFound,
)
from wire.sessions import (
    CommittedFile,
    CommitUpload,
    FileMetadata,
    FindTargets,
    FoundTargets,
    OpenUpload,
    UploadSession,
)

MAX_BLOCK_LIST_BODY_BYTES = 36 * 2**20
"""The 524,287 hashes of the largest file, 67 bytes each, are 35.1 MB; names and ids come on top."""
_TEXTS = msgspec.json.Decoder(list[str])


class _RawOpenUpload(OpenUpload, frozen=True, kw_only=True):
    """An OpenUpload whose block list is still to be decoded."""

    block_list: msgspec.Raw = msgspec.Raw(b"null")  # type: ignore[assignment]


class _RawCommitUpload(CommitUpload, frozen=True, kw_only=True):
    """A CommitUpload whose block list is still to be decoded."""

    block_list: msgspec.Raw  # type: ignore[assignment]


class SessionHandler(UserHandler):
    """The base."""

    def initialize(self, *, sessions: SessionService, **rest: Any) -> None:  # type: ignore[override]
        """Wired by the route table."""
        super().initialize(**rest)
        self._sessions = sessions

    async def texts_in_turns(self, raw: msgspec.Raw) -> list[str]:
        """A long list of texts, decoded with turns for other requests.

        Raises:
            BadRequest: it is none.
        """
        try:
            return await _decode_pieces(bytes(raw))
        except UNREADABLE as error:
            raise BadRequest(f"block_list is no list of texts: {error}") from error


async def _decode_pieces(body: bytes) -> list[str]:
    """The texts of a list in lawful JSON, which is cut where a text seems to end.

    A wrong cut lies within a text, which then has no end: that piece cannot be decoded. Hashes have no place
    for one; whatever else it is is decoded as a whole.
    """
    texts: list[str] = []
    start = 0
    try:
        while (cut := body.find(b'",', start + TURN_BYTES)) >= 0:
            texts += _TEXTS.decode((b"[" if start else b"") + body[start : cut + 1] + b"]")
            start = cut + 2
            await asyncio.sleep(0)
        return texts + _TEXTS.decode((b"[" if start else b"") + body[start:])
    except UNREADABLE:
        return _TEXTS.decode(body)


class OpenUploadHandler(SessionHandler):
    """POST /files/upload_session"""

    route = "files/upload_session"
    limit_bytes = MAX_BLOCK_LIST_BODY_BYTES

    @endpoint(
        OpenUpload,
        UploadSession,
        NotFound,
        NotAFolder,
        Forbidden,
        MalformedId,
        MalformedPath,
        DisallowedName,
        ContentMismatch,
        QuotaExceeded,
        TooManyEntries,
        UploadSessionNotFound,
        UploadSessionCommitted,
    )
    async def post(self) -> None:
        """Begin an upload session or take one up again: where its absent blocks are to be put."""
        caller = self.caller()
        raw = self.body_as(_RawOpenUpload)
        blocks = None if bytes(raw.block_list) == b"null" else await self.texts_in_turns(raw.block_list)
        request = OpenUpload(**msgspec.structs.asdict(raw) | {"block_list": blocks})
        self.answer(await self._sessions.open(caller, request))


class CommitUploadHandler(SessionHandler):
    """POST /files/commit"""

    route = "upload/commit"
    limit_bytes = MAX_BLOCK_LIST_BODY_BYTES

    @endpoint(
        CommitUpload,
        CommittedFile,
        NotFound,
        NotAFolder,
        Forbidden,
        MalformedId,
        ContentMismatch,
        ConflictRev,
        ConflictFolder,
        ConflictFileAncestor,
        BlocksAbsent,
        QuotaExceeded,
        TooManyWriteOperations,
        UploadSessionNotFound,
        UploadSessionCommitted,
    )
    async def post(self) -> None:
        """Make the file of an upload session; a repeat gets the same answer."""
        caller = self.caller()
        raw = self.body_as(_RawCommitUpload)
        blocks = await self.texts_in_turns(raw.block_list)
        request = CommitUpload(**msgspec.structs.asdict(raw) | {"block_list": blocks})
        self.answer(await self._sessions.commit(caller, request))


class FileMetadataHandler(SessionHandler):
    """GET /files/metadata?file_id=…"""

    route = "files/metadata"

    @endpoint(
        None,
        FileMetadata,
        NotFound,
        MalformedId,
        parameters=(Parameter("file_id", "query", str, "The file's id.", is_required=True),),
    )
    async def get(self) -> None:
        """A file's block list, version, owner, size, checksum and name."""
        caller = self.caller()
        given = self.request.query_arguments.get("file_id", [])
        if len(given) != 1:
            raise BadRequest("the query names one file (?file_id=…)")
        self.answer(await self._sessions.get_metadata(caller, given[0].decode("latin-1")))


class FindTargetsHandler(InternalHandler):
    """POST /internal/uploads/targets"""

    route = "internal/uploads/targets"

    def initialize(self, *, sessions: SessionService, **rest: Any) -> None:  # type: ignore[override]
        """Wired by the route table."""
        super().initialize(**rest)
        self._sessions = sessions

    async def post(self) -> None:
        """What an upload session has of some blocks."""
        self.answer_packed(FoundTargets(await self._sessions.find_targets(self.packed_as(FindTargets))))
