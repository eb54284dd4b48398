"""Key rings: secrets with ids, so that they can be rotated. The first key signs, all of them verify."""

import base64
import hmac
import secrets
from hashlib import sha256

import msgspec


class Key(msgspec.Struct, frozen=True):
    """One secret of a ring; `secret` is base64 in JSON."""

    id: str
    secret: bytes


class _KeyFile(msgspec.Struct, frozen=True):
    keys: list[Key]


class KeyRing:
    """Keys by id, the newest first."""

    def __init__(self, keys: list[Key]):
        if not keys or any(not 1 <= len(k.id.encode()) <= 32 or len(k.secret) < 32 for k in keys):
            raise ValueError("a key ring has keys with ids of 1 to 32 bytes and secrets of 32 bytes or more")
        self._keys = {key.id: key for key in keys}
        if len(self._keys) != len(keys):
            raise ValueError("two keys of a ring have one id")
        self.current = keys[0]

    @property
    def ids(self) -> list[str]:
        """The keys' ids, the signing one first."""
        return list(self._keys)

    def replace(self, fresh: "KeyRing") -> None:
        """Hold another ring's keys from now on: whoever holds this ring uses them with its next call."""
        self._keys, self.current = fresh._keys, fresh.current

    @classmethod
    def parse(cls, text: bytes) -> "KeyRing":
        """A ring from `{"keys": [{"id": …, "secret": base64}]}`."""
        return cls(msgspec.json.decode(text, type=_KeyFile).keys)

    @classmethod
    def generate(cls) -> bytes:
        """A fresh ring's file with one random key."""
        key = Key(id=secrets.token_hex(4), secret=secrets.token_bytes(32))
        return msgspec.json.format(msgspec.json.encode(_KeyFile(keys=[key])), indent=2)

    def sign(self, body: bytes) -> bytes:
        """HMAC-SHA256 of the body under the newest key (32 bytes)."""
        return hmac.digest(self.current.secret, body, "sha256")

    def is_valid(self, key_id: str, body: bytes, mac: bytes) -> bool:
        """Whether the named key signed this body."""
        key = self._keys.get(key_id)
        return key is not None and hmac.compare_digest(hmac.digest(key.secret, body, "sha256"), mac)

    def credential(self) -> str:
        """The Authorization header that proves a service to another: `Service id:secret`."""
        secret = base64.urlsafe_b64encode(self.current.secret).decode()
        return f"Service {self.current.id}:{secret}"

    def accepts(self, authorization: str) -> bool:
        """Whether an Authorization header carries one of these keys."""
        scheme, _, rest = authorization.partition(" ")
        key_id, _, secret = rest.partition(":")
        key = self._keys.get(key_id)
        if scheme != "Service" or key is None:
            return False
        expected = base64.urlsafe_b64encode(key.secret)
        # Digests have one length, so the comparison says nothing about the secret's.
        return hmac.compare_digest(sha256(expected).digest(), sha256(secret.encode()).digest())
