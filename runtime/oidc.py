"""Tokens of outside issuers (OpenID Connect), taken as bearer tokens (docs/adr has the choices).

Whoever verifies one learns who an issuer says that somebody is; whose account that is, and whether it may do
anything, the metaserver's access service alone decides.
"""

import json
import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import aiohttp
import jwt
import msgspec

from runtime.jwks import ALGORITHMS, IssuerKeys, KeyTimes
from wire.errors import Unauthenticated
from wire.internal import MAX_ISSUER_CHARS, MAX_SUBJECT_CHARS, IdentityCaller

DEFAULT_LEEWAY_S = 30.0
"""How far the clocks of two machines may be apart without a token being refused for it."""
FETCH_TIMEOUT_S = 5.0
"""Requests that bring a new key wait this long at most; an issuer answers in some 100 ms."""
MAX_DOCUMENT_BYTES = 256 * 2**10
"""A set of 100 keys of 4,096 bits with their certificates is 200 kB."""
MAX_ISSUERS = 20
MAX_EMAIL_CHARS = 320
_DISCOVERY = "/.well-known/openid-configuration"
_TYPES = ("", "jwt", "at+jwt", "application/at+jwt")
"""ID tokens and access tokens (RFC 9068). The other things that an issuer signs, such as logout tokens, say
so in their type or by an `events` claim, and sign nobody in (RFC 8725, section 3.11)."""
_LOOPBACK = ("127.0.0.1", "::1", "localhost")


class Issuer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an operator says of an issuer.

    Raises:
        ValueError: no audience, or addresses that do not do.
    """

    issuer: str
    """Exactly as the tokens have it in `iss`."""
    audiences: list[str]
    """A token names one of these in `aud`."""
    authorized_parties: list[str] = []
    """A token names one of these in `azp`; empty: one of the audiences, if it is for several."""
    jwks_url: str | None = None
    """Where the keys are; else the issuer's discovery document says."""
    link_by_email: bool = False
    """Whether the first sign-in with a verified e-mail address links to that address's account."""
    ca_file: str | None = None
    """PEM certificates that its server is verified by, instead of the system's."""

    def __post_init__(self) -> None:
        check_url(self.issuer)
        if len(self.issuer) > MAX_ISSUER_CHARS or not self.issuer.isascii():
            raise ValueError(f"an issuer has at most {MAX_ISSUER_CHARS} characters, all ASCII")
        if self.jwks_url is not None:
            check_url(self.jwks_url)
        if not self.audiences or not all(self.audiences):
            raise ValueError(f"{self.issuer}: without an audience, tokens for any application would be taken")
        if not all(self.authorized_parties):
            raise ValueError(f"{self.issuer}: an authorized party has a name")


class _IssuerFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    issuers: list[Issuer]


def read_issuers(path: Path) -> list[Issuer]:
    """The issuers of a settings file: `{"issuers": [{"issuer": …, "audiences": […]}]}`.

    Raises:
        ValueError: not such a file, two entries for one issuer, or too many.
    """
    issuers = msgspec.json.decode(path.read_bytes(), type=_IssuerFile).issuers
    if len({issuer.issuer for issuer in issuers}) != len(issuers) or len(issuers) > MAX_ISSUERS:
        raise ValueError(f"{path}: at most {MAX_ISSUERS} issuers, each once")
    return issuers


def read_linking_issuers(path: Path | None) -> list[str]:
    """The issuers whose verified e-mail addresses link to accounts."""
    return [] if path is None else [issuer.issuer for issuer in read_issuers(path) if issuer.link_by_email]


def check_url(url: str) -> None:
    """https, or http on this machine: whoever can change the keys on their way can be anybody.

    Raises:
        ValueError: anything else.
    """
    parts = urlsplit(url)
    is_local = parts.scheme == "http" and parts.hostname in _LOOPBACK
    if not parts.hostname or not (parts.scheme == "https" or is_local) or parts.username or parts.fragment:
        raise ValueError(f"not an https address: {url[:200]!r}")


@dataclass(frozen=True, slots=True)
class VerifiedIdentity:
    """Whom a token speaks for, until when (Unix time), and whether its key is still the issuer's."""

    caller: IdentityCaller
    expires_at: float
    still_holds: Callable[[], bool]


