"""The rows of upload sessions. They lie with the metaservers."""

from collections.abc import Sequence

from blockserver.storage.index import CALL_TIMEOUT_S
from runtime.rpc import ServiceClient
from wire.errors import UpstreamUnavailable
from wire.hashes import BlockHash
from wire.ids import NsId
from wire.internal import Caller
from wire.sessions import FindTargets, FoundTarget, FoundTargets


class SessionIndex:
    """What upload sessions have given out."""

    def __init__(self, metaservers: ServiceClient):
        self._metaservers = metaservers

    async def find(
        self, caller: Caller, ns_id: NsId, session_id: bytes, hashes: Sequence[BlockHash]
    ) -> dict[BlockHash, FoundTarget]:
        """The targets of some distinct blocks; one that has none is left out.

        Raises:
            UploadSessionNotFound: expired, another account's, or never there.
            UpstreamUnavailable: no metaserver answers.
        """
        answer = await self._metaservers.call(
            "/internal/uploads/targets",
            FindTargets(caller, ns_id, session_id, list(hashes)),
            FoundTargets,
            timeout_s=CALL_TIMEOUT_S,
        )
        if len(answer.targets) != len(hashes):
            raise UpstreamUnavailable("a metaserver answered for other blocks")
        return {
            name: target for name, target in zip(hashes, answer.targets, strict=True) if target is not None
        }
