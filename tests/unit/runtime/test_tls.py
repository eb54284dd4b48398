"""TLS of the servers, and of their calls to one another."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import tornado.httpserver
import tornado.netutil
import tornado.web
from pydantic import ValidationError

from runtime.rpc import ServiceClient
from runtime.settings import ServerSettings
from runtime.tls import keep_certificate_fresh, open_client_context, open_server_context
from tests.support.certificates import Authority
from tests.support.waiting import wait_until
from wire.errors import UpstreamUnavailable
from wire.internal import AskHeads, Heads
from wire.keys import KeyRing

RING = KeyRing.parse(KeyRing.generate())


class HeadsHandler(tornado.web.RequestHandler):
    def post(self) -> None:
        assert RING.accepts(self.request.headers["Authorization"])
        self.finish(msgspec.msgpack.encode(Heads([7])))


@asynccontextmanager
async def serving(context: ssl.SSLContext) -> AsyncIterator[int]:
    server = tornado.httpserver.HTTPServer(
        tornado.web.Application([("/internal/heads", HeadsHandler)]), ssl_options=context
    )
    (listener,) = tornado.netutil.bind_sockets(0, "127.0.0.1", family=socket.AF_INET)
    server.add_sockets([listener])
    try:
        yield listener.getsockname()[1]
    finally:
        server.stop()
        await server.close_all_connections()


async def ask(port: int, ca_file: Path | None) -> list[int]:
    async with ServiceClient([f"https://127.0.0.1:{port}"], RING, ca_file=ca_file) as client:
        answer = await client.call("/internal/heads", AskHeads([]), Heads, timeout_s=5)
        return answer.heads


async def shown_to(port: int, context: ssl.SSLContext) -> tuple[bytes | None, str | None]:
    """The certificate that is shown, and the protocol."""
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    found: ssl.SSLObject = writer.get_extra_info("ssl_object")
    shown = found.getpeercert(binary_form=True), found.version()
    writer.close()
    with contextlib.suppress(ssl.SSLError, ConnectionError):
        await writer.wait_closed()
    return shown


async def test_servers_are_verified(tmp_path: Path):
    authority = Authority(tmp_path)
    stranger = Authority(tmp_path, "another authority")
    async with serving(open_server_context(*authority.issue())) as port:
        assert await ask(port, authority.file) == [7]
        for ca_file in (None, stranger.file):
            with pytest.raises(UpstreamUnavailable, match="CERTIFICATE_VERIFY_FAILED"):
                await ask(port, ca_file)


async def test_old_protocols_are_refused(tmp_path: Path):
    authority = Authority(tmp_path)
    async with serving(open_server_context(*authority.issue())) as port:
        for version, is_taken in (
            (ssl.TLSVersion.TLSv1_1, False),
            (ssl.TLSVersion.TLSv1_2, True),
            (ssl.TLSVersion.TLSv1_3, True),
        ):
            context = ssl.create_default_context(cafile=authority.file)
            context.set_ciphers("ALL:@SECLEVEL=0")
            with contextlib.nullcontext() if is_taken else pytest.warns(DeprecationWarning, match="TLSv1_1"):
                context.minimum_version = context.maximum_version = version
            if is_taken:
                assert (await shown_to(port, context))[1] == version.name.replace("_", ".")
            else:
                with pytest.raises((ssl.SSLError, ConnectionError)):
                    await shown_to(port, context)


async def test_a_renewed_certificate_is_taken_without_dropping_anybody(tmp_path: Path):
    authority = Authority(tmp_path)
    cert_file, key_file = authority.issue()
    context = open_server_context(cert_file, key_file)
    verifies = open_client_context(authority.file)
    keeper = asyncio.create_task(keep_certificate_fresh(context, cert_file, key_file, check_s=0.02))
    try:
        async with serving(context) as port:
            first, _ = await shown_to(port, verifies)
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=verifies)
            fresh_cert, fresh_key = authority.issue("renewed")
            # The files change one after the other: while they do not fit, the old pair serves on.
            fresh_cert.replace(cert_file)
            before = await shown_to(port, verifies)
            assert before[0] == first
            fresh_key.replace(key_file)

            async def is_renewed() -> bool:
                return (await shown_to(port, verifies))[0] != first

            await wait_until(is_renewed, "the renewed certificate", timeout_s=10)
            writer.write(b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await reader.readline()).startswith(b"HTTP/1.1 404")
            writer.close()
            with contextlib.suppress(ssl.SSLError, ConnectionError):
                await writer.wait_closed()
            cert_file.unlink()  # nor does a file that is gone stop anything
            assert (await shown_to(port, verifies))[0] != first
    finally:
        keeper.cancel()


def test_a_pair_that_does_not_fit_stops_the_start(tmp_path: Path):
    authority = Authority(tmp_path)
    (cert_file, _), (_, key_file) = authority.issue("one"), authority.issue("two")
    with pytest.raises(ssl.SSLError):
        open_server_context(cert_file, key_file)


@pytest.mark.parametrize("name", ["tls_cert_file", "tls_key_file"])
def test_a_certificate_and_its_key_come_together(tmp_path: Path, name: str):
    fields = {"listen_port": 0, "service_keys_file": tmp_path / "k", name: tmp_path / "x"}
    with pytest.raises(ValidationError, match="together"):
        ServerSettings(**fields)  # type: ignore[arg-type]
