"""Issuers of tokens for tests: a real OpenID provider, and one by hand whose every byte a test chooses."""

import asyncio
import base64
import hashlib
import json
import re
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

import jwt
import requests
from aiohttp import web
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from ops.ports import reserve_port
from tests.support.waiting import wait_for

REPOSITORY = Path(__file__).parents[2]
AUDIENCE = "shardbox-app"
REDIRECT = "http://127.0.0.1/signed-in"
Private = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


class OidcProvider:
    """django-oauth-toolkit in a process of its own, with one user for each name."""

    def __init__(self, folder: Path, port: int):
        self.issuer = f"http://127.0.0.1:{port}/o"
        self._origin = f"http://127.0.0.1:{port}"
        self._options: dict[str, Any] = {
            "folder": str(folder),
            "port": port,
            "keys": [pem_of(new_rsa())],
            "client_id": AUDIENCE,
            "client_secret": secrets.token_hex(16),
            "redirect_uri": REDIRECT,
            "users": {},
        }
        self._file = folder / "provider.json"
        self._process: subprocess.Popen[bytes] | None = None

    def add_user(self, name: str, email: str, *, is_verified: bool) -> None:
        """Somebody who can sign in; before `start`."""
        user = {"password": secrets.token_hex(8), "email": email, "is_verified": is_verified}
        self._options["users"][name] = user

    def start(self) -> None:
        """Begin to serve."""
        self._file.write_text(json.dumps(self._options))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.oidc_provider", str(self._file)], cwd=REPOSITORY
        )

    def wait(self) -> None:
        """Until it answers."""

        def answers() -> bool:
            assert self._process is not None
            assert self._process.poll() is None, "the provider ended"
            try:
                return requests.get(f"{self.issuer}/.well-known/openid-configuration", timeout=5).ok
            except requests.ConnectionError:
                return False

        wait_for(answers, "the provider's discovery document", timeout_s=60)

    def stop(self) -> None:
        """End it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def rotate(self, *, keeps_old: bool) -> None:
        """Sign with a new key from now on; the old one stays published, or is withdrawn."""
        old = self._options["keys"] if keeps_old else []
        self._options["keys"] = [pem_of(new_rsa()), *old]
        self.stop()
        self.start()
        self.wait()

    def sign_in(self, name: str) -> str:
        """An ID token, by the authorization code flow with PKCE."""
        with requests.Session() as session:
            login = f"{self._origin}/admin/login/"
            form = session.get(login, timeout=20)
            token = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', form.text)
            assert token is not None
            user = {"username": name, "password": self._options["users"][name]["password"]}
            session.post(
                login,
                data=user | {"csrfmiddlewaretoken": token[1], "next": "/o/"},
                allow_redirects=False,
                timeout=20,
            )
            verifier = secrets.token_urlsafe(48)
            challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=")
            query = {
                "response_type": "code",
                "client_id": AUDIENCE,
                "redirect_uri": REDIRECT,
                "scope": "openid email",
                "code_challenge": challenge.decode(),
                "code_challenge_method": "S256",
            }
            found = session.get(f"{self.issuer}/authorize/", params=query, allow_redirects=False, timeout=20)
            code = parse_qs(urlsplit(found.headers["Location"]).query)["code"][0]
            asked = {
                "grant_type": "authorization_code",
                "code": code,
                "redirect_uri": REDIRECT,
                "code_verifier": verifier,
                "client_id": AUDIENCE,
                "client_secret": self._options["client_secret"],
            }
            granted = session.post(f"{self.issuer}/token/", data=asked, timeout=20)
            assert granted.ok, granted.text
            return str(granted.json()["id_token"])


@contextmanager
def reserved_provider(folder: Path) -> Iterator[OidcProvider]:
    """A provider that has yet to be started; ended with the context."""
    held = reserve_port()
    provider = OidcProvider(folder, held.port)
    try:
        yield provider
    finally:
        provider.stop()
        held.close()


class HandIssuer:
    """An issuer in this process: documents as the test sets them, and a count of who asked for them."""

    def __init__(self) -> None:
        self.keys: list[Any] = []
        self.discovery: dict[str, Any] | None = None
        """None: what is right."""
        self.raw: bytes | None = None
        """Sent instead of the key set."""
        self.status = 200
        self.headers: dict[str, str] = {}
        self.fetches = 0
        """Of the key set."""
        self.is_let_go = asyncio.Event()
        self.is_let_go.set()
        self.issuer = ""
        self._private: dict[str, tuple[Private, str]] = {}

    @property
    def jwks_url(self) -> str:
        """Where the key set is."""
        return f"{self.issuer}/keys"

    def add_key(self, kid: str, private: Private | None = None, **fields: Any) -> Private:
        """Publish a key and be able to sign with it."""
        private = private or ec.generate_private_key(ec.SECP256R1())
        self._private[kid] = (private, algorithm_of(private))
        self.keys.append(jwk_of(private) | {"kid": kid} | fields)
        return private

    def withdraw(self, kid: str) -> None:
        """Publish a key no longer; signing with it still works."""
        self.keys = [key for key in self.keys if key.get("kid") != kid]

    def token(self, kid: str, *, headers: dict[str, Any] | None = None, **claims: Any) -> str:
        """A token; claims and headers of None are left out."""
        private, algorithm = self._private[kid]
        head = {name: value for name, value in ({"kid": kid} | (headers or {})).items() if value is not None}
        # Not by jwt.encode, which makes no tokens with claims of wrong types.
        return jwt.PyJWS().encode(json.dumps(self.claims(**claims)).encode(), private, algorithm, head)

    def claims(self, **changes: Any) -> dict[str, Any]:
        """What a good token says, with changes."""
        now = int(time.time())
        usual = {"iss": self.issuer, "aud": AUDIENCE, "sub": "s-1", "iat": now, "exp": now + 300}
        return {name: value for name, value in (usual | changes).items() if value is not None}

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_get("/.well-known/openid-configuration", self._discover)
        app.router.add_get("/keys", self._give_keys)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.issuer = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self.is_let_go.set()
        await self._runner.cleanup()

    async def _discover(self, _: web.Request) -> web.Response:
        right = {"issuer": self.issuer, "jwks_uri": self.jwks_url}
        return web.json_response(right if self.discovery is None else self.discovery)

    async def _give_keys(self, _: web.Request) -> web.Response:
        self.fetches += 1
        await self.is_let_go.wait()
        body = self.raw if self.raw is not None else json.dumps({"keys": self.keys}).encode()
        return web.Response(body=body, status=self.status, headers=self.headers)


def new_rsa(bits: int = 2048) -> rsa.RSAPrivateKey:
    """A fresh RSA key."""
    return rsa.generate_private_key(65537, bits)


def pem_of(private: Private) -> str:
    """A private key as PEM."""
    return private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


def jwk_of(private: Private) -> dict[str, Any]:
    """The public half as a JSON Web Key."""
    public = private.public_key()
    if isinstance(public, rsa.RSAPublicKey):
        return dict(RSAAlgorithm.to_jwk(public, as_dict=True))
    if isinstance(public, ec.EllipticCurvePublicKey):
        return dict(ECAlgorithm.to_jwk(public, as_dict=True))
    return dict(OKPAlgorithm.to_jwk(public, as_dict=True))


def algorithm_of(private: Private) -> str:
    """What a key of this type signs with."""
    if isinstance(private, rsa.RSAPrivateKey):
        return "RS256"
    if isinstance(private, ed25519.Ed25519PrivateKey):
        return "EdDSA"
    return {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512", "secp256k1": "ES256K"}[
        private.curve.name
    ]
