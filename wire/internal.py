"""What servers ask of one another. Every call carries `Authorization: Service id:secret`; users' tokens are
refused here.

    metaserver  POST /internal/blocks/begin    BeginUpload    -> BeginResult
                POST /internal/blocks/finish   FinishUpload   -> FinishResult
                POST /internal/blocks/locate   LocateBlocks   -> LocateResult
                POST /internal/heads           AskHeads       -> Heads
    notifserver POST /internal/publish         Publish        -> Published

Bodies are msgpack: they are full of binary hashes. Steps of an upload (source: the design of blocks):

    1  namespace:   absent -> pending(new claim_id); pending -> take its claim_id over; ready -> nothing to do
    2a hash's slot: there -> add the claim, pin its generation; absent -> the caller writes an object
    2b hash's slot: insert the row with the claim; somebody was faster -> claim theirs, drop one's own object
    3  namespace:   pending with this very claim_id -> ready
"""

from enum import StrEnum

import msgspec

from wire.errors import ErrorInfo
from wire.hashes import BlockHash
from wire.ids import AccountId, DeviceId, Jid, NsId

INTERNAL_CONTENT_TYPE = "application/msgpack"
MAX_INTERNAL_BLOCKS = 10_000


MAX_ISSUER_CHARS = 255
MAX_SUBJECT_CHARS = 255
"""OpenID Connect's own limit (Core 1.0, section 2); issuers are short URLs."""


class DeviceCaller(msgspec.Struct, frozen=True, tag="device"):
    """A linked device, as an access token of the cluster's own says."""

    account_id: AccountId
    device_id: DeviceId


class IdentityCaller(msgspec.Struct, frozen=True, tag="identity"):
    """Somebody whom an outside issuer vouches for; whose account that is the access service knows."""

    issuer: str
    subject: str
    email: str | None = None
    """The token's e-mail address, if the issuer says that it is verified."""


Caller = DeviceCaller | IdentityCaller
"""Who the asking server acts for, as the token that it verified says."""


class BlockState(StrEnum):
    """What the uploader must do next with one block."""

    READY = "ready"
    """The namespace has it: nothing to do."""
    CLAIMED = "claimed"
    """It is stored, and claimed under the generation given: go to finish."""
    ABSENT = "absent"
    """Write the object under the generation given, then finish."""
    FAILED = "failed"
    """See the error."""


class BeginBlock(msgspec.Struct, frozen=True, array_like=True):
    """A block whose bytes have been received and hashed."""

    hash: BlockHash
    size: int


class BeginUpload(msgspec.Struct, frozen=True):
    """Steps 1 and 2a for a batch of distinct blocks of one namespace."""

    caller: Caller
    ns_id: NsId
    blocks: list[BeginBlock]
    session_id: bytes | None = None
    """The upload session by whose address they came, which bounds them; None: the caller's token."""


class BegunBlock(msgspec.Struct, frozen=True, array_like=True):
    """One block's next step; `claim_id` and `generation` (16 bytes each) as the state needs them."""

    state: BlockState
    claim_id: bytes = b""
    generation: bytes = b""
    error: ErrorInfo | None = None


class BeginResult(msgspec.Struct, frozen=True):
    """In the order of the request; and whose rate the caller takes, an account's."""

    blocks: list[BegunBlock]
    owner: str | None = None


class FinishBlock(msgspec.Struct, frozen=True, array_like=True):
    """A block that is claimed, or whose object has been written durably (`is_written`)."""

    hash: BlockHash
    size: int
    claim_id: bytes
    generation: bytes
    is_written: bool


class FinishUpload(msgspec.Struct, frozen=True):
    """Steps 2b and 3 for a batch."""

    caller: Caller
    ns_id: NsId
    blocks: list[FinishBlock]


class FinishedBlock(msgspec.Struct, frozen=True, array_like=True):
    """READY or FAILED. `drop_own`: another object stands for this hash; the one just written can go."""

    state: BlockState
    drop_own: bool = False
    error: ErrorInfo | None = None


class FinishResult(msgspec.Struct, frozen=True):
    """In the order of the request."""

    blocks: list[FinishedBlock]


class LocateBlocks(msgspec.Struct, frozen=True):
    """Which of these are ready in the namespace, and under which generation?"""

    caller: Caller
    ns_id: NsId
    hashes: list[BlockHash]


class BlockPlace(msgspec.Struct, frozen=True, array_like=True):
    """A ready block's object."""

    generation: bytes
    size: int


class LocateResult(msgspec.Struct, frozen=True):
    """In the order of the request; None: this namespace has not got it ready. And the caller's owner."""

    blocks: list[BlockPlace | None]
    owner: str | None = None


class AskHeads(msgspec.Struct, frozen=True):
    """The heads of many namespaces, over any number of shards."""

    ns_ids: list[NsId]


class Heads(msgspec.Struct, frozen=True):
    """In the order of the request; -1: that shard does not answer now, ask again; 0 also where there is
    no such namespace."""

    heads: list[int]


class Publish(msgspec.Struct, frozen=True):
    """Hints: namespace and jid. Any hint may come twice or late."""

    hints: list[tuple[NsId, Jid]]


class Published(msgspec.Struct, frozen=True):
    """The root has taken the hints."""

    taken: int


MAX_HINTS = 10_000
MAX_HEADS = 10_000
