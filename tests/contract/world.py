"""What is really there: ids, paths, revs, cursors and blocks, so that requests get beyond 404."""

import hashlib
import os
import secrets
from dataclasses import dataclass, field
from random import Random
from typing import Any
from urllib.parse import urlsplit

import msgspec
import requests

from ops.session import OperatorSession, run_session
from tests.support.dev import DevCluster
from wire.api import Batch, CommitFile, CreateFolder, LinkDevice, LinkedDevice, ListFolder, Operation, Search
from wire.blocks import FrameStatus, format_frame_head
from wire.hashes import block_hash, content_hash
from wire.sessions import OpenUpload

FILE_COUNT = 8
TIME = "2026-01-02T03:04:05Z"
TIMEOUT_S = 20.0

DESTRUCTIVE = ("delete", "restore")
"""What is done to spare files alone, so that the others stay to be found."""

Json = dict[str, Any]


@dataclass(slots=True)
class Linked:
    """A device and its tokens."""

    device: LinkedDevice
    refresh_token: str


@dataclass(slots=True)
class World:
    """An account with files, and others whose devices may be lost."""

    directory_dsn: str
    session: requests.Session
    urls: dict[str, str]
    owner: Linked = field(init=False)
    victim: Linked = field(init=False)
    codes: list[str] = field(default_factory=list)
    granted: bytes = b""
    """The bytes of a block that one address takes."""
    blocks: list[bytes] = field(default_factory=list)
    """The bytes of blocks that the namespace holds."""
    values: dict[str, list[Any]] = field(default_factory=dict)
    """What a field of this name may hold."""

    @classmethod
    def make(cls, cluster: DevCluster) -> "World":
        """Two accounts, and something of everything in the first. The fixture `own_passfile` cleans up."""
        status = cluster.status()
        os.environ["PGPASSFILE"] = status.passfile
        urls = {
            "metaserver": status.metaserver_urls[0],
            "blockserver": status.blockserver_url,
            "notifserver": status.notifserver_url,
        }
        world = cls(status.directory_dsn, requests.Session(), urls)
        world.owner = world.link(world.make_codes(1)[0])
        world.revive()
        world.fill()
        return world

    def make_codes(self, count: int) -> list[str]:
        """Link codes of a new account."""

        async def make(session: OperatorSession) -> list[str]:
            account = await session.accounts.create_account(f"{secrets.token_hex(4)}@example.org", "Ada")
            return [await session.devices.make_code(account.account_id) for _ in range(count)]

        return run_session(self.directory_dsn, make)

    def revive(self) -> None:
        """A new device for the account that loses them, and codes for more."""
        if not self.codes:
            self.codes = self.make_codes(20)
            self.values["code"] = self.codes[:10]
            del self.codes[:10]
        self.victim = self.link(self.codes.pop())
        self.values |= {
            "device_id": [self.owner.device.device_id, self.victim.device.device_id],
            "refresh_token": [self.victim.refresh_token],
        }

    def replace_lost(self) -> None:
        """See whether the device that may be lost is."""
        answer = self.session.post(
            self.urls["metaserver"] + "/v1/devices/list",
            headers={"Authorization": f"Bearer {self.victim.device.access_token}"},
            timeout=TIMEOUT_S,
        )
        if answer.status_code == 401:
            self.revive()

    def link(self, code: str) -> Linked:
        """A new device."""
        token = secrets.token_hex(16)
        request = LinkDevice(
            code=code, request_id=secrets.token_hex(16), refresh_token=token, device_name="contract"
        )
        return Linked(msgspec.convert(self.post("/v1/devices/link", request), LinkedDevice), token)

    def post(self, path: str, body: msgspec.Struct) -> Json:
        """A metaserver's answer."""
        headers = (
            {"Authorization": f"Bearer {self.owner.device.access_token}"}
            if path != "/v1/devices/link"
            else {}
        )
        data = msgspec.json.encode(body)
        answer = self.session.post(
            self.urls["metaserver"] + path, data=data, headers=headers, timeout=TIMEOUT_S
        )
        assert answer.status_code == 200, answer.text
        found: Json = answer.json()
        return found

    def fill(self) -> None:
        """Files, folders and blocks, and what names them."""
        root = self.owner.device.root_ns
        self.values |= {"ns_id": [root], "ns": [root]}
        self.blocks = [f"block {number}".encode() for number in range(FILE_COUNT)]
        self.put_blocks()
        cursor = self.post("/v1/files/list_folder", ListFolder(recursive=True))["cursor"]
        made = [self.post("/v1/files/create_folder", CreateFolder(path="/kept"))]
        for number, data in enumerate(self.blocks):
            made.append(self.post("/v1/files/commit", one_block_file(f"/kept/{number}.txt", data)))
        hashes = [block_hash(data).hex() for data in self.blocks]
        paths = [entry["path_display"] for entry in made] + [entry["id"] for entry in made]
        spare = [f"/spare/{number}" for number in range(FILE_COUNT)]
        listing = self.post("/v1/files/list_folder", ListFolder(path="/kept", limit=3))["cursor"]
        self.values |= {
            "path": [*paths, *spare[:2], ""],
            "spare": spare,
            "from_path": [*spare, *paths],
            "to_path": spare,
            "rev": [entry["rev"] for entry in made if "rev" in entry],
            "cursor": [cursor, listing],
            "hashes": [hashes, hashes[:1], [*hashes, "0" * 64]],
            "hash": [*hashes, "0" * 64],
            "blocks": [hashes[:1]],
            "content_hash": [content_hash([block_hash(self.blocks[0])]).hex()],
            "client_modified": [TIME],
            "query": ["txt", "kept"],
            "file_id": [entry["id"] for entry in made],
            "parent_folder_id": [made[0]["id"], None],
        }
        self.values["parent_rev"] = self.values["rev"]
        upload = OpenUpload(**as_upload(self.blocks[0]), file_name="upload")
        self.values["upload_id"] = [self.post("/files/upload_session", upload)["upload_id"], None]
        search = self.post("/v1/files/search", Search(query="txt", limit=1))
        self.values["cursor"].append(search["cursor"])
        self.grant_upload()

    def restock(self) -> None:
        """Make the spare folders that are gone; each that is there refuses, which is all right."""
        folders: list[Operation] = [CreateFolder(path=path) for path in self.values["spare"]]
        self.post("/v1/files/batch", Batch(folders))

    def grant_upload(self) -> None:
        """An address for one absent block."""
        self.granted = secrets.token_bytes(16)
        upload = OpenUpload(**as_upload(self.granted), file_name="granted")
        url = self.post("/files/upload_session", upload)["targets"][0]["url"]
        self.values["grant"] = [urlsplit(url).path.split("/")[3]]

    def put_blocks(self) -> None:
        """Send the blocks."""
        answer = self.session.post(
            f"{self.urls['blockserver']}/v1/blocks/put_pack?ns={self.owner.device.root_ns}",
            data=self.pack(self.blocks),
            headers={"Authorization": f"Bearer {self.owner.device.access_token}"},
            timeout=TIMEOUT_S,
        )
        assert answer.status_code == 200, answer.text

    @staticmethod
    def pack(blocks: list[bytes]) -> bytes:
        """Blocks as one body."""
        frames = [format_frame_head(block_hash(data), FrameStatus.OK, len(data)) + data for data in blocks]
        return b"".join(frames)


