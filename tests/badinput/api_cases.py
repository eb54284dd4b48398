"""What is wrong with the content of a request: JSON, fields, names, tokens, cursors, blocks."""
# ruff: noqa: E501 - tables

import base64
import json
import time
from collections.abc import Callable
from hashlib import sha256
from typing import Any

import jwt
import msgspec
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from jwt.algorithms import OKPAlgorithm

from runtime.tokens import AUDIENCE, ISSUER
from tests.badinput.case import Case, Outcome, Request, ask, post
from tests.badinput.world import World, commit_of
from wire.api import MAX_BATCH_ENTRIES, MAX_PAGE_ENTRIES
from wire.blocks import MAX_MISSING_HASHES, MAX_PACK_BLOCKS, FrameStatus, format_frame_head
from wire.hashes import MAX_FILE_BYTES, block_hash
from wire.ids import MAX_COUNT, Slot, make_ns_id

Json = dict[str, Any]
BAD = (400, "bad_request")

# ---- JSON

NEEDING = {
    "metaserver": [
        "/v1/files/batch", "/v1/files/commit", "/v1/files/create_folder", "/v1/files/move", "/v1/files/copy", "/v1/files/delete", "/v1/files/restore", "/v1/files/get_metadata", "/v1/files/get_metadata_batch",
        "/v1/files/list_folder/continue", "/v1/files/get_block_list", "/v1/files/list_revisions",
        "/v1/files/search", "/v1/files/search/continue", "/v1/devices/link", "/v1/devices/link_identity",
        "/v1/devices/refresh", "/files/upload_session", "/files/commit",
    ],
    "blockserver": ["/v1/blocks/missing", "/v1/blocks/get_pack", "/blocks/complete"],
    "notifserver": ["/v1/files/list_folder/longpoll"],
}  # fmt: skip
"""Addresses whose requests cannot be empty."""
OPTIONAL = [
    "/v1/files/list_folder",
    "/v1/devices/list",
    "/v1/devices/current",
    "/v1/devices/revoke",
    "/v1/account/usage",
]
NOT_JSON = {
    "a list": b"[]", "null": b"null", "a text": b'"x"', "cut off": b'{"path": "/a', "two values": b"{} {}",
    "not UTF-8": b'{"path": "\xff\xfe"', "NaN": b"NaN", "deep": b"[" * 50_000, "a NUL": b"{}\0",
    "single quotes": b"{'path': '/a'}", "a comment": b"{} // x", "a byte order mark": b"\xef\xbb\xbf{}",
}  # fmt: skip

MALFORMED = [
    *(
        post(name, path, body, *BAD, server=server)
        for server, paths in NEEDING.items()
        for path in paths
        for name, body in (NOT_JSON | {"nothing": b"", "an empty object": b"{}"}).items()
    ),
    *(post(name, path, body, *BAD) for path in OPTIONAL for name, body in NOT_JSON.items()),
]


def _fields(path: str, good: Json, bad: dict[str, tuple[Any, ...]], server: str = "metaserver") -> list[Case]:
    """One case for each wrong value of each field."""
    return [
        post(f"{field}={json.dumps(value)[:40]}", path, good | {field: value}, *BAD, server=server)
        for field, values in bad.items()
        for value in values
    ]


_FILE = msgspec.to_builtins(commit_of("/new.txt", b"x"))
_NO_TEXT = (None, 1, True, [], {}, 1e300)
_NO_FLAG = (None, 0, "true", [])
_NO_COUNT = (-1, 2**63, 2**64, 10**400, 1.5, "1", None, True, [])
_NO_TOKEN = (*_NO_TEXT, "", "x" * 31, "x" * 129)
_TOO_LONG = "/" + "x" * 65_536

