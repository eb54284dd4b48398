"""Signing in by an OpenID provider, and HAProxy in front: real servers, real provider, real HAProxy."""

import asyncio
import os
import secrets
import signal
import ssl
import sys
import time
from collections import Counter
from io import BytesIO
from pathlib import Path
from typing import Any

import aiohttp
import jwt
import pytest

from tests.integration.blockserver.servers import REPOSITORY, ServerProcess
from tests.integration.deploy.front import NOTICE_S, Front, running_haproxy, session_from
from tests.support.certificates import Authority
from tests.support.services import User, commit_of
from tests.support.waiting import wait_until
from wire.hashes import block_hash
from wire.ids import AccountId

EXIT_BAD_CODE = 8
KINDS = ("metaservers", "blockservers", "notifservers")
HOLDS_WITHIN_S = 10.0
CLIENT, STRANGER = "127.0.0.7", "127.0.0.8"


class Caller:
    """Somebody with a token."""

    def __init__(self, http: aiohttp.ClientSession, token: str):
        self._http = http
        self._auth = {"Authorization": f"Bearer {token}"}

    async def post(self, url: str, path: str, body: Any) -> tuple[int, Any]:
        async with self._http.post(url + path, json=body, headers=self._auth) as answer:
            return answer.status, await answer.json()

    async def code(self, url: str, path: str, body: Any) -> str:
        """The code that a request is refused with; "ok" if it is not."""
        status, answer = await self.post(url, path, body)
        return "ok" if status == 200 else answer["error"]["code"]

    async def put_block(self, url: str, ns_id: int, data: bytes) -> int:
        path = f"/v1/blocks/{block_hash(data).hex()}?ns={ns_id}"
        async with self._http.put(url + path, data=BytesIO(data), headers=self._auth) as answer:
            return answer.status


async def signed_in(front: Front, name: str) -> str:
    return await asyncio.to_thread(front.provider.sign_in, name)


def subject_of(token: str) -> str:
    return str(jwt.decode(token, options={"verify_signature": False})["sub"])


LIST = ("/v1/files/list_folder", {"path": "", "recursive": True})


async def test_a_sign_in_at_the_provider_is_a_sign_in_here(front: Front):
    """Account by verified address, blocks and commits by the token, a device by the token, removal."""
    bob = await front.services.user("bob@example.org", "Bob")
    ada = await front.services.user("ada@example.org", "Ada")
    meta, block = front.metaservers[0].url, front.blockserver.url
    async with aiohttp.ClientSession() as http:
        token = await signed_in(front, "bob")
        caller, data = Caller(http, token), b"by token"
        assert await caller.code(meta, *LIST) == "ok"
        assert await caller.put_block(block, bob.root_ns, data) == 200
        commit = commit_of("/a.txt", data, [block_hash(data)])
        body = {name: getattr(commit, name) for name in commit.__struct_fields__}
        assert await caller.code(meta, "/v1/files/commit", body) == "ok"
        assert await caller.put_block(block, ada.root_ns, b"not his") == 404

        # Somebody who only says that he has Ada's address is nobody.
        eve = Caller(http, await signed_in(front, "eve"))
        assert await eve.code(meta, *LIST) == "identity_not_linked"
        assert await eve.put_block(block, ada.root_ns, b"x") == 403

        request = {"request_id": "r" * 32, "refresh_token": secrets.token_hex(16), "device_name": "laptop"}
        linked = [await caller.post(url, "/v1/devices/link_identity", request) for url in meta_urls(front)]
        assert [status for status, _ in linked] == [200, 200]
        assert len({answer["device_id"] for _, answer in linked}) == 1
        device = Caller(http, linked[0][1]["access_token"])
        assert await device.code(meta, *LIST) == "ok"
        assert await device.code(meta, "/v1/devices/link_identity", request) == "forbidden"
        assert await caller.code(meta, "/v1/devices/revoke", {}) == "bad_request"

        # Everywhere within ten seconds: both metaservers, and the blockserver, which has seen the token too.
        began = time.monotonic()
        issuer, subject = front.provider.issuer, subject_of(token)
        await front.services.identities.remove(account_of(bob), issuer, subject)

        async def is_refused() -> bool:
            codes = [await caller.code(url, *LIST) for url in meta_urls(front)]
            status = await caller.put_block(block, bob.root_ns, data)
            return {*codes, status} == {"identity_not_linked", 403}

        await wait_until(is_refused, "the refusal", timeout_s=HOLDS_WITHIN_S + 5)
        assert time.monotonic() - began < HOLDS_WITHIN_S
        assert await device.code(meta, *LIST) == "ok", "a linked device is the account's own"
        await front.services.identities.add(account_of(bob), issuer, subject)
        await wait_until(lambda: is_ok(caller, meta), "the identity back", timeout_s=10)


