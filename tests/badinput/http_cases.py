"""What is wrong with the request as HTTP: its line, its headers, its body's length, its pace."""
# ruff: noqa: E501 - tables

from collections.abc import Callable

from tests.badinput.case import HUNG_UP, Case, Given, Outcome, Request, ask, given, post, raw
from tests.badinput.world import UPLOAD_BYTES, World
from wire.hashes import BLOCK_BYTES

_HEAD = b"POST /v1/files/get_metadata HTTP/1.1\r\nHost: x\r\n"
_MIB = 2**20


def _with_token(path: Given, rest: bytes, method: str = "POST"):  # type: ignore[no-untyped-def]
    def head(world: World) -> bytes:
        token = world.alice.device.access_token
        line = f"{method} {given(path, world)} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n"
        return line.encode() + rest

    return head


_CREATE = b'{"path":"/smuggled"}'
_INNER = b"POST /v1/files/create_folder HTTP/1.1\r\nHost: x\r\nContent-Length: 20\r\n\r\n" + _CREATE


def _create(name: str, rest: bytes, want: Outcome = HUNG_UP) -> Case:
    return raw(name, _with_token("/v1/files/create_folder", rest), want)


LENGTHS = [
    _create("two lengths", b"Content-Length: 20\r\nContent-Length: 5\r\n\r\n" + _CREATE),
    _create("a list of lengths", b"Content-Length: 20, 5\r\n\r\n" + _CREATE),
    _create("length and chunks", b"Content-Length: 20\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + _INNER),
    _create("chunks in disguise", b"Content-Length: 20\r\nTransfer-Encoding: xchunked\r\n\r\n" + _CREATE),
    _create("chunks twice", b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n"),
    _create("chunks and gzip", b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
    _create("a signed length", b"Content-Length: +20\r\n\r\n" + _CREATE),
    _create("a negative length", b"Content-Length: -1\r\n\r\n" + _CREATE),
    _create("a length in hex", b"Content-Length: 0x14\r\n\r\n" + _CREATE),
    _create("an endless length", b"Content-Length: " + b"9" * 400 + b"\r\n\r\n"),
    _create("a space before the colon", b"Content-Length : 20\r\n\r\n" + _CREATE),
    _create("a chunk's size is no number", b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"),
    _create("a chunk's size is signed", b"Transfer-Encoding: chunked\r\n\r\n-5\r\nhello\r\n0\r\n\r\n"),
    _create("a chunk is longer than it says", b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}x\r\n0\r\n\r\n"),
    _create("a chunk's size never ends", b"Transfer-Encoding: chunked\r\n\r\n" + b"0" * 100),
    raw("a request after one without a token", _HEAD + b"Content-Length: 2\r\n\r\n{}" + _INNER,
        (401, "invalid_access_token")),
]  # fmt: skip

LINES = [
    raw("no HTTP", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200) + b"\r\n\r\n", HUNG_UP),
    raw("no version", b"GET /\r\n\r\n", HUNG_UP),
    raw("another version", b"GET / HTTP/9.9\r\nHost: x\r\n\r\n", HUNG_UP),
    raw("HTTP/2 by itself", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", HUNG_UP),
    raw("a line without end", b"GET /" + b"a" * 100_000, HUNG_UP),
    raw("a flood of headers", b"GET /healthz HTTP/1.1\r\nHost: x\r\n" + b"X-A: b\r\n" * 20_000, HUNG_UP),
    raw("a header without end", b"GET /healthz HTTP/1.1\r\nX: " + b"a" * 100_000, HUNG_UP),
    raw("a header without a colon", b"GET /healthz HTTP/1.1\r\nHost: x\r\nnonsense\r\n\r\n", HUNG_UP),
    raw("a header with a NUL", b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: a\0b\r\n\r\n", HUNG_UP),
    raw("a folded header", b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: a\r\n b\r\n\r\n", HUNG_UP),
    raw("no host", b"GET /healthz HTTP/1.1\r\n\r\n", HUNG_UP),
    raw("two hosts", b"GET /healthz HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", HUNG_UP),
    raw("a NUL in the path", b"GET /v1/\0 HTTP/1.1\r\nHost: x\r\n\r\n", HUNG_UP),
    raw("a whole URL", b"GET http://other/healthz HTTP/1.1\r\nHost: x\r\n\r\n", (404, "not_found")),
]  # fmt: skip

METHODS = [
    *(
        ask(f"{method} where POST is meant", Request(method, "/v1/files/commit"), 405, "method_not_allowed")
        for method in ("GET", "PUT", "PATCH", "DELETE", "TRACE", "CONNECT", "BREW", "post")
    ),
    ask("POST where GET is meant", Request("POST", "/healthz", who=None), 405, "method_not_allowed"),
    ask(
        "GET of a pack",
        Request("GET", "/v1/blocks/put_pack?ns=1", server="blockserver"),
        405,
        "method_not_allowed",
    ),
]

PATHS = [
    ask(f"no such address: {path}", Request("GET", path, who=None, server=server), 404, "not_found")
    for path in (
        "/..%2f..%2fetc/passwd", "/../../etc/passwd", "/v1/files/..%2fcommit", "//", "/v1", "/v1/files/",
        "/v1/files/commit/", "/V1/FILES/COMMIT", "/internal", "/internal/heads/x", "/%00", "/%ff%fe", "/?" + "a" * 5_000,
    )
    for server in ("metaserver", "blockserver", "notifserver")
]  # fmt: skip


def _compressed(encoding: str, server: str = "metaserver", path: str = "/v1/files/batch") -> Case:
    # The head of a gzip stream that would unfold into a gigabyte.
    bomb = (
        b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\x03" + b"\xec\xc1\x01\x01\x00\x00\x00\x80\x90\xfe\xaf" * 1_000
    )
    request = Request("POST", path, bomb, (f"Content-Encoding: {encoding}",), server=server)
    return ask(f"compressed, {encoding}: {path}", request, 415, "unsupported_encoding")


BODIES = [
    *map(_compressed, ("gzip", "GZIP", "deflate", "br", "zstd", "identity, gzip", "gzip, identity", "none")),
    _compressed("gzip", "blockserver", "/v1/blocks/missing"),
    _compressed("gzip", "blockserver", "/v1/blocks/put_pack?ns=1"),
    _compressed("gzip", "notifserver", "/v1/files/list_folder/longpoll"),
    post("too large", "/v1/files/get_metadata", bytes(_MIB + 1), 413, "body_too_large"),
    post("too large", "/v1/files/move", bytes(8 * _MIB), 413, "body_too_large"),
    post("too large", "/v1/devices/link", bytes(70_000), 413, "body_too_large", who=None),
    post("too large", "/v1/devices/refresh", bytes(70_000), 413, "body_too_large", who=None),
    post("too large", "/v1/files/list_folder/longpoll", bytes(200_000), 413, "body_too_large",
         who=None, server="notifserver"),
    post("too large", "/v1/blocks/missing", bytes(_MIB + 1), 413, "body_too_large", server="blockserver"),
    post("too large", "/healthz", bytes(70_000), 413, "body_too_large", who=None),
    ask("a block too large", Request("PUT", lambda w: f"/v1/blocks/{'0' * 64}?ns={w.alice.ns_id}",
        bytes(BLOCK_BYTES + 1), server="blockserver"), 413, "body_too_large"),
    _create("much too large", b"Content-Length: 1000000000000\r\n\r\n", (413, "body_too_large")),
    _create("much too large, asking first", b"Content-Length: 2000000\r\nExpect: 100-continue\r\n\r\n",
            (413, "body_too_large")),
    raw("a batch beyond 150 MiB", _with_token("/v1/files/batch", b"Content-Length: 157286401\r\n\r\n"),
        (413, "body_too_large")),
]  # fmt: skip


def _cut_off(name: str, head: Callable[[World], bytes], server: str) -> Case:
    """The client hangs up in the middle of its body."""

    async def send(world: World) -> Outcome:
        connection = await world.connect(server)
        await connection.send(head(world))
        await connection.close()
        return HUNG_UP

    return Case(name, send, HUNG_UP)


_TAKE_BODIES: list[tuple[str, str, Given, str]] = [
    ("a batch", "POST", "/v1/files/batch", "metaserver"),
    ("a commit", "POST", "/v1/files/commit", "metaserver"),
    ("an upload session", "POST", "/files/upload_session", "metaserver"),
    ("its commit", "POST", "/files/commit", "metaserver"),
    ("a pack", "POST", lambda w: f"/v1/blocks/put_pack?ns={w.alice.ns_id}", "blockserver"),
    ("completed blocks", "POST", "/blocks/complete", "blockserver"),
    ("a block at its signed address", "PUT", lambda w: w.alice.upload_path, "blockserver"),
]
_LENGTH = f"Content-Length: {UPLOAD_BYTES}\r\n".encode()  # what the signed address takes, no other minds

CUT_OFF = [
    _cut_off(
        f"{what} stops half-way, {rest!r}",
        _with_token(path, rest + b'{"entries":[{"op":"create_folder","path":"/x"}', method),
        server,
    )
    for what, method, path, server in _TAKE_BODIES
    for rest in (_LENGTH + b"\r\n", b"Transfer-Encoding: chunked\r\n\r\nffff\r\n")
]

SLOW = [
    raw(
        "a head that does not end",
        b"POST /v1/files/batch HTTP/1.1\r\nHost: x\r\nX-A: ",
        HUNG_UP,
        server=server,
    )
    for server in ("metaserver", "blockserver", "notifserver")
] + [
    raw(f"{what} that does not end, {rest!r}", _with_token(path, rest, method), HUNG_UP, server=server)
    for what, method, path, server in _TAKE_BODIES
    for rest in (
        _LENGTH + b"\r\n{",
        b"Transfer-Encoding: chunked\r\n\r\nffff\r\n{",
        _LENGTH + b"Expect: 100-continue\r\n\r\n",
    )
]
"""Run side by side: each takes as long as the servers' time-outs."""

CASES = [*LENGTHS, *LINES, *METHODS, *PATHS, *BODIES, *CUT_OFF]