FIELDS = [
    *_fields("/v1/files/commit", _FILE, {
        "path": (*_NO_TEXT, _TOO_LONG), "blocks": (None, "x", [1], [None], {}), "size": _NO_COUNT, "content_hash": _NO_TEXT,
        "client_modified": (*_NO_TEXT, "", "yesterday", "2026-13-01T00:00:00Z", "2026-01-01T00:00:00+02:00", "2026-01-01"),
        "mode": (None, "", "ADD", "replace", 1), "rev": (1, [], "0" * 32), "autorename": _NO_FLAG, "strict_conflict": _NO_FLAG,
    }),
    *_fields("/v1/files/move", {"from_path": "/of alice", "to_path": "/b"}, {"from_path": (*_NO_TEXT, _TOO_LONG), "to_path": (*_NO_TEXT, _TOO_LONG), "autorename": _NO_FLAG}),
    *_fields("/v1/files/delete", {"path": "/of alice"}, {"path": (*_NO_TEXT, _TOO_LONG), "parent_rev": (1, [], True), "seen_jid": (-1, 2**63, "1", 1.5)}),
    *_fields("/v1/files/list_folder", {}, {"path": (*_NO_TEXT, _TOO_LONG), "recursive": _NO_FLAG, "include_blocks": _NO_FLAG, "limit": (*_NO_COUNT, 0, MAX_PAGE_ENTRIES + 1)}),
    *_fields("/v1/files/get_block_list", {"rev": "0" * 32}, {"rev": _NO_TEXT, "start": _NO_COUNT}),
    *_fields("/v1/files/search", {"query": "x"}, {"query": (*_NO_TEXT, "", "x" * 256, "a\0b"), "limit": (0, MAX_PAGE_ENTRIES + 1, "1")}),
    *_fields("/v1/files/list_revisions", {"path": "/of alice/file.txt"}, {"limit": (0, 10**6, "1"), "before_rev": (1, [])}),
    *_fields("/v1/devices/link", {"code": "x", "request_id": "r" * 32, "refresh_token": "t" * 32, "device_name": "d"},
             {"code": (*_NO_TEXT, "x" * 129), "request_id": _NO_TOKEN, "refresh_token": _NO_TOKEN, "device_name": (*_NO_TEXT, "", "x" * 256, "a\0b")}),
    *_fields("/v1/files/list_folder/longpoll", {"cursor": "x"}, {"cursor": _NO_TEXT, "timeout": (*_NO_COUNT, 29, 481)}, "notifserver"),
    *_fields("/v1/account/usage", {}, {"x": (1,)}),
    post("NaN inside", "/v1/files/get_metadata", b'{"path": NaN}', *BAD),
    post("a huge number", "/v1/files/delete", b'{"path":"/a","seen_jid":' + b"9" * 5_000 + b"}", *BAD),
    post("an infinite number", "/v1/files/delete", b'{"path":"/a","seen_jid":1e999}', *BAD),
    post("deep in a field", "/v1/files/get_metadata", b'{"path":' + b"[" * 50_000 + b"}", *BAD),
    post("deep in an unknown field", "/v1/files/get_metadata", b'{"path":"/a","x":' + b'{"a":' * 50_000, *BAD),
    post("half of a surrogate pair", "/v1/files/create_folder", b'{"path":"/a\\ud800"}', *BAD),
    post("the other half", "/v1/files/create_folder", b'{"path":"/a\\udc00b"}', *BAD),
    post("a surrogate in UTF-8", "/v1/files/create_folder", b'{"path":"/a\xed\xa0\x80"}', *BAD),
    post("overlong UTF-8", "/v1/files/create_folder", b'{"path":"/a\xc0\xaf"}', *BAD),
    post("the last of two equal keys counts", "/v1/files/create_folder", b'{"path":"/fine","path":"/../x"}', 400, "malformed_path"),
    post("no entries", "/v1/files/batch", {"entries": []}, 400, "too_many_entries"),
    post("too many entries", "/v1/files/batch", {"entries": [{"op": "delete", "path": "/a"}] * (MAX_BATCH_ENTRIES + 1)}, 400, "too_many_entries"),
    *(
        post(f"an entry like {entry!r}", "/v1/files/batch", {"entries": [{"op": "create_folder", "path": "/good"}, entry]}, *BAD)
        for entry in (None, 1, "x", [], {}, {"op": "drop"}, {"op": 1}, {"path": "/a"}, {"op": "delete"}, {"op": "create_folder", "path": 1})
    ),
    *(
        ask(f"an idempotency key like {key[:10]!r}", Request("POST", "/v1/files/create_folder", {"path": "/k"}, (f"Idempotency-Key: {key}",)), *BAD)
        for key in ("", "x" * 65, "a b", "a\tb", "é")
    ),
]  # fmt: skip