def meta_urls(front: Front) -> list[str]:
    return [server.url for server in front.metaservers]


def account_of(user: User) -> AccountId:
    return user.caller.account_id


async def is_ok(caller: Caller, url: str) -> bool:
    return await caller.code(url, *LIST) == "ok"


@pytest.mark.long
async def test_a_key_is_rotated(front: Front):
    if await front.services.accounts.find_by_email("ada@example.org") is None:
        await front.services.user("ada@example.org", "Ada")
    meta = front.metaservers[0].url
    async with aiohttp.ClientSession() as http:
        first = Caller(http, await signed_in(front, "ada"))
        assert await is_ok(first, meta)
        await asyncio.to_thread(front.provider.rotate, keeps_old=True)
        second = Caller(http, await signed_in(front, "ada"))
        # At once, unless keys were fetched within the last ten seconds.
        await wait_until(lambda: is_ok(second, meta), "the new key known", timeout_s=15)
        assert await is_ok(first, meta)


# ---- HAProxy


async def test_requests_are_balanced_and_told_where_they_come_from(front: Front):
    with running_haproxy(front) as url:
        async with session_from(CLIENT) as http:
            forged = {"X-Forwarded-For": "6.6.6.6", "X-Real-IP": "6.6.6.6", "Forwarded": "for=6.6.6.6"}
            seen = []
            for number in range(6):
                request_id = f"balanced-{number}-{secrets.token_hex(4)}"
                headers = forged | {"X-Request-Id": request_id}
                async with http.get(url + "/.well-known/shardbox", headers=headers) as answer:
                    told = await answer.json()
                    assert [told[kind] for kind in KINDS] == [[url]] * 3
                seen.append(front.seen(request_id))
            assert Counter(seen) == {(server.url, CLIENT): 3 for server in front.metaservers}
        # Past the proxy nobody is believed but the proxy.
        async with session_from(STRANGER) as http:
            request_id = secrets.token_hex(8)
            headers = forged | {"X-Request-Id": request_id}
            async with http.get(front.metaservers[0].url + "/healthz", headers=headers):
                pass
            assert front.seen(request_id) == (front.metaservers[0].url, STRANGER)
            for path in ("/metrics", "/internal/heads", "/internal/publish", "/internal/targets"):
                async with http.post(url + path) as answer:
                    assert (answer.status, answer.headers.get("X-Request-Id")) == (404, None), path
            async with http.put(f"{url}/v1/blocks/{'0' * 64}?ns=1", data=b"x") as answer:
                assert (answer.status, (await answer.json())["error"]["code"]) == (
                    401,
                    "invalid_access_token",
                )


async def test_blocks_and_long_tokens_pass_through(front: Front):
    user = await front.services.user(f"{secrets.token_hex(4)}@example.org", "Cy")
    with running_haproxy(front) as url:
        async with aiohttp.ClientSession() as http:
            caller, data = Caller(http, front.issuer.issue(user.caller)), secrets.token_bytes(4 * 2**20)
            assert await caller.put_block(url, user.root_ns, data) == 200
            path = f"/v1/blocks/{block_hash(data).hex()}?ns={user.root_ns}"
            async with http.get(url + path, headers=front.auth(user)) as answer:
                assert await answer.read() == data
            too_long = Caller(http, "x" * 8_192)
            assert await too_long.code(url, *LIST) == "invalid_access_token"


async def test_a_long_poll_outlives_the_clients_time_and_wakes(front: Front):
    user = await front.services.user(f"{secrets.token_hex(4)}@example.org", "Dee")
    with running_haproxy(front, **{"timeout client 60s": "timeout client 1s"}) as url:
        async with aiohttp.ClientSession() as http:
            caller = Caller(http, front.issuer.issue(user.caller))
            _, page = await caller.post(url, *LIST)
            body = {"cursor": page["cursor"], "timeout": 30}
            began = time.monotonic()
            poll = asyncio.create_task(caller.post(url, "/v1/files/list_folder/longpoll", body))
            await wait_until(lambda: time.monotonic() - began > 2.5 or poll.done(), "time going by")
            assert not poll.done()
            assert await caller.code(url, "/v1/files/create_folder", {"path": "/woken"}) == "ok"
            status, answer = await poll
            assert (status, answer["changes"]) == (200, True)
            assert time.monotonic() - began < 25


