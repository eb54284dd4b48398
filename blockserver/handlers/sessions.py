"""/blocks/complete, the signed upload addresses, and what a metaserver asks for an upload session."""

import time
from typing import Any, ClassVar

from blockserver.handlers.base import CallerHandler
from blockserver.services.direct import DirectService
from blockserver.services.upload import UploadService
from runtime.openapi import Parameter, Raw, endpoint
from runtime.web import InternalHandler
from wire.blocks import PutVerdict
from wire.errors import (
    BadRequest,
    BodyTooLarge,
    ContentMismatch,
    DeviceRevoked,
    Forbidden,
    HashMismatch,
    IdentityNotLinked,
    InvalidUploadUrl,
    StorageFull,
    TooManyEntries,
    Unauthenticated,
    UploadExpired,
    UploadSessionCommitted,
    UploadSessionNotFound,
    error_from_info,
)
from wire.grants import parse_grant
from wire.hashes import BLOCK_BYTES, parse_hash, parse_hashes
from wire.ids import parse_upload_id
from wire.keys import KeyRing
from wire.sessions import CompleteBlocks, CompleteResult, SignedTargets, SignTargets

_MAX_JSON_BYTES = 2**17
"""1,000 hashes are 67 kB."""


class CompleteHandler(CallerHandler):
    """POST /blocks/complete: CompleteBlocks -> CompleteResult."""

    route = "blocks_complete"
    limit_bytes: ClassVar[int] = _MAX_JSON_BYTES

    def initialize(self, *, direct: DirectService, **rest: Any) -> None:  # type: ignore[override]
        """Wired by the route table."""
        super().initialize(**rest)
        self.direct = direct

    @endpoint(CompleteBlocks, CompleteResult, TooManyEntries, Forbidden, UploadSessionNotFound)
    async def post(self) -> None:
        """Verify blocks that have been put to their targets and make them ready."""
        request = self.body_as(CompleteBlocks)
        ns_id, session_id = parse_upload_id(request.upload_id)
        hashes = parse_hashes(request.hashes)
        verdicts = await self.direct.complete(self.caller, self.owner, ns_id, session_id, hashes)
        self.answer(CompleteResult(verdicts))


class SignedUploadHandler(CallerHandler):
    """PUT /v1/uploads/<grant>/<hash>: the address is the credential."""

    route = "signed_upload"
    needs_token = False
    limit_bytes: ClassVar[int] = BLOCK_BYTES

    def initialize(  # type: ignore[override]
        self, *, uploads: UploadService, service_keys: KeyRing, **rest: Any
    ) -> None:
        """Wired by the route table."""
        super().initialize(**rest)
        self.uploads = uploads
        self.service_keys = service_keys

    async def admit(self) -> None:
        """Find out whose address it is.

        Raises:
            InvalidUploadUrl: forged or expired.
        """
        self.grant = parse_grant(self.path_args[0], self.service_keys, now_s=time.time())
        self.caller = self.grant.caller
        self.owner, self.is_stranger = self.owner_of(self.caller), False
        self.check_head()

    def check_head(self) -> None:
        """The hash is well formed, and the one that the address is for."""
        if not self.path_args[1]:
            raise BadRequest("append / and the block's hash to the address")
        self.hash = parse_hash(self.path_args[1])
        if self.grant.hash not in (None, self.hash):
            raise InvalidUploadUrl("the address is for another block")

    @endpoint(
        Raw("application/octet-stream", "The block's bytes.", BLOCK_BYTES),
        PutVerdict,
        # The address acts for its caller, whose standing is asked for when the bytes have come.
        Unauthenticated,
        DeviceRevoked,
        IdentityNotLinked,
        InvalidUploadUrl,
        HashMismatch,
        ContentMismatch,
        Forbidden,
        UploadSessionNotFound,
        UploadSessionCommitted,
        UploadExpired,
        StorageFull,
        parameters=(
            Parameter("grant", "path", str, "As it was given out.", is_required=True),
            Parameter("hash", "path", str, "The block's SHA-256 in lower-case hex.", is_required=True),
        ),
    )
    async def put(self, _grant: str, _hash: str) -> None:
        """Take a block of an upload session in; it is ready when this is answered."""
        if len(self.body) > self.grant.size:
            raise BodyTooLarge(f"the block has {self.grant.size} bytes")
        verdict = await self.uploads.put_block(
            self.caller, self.grant.ns_id, self.hash, self.body, session_id=self.grant.session_id
        )
        if verdict.error is not None:
            raise error_from_info(verdict.error, status=500)
        self.answer(verdict)


class TargetsHandler(InternalHandler):
    """POST /internal/targets"""

    route = "internal_targets"

    def initialize(self, *, direct: DirectService, **rest: Any) -> None:  # type: ignore[override]
        """Wired by the route table."""
        super().initialize(**rest)
        self._direct = direct

    async def post(self) -> None:
        """Addresses of the store for an upload session's blocks."""
        self.answer_packed(SignedTargets(await self._direct.sign(self.packed_as(SignTargets))))
