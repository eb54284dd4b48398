"""Access tokens: JWTs of the cluster's own issuer, Ed25519-signed, one hour.

The key file is a JSON Web Key Set (RFC 7517, RFC 8037), the newest key first; the first one signs. Only a
metaserver holds the private set; whoever verifies holds the public one.
"""

import secrets
import time
from hashlib import sha256

import jwt
import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from jwt.algorithms import OKPAlgorithm

from wire.errors import Unauthenticated
from wire.ids import AccountId, DeviceId
from wire.internal import Caller, DeviceCaller

ISSUER = "shardbox"
AUDIENCE = "shardbox"
ACCESS_TOKEN_S = 3_600
MAX_TOKEN_CHARS = 4_096
_REMEMBERED_TOKENS = 50_000
"""Verified tokens kept by digest: 50,000 of some 300 bytes are 15 MB. Verifying costs 100 µs, a look-up 1."""


class _KeySet(msgspec.Struct, frozen=True):
    keys: list[dict[str, str]]


def generate_keys() -> tuple[bytes, bytes]:
    """A fresh private key set and its public twin, as files."""
    private = Ed25519PrivateKey.generate()
    kid = secrets.token_hex(4)
    sets = []
    for key in (private, private.public_key()):
        jwk = dict(OKPAlgorithm.to_jwk(key, as_dict=True)) | {"kid": kid, "alg": "EdDSA", "use": "sig"}
        sets.append(msgspec.json.format(msgspec.json.encode({"keys": [jwk]}), indent=2))
    return sets[0], sets[1]


class TokenIssuer:
    """Signs access tokens."""

    def __init__(self, private_keys: bytes):
        jwk = msgspec.json.decode(private_keys, type=_KeySet).keys[0]
        key = OKPAlgorithm.from_jwk(dict(jwk))
        if not isinstance(key, Ed25519PrivateKey):
            raise ValueError("the first token key is not a private Ed25519 key")
        self._key = key
        self._kid = jwk["kid"]

    def issue(self, caller: DeviceCaller) -> str:
        """A token that names account and device for the next hour."""
        now = int(time.time())
        claims = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": caller.account_id,
            "device": caller.device_id,
            "iat": now,
            "exp": now + ACCESS_TOKEN_S,
        }
        return jwt.encode(claims, self._key, algorithm="EdDSA", headers={"kid": self._kid})


class TokenVerifier:
    """Tells who holds a token. What the holder may do is decided by the metaserver's access service alone."""

    def __init__(self, keys: bytes):
        self._keys: dict[str, Ed25519PublicKey] = {}
        for jwk in msgspec.json.decode(keys, type=_KeySet).keys:
            key = OKPAlgorithm.from_jwk(dict(jwk))
            if isinstance(key, Ed25519PrivateKey):
                key = key.public_key()
            if isinstance(key, Ed25519PublicKey):
                self._keys[jwk["kid"]] = key
        self._remembered: dict[bytes, tuple[float, Caller]] = {}

    async def verify(self, authorization: str | None) -> Caller:
        """The caller of an Authorization header.

        Raises:
            Unauthenticated: no bearer token, or one that is expired or not ours.
        """
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not token or len(token) > MAX_TOKEN_CHARS:
            raise Unauthenticated("an access token is needed (Authorization: Bearer …)")
        digest = sha256(token.encode()).digest()
        known = self._remembered.get(digest)
        if known is not None and known[0] > time.time():
            return known[1]
        try:
            key = self._keys[jwt.get_unverified_header(token)["kid"]]
            claims = jwt.decode(
                token,
                key,
                algorithms=["EdDSA"],
                audience=AUDIENCE,
                issuer=ISSUER,
                options={"require": ["exp", "sub", "iss", "aud"]},
            )
            caller = DeviceCaller(AccountId(str(claims["sub"])), DeviceId(str(claims["device"])))
        except (jwt.PyJWTError, KeyError, ValueError) as error:
            raise Unauthenticated("the access token is expired or not ours") from error
        if len(self._remembered) >= _REMEMBERED_TOKENS:
            self._remembered.clear()
        self._remembered[digest] = (float(claims["exp"]), caller)
        return caller
