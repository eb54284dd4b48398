"""Tokens of outside issuers: what is taken, what is refused, and how keys come and go."""

import asyncio
import base64
import hmac
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from runtime import oidc
from runtime.jwks import ALGORITHMS, MAX_KEYS, KeyTimes, parse_keys
from runtime.oidc import MAX_DOCUMENT_BYTES, Issuer, OidcVerifier, check_url, read_issuers
from runtime.tokens import MAX_TOKEN_CHARS, TokenIssuer, TokenVerifier, generate_keys
from tests.support.oidc import AUDIENCE, HandIssuer, jwk_of, new_rsa
from tests.support.waiting import wait_until
from wire.errors import Unauthenticated, UpstreamUnavailable
from wire.ids import AccountId, DeviceId
from wire.internal import DeviceCaller, IdentityCaller

LEEWAY_S = 20.0
PRIVATE, PUBLIC = generate_keys()
ONCE = KeyTimes(refresh_s=3_600, refetch_s=3_600, stale_s=3_600)
"""Keys are fetched at the start and never again."""


@pytest.fixture
async def issuer() -> AsyncIterator[HandIssuer]:
    async with HandIssuer() as found:
        found.add_key("k1")
        yield found


@asynccontextmanager
async def verifying(
    *issuers: HandIssuer, times: KeyTimes = ONCE, **fields: Any
) -> AsyncIterator[TokenVerifier]:
    known = [Issuer(issuer=i.issuer, audiences=[AUDIENCE], **fields) for i in issuers]
    async with OidcVerifier(known, leeway_s=LEEWAY_S, times=times) as outside:
        yield TokenVerifier(PUBLIC, leeway_s=LEEWAY_S, outside=outside)


async def is_taken(verifier: TokenVerifier, token: str) -> bool:
    try:
        found = await verifier.verify(f"Bearer {token}")
    except Unauthenticated:
        return False
    assert isinstance(found, IdentityCaller)
    return True


# ---- What a token says


async def test_a_token_names_issuer_and_subject(issuer: HandIssuer):
    async with verifying(issuer) as verifier:
        assert await verifier.verify(f"Bearer {issuer.token('k1')}") == IdentityCaller(issuer.issuer, "s-1")
        own = TokenIssuer(PRIVATE).issue(DeviceCaller(AccountId("dbid:x"), DeviceId("device:x")))
        assert isinstance(await verifier.verify(f"Bearer {own}"), DeviceCaller)


@pytest.mark.parametrize(
    ("claims", "email"),
    [
        ({"email": "ada@example.org", "email_verified": True}, "ada@example.org"),
        ({"email": "ada@example.org", "email_verified": False}, None),
        ({"email": "ada@example.org"}, None),
        ({"email": "ada@example.org", "email_verified": "true"}, None),
        ({"email": "ada@example.org", "email_verified": 1}, None),
        ({"email": ["ada@example.org"], "email_verified": True}, None),
        ({"email": "ada\ud800@example.org", "email_verified": True}, None),
        ({"email": "a" * 310 + "@example.org", "email_verified": True}, None),
        ({"email_verified": True}, None),
    ],
)
async def test_only_a_verified_address_is_passed_on(
    issuer: HandIssuer, claims: dict[str, Any], email: str | None
):
    async with verifying(issuer) as verifier:
        found = await verifier.verify(f"Bearer {issuer.token('k1', **claims)}")
        assert found == IdentityCaller(issuer.issuer, "s-1", email)


def soon(seconds: float) -> int:
    return int(time.time() + seconds)


