"""Access tokens: JWTs of the cluster's own issuer, Ed25519-signed, one hour. Those of outside issuers are for
`runtime.oidc`.

The key file is a JSON Web Key Set (RFC 7517, RFC 8037), the newest key first; the first one signs. Only a
metaserver holds the private set; whoever verifies holds the public one.
"""

import secrets
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from hashlib import sha256

import jwt
import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from jwt.algorithms import OKPAlgorithm

from runtime.oidc import DEFAULT_LEEWAY_S, OidcVerifier, read_issuers
from runtime.proxies import find_household
from runtime.rates import RateLimiter, forged_tokens
from runtime.settings import VerifyingSettings
from wire.errors import Unauthenticated
from wire.ids import AccountId, DeviceId
from wire.internal import Caller, DeviceCaller

ISSUER = "shardbox"
AUDIENCE = "shardbox"
ACCESS_TOKEN_S = 3_600
MAX_TOKEN_CHARS = 8_192
"""Outside issuers put groups and roles into theirs; proxies take headers of 8 to 16 KiB altogether."""
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


def key_ids(keys: bytes) -> list[str]:
    """The ids in a key set, the signing one first."""
    return [jwk["kid"] for jwk in msgspec.json.decode(keys, type=_KeySet).keys]


def _read_keys(keys: bytes) -> list[tuple[str, object]]:
    """Ids and keys of a set.

    Raises:
        ValueError: it is none.
    """
    try:
        return [
            (jwk["kid"], OKPAlgorithm.from_jwk(dict(jwk)))
            for jwk in msgspec.json.decode(keys, type=_KeySet).keys
        ]
    except (jwt.PyJWTError, KeyError) as error:
        raise ValueError(f"not a set of Ed25519 keys: {error}") from error


def _public_keys(keys: bytes) -> dict[str, Ed25519PublicKey]:
    found: dict[str, Ed25519PublicKey] = {}
    for kid, key in _read_keys(keys):
        public = key.public_key() if isinstance(key, Ed25519PrivateKey) else key
        if isinstance(public, Ed25519PublicKey):
            found[kid] = public
    if not found:
        raise ValueError("the key set holds no Ed25519 key")
    return found


class TokenIssuer:
    """Signs access tokens."""

    def __init__(self, private_keys: bytes):
        kid, key = next(iter(_read_keys(private_keys)), ("", None))
        if not isinstance(key, Ed25519PrivateKey):
            raise ValueError("the first token key is not a private Ed25519 key")
        self._key, self._kid = key, kid

    def replace(self, fresh: "TokenIssuer") -> None:
        """Sign with another issuer's key from now on."""
        self._key, self._kid = fresh._key, fresh._kid

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


@dataclass(frozen=True, slots=True)
class _Remembered:
    """A verified token: whose it is, until when (Unix time), and whether its key is still good."""

    caller: Caller
    expires_at: float
    still_holds: Callable[[], bool]


class TokenVerifier:
    """Tells who holds a token. What the holder may do is decided by the metaserver's access service alone."""

    def __init__(
        self,
        keys: bytes,
        *,
        leeway_s: float = DEFAULT_LEEWAY_S,
        outside: OidcVerifier | None = None,
        forged: RateLimiter | None = None,
    ):
        """`outside`: verifies the tokens of other issuers. `forged`: how often in vain, for an address."""
        self._keys = _public_keys(keys)
        self._leeway_s = leeway_s
        self._outside = outside
        self._forged = forged_tokens() if forged is None else forged
        self._remembered: dict[bytes, _Remembered] = {}

    def replace_keys(self, keys: bytes) -> None:
        """Verify by another key set from now on.

        Raises:
            ValueError: it is not one; the old keys stay.
        """
        self._keys = _public_keys(keys)
        self._remembered.clear()  # a token of a key that has been taken out must not live on

    async def verify(self, authorization: str | None, address: str | None = None) -> Caller:
        """The caller of an Authorization header, which came from an address.

        Raises:
            Unauthenticated: no bearer token, or one that is expired or of no issuer that we know.
            TooManyRequests: too many such have come from there for another one to be looked at.
            UpstreamUnavailable: the keys of its issuer are not to be had.
        """
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not token or len(token) > MAX_TOKEN_CHARS:
            raise Unauthenticated("an access token is needed (Authorization: Bearer …)")
        digest = sha256(token.encode()).digest()
        known = self._remembered.get(digest)
        if known is not None and known.expires_at > time.time() and known.still_holds():
            return known.caller
        self._remembered.pop(digest, None)
        verified = await self._verify_rated(token, address or "")
        if len(self._remembered) >= _REMEMBERED_TOKENS:
            self._remembered.clear()
        self._remembered[digest] = verified
        return verified.caller

    async def _verify_rated(self, token: str, address: str) -> _Remembered:
        household = find_household(address)
        self._forged.check(household)
        try:
            return await self._verify(token)
        except Unauthenticated:
            self._forged.take(household)
            raise

    async def _verify(self, token: str) -> _Remembered:
        try:
            # Nothing is believed yet: the issuer that is named only says whose keys must have signed.
            issuer = jwt.decode(token, options={"verify_signature": False}).get("iss")
        except (jwt.PyJWTError, ValueError) as error:
            raise Unauthenticated("not a token") from error
        if self._outside is not None and isinstance(issuer, str) and self._outside.knows(issuer):
            found = await self._outside.verify(token, issuer)
            return _Remembered(found.caller, found.expires_at, found.still_holds)
        return self._verify_own(token)

    def _verify_own(self, token: str) -> _Remembered:
        try:
            claims = jwt.decode(
                token,
                self._keys[jwt.get_unverified_header(token)["kid"]],
                algorithms=["EdDSA"],
                audience=AUDIENCE,
                issuer=ISSUER,
                leeway=self._leeway_s,
                options={"require": ["exp", "sub", "iss", "aud"]},
            )
            caller = DeviceCaller(AccountId(str(claims["sub"])), DeviceId(str(claims["device"])))
            return _Remembered(caller, float(claims["exp"]) + self._leeway_s, lambda: True)
        except (jwt.PyJWTError, KeyError, ValueError, TypeError) as error:
            raise Unauthenticated("the access token is expired or not ours") from error


async def open_verifier(settings: VerifyingSettings, keys: bytes, stack: AsyncExitStack) -> TokenVerifier:
    """A server's verifier: of the cluster's own tokens, and of those of the issuers in its settings."""
    outside = None
    if settings.oidc_issuers_file is not None:
        issuers = read_issuers(settings.oidc_issuers_file)
        outside = await stack.enter_async_context(OidcVerifier(issuers, leeway_s=settings.token_leeway_s))
    return TokenVerifier(keys, leeway_s=settings.token_leeway_s, outside=outside)