# ---- Names and ids

MALFORMED_NAMES = [
    "..", ".", "...", "../x", "x/../y", "x/./y", "x//y", "x/", "", " ", "x ", "x /y", "a\\b", "..\\x", "C:\\x",
    "a\0b", "a\nb", "a\x1fb", "a\x7fb", "a\x85b", "x" * 256, "/".join("x" * 513), "/etc/passwd",
]  # fmt: skip
DISALLOWED_NAMES = [
    "desktop.ini", "Desktop.INI", "thumbs.db", ".DS_Store", "icon\r", ".dropbox", ".dropbox.attr", "~$doc.docx",
    ".~lock", "~save.tmp", "x/.DS_Store/y",
]  # fmt: skip
MALFORMED_PATHS = ["a", "a/b", "../x", "file:///etc/passwd", "NS:1/a", " /a", "\ufeff/a"]
MALFORMED_IDS = [
    "id:", "id:x", "id:" + "A" * 21, "id:" + "A" * 23, "id:" + "_" * 22, "id:../../x", "ns:", "ns:x", "ns:-1", "ns:01", "ns:1e3",
    f"ns:{2**63}", "ns:" + "9" * 4_000, "ns:١", "id:" + "A" * 22 + "=",
]  # fmt: skip

NAMES = [
    *(post(f"{name[:20]!r}", "/v1/files/create_folder", {"path": "/" + name}, 400, "malformed_path") for name in MALFORMED_NAMES),
    *(post(f"{name!r}", "/v1/files/create_folder", {"path": "/" + name}, 400, "disallowed_name") for name in DISALLOWED_NAMES),
    *(post(f"{path!r}", "/v1/files/create_folder", {"path": path}, 400, "malformed_path") for path in MALFORMED_PATHS),
    *(post(f"{text[:20]!r}", "/v1/files/get_metadata", {"path": text}, 400, "malformed_id") for text in MALFORMED_IDS),
    *(post(f"a move to {name!r}", "/v1/files/move", {"from_path": "/of alice", "to_path": "/" + name}, 400, "malformed_path") for name in ("..", "a\\b", "x ")),
    *(post(f"a copy to {name!r}", "/v1/files/copy", {"from_path": "/of alice", "to_path": "/" + name}, 400, "malformed_path") for name in ("..", "a\\b", "x ")),
    *(post(f"a session for {name!r}", "/files/upload_session", {"file_name": name, "file_size": 1, "checksum": "0" * 64}, 400, "malformed_path") for name in ("..", "../x", "a/b", "a\\b", "")),
    post("a session for a name that is not synced", "/files/upload_session", {"file_name": ".DS_Store", "file_size": 1, "checksum": "0" * 64}, 400, "disallowed_name"),
    *(post(f"a rev like {rev[:12]!r}", "/v1/files/get_block_list", {"rev": rev}, 400, "malformed_id") for rev in ("", "x", "0" * 8, "g" * 32, "F" * 32, "f" * 32, "0" * 33, "../../x")),
    *(post(f"an upload id like {text[:12]!r}", "/files/commit", {"upload_id": text, "block_list": []}, 400, "malformed_id") for text in ("", "up:", "up:" + "A" * 31, "up:../../x", "id:" + "A" * 22)),
    post("the root itself", "/v1/files/delete", {"path": ""}, 400, "malformed_path"),
    post("the root itself", "/v1/files/move", {"from_path": "", "to_path": "/x"}, 400, "malformed_path"),
]  # fmt: skip

