"""What is another's must be answered as what does not exist: by the same bytes, but for what was asked."""
# ruff: noqa: E501 - a table

from collections.abc import Callable, Sequence

import msgspec

from tests.badinput.case import Request, Twins
from tests.badinput.world import World, commit_of, other_ns
from wire.hashes import block_hash, content_hash
from wire.ids import (
    EntryId,
    Jid,
    format_file_id,
    format_rev,
    format_upload_id,
    parse_file_id,
    parse_rev,
    parse_upload_id,
)

Words = Callable[[World], Sequence[tuple[str, str]]]
NOWHERE = b"what nobody has"


def ns(world: World) -> tuple[str, str]:
    """Bob's namespace, and nobody's."""
    return world.bob.ns_id, str(other_ns(world.bob.ns_id))


def file_id(world: World) -> tuple[str, str]:
    """The id of Bob's file, and of nothing."""
    assert world.bob.file is not None
    there = world.bob.file.id
    return there, format_file_id(other_ns(world.bob.ns_id), parse_file_id(there)[1])


def rev(world: World) -> tuple[str, str]:
    """The rev of Bob's file, and of nothing."""
    assert world.bob.file is not None
    there = str(world.bob.file.rev)
    return there, format_rev(other_ns(world.bob.ns_id), parse_rev(there)[1])


def own_rev(world: World) -> tuple[str, str]:
    """Bob's rev, and one that Alice's namespace never had."""
    assert world.alice.file is not None
    return rev(world)[0], format_rev(parse_rev(str(world.alice.file.rev))[0], Jid(99_999))


def folder_id(world: World) -> tuple[str, str]:
    """The id of Bob's root folder, and of nobody's."""
    there, nowhere = (format_file_id(parse_file_id(i)[0], EntryId(0)) for i in file_id(world))
    return there, nowhere


def block(world: World) -> tuple[str, str]:
    """The block of Bob's file, and one that nobody has."""
    return world.bob.block.hex(), block_hash(NOWHERE).hex()


def device(world: World) -> tuple[str, str]:
    """Bob's device, and none."""
    there = world.bob.device.device_id
    return there, there[:-4] + "AAAA"


def upload_id(world: World) -> tuple[str, str]:
    """Bob's upload session, and none."""
    there = world.bob.upload_id
    return there, format_upload_id(other_ns(world.bob.ns_id), parse_upload_id(there)[1])


Pair = Callable[[World], tuple[str, str]]


def twins(
    path: str,
    body: Callable[[str], object],
    pair: Pair,
    status: int = 404,
    code: str = "not_found",
    *,
    method: str = "POST",
    server: str = "metaserver",
    who: str | None = "alice",
) -> Twins:
    """The same request with what is another's, and with what does not exist."""

    def make(index: int) -> Request:
        def url(world: World) -> str:
            return path.replace("WORD", pair(world)[index]).replace("OWN", world.alice.ns_id)

        return Request(method, url, lambda world: body(pair(world)[index]), server=server, who=who)

    name = f"{method} {path} with {pair.__name__}"
    return Twins(name, make(0), make(1), (status, code), lambda world: [pair(world)])


def _nothing(_word: str) -> object:
    return b""


_NEW = msgspec.to_builtins(commit_of("/x", b"")) | {
    "blocks": [],
    "size": 0,
    "content_hash": content_hash([]).hex(),
}


def _session(word: str) -> dict[str, object]:
    return {"file_name": "x", "file_size": 0, "checksum": content_hash([]).hex(), "parent_folder_id": word}