BAD_CLAIMS: dict[str, dict[str, Any]] = {
    "another audience": {"aud": "another-app"},
    "no audience": {"aud": None},
    "an empty list of audiences": {"aud": []},
    "an audience that is no text": {"aud": {AUDIENCE: 1}},
    "a part of the audience": {"aud": AUDIENCE[:-1]},
    "several audiences and no party": {"aud": ["another-app", AUDIENCE]},
    "several audiences and another party": {"aud": ["another-app", AUDIENCE], "azp": "another-app"},
    "several audiences and a party that is no text": {"aud": ["another-app", AUDIENCE], "azp": [AUDIENCE]},
    "no expiry": {"exp": None},
    "an expiry that is text": {"exp": str(2**31)},
    "an expiry beyond all numbers": {"exp": 10**400},
    "an endless one": {"exp": float("inf")},
    "no issuer": {"iss": None},
    "an issuer that is a list": {"iss": ["x"]},
    "no subject": {"sub": None},
    "an empty subject": {"sub": ""},
    "a subject that is a number": {"sub": 17},
    "a subject that is too long": {"sub": "s" * 256},
    "a subject with a NUL": {"sub": "a\0b"},
    "a subject beyond ASCII": {"sub": "ä"},
    "a subject that is half a character": {"sub": "\ud800"},
    "a logout": {"events": {"http://schemas.openid.net/event/backchannel-logout": {}}},
    "issued as text": {"iat": "1"},
}


@pytest.mark.parametrize("claims", BAD_CLAIMS.values(), ids=BAD_CLAIMS)
async def test_claims_that_are_refused(issuer: HandIssuer, claims: dict[str, Any]):
    async with verifying(issuer) as verifier:
        assert await is_taken(verifier, issuer.token("k1"))
        assert not await is_taken(verifier, issuer.token("k1", **claims))


async def test_claims_that_are_taken(issuer: HandIssuer):
    async with verifying(issuer) as verifier:
        for claims in (
            {"aud": AUDIENCE},
            {"aud": [AUDIENCE]},
            {"aud": ["another-app", AUDIENCE], "azp": AUDIENCE},
            {"aud": AUDIENCE, "azp": "another-app"},
            {"iat": None},
            {"sub": "s" * 255},
            {"nbf": soon(-1)},
            {"exp": float(soon(10)) + 0.5},
        ):
            assert await is_taken(verifier, issuer.token("k1", **claims)), claims


async def test_the_parties_that_may_use_a_token_can_be_named(issuer: HandIssuer):
    both = ["another-app", AUDIENCE]
    async with verifying(issuer, authorized_parties=["web", "tool"]) as verifier:
        for claims, expected in (
            ({"azp": "web"}, True),
            ({"azp": "tool", "aud": both}, True),
            ({}, False),
            ({"azp": AUDIENCE}, False),
            ({"azp": AUDIENCE, "aud": both}, False),
            ({"azp": "another-app"}, False),
            ({"azp": ["web"]}, False),
            ({"azp": "web", "aud": "another-app"}, False),
        ):
            assert await is_taken(verifier, issuer.token("k1", **claims)) is expected, claims
    with pytest.raises(ValueError, match="a name"):
        Issuer(issuer=issuer.issuer, audiences=[AUDIENCE], authorized_parties=[""])


async def test_an_issuer_is_taken_by_its_exact_name(issuer: HandIssuer):
    async with HandIssuer() as other, verifying(issuer, other) as verifier:
        private = other.add_key("k2")
        assert await is_taken(verifier, other.token("k2"))
        for name in (issuer.issuer + "/", issuer.issuer.upper(), "shardbox", issuer.issuer):
            # Signed with another issuer's key, under that key's name and under one of whom the token names.
            for kid in ("k1", "k2"):
                token = jwt.encode(other.claims(iss=name), private, "ES256", {"kid": kid})
                assert not await is_taken(verifier, token)


async def test_clocks_may_differ_by_the_leeway(issuer: HandIssuer):
    # The edge is a second wide: times in tokens are whole seconds here, and time goes on meanwhile.
    async with verifying(issuer) as verifier:
        for claims, expected in (
            ({"exp": soon(-LEEWAY_S + 5)}, True),
            ({"exp": soon(-LEEWAY_S)}, False),
            ({"nbf": soon(LEEWAY_S)}, True),
            ({"nbf": soon(LEEWAY_S + 5)}, False),
            ({"iat": soon(LEEWAY_S)}, True),
            ({"iat": soon(LEEWAY_S + 5)}, False),
        ):
            assert await is_taken(verifier, issuer.token("k1", **claims)) is expected, claims