# ---- Tokens

TokenMaker = Callable[[World], str]


def _claims(world: World, **other: Any) -> Json:
    device = world.alice.device
    now = int(time.time())
    fields = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": device.account_id,
        "device": device.device_id,
        "iat": now,
        "exp": now + 600,
    }
    return {name: value for name, value in (fields | other).items() if value is not None}


def _own_key(world: World) -> tuple[Any, str]:
    key = msgspec.json.decode(world.token_keys, type=dict[str, list[Json]])["keys"][0]
    return OKPAlgorithm.from_jwk(dict(key)), key["kid"]


def _signed(**other: Any) -> TokenMaker:
    """Signed as our own tokens are, with other claims."""

    def make(world: World) -> str:
        key, kid = _own_key(world)
        return jwt.encode(_claims(world, **other), key, algorithm="EdDSA", headers={"kid": kid})

    return make


def _unsigned(world: World) -> str:
    return jwt.encode(_claims(world), None, algorithm="none", headers={"kid": _own_key(world)[1]})  # type: ignore[arg-type]


def _confused(encoding: Any, form: Any) -> TokenMaker:
    """HS256, with the public key as its secret."""

    def make(world: World) -> str:
        key, kid = _own_key(world)
        secret = key.public_key().public_bytes(encoding, form)
        head = _b64(json.dumps({"alg": "HS256", "typ": "JWT", "kid": kid}).encode())
        signed = head + b"." + _b64(json.dumps(_claims(world)).encode())
        mac = jwt.get_algorithm_by_name("HS256").sign(signed, secret)
        return (signed + b"." + _b64(mac)).decode()

    return make