TWINS = [
    *(twins("/v1/files/get_metadata", lambda w: {"path": w}, pair) for pair in (file_id, folder_id)),
    twins("/v1/files/get_metadata", lambda w: {"path": f"ns:{w}"}, ns),
    twins("/v1/files/get_metadata", lambda w: {"path": f"ns:{w}/of bob"}, ns),
    twins("/v1/files/get_metadata", lambda w: {"path": f"rev:{w}"}, rev),
    twins("/v1/files/get_metadata_batch", lambda w: {"paths": [w, "/of alice"]}, file_id, 200, ""),
    twins("/v1/files/get_block_list", lambda w: {"rev": w}, rev),
    twins("/v1/files/get_block_list", lambda w: {"rev": w}, own_rev),
    twins("/v1/files/list_folder", lambda w: {"path": f"ns:{w}"}, ns),
    twins("/v1/files/list_folder", lambda w: {"path": f"ns:{w}", "recursive": True}, ns),
    twins("/v1/files/list_folder", lambda w: {"path": w}, folder_id),
    twins("/v1/files/list_revisions", lambda w: {"path": w}, file_id),
    twins("/v1/files/search", lambda w: {"query": "file", "path": w}, folder_id),
    twins("/v1/files/search", lambda w: {"query": "file", "path": f"ns:{w}"}, ns),
    twins("/v1/files/create_folder", lambda w: {"path": f"ns:{w}/x"}, ns),
    twins("/v1/files/create_folder", lambda w: {"path": f"{w}/x"}, folder_id),
    twins("/v1/files/commit", lambda w: _NEW | {"path": f"ns:{w}/x"}, ns),
    twins("/v1/files/commit", lambda w: _NEW | {"path": w}, file_id),
    twins("/v1/files/commit", lambda w: _NEW | {"path": "/of alice/file.txt", "mode": "update", "rev": w}, own_rev, 409, "conflict/file"),
    twins("/v1/files/commit", lambda w: _NEW | {"path": "/x", "blocks": [w], "size": 15, "content_hash": content_hash([block_hash(NOWHERE) if w == block_hash(NOWHERE).hex() else bytes.fromhex(w)]).hex()}, block, 409, "blocks_absent"),
    twins("/v1/files/delete", lambda w: {"path": w}, file_id),
    twins("/v1/files/delete", lambda w: {"path": "/of alice/file.txt", "parent_rev": w}, own_rev, 409, "conflict/changed"),
    twins("/v1/files/move", lambda w: {"from_path": w, "to_path": f"{w}/x"}, file_id),
    twins("/v1/files/copy", lambda w: {"from_path": w, "to_path": f"{w}/x"}, file_id),
    twins("/v1/files/copy", lambda w: {"from_path": f"ns:{w}/of bob", "to_path": f"ns:{w}/x"}, ns),
    twins("/v1/files/restore", lambda w: {"path": "/of alice/file.txt", "rev": w}, own_rev),
    twins("/v1/files/batch", lambda w: {"entries": [{"op": "delete", "path": w}]}, file_id),
    twins("/v1/devices/revoke", lambda w: {"device_id": w}, device),
    twins("/v1/devices/refresh", lambda w: {"device_id": w, "refresh_token": "x" * 32, "next_refresh_token": "y" * 32},
          device, 401, "invalid_refresh_token", who=None),
    twins("/files/metadata?file_id=WORD", _nothing, file_id, method="GET"),
    twins("/files/upload_session", _session, folder_id),
    twins("/files/upload_session", lambda w: _session("") | {"parent_folder_id": None, "upload_id": w}, upload_id, 404, "upload_session_not_found"),
    twins("/files/commit", lambda w: {"upload_id": w, "block_list": []}, upload_id, 404, "upload_session_not_found"),
    twins("/blocks/complete", lambda w: {"upload_id": w, "hashes": ["0" * 64]}, upload_id, 404, "upload_session_not_found", server="blockserver"),
    twins("/v1/blocks/WORD?ns=OWN", _nothing, block, 404, "block_not_found", method="GET", server="blockserver"),
    twins(f"/v1/blocks/{'0' * 64}?ns=WORD", _nothing, ns, method="GET", server="blockserver"),
    twins(f"/v1/blocks/{block_hash(NOWHERE).hex()}?ns=WORD", lambda _: NOWHERE, ns, method="PUT", server="blockserver"),
    twins("/v1/blocks/missing", lambda w: {"ns_id": w, "hashes": ["0" * 64]}, ns, server="blockserver"),
    twins("/v1/blocks/get_pack", lambda w: {"ns_id": w, "hashes": ["0" * 64]}, ns, server="blockserver"),
]  # fmt: skip
