"""Texts that a client carries for us and cannot change: signed, opaque, under a key ring that can be rotated.

base64url(kind | key id length | key id | body | HMAC-SHA256)
"""

import base64
import binascii

from wire.keys import KeyRing

_MAC_BYTES = 32


def sign_text(kind: bytes, body: bytes, keys: KeyRing) -> str:
    """The body, signed by the newest key.

    Args:
        kind: One byte, so that what was signed as one thing is never taken for another.
        body: What is to come back.
        keys: The ring.
    """
    key_id = keys.current.id.encode()
    signed = kind + bytes([len(key_id)]) + key_id + body
    return base64.urlsafe_b64encode(signed + keys.sign(signed)).rstrip(b"=").decode()


def open_text(kind: bytes, text: str, keys: KeyRing) -> bytes:
    """The body of a text that one of our keys signed as this kind.

    Raises:
        ValueError: malformed, forged, of another kind, or signed under a key that has left the ring.
    """
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        signed, mac = raw[:-_MAC_BYTES], raw[-_MAC_BYTES:]
        body_at = 2 + signed[1]
        is_ours = signed[:1] == kind and keys.is_valid(signed[2:body_at].decode(), signed, mac)
    except (binascii.Error, ValueError, IndexError) as error:
        raise ValueError("not one of ours") from error
    if not is_ours:
        raise ValueError("the signature does not fit")
    return signed[body_at:]
