"""The public keys of one outside issuer: fetched, kept for a while, fetched anew when one is missing.

a token names a key that we have  ──►  it is used
one that we have not              ──►  the keys are fetched, at most once in 10 s
    every 5 minutes                   ──►  the keys are fetched: what the issuer has withdrawn goes here too
the issuer does not answer        ──►  the known keys serve on, for an hour
"""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    SECP384R1,
    SECP521R1,
    EllipticCurvePublicKey,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from jwt import PyJWK, PyJWTError

from runtime.logs import get_log
from runtime.tasks import end
from wire.errors import UpstreamUnavailable

_log = get_log(__name__)

PublicKey = RSAPublicKey | EllipticCurvePublicKey | Ed25519PublicKey
Keys = Mapping[tuple[str | None, str], PublicKey]
"""By key id and algorithm, so that a token cannot have a key used in a way that it is not meant for."""

REFRESH_S = 300.0
"""A key that the issuer has withdrawn is refused everywhere after this and the time of a fetch. One request
in five minutes from each server is no load for an issuer."""
REFETCH_S = 10.0
"""Between two fetches for the sake of unknown key ids, which anybody can make up, and after a failure."""
STALE_S = 3_600.0
"""How long known keys serve while the issuer does not answer: an outage of an hour signs nobody out, and a
key that was withdrawn meanwhile is not believed for longer."""
MAX_KEYS = 100
MAX_RSA_BITS = 8_192
MIN_RSA_BITS = 2_048
"""NIST SP 800-131A; above 8,192 bits verifying takes milliseconds, on the loop that serves everybody."""

_RSA_ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
_EC_ALGORITHMS: Mapping[type, str] = {SECP256R1: "ES256", SECP384R1: "ES384", SECP521R1: "ES512"}
ALGORITHMS = frozenset({*_RSA_ALGORITHMS, *_EC_ALGORITHMS.values(), "EdDSA"})
"""What a token may be signed with: asymmetric signatures alone, each with its own type of key."""


def parse_keys(document: bytes) -> Keys:
    """The signature keys of a JSON Web Key Set; what is no public signature key of a known type is left out.

    Raises:
        ValueError: not a key set, or one of more than MAX_KEYS.
    """
    parsed = json.loads(document)
    listed = parsed.get("keys") if isinstance(parsed, dict) else None
    if not isinstance(listed, list) or len(listed) > MAX_KEYS:
        raise ValueError("not a JSON Web Key Set, or too long a one")
    keys: dict[tuple[str | None, str], PublicKey] = {}
    for jwk in listed:
        for algorithm, key in _usable(jwk):
            keys.setdefault((jwk.get("kid"), algorithm), key)
    return keys


def _usable(jwk: Any) -> list[tuple[str, PublicKey]]:
    """The algorithms that a key may verify, by what it is and by what it says of itself."""
    if not isinstance(jwk, dict) or not isinstance(jwk.get("kid"), str | None):
        return []
    uses = jwk.get("key_ops", ["verify"])
    if jwk.get("use", "sig") != "sig" or not isinstance(uses, list) or "verify" not in uses:
        return []
    if jwk.get("kty") not in ("RSA", "EC", "OKP") or "d" in jwk:
        return []  # a shared secret is not for a published set, and a private key there is nobody's
    try:
        # What the key says of its algorithm is looked at below: the parser knows more of them than we take.
        key = PyJWK({name: value for name, value in jwk.items() if name != "alg"}).key
    except (PyJWTError, ValueError, TypeError, KeyError, AttributeError):
        return []
    algorithms = algorithms_of(key)
    claimed = jwk.get("alg")
    return [(name, key) for name in algorithms if claimed is None or claimed == name]


def algorithms_of(key: object) -> tuple[str, ...]:
    """What a key may verify; nothing for keys that are weak, or of a type that is not taken."""
    if isinstance(key, RSAPublicKey):
        return _RSA_ALGORITHMS if MIN_RSA_BITS <= key.key_size <= MAX_RSA_BITS else ()
    if isinstance(key, EllipticCurvePublicKey):
        name = _EC_ALGORITHMS.get(type(key.curve))
        return (name,) if name else ()
    return ("EdDSA",) if isinstance(key, Ed25519PublicKey) else ()