async def test_the_clusters_own_tokens_have_the_same_leeway(monkeypatch: pytest.MonkeyPatch):
    caller = DeviceCaller(AccountId("dbid:x"), DeviceId("device:x"))
    verifier = TokenVerifier(PUBLIC, leeway_s=LEEWAY_S)
    now = time.time()
    for ahead_s, is_good in ((LEEWAY_S - 5, True), (LEEWAY_S + 5, False)):
        with monkeypatch.context() as patch:
            patch.setattr("runtime.tokens.time.time", lambda issued=now + ahead_s: issued)
            token = TokenIssuer(PRIVATE).issue(caller)
        if is_good:
            assert await verifier.verify(f"Bearer {token}") == caller
        else:
            with pytest.raises(Unauthenticated):
                await verifier.verify(f"Bearer {token}")


@pytest.mark.parametrize("header", [{"kid": "k"}, {}], ids=["a key id", "no key id"])
async def test_a_token_is_verified_once(header: dict[str, str], monkeypatch: pytest.MonkeyPatch):
    async with HandIssuer() as issuer:
        private = issuer.add_key("k")
        token = jwt.encode(issuer.claims(), private, "ES256", header)
        async with verifying(issuer) as verifier:
            assert await is_taken(verifier, token)
            monkeypatch.delattr("runtime.oidc.jwt.decode")
            assert await is_taken(verifier, token)


async def test_a_remembered_token_ends_with_its_time(issuer: HandIssuer):
    async with verifying(issuer) as verifier:
        expires = soon(-LEEWAY_S + 2)
        token = issuer.token("k1", exp=expires)
        assert await is_taken(verifier, token)

        async def is_over() -> bool:
            return not await is_taken(verifier, token)

        await wait_until(is_over, "the end of the token", timeout_s=10)
        assert time.time() >= expires + LEEWAY_S