def one_block_file(path: str, data: bytes) -> CommitFile:
    """The operation that makes a file of one block."""
    name = block_hash(data)
    return CommitFile(
        path=path,
        blocks=[name.hex()],
        size=len(data),
        content_hash=content_hash([name]).hex(),
        client_modified=TIME,
        autorename=True,
    )


def as_upload(data: bytes) -> Json:
    """The fields of an upload session for a file of one block."""
    name = block_hash(data)
    return {"file_size": len(data), "checksum": content_hash([name]).hex(), "block_list": [name.hex()]}


def weave(value: Any, world: World, rng: Random, name: str = "") -> Any:
    """The same request with some of its parts replaced by what is really there."""
    if isinstance(value, dict):
        woven = {key: weave(inner, world, rng, key) for key, inner in value.items()}
        if value.get("op") in DESTRUCTIVE and isinstance(woven.get("path"), str):
            woven["path"] = rng.choice(world.values["spare"])
        if {"content_hash", "size", "blocks"} <= woven.keys() and rng.random() < 0.6:
            file = msgspec.to_builtins(one_block_file("/", rng.choice(world.blocks)))
            return {"op": "commit"} | file | {"path": rng.choice(world.values["spare"]) + "/new"}
        if {"checksum", "file_size"} & woven.keys() and rng.random() < 0.6:
            woven |= as_upload(world.blocks[0])
        elif "upload_id" in woven and "hashes" not in woven and rng.random() < 0.6:
            woven |= {"block_list": as_upload(world.blocks[0])["block_list"]}
        return woven
    known = world.values.get(name)
    if known and rng.random() < 0.75:
        return rng.choice(known)
    if isinstance(value, list):
        return [weave(inner, world, rng) for inner in value]
    return value


def weave_bytes(world: World, rng: Random) -> bytes:
    """A body that is not JSON: a pack, a broken one, or a block."""
    pack = world.pack(rng.sample(world.blocks, rng.randint(1, len(world.blocks))))
    kind = rng.random()
    if kind < 0.4:
        return pack
    if kind < 0.6:
        return pack[: rng.randint(1, len(pack))]
    return rng.choice(world.blocks)


def hash_of(data: bytes) -> str:
    """The name of a block."""
    return hashlib.sha256(data).hexdigest()
