"""Signed blockserver addresses: who holds one may put the blocks that it names, for a while, as its caller.

An address says by itself what a blockserver must know to take the bytes; what the caller may do is still
asked of the metaserver. Signed with the keys by which servers know one another, which clients never see.
"""

import msgspec

from wire.errors import InvalidUploadUrl
from wire.hashes import BlockHash
from wire.ids import NsId
from wire.internal import Caller
from wire.keys import KeyRing
from wire.signed import open_text, sign_text

UPLOADS_PATH = "/v1/uploads/"
MAX_GRANT_CHARS = 8_192
"""Some 300 for a device; an outside identity may have long names, and HTTP servers take lines of 8 KiB."""


class UploadGrant(msgspec.Struct, frozen=True, array_like=True):
    """What the holder may put: one block of `size` bytes, or without a hash what its session takes."""

    ns_id: NsId
    session_id: bytes
    caller: Caller
    hash: BlockHash | None
    size: int
    expires_at_s: int
    """Seconds since 1970."""


_KIND = b"\x02"
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(UploadGrant)


def format_upload_url(base_url: str, grant: UploadGrant, keys: KeyRing) -> str:
    """The address to PUT to; `/<hash>` is still to be appended where the grant names no block."""
    url = base_url.rstrip("/") + UPLOADS_PATH + sign_text(_KIND, _encoder.encode(grant), keys)
    return url if grant.hash is None else f"{url}/{grant.hash.hex()}"


def parse_grant(text: str, keys: KeyRing, *, now_s: float) -> UploadGrant:
    """The grant of an address.

    Raises:
        InvalidUploadUrl: malformed, forged, or expired.
    """
    if len(text) > MAX_GRANT_CHARS:
        raise InvalidUploadUrl("not an upload address")
    try:
        grant = _decoder.decode(open_text(_KIND, text, keys))
    except (ValueError, msgspec.MsgspecError) as error:
        raise InvalidUploadUrl("not an upload address") from error
    if grant.expires_at_s <= now_s:
        raise InvalidUploadUrl("the upload address has expired; ask for a new one")
    return grant