class OidcVerifier:
    """Tells whom the known issuers vouch for."""

    def __init__(self, issuers: Sequence[Issuer], *, leeway_s: float, times: KeyTimes | None = None):
        self._issuers = {issuer.issuer: issuer for issuer in issuers}
        self._leeway_s = leeway_s
        self._keys = {
            issuer.issuer: IssuerKeys(issuer.issuer, partial(self._fetch_keys, issuer), times or KeyTimes())
            for issuer in issuers
        }
        self._session: aiohttp.ClientSession | None = None
        # Read once, at the start: a file that is missing stops the server there.
        self._tls = {i.issuer: ssl.create_default_context(cafile=i.ca_file) for i in issuers if i.ca_file}

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=FETCH_TIMEOUT_S))
        for keys in self._keys.values():
            keys.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        for keys in self._keys.values():
            await keys.stop()
        assert self._session is not None
        await self._session.close()

    def knows(self, issuer: object) -> bool:
        """Whether an `iss` claim names an issuer of the settings."""
        return isinstance(issuer, str) and issuer in self._issuers

    async def verify(self, token: str, issuer: str) -> VerifiedIdentity:
        """Whom a token of this issuer speaks for.

        Raises:
            Unauthenticated: forged, expired, for somebody else, or not a token that signs anybody in.
            UpstreamUnavailable: the issuer's keys are not to be had.
        """
        try:
            header = jwt.get_unverified_header(token)
            kid, algorithm = header.get("kid"), header.get("alg")
            if algorithm not in ALGORITHMS or str(header.get("typ") or "").lower() not in _TYPES:
                raise Unauthenticated("the token is not of a kind that is taken here")
            key = await self._keys[issuer].find(kid, algorithm)
            if key is None:
                raise Unauthenticated("the token's key is not one of its issuer's")
            claims = jwt.decode(
                token,
                key,
                algorithms=[algorithm],
                audience=self._issuers[issuer].audiences,
                issuer=issuer,
                leeway=self._leeway_s,
                options={"require": ["exp", "sub", "iss", "aud"]},
            )
            _check_party(self._issuers[issuer], claims)
            return VerifiedIdentity(
                caller=_identity(issuer, claims),
                expires_at=float(claims["exp"]) + self._leeway_s,
                still_holds=partial(self._keys[issuer].holds, kid, algorithm, key),
            )
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError) as error:
            raise Unauthenticated("the token is expired, or not one for this service") from error

    async def _fetch_keys(self, issuer: Issuer) -> bytes:
        url = issuer.jwks_url
        if url is None:
            document = json.loads(await self._get(issuer, issuer.issuer.rstrip("/") + _DISCOVERY))
            if document["issuer"] != issuer.issuer:
                raise ValueError(f"the discovery document is {document['issuer']!r}'s")
            url = str(document["jwks_uri"])
            check_url(url)
        return await self._get(issuer, url)

    async def _get(self, issuer: Issuer, url: str) -> bytes:
        assert self._session is not None, "used as a context manager"
        tls = self._tls.get(issuer.issuer, True)
        async with self._session.get(url, ssl=tls, allow_redirects=False) as response:
            if response.status != 200:
                raise ValueError(f"{url} answered {response.status}")
            body = bytearray()
            async for chunk in response.content.iter_any():
                body += chunk
                if len(body) > MAX_DOCUMENT_BYTES:
                    raise ValueError(f"{url} answered more than {MAX_DOCUMENT_BYTES} bytes")
        return bytes(body)


def _check_party(issuer: Issuer, claims: Mapping[str, Any]) -> None:
    """A token for several applications is of use to the one that it was issued to.

    One for us alone may have been issued to another all the same: to an application that calls us.

    Source: OpenID Connect Core 1.0, section 3.1.3.7, steps 4 and 5.

    Raises:
        ValueError: to none of those that may use it here.
    """
    is_for_several = not isinstance(claims["aud"], str) and len(claims["aud"]) > 1
    if not (is_for_several or issuer.authorized_parties):
        return
    if claims.get("azp") not in (issuer.authorized_parties or issuer.audiences):
        raise ValueError("the token was issued to another application")


def _identity(issuer: str, claims: Mapping[str, Any]) -> IdentityCaller:
    """Who the claims of a verified token name.

    Raises:
        ValueError: a token that signs nobody in, or claims of the wrong types.
    """
    subject = claims["sub"]
    if "events" in claims:
        raise ValueError("a security event, not a sign-in")
    if not all(isinstance(claims.get(name, 0), int | float) for name in ("exp", "nbf", "iat")):
        raise ValueError("times are numbers")
    if not 1 <= len(subject) <= MAX_SUBJECT_CHARS or not subject.isascii() or not subject.isprintable():
        raise ValueError("a subject has 1 to 255 printable ASCII characters")
    return IdentityCaller(issuer, subject, _verified_email(claims))


def _verified_email(claims: Mapping[str, Any]) -> str | None:
    email = claims.get("email")
    if claims.get("email_verified") is not True or not isinstance(email, str):
        return None
    return email if len(email) <= MAX_EMAIL_CHARS and email.isprintable() else None