async def test_the_length_of_a_token_is_bounded(issuer: HandIssuer):
    async with verifying(issuer) as verifier:
        short = issuer.token("k1", pad="")
        room = MAX_TOKEN_CHARS - len(short)
        longest = max(
            (issuer.token("k1", pad="x" * n) for n in range(room * 3 // 4 - 6, room * 3 // 4 + 6)),
            key=lambda token: len(token) if len(token) <= MAX_TOKEN_CHARS else 0,
        )
        assert MAX_TOKEN_CHARS - 2 <= len(longest) <= MAX_TOKEN_CHARS
        assert await is_taken(verifier, longest)
        assert not await is_taken(verifier, issuer.token("k1", pad="x" * (room * 3 // 4 + 6)))


# ---- Who signed


def unsigned(header: dict[str, Any], claims: dict[str, Any]) -> str:
    parts = [json.dumps(part).encode() for part in (header, claims)]
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


async def test_algorithms_are_not_confused(issuer: HandIssuer):
    private = issuer.add_key("rsa", new_rsa())
    public = private.public_key()
    pem = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    async with verifying(issuer) as verifier:
        assert await is_taken(verifier, issuer.token("rsa"))
        claims = issuer.claims()
        for name in ("none", "None", "NONE", ""):
            head = unsigned({"alg": name, "kid": "rsa"}, claims)
            assert not await is_taken(verifier, head + ".")
        for secret in (pem, json.dumps(jwk_of(private)).encode(), b""):
            head = unsigned({"alg": "HS256", "kid": "rsa", "typ": "JWT"}, claims)
            mac = base64.urlsafe_b64encode(hmac.digest(secret, head.encode(), "sha256")).rstrip(b"=")
            assert not await is_taken(verifier, f"{head}.{mac.decode()}")
        stolen = new_rsa()
        for headers in (
            {"kid": "rsa"},
            {"kid": "rsa", "jwk": jwk_of(stolen)},
            {"kid": "rsa", "jku": "http://127.0.0.1:1/keys"},
            {"kid": "../../etc/passwd"},
            {"kid": "rsa", "crit": ["exp"]},
        ):
            assert not await is_taken(verifier, jwt.encode(claims, stolen, "RS256", headers))
        # A good signature of the right key by an algorithm that is not its own.
        assert not await is_taken(verifier, issuer.token("rsa", headers={"kid": "k1"}))
        assert await is_taken(verifier, jwt.encode(claims, private, "PS384", {"kid": "rsa"}))


async def test_a_key_says_what_it_is_for(issuer: HandIssuer):
    private = issuer.add_key("pinned", new_rsa(), alg="RS256")
    refused = {
        "encrypts": {"use": "enc"},
        "wraps": {"key_ops": ["wrapKey"]},
        "other": {"alg": "RSA-OAEP"},
        "hmac": {"alg": "HS256"},
        "odd-ops": {"key_ops": 7},
    }
    for kid, fields in refused.items():
        issuer.add_key(kid, private, **fields)
    issuer.add_key("verifies", private, use="sig", key_ops=["verify"])
    async with verifying(issuer) as verifier:
        assert await is_taken(verifier, issuer.token("pinned"))
        assert await is_taken(verifier, issuer.token("verifies"))
        assert not await is_taken(verifier, jwt.encode(issuer.claims(), private, "PS256", {"kid": "pinned"}))
        for kid in refused:
            assert not await is_taken(verifier, issuer.token(kid)), kid


@pytest.mark.filterwarnings("ignore::jwt.InsecureKeyLengthWarning")
async def test_each_type_of_key_has_its_algorithms(issuer: HandIssuer):
    good = {
        "p384": ec.generate_private_key(ec.SECP384R1()),
        "p521": ec.generate_private_key(ec.SECP521R1()),
        "ed": ed25519.Ed25519PrivateKey.generate(),
    }
    weak = {"k256": ec.generate_private_key(ec.SECP256K1()), "rsa1024": new_rsa(1024)}
    for kid, private in (good | weak).items():
        issuer.add_key(kid, private)
    async with verifying(issuer) as verifier:
        for kid in good:
            assert await is_taken(verifier, issuer.token(kid)), kid
        for kid in weak:
            assert not await is_taken(verifier, issuer.token(kid)), kid
        assert not await is_taken(verifier, issuer.token("k1", headers={"kid": "p384"}))
    assert not any(name.startswith("HS") or name == "none" for name in ALGORITHMS)


async def test_kinds_of_token_that_are_no_sign_in(issuer: HandIssuer):
    async with verifying(issuer) as verifier:
        for typ in ("JWT", "jwt", "at+jwt", "application/at+jwt"):
            assert await is_taken(verifier, issuer.token("k1", headers={"typ": typ}))
        for typ in ("logout+jwt", "secevent+jwt", "dpop+jwt", "JWE"):
            assert not await is_taken(verifier, issuer.token("k1", headers={"typ": typ}))


async def test_what_is_no_token(issuer: HandIssuer):
    async with verifying(issuer) as verifier:
        good = issuer.token("k1")
        head, body, signature = good.split(".")
        for text in (
            *("", ".", "..", "...", "a.b.c", good + "x", good[:-1], f"{head}.{body}.", f"{head}.{body}"),
            f"{head}.{body}.{signature}.{signature}",
            f"{head}.{body[:-2]}AA.{signature}",
            unsigned({"alg": ["ES256"], "kid": "k1"}, issuer.claims()) + "." + signature,
            unsigned({"alg": "ES256", "kid": {"k": 1}}, issuer.claims()) + "." + signature,
            unsigned({"alg": "ES256", "kid": 1}, issuer.claims()) + "." + signature,
            unsigned({}, issuer.claims()) + "." + signature,
            base64.urlsafe_b64encode(b"[" * 3_000).decode() + "." + body + "." + signature,
            "é" * 20,
        ):
            assert not await is_taken(verifier, text), text
        for header in (None, "", good, f"Basic {good}", "Bearer", "Bearer "):
            with pytest.raises(Unauthenticated):
                await verifier.verify(header)


async def test_a_token_without_key_id_is_taken_where_one_key_fits(issuer: HandIssuer):
    async with verifying(issuer) as verifier:
        assert await is_taken(verifier, issuer.token("k1", headers={"kid": None}))
    issuer.add_key("k2")
    async with verifying(issuer) as verifier:
        assert not await is_taken(verifier, issuer.token("k1", headers={"kid": None}))


# ---- Keys come and go


async def test_a_new_key_is_fetched_when_a_token_names_it(issuer: HandIssuer):
    times = KeyTimes(refresh_s=3_600, refetch_s=0, stale_s=3_600)
    async with verifying(issuer, times=times) as verifier:
        assert await is_taken(verifier, issuer.token("k1"))
        issuer.add_key("k2")
        issuer.is_let_go.clear()
        fetches = issuer.fetches
        waiting = [asyncio.create_task(is_taken(verifier, issuer.token("k2"))) for _ in range(5)]
        await wait_until(lambda: issuer.fetches > fetches, "a fetch")
        issuer.is_let_go.set()
        assert all(await asyncio.gather(*waiting))
        assert issuer.fetches == fetches + 1, "all of them waited for one fetch"


async def test_made_up_key_ids_cause_no_more_fetches_than_one_in_a_while(issuer: HandIssuer):
    async with verifying(issuer) as verifier:
        assert await is_taken(verifier, issuer.token("k1"))
        for number in range(50):
            assert not await is_taken(verifier, issuer.token("k1", headers={"kid": f"made-up-{number}"}))
        assert issuer.fetches == 1
        assert await is_taken(verifier, issuer.token("k1"))


async def test_a_withdrawn_key_is_refused_and_its_tokens_forgotten(issuer: HandIssuer):
    issuer.add_key("k2")
    times = KeyTimes(refresh_s=0.05, refetch_s=3_600, stale_s=3_600)
    async with verifying(issuer, times=times) as verifier:
        first, second = issuer.token("k1"), issuer.token("k2")
        assert await is_taken(verifier, first)
        assert await is_taken(verifier, second)
        issuer.withdraw("k1")

        async def is_refused() -> bool:
            return not await is_taken(verifier, first)

        await wait_until(is_refused, "the remembered token refused", timeout_s=10)
        assert await is_taken(verifier, second)
        assert not await is_taken(verifier, issuer.token("k1"))


async def test_known_keys_serve_on_while_the_issuer_is_down_and_not_for_ever(issuer: HandIssuer):
    times = KeyTimes(refresh_s=0.02, refetch_s=0.02, stale_s=1.5)
    async with verifying(issuer, times=times) as verifier:
        token = issuer.token("k1")
        assert await is_taken(verifier, token)
        issuer.status = 500
        began, fetches = time.monotonic(), issuer.fetches
        await wait_until(lambda: issuer.fetches > fetches + 3, "vain fetches")
        assert await is_taken(verifier, token)
        assert await is_taken(verifier, issuer.token("k1", n=1))

        async def is_too_old() -> bool:
            try:
                await verifier.verify(f"Bearer {token}")
            except UpstreamUnavailable:
                return True
            return False

        await wait_until(is_too_old, "keys too old", timeout_s=10)
        assert time.monotonic() - began > 1.0
        issuer.status = 200

        async def is_back() -> bool:
            return not await is_too_old()

        await wait_until(is_back, "the issuer's return noticed", timeout_s=10)


@pytest.mark.parametrize(
    "trouble",
    [
        {"raw": b"no json"},
        {"raw": b"[]"},
        {"raw": b'{"keys": {}}'},
        {"raw": b'{"keys": [' + b" " * MAX_DOCUMENT_BYTES + b"]}"},
        {"status": 302, "headers": {"Location": "/.well-known/openid-configuration"}},
        {"status": 404},
        {"discovery": {}},
        {"discovery": {"issuer": "https://another.example", "jwks_uri": "http://127.0.0.1:1/"}},
        {"discovery": {"jwks_uri": 7}},
    ],
)
async def test_what_is_no_key_set_changes_nothing(issuer: HandIssuer, trouble: dict[str, Any]):
    times = KeyTimes(refresh_s=3_600, refetch_s=0, stale_s=3_600)
    async with verifying(issuer, times=times) as verifier:
        assert await is_taken(verifier, issuer.token("k1"))
        issuer.add_key("k2")
        for name, value in trouble.items():
            setattr(issuer, name, value)
        assert not await is_taken(verifier, issuer.token("k2"))
        assert await is_taken(verifier, issuer.token("k1"))


async def test_keys_that_were_never_had_are_told_as_such(issuer: HandIssuer):
    issuer.status = 503
    async with verifying(issuer) as verifier:
        with pytest.raises(UpstreamUnavailable):
            await verifier.verify(f"Bearer {issuer.token('k1')}")
        own = TokenIssuer(PRIVATE).issue(DeviceCaller(AccountId("dbid:x"), DeviceId("device:x")))
        assert isinstance(await verifier.verify(f"Bearer {own}"), DeviceCaller)


async def test_an_issuer_that_hangs_costs_its_own_tokens_alone(
    issuer: HandIssuer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(oidc, "FETCH_TIMEOUT_S", 0.3)
    async with HandIssuer() as slow:
        slow.add_key("s1")
        slow.is_let_go.clear()
        async with verifying(issuer, slow) as verifier:
            waiting = asyncio.create_task(verifier.verify(f"Bearer {slow.token('s1')}"))
            assert await is_taken(verifier, issuer.token("k1"))
            with pytest.raises(UpstreamUnavailable):
                await waiting


async def test_keys_by_their_address_alone(issuer: HandIssuer):
    issuer.discovery = {}
    async with verifying(issuer, jwks_url=issuer.jwks_url) as verifier:
        assert await is_taken(verifier, issuer.token("k1"))


def test_a_key_set_is_bounded():
    key = jwk_of(ec.generate_private_key(ec.SECP256R1()))
    sets = [json.dumps({"keys": [key | {"kid": str(n)} for n in range(count)]}) for count in (100, 101)]
    assert len(parse_keys(sets[0].encode())) == MAX_KEYS
    with pytest.raises(ValueError, match="too long"):
        parse_keys(sets[1].encode())


def test_keys_of_no_use_are_left_out():
    good = jwk_of(ec.generate_private_key(ec.SECP256R1()))
    odd: list[Any] = [
        *(None, 7, "x", [], {}, {"kty": "EC"}, {"kty": "oct", "k": "c2VjcmV0"}),
        good | {"kid": 7},
        good | {"d": "AAAA"},
        good | {"x": "AAAA"},
        {"kty": "RSA", "n": "AQAB", "e": "AQAB"},
        {"kty": "OKP", "crv": "X25519", "x": "A" * 43},
    ]
    assert parse_keys(json.dumps({"keys": odd}).encode()) == {}
    assert list(parse_keys(json.dumps({"keys": [*odd, good]}).encode())) == [(None, "ES256")]


# ---- Settings


@pytest.mark.parametrize(
    "url",
    [
        *(
            "http://issuer.example",
            "ftp://issuer.example",
            "https://",
            "issuer.example",
            "file:///etc/passwd",
        ),
        *("https://user@issuer.example", "https://issuer.example/#x", "http://127.0.0.1.example", ""),
    ],
)
def test_addresses_that_are_refused(url: str):
    with pytest.raises(ValueError, match="https"):
        check_url(url)


@pytest.mark.parametrize(
    "entry",
    [
        {"issuer": "https://a.example", "audiences": []},
        {"issuer": "https://a.example", "audiences": [""]},
        {"issuer": "https://a.example"},
        {"issuer": "http://a.example", "audiences": ["x"]},
        {"issuer": "https://a.example/" + "p" * 240, "audiences": ["x"]},
        {"issuer": "https://a.example", "audiences": ["x"], "jwks_url": "http://a.example/keys"},
        {"issuer": "https://a.example", "audiences": ["x"], "typo": True},
    ],
)
def test_entries_that_are_refused(tmp_path: Path, entry: dict[str, Any]):
    file = tmp_path / "issuers.json"
    file.write_text(json.dumps({"issuers": [entry]}))
    with pytest.raises(ValueError):
        read_issuers(file)


def test_issuers_are_read(tmp_path: Path):
    file = tmp_path / "issuers.json"
    entries = [{"issuer": f"https://a{n}.example", "audiences": ["x"]} for n in range(21)]
    file.write_text(json.dumps({"issuers": entries[:20]}))
    assert [issuer.link_by_email for issuer in read_issuers(file)] == [False] * 20
    for refused in (entries, [entries[0], entries[0]]):
        file.write_text(json.dumps({"issuers": refused}))
        with pytest.raises(ValueError, match="each once"):
            read_issuers(file)