@dataclass(frozen=True, slots=True)
class KeyTimes:
    """When keys are fetched, and how long they are good."""

    refresh_s: float = REFRESH_S
    refetch_s: float = REFETCH_S
    stale_s: float = STALE_S


class IssuerKeys:
    """One issuer's keys."""

    def __init__(self, issuer: str, fetch: Callable[[], Awaitable[bytes]], times: KeyTimes):
        self._issuer = issuer
        self._fetch = fetch
        self._times = times
        self._keys: Keys = {}
        self._fetched_at: float | None = None
        self._tried_at: float | None = None
        self._flight: asyncio.Task[None] | None = None
        self._loop_task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to keep the keys fresh."""
        self._loop_task = asyncio.create_task(self._keep_fresh())

    async def stop(self) -> None:
        """End it."""
        await end(self._loop_task, self._flight)

    def holds(self, kid: str | None, algorithm: str, key: PublicKey) -> bool:
        """Whether this very key is still the issuer's, as far as we know."""
        return self._look_up(kid, algorithm) is key

    async def find(self, kid: str | None, algorithm: str) -> PublicKey | None:
        """The issuer's key of that id; None if it has none.

        A token without a key id is taken from an issuer that has one key for its algorithm.

        Raises:
            UpstreamUnavailable: no good keys are known, and the issuer does not answer.
        """
        found = self._look_up(kid, algorithm)
        if found is None and self._may_fetch():
            await self._fetch_once()
            found = self._look_up(kid, algorithm)
        if found is None and not self._are_good():
            raise UpstreamUnavailable(f"the keys of {self._issuer} are not to be had", retry_after_s=5)
        return found

    def _look_up(self, kid: str | None, algorithm: str) -> PublicKey | None:
        if not self._are_good():
            return None
        if kid is not None:
            return self._keys.get((kid, algorithm))
        fitting = [key for (_, name), key in self._keys.items() if name == algorithm]
        return fitting[0] if len(fitting) == 1 else None

    def _are_good(self) -> bool:
        return self._fetched_at is not None and time.monotonic() - self._fetched_at < self._times.stale_s

    def _may_fetch(self) -> bool:
        if self._flight is not None or self._tried_at is None:
            return True
        return time.monotonic() - self._tried_at >= self._times.refetch_s

    async def _fetch_once(self) -> None:
        """Fetch, or wait for the fetch that is under way."""
        if self._flight is None:
            self._flight = asyncio.create_task(self._fetch_keys())
            self._flight.add_done_callback(self._land)
        # A caller who goes away does not end the fetch that others wait for.
        await asyncio.shield(self._flight)

    def _land(self, _task: asyncio.Task[None]) -> None:
        self._flight = None

    async def _fetch_keys(self) -> None:
        # The clock starts before the request: what is read then is at most this old.
        began = self._tried_at = time.monotonic()
        try:
            keys = parse_keys(await self._fetch())
        except Exception as error:
            _log.warning("issuer_keys_not_fetched", issuer=self._issuer, error=repr(error))
            return
        kept = {name: self._keys.get(name) for name in keys}
        # A key that has not changed stays the same object, so that tokens verified with it stay remembered.
        self._keys = {name: _same(kept[name], key) for name, key in keys.items()}
        self._fetched_at = began
        _log.info("issuer_keys_fetched", issuer=self._issuer, keys=sorted({str(kid) for kid, _ in keys}))

    async def _keep_fresh(self) -> None:
        while True:
            await self._fetch_once()
            is_fresh = self._fetched_at is not None and self._fetched_at == self._tried_at
            await asyncio.sleep(self._times.refresh_s if is_fresh else self._times.refetch_s)


def _same(former: PublicKey | None, key: PublicKey) -> PublicKey:
    return former if former is not None and former == key else key