def _b64(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def _foreign_key(is_kid_ours: bool) -> TokenMaker:
    def make(world: World) -> str:
        kid = _own_key(world)[1] if is_kid_ours else "other"
        return jwt.encode(
            _claims(world), Ed25519PrivateKey.generate(), algorithm="EdDSA", headers={"kid": kid}
        )

    return make


def _patched(change: Callable[[str], str]) -> TokenMaker:
    return lambda world: change(world.alice.device.access_token)


def _nobody(world: World) -> str:
    ns_id = make_ns_id(Slot(3), MAX_COUNT)
    account = "dbid:" + _b64(ns_id.to_bytes(8, "big") + bytes(18)).decode()
    device = "device:" + _b64(ns_id.to_bytes(8, "big") + bytes(16)).decode()
    return _signed(sub=account, device=device)(world)


_RAW = (serialization.Encoding.Raw, serialization.PublicFormat.Raw)
_PEM = (serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
TOKENS: dict[str, TokenMaker] = {
    "none": lambda _: "",
    "no token": lambda _: "x",
    "dots": lambda _: "..",
    "far too long": lambda _: "x" * 5_000,
    "cut off": _patched(lambda token: token[:-5]),
    "changed": _patched(lambda token: token[:-20] + "A" * 20),
    "unsigned": _unsigned,
    "without its signature": _patched(lambda token: token.rsplit(".", 1)[0] + "."),
    "HS256 with the public key": _confused(*_RAW),
    "HS256 with the public key as PEM": _confused(*_PEM),
    "another's key under our key id": _foreign_key(is_kid_ours=True),
    "another's key": _foreign_key(is_kid_ours=False),
    "expired": _signed(exp=int(time.time()) - 3_600),
    "without an end": _signed(exp=None),
    "not yet": _signed(nbf=int(time.time()) + 3_600),
    "for another audience": _signed(aud="other"),
    "without an audience": _signed(aud=None),
    "of another issuer": _signed(iss="https://other.example"),
    "without a subject": _signed(sub=None),
    "a malformed subject": _signed(sub="dbid:../../x"),
    "without a device": _signed(device=None),
    "a device of nobody's": lambda world: _signed(device=world.alice.device.device_id[:-4] + "AAAA")(world),
    "another's device": lambda world: _signed(device=world.bob.device.device_id)(world),
    "another's account": lambda world: _signed(sub=world.bob.device.account_id)(world),
    "of nobody": _nobody,
}
STANDING = ("a device of nobody's",)
"""Well signed, and of a real account: that the device is not linked is told by its own code."""


def _with_token(name: str, make: TokenMaker, method: str, path: str, server: str) -> Case:
    async def send(world: World) -> Outcome:
        request_path = path.replace("NS", world.alice.ns_id)
        answer = await world.ask(
            method,
            request_path,
            b'{"path":"/of alice"}',
            f"Authorization: Bearer {make(world)}",
            server=server,
        )
        return answer.status, answer.code

    code = "device_revoked" if name in STANDING else "invalid_access_token"
    return Case(f"a token, {name}: {path}", send, (401, code))


AUTHORIZATION = [
    *(
        _with_token(name, make, method, path, server)
        for name, make in TOKENS.items()
        for method, path, server in (
            ("POST", "/v1/files/get_metadata", "metaserver"),
            ("POST", "/v1/files/create_folder", "metaserver"),
            ("GET", f"/v1/blocks/{'0' * 64}?ns=NS", "blockserver"),
        )
    ),
    *(
        ask(f"Authorization: {header}", Request("POST", "/v1/files/get_metadata", {"path": ""}, (f"Authorization: {header}",), who=None), 401, "invalid_access_token")
        for header in ("", "Basic eDp5", "Bearer", "bearer ", "Token x", "Service x:y")
    ),
    *(
        post("with a user's token", path, b"\x80", 403, "forbidden", server=server)
        for path, server in (("/internal/heads", "metaserver"), ("/internal/blocks/begin", "metaserver"), ("/internal/blocks/locate", "metaserver"),
                             ("/internal/uploads/targets", "metaserver"), ("/internal/targets", "blockserver"), ("/internal/publish", "notifserver"))
    ),
    *(
        ask(f"a server's credential, {name}", Request("POST", "/internal/heads", b"\x80", headers, who=None), 401, "invalid_access_token")
        for name, headers in {"none": (), "wrong": ("Authorization: Service x:eHh4",), "no base64": ("Authorization: Service x:%%",), "no colon": ("Authorization: Service x",)}.items()
    ),
    post("a wrong code", "/v1/devices/link", {"code": "A" * 20, "request_id": "r" * 32, "refresh_token": "t" * 32, "device_name": "d"}, 401, "invalid_link_code", who=None),
]  # fmt: skip


def _packed(name: str, path: str, body: bytes, server: str = "metaserver") -> Case:
    """A body of a server's own, with the right credential."""

    async def send(world: World) -> Outcome:
        answer = await world.ask(
            "POST", path, body, f"Authorization: {world.service_keys.credential()}", server=server
        )
        return answer.status, answer.code

    return Case(f"msgpack, {name}: {path}", send, BAD)


INTERNAL = [
    _packed(name, path, body, server)
    for name, body in {"nothing": b"", "no msgpack": b"\xc1", "cut off": b"\x81\xa5hello", "another type": b"\x01", "JSON": b"{}", "deep": b"\x91" * 100_000, "a huge array": b"\xdd\xff\xff\xff\xff"}.items()
    for path, server in (("/internal/heads", "metaserver"), ("/internal/blocks/begin", "metaserver"), ("/internal/blocks/finish", "metaserver"),
                         ("/internal/blocks/locate", "metaserver"), ("/internal/uploads/targets", "metaserver"), ("/internal/targets", "blockserver"), ("/internal/publish", "notifserver"))
]  # fmt: skip

# ---- Cursors

CURSORS: dict[str, Callable[[World], str]] = {
    "empty": lambda _: "",
    "no base64": lambda _: "%%%",
    "too long": lambda _: "A" * 16_385,
    "another's": lambda world: world.bob.cursor,
    "changed": lambda world: world.alice.cursor[:-6] + "AAAAAA",
    "cut off": lambda world: world.alice.cursor[:-3],
    "with more": lambda world: world.alice.cursor + "AAAA",
    "a token": lambda world: world.alice.device.access_token,
    "a rev": lambda world: str(world.alice.file and world.alice.file.rev),
}
CURSOR_CASES = [
    *(
        post(f"a cursor, {name}", path, lambda world, make=make: {"cursor": make(world)}, 400, "invalid_cursor")  # type: ignore[misc]
        for name, make in CURSORS.items()
        for path in ("/v1/files/list_folder/continue", "/v1/files/search/continue")
    ),
    post("a listing's cursor", "/v1/files/search/continue", lambda world: {"cursor": world.alice.cursor}, 400, "invalid_cursor"),
    *(
        post(f"a cursor, {name}", "/v1/files/list_folder/longpoll", lambda world, make=make: {"cursor": make(world)}, 400, "invalid_cursor", who=None, server="notifserver")  # type: ignore[misc]
        for name, make in CURSORS.items() if name != "another's"
    ),
]  # fmt: skip

# ---- Blocks and files


def _block(name: str, method: str, text: str, body: bytes, status: int, code: str) -> Case:
    request = Request(
        method,
        lambda world: f"/v1/blocks/{text}".replace("NS", world.alice.ns_id),
        body,
        server="blockserver",
    )
    return ask(f"{method} of a block, {name}", request, status, code)


_DATA = b"some bytes"
_HASH = block_hash(_DATA).hex()
_TRAVERSALS = (
    "..%2f..%2f..%2fetc%2fpasswd",
    "%2e%2e",
    "..",
    "%2fetc%2fpasswd",
    "..%5c..",
    "%00",
    "con",
    ".%2e%2fobjects",
)


def _frame(data: bytes, *, status: FrameStatus = FrameStatus.OK, name: bytes | None = None) -> bytes:
    return format_frame_head(block_hash(name if name is not None else data), status, len(data)) + data  # type: ignore[arg-type]


def _pack(name: str, body: bytes, status: int, code: str) -> Case:
    return post(
        f"a pack, {name}",
        lambda world: f"/v1/blocks/put_pack?ns={world.alice.ns_id}",
        body,
        status,
        code,
        server="blockserver",
    )


BLOCKS = [
    _block("other bytes", "PUT", f"{_HASH}?ns=NS", _DATA + b"!", 400, "hash_mismatch"),
    _block("no bytes", "PUT", f"{_HASH}?ns=NS", b"", 400, "hash_mismatch"),
    *(_block(text, method, f"{text}?ns=NS", _DATA if method == "PUT" else b"", 400, "malformed_id")
      for text in (*_TRAVERSALS, _HASH.upper(), _HASH[:-1], _HASH + "0", "x" * 64, "%30" * 21 + "0") for method in ("PUT", "GET")),
    *(_block(query, "PUT", _HASH + query, _DATA, *BAD) for query in ("", "?", "?ns=NS&ns=NS", "?n=NS")),
    *(_block(query, "PUT", _HASH + query, _DATA, 400, "malformed_id") for query in ("?ns", "?ns=", "?ns=x", "?ns=-1", "?ns=01", f"?ns={2**63}", "?ns=..%2f", "?ns=%00")),
    _block("absent", "GET", f"{'0' * 64}?ns=NS", b"", 404, "block_not_found"),
    _pack("no frame", b"x", *BAD), _pack("cut off", _frame(_DATA)[:-1], *BAD),
    _pack("with more", _frame(_DATA) + b"x", *BAD), _pack("another status", _frame(_DATA, status=FrameStatus.NOT_FOUND), *BAD),
    _pack("too many", b"".join(_frame(str(i).encode()) for i in range(MAX_PACK_BLOCKS + 1)), 400, "too_many_entries"),
    _pack("a frame of 4 GB", format_frame_head(block_hash(_DATA), FrameStatus.OK, 0)[:-4] + b"\xff" * 4 + _DATA, *BAD),
    post("too many hashes", "/v1/blocks/missing", lambda w: {"ns_id": w.alice.ns_id, "hashes": [_HASH] * (MAX_MISSING_HASHES + 1)}, 400, "too_many_entries", server="blockserver"),
    post("too many hashes", "/v1/blocks/get_pack", lambda w: {"ns_id": w.alice.ns_id, "hashes": [_HASH] * (MAX_PACK_BLOCKS + 1)}, 400, "too_many_entries", server="blockserver"),
    *(post(f"a hash like {text!r}", path, lambda w, text=text: {"ns_id": w.alice.ns_id, "hashes": [text]}, 400, "malformed_id", server="blockserver")  # type: ignore[misc]
      for path in ("/v1/blocks/missing", "/v1/blocks/get_pack") for text in ("", "x", "../" * 21 + "x", _HASH.upper())),
    *(ask(f"an upload address, {text[:20]!r}", Request("PUT", f"/v1/uploads/{text}/{_HASH}", _DATA, who=None, server="blockserver"), 403, "invalid_upload_url")
      for text in ("x", "..%2f..", "A" * 300, "A" * 9_000, "%00")),
]  # fmt: skip


def _commit(name: str, status: int, code: str, change: Callable[[World], Json]) -> Case:
    def body(world: World) -> Json:
        return msgspec.to_builtins(commit_of("/committed.txt", world.alice.data)) | change(world)  # type: ignore[no-any-return]

    return post(name, "/v1/files/commit", body, status, code)


def _of(data: bytes) -> Json:
    found: Json = msgspec.to_builtins(commit_of("/committed.txt", data))
    return found


COMMITS = [
    _commit("an absent block", 409, "blocks_absent", lambda _: _of(b"never sent")),
    _commit("a pending block", 409, "blocks_absent", lambda world: _of(world.pending)),
    _commit("another's block", 409, "blocks_absent", lambda world: _of(world.bob.data)),
    _commit("another size", 400, "content_mismatch", lambda world: {"size": len(world.alice.data) + 1}),
    _commit("a size without blocks", 400, "content_mismatch", lambda _: {"size": 0}),
    _commit("no blocks", 400, "content_mismatch", lambda _: {"blocks": []}),
    _commit("another content_hash", 400, "content_mismatch", lambda _: {"content_hash": "0" * 64}),
    _commit("a malformed content_hash", 400, "malformed_id", lambda _: {"content_hash": "x"}),
    _commit("a malformed block", 400, "malformed_id", lambda _: {"blocks": ["../../etc/passwd"]}),
    _commit("a file beyond all", 400, "content_mismatch", lambda _: {"size": MAX_FILE_BYTES + 1}),
    _commit("update without a rev", *BAD, lambda _: {"mode": "update"}),
    _commit("a malformed rev", 400, "malformed_id", lambda _: {"mode": "update", "rev": "x"}),
    _commit("a folder in the way", 409, "conflict/folder", lambda _: {"path": "/of alice"}),
    _commit("a file on the way", 409, "conflict/file_ancestor", lambda _: {"path": "/of alice/file.txt/x"}),
    _commit("no such time", *BAD, lambda _: {"client_modified": "2026-02-30T00:00:00Z"}),
    _commit("a time before all", *BAD, lambda _: {"client_modified": "0000-01-01T00:00:00Z"}),
    post("into itself", "/v1/files/move", {"from_path": "/of alice", "to_path": "/of alice/x"}, 409, "cant_move_folder_into_itself"),
    post("to another namespace", "/v1/files/move", lambda w: {"from_path": "/of alice", "to_path": f"ns:{w.bob.ns_id}/x"}, *BAD),
    post("two namespaces", "/v1/files/batch", lambda w: {"entries": [{"op": "create_folder", "path": "/a"}, {"op": "create_folder", "path": f"ns:{w.bob.ns_id}/a"}]}, *BAD),
]  # fmt: skip


# ---- Fields that are not known: each may be a condition, misspelt


def _misspelt(
    path: str, body: Callable[[World], Json], *fields: str, server: str = "metaserver"
) -> list[Case]:
    """Requests that would act, but for one more field."""
    return [
        post(
            f"an unknown field {field}",
            path,
            lambda w, field=field: body(w) | {field: None},
            *BAD,
            server=server,
        )  # type: ignore[misc]
        for field in fields
    ]


_SESSION = {"file_name": "x", "file_size": 0, "checksum": sha256(b"").hexdigest()}
UNKNOWN_FIELDS = [
    *_misspelt("/v1/files/delete", lambda _: {"path": "/of alice"}, "parent_revision", "seenJid", "if_rev"),
    *_misspelt("/v1/files/commit", lambda w: _of(w.alice.data), "parent_rev", "strictConflict"),
    *_misspelt("/v1/files/create_folder", lambda _: {"path": "/new"}, "auto_rename"),
    *_misspelt("/v1/files/move", lambda _: {"from_path": "/of alice", "to_path": "/b"}, "parent_rev"),
    *_misspelt("/v1/files/copy", lambda _: {"from_path": "/of alice", "to_path": "/b"}, "parent_rev"),
    *_misspelt("/v1/files/restore", lambda w: {"path": "/of alice/again.txt", "rev": w.alice.file and w.alice.file.rev}, "parent_rev"),
    *_misspelt("/v1/files/batch", lambda _: {"entries": [{"op": "create_folder", "path": "/new"}]}, "atomic"),
    post("an unknown field of an entry", "/v1/files/batch", {"entries": [{"op": "create_folder", "path": "/new"}, {"op": "delete", "path": "/of alice", "parent_revision": "0" * 32}]}, *BAD),
    post("another operation", "/v1/files/create_folder", {"path": "/new", "op": "delete"}, *BAD),
    *_misspelt("/v1/devices/revoke", lambda w: {"device_id": w.alice.device.device_id}, "deviceId"),
    post("an unknown field alone", "/v1/devices/revoke", lambda w: {"deviceId": w.alice.device.device_id}, *BAD),
    *_misspelt("/files/upload_session", lambda _: dict(_SESSION), "uploadId", "parent_folder"),
    *_misspelt("/files/commit", lambda w: {"upload_id": w.alice.upload_id, "block_list": []}, "originalVersion", "mode"),
    *_misspelt("/blocks/complete", lambda w: {"upload_id": w.alice.upload_id, "hashes": ["0" * 64]}, "uploadId", server="blockserver"),
    *(post(f"a block list like {value!r}", "/files/commit", lambda w, value=value: {"upload_id": w.alice.upload_id, "block_list": value}, *BAD) for value in (None, "x", {}, [1], [None], [["0" * 64]])),  # type: ignore[misc]
    *(post(f"a block list like {value!r}", "/files/upload_session", {**_SESSION, "block_list": value}, *BAD) for value in ("x", {}, [1], [None], [["0" * 64]])),
]  # fmt: skip

LONG_TABLES = [*MALFORMED, *FIELDS, *INTERNAL]
SHORT_TABLES = [*NAMES, *UNKNOWN_FIELDS, *AUTHORIZATION, *CURSOR_CASES, *BLOCKS, *COMMITS]
CASES = [*LONG_TABLES, *SHORT_TABLES]