async def test_a_metaserver_is_drained_without_a_failed_request(front: Front):
    user = await front.services.user(f"{secrets.token_hex(4)}@example.org", "Flo")
    leaving, staying = front.metaservers[1], front.metaservers[0]
    failures: list[Any] = []
    counts: Counter[str] = Counter()
    is_over = asyncio.Event()

    async def work(http: aiohttp.ClientSession, url: str, number: int) -> None:
        caller = Caller(http, front.issuer.issue(user.caller))
        while not is_over.is_set():
            counts["sent"] += 1
            try:
                path = f"/w{number}/{secrets.token_hex(6)}"
                status, answer = await caller.post(url, "/v1/files/create_folder", {"path": path})
            except aiohttp.ClientError as error:
                failures.append(repr(error))
            else:
                if status != 200:
                    failures.append(answer)

    with running_haproxy(front) as url:
        async with aiohttp.ClientSession() as http:
            working = [asyncio.create_task(work(http, url, number)) for number in range(4)]
            await wait_until(lambda: counts["sent"] > 40, "load")
            began = time.monotonic()
            leaving.signal(signal.SIGTERM)

            async def is_unready() -> bool:
                async with http.get(leaving.url + "/readyz") as answer:
                    return answer.status == 503

            await wait_until(is_unready, "unready, and still accepting")
            assert time.monotonic() - began < NOTICE_S
            assert await asyncio.to_thread(leaving.wait) == 0
            assert time.monotonic() - began >= NOTICE_S
            sent = counts["sent"]
            await wait_until(lambda: counts["sent"] > sent + 20, "work going on")
            is_over.set()
            await asyncio.gather(*working)
            assert failures == []
            leaving.start()

            async def is_back() -> bool:
                request_id = secrets.token_hex(8)
                headers = {"X-Request-Id": request_id}
                async with http.get(url + "/.well-known/shardbox", headers=headers) as answer:
                    assert answer.status == 200
                return front.seen(request_id)[0] == leaving.url

            await wait_until(is_back, "requests to the server that is back")
    assert staying.log_text().count('"status": 5') == 0


# ---- TLS in the servers


@pytest.mark.long
async def test_a_server_speaks_tls_by_itself_and_the_client_verifies_it(front: Front, tmp_path: Path):
    authority = Authority(tmp_path)
    cert_file, key_file = authority.issue()
    port = front.ports[4]  # HAProxy's, which does not run now
    url = f"https://127.0.0.1:{port}"
    tls = {"SHARDBOX_TLS_CERT_FILE": str(cert_file), "SHARDBOX_TLS_KEY_FILE": str(key_file)}
    server = ServerProcess(
        "metaserver", port, front.env | tls | {"SHARDBOX_PUBLIC_URL": url}, tmp_path / "log"
    )
    server.start_unready()
    verified = ssl.create_default_context(cafile=authority.file)
    try:
        async with aiohttp.ClientSession() as http:

            async def is_ready() -> bool:
                try:
                    async with http.get(f"{url}/readyz", ssl=verified) as answer:
                        return answer.status == 200
                except aiohttp.ClientConnectorCertificateError:
                    raise
                except aiohttp.ClientConnectorError:
                    return False

            await wait_until(is_ready, "the server over TLS")
            with pytest.raises(aiohttp.ClientConnectorCertificateError):
                await http.get(f"{url}/readyz")
            with pytest.raises(aiohttp.ClientError):
                await http.get(f"http://127.0.0.1:{port}/readyz")
        client = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "client", "link", url, "--code", "1-wrong", str(tmp_path / "folder")),
            env=os.environ | {"SSL_CERT_FILE": str(authority.file)},
            cwd=REPOSITORY,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        told, _ = await client.communicate()
        # The server has been asked, and has refused: the code, not the connection.
        assert client.returncode == EXIT_BAD_CODE, told.decode()
    finally:
        server.kill()
