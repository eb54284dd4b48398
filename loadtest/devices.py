"""Accounts and linked devices for load, made before the clock starts."""

import secrets
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import msgspec

from loadtest.commands import Cluster
from loadtest.connection import Connection
from wire.api import LinkDevice, LinkedDevice
from wire.blocks import FrameStatus, format_frame_head
from wire.hashes import block_hash

PARALLEL_COMMANDS = 4
"""Each is an interpreter's start, on two cores."""


@dataclass(frozen=True, slots=True)
class LoadDevice:
    """A device, ready to ask."""

    token: str
    root_ns: str


def make_codes(cluster: Cluster, accounts: int, codes: int = 1) -> list[str]:
    """Link codes of as many new accounts, so many for each."""

    def make(number: int) -> list[str]:
        email = f"load{number}.{secrets.token_hex(4)}@bench.example"
        cluster.add_user(email, f"Load {number}")
        return [str(cluster.ctl("device", "code", email)["code"]) for _ in range(codes)]

    with ThreadPoolExecutor(PARALLEL_COMMANDS) as pool:
        return [code for found in pool.map(make, range(accounts)) for code in found]


async def link_all(url: str, codes: list[str]) -> list[LoadDevice]:
    """A device for each code."""
    connection = await Connection.open(url)
    try:
        return [await _link(connection, code) for code in codes]
    finally:
        connection.close()


async def _link(connection: Connection, code: str) -> LoadDevice:
    request = LinkDevice(
        code=code,
        request_id=secrets.token_hex(16),
        refresh_token=secrets.token_hex(16),
        device_name="load",
    )
    answer = await connection.post("/v1/devices/link", msgspec.json.encode(request))
    if answer.status != 200:
        raise RuntimeError(f"linking: {answer}")
    linked = msgspec.json.decode(answer.body, type=LinkedDevice)
    return LoadDevice(linked.access_token, linked.root_ns)


async def put_block(url: str, devices: list[LoadDevice], data: bytes) -> None:
    """Store one block in each device's root."""
    pack = format_frame_head(block_hash(data), FrameStatus.OK, len(data)) + data
    connection = await Connection.open(url)
    try:
        for device in devices:
            path = f"/v1/blocks/put_pack?ns={device.root_ns}"
            answer = await connection.post(path, pack, device.token)
            if answer.status != 200:
                raise RuntimeError(f"sending a block: {answer}")
    finally:
        connection.close()
