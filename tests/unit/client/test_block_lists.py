"""A file whose block list comes neither with a listing nor in one page, from a server of the test's own."""

import os
from collections import Counter
from pathlib import Path

import aiohttp
import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from client.calls import Calls
from client.download import Downloader, DownloadJob, Fetched
from wire.api import BlockList, Discovery, GetBlockList
from wire.blocks import FrameStatus, GetPack, format_frame_head
from wire.errors import ContentMismatch
from wire.hashes import BLOCK_BYTES, block_hash, content_hash, parse_hash
from wire.ids import NsId

PAGE_BLOCKS = 2
REV = "0" * 32


class Server:
    """Has one file of whole blocks, and tells its block list in short pages."""

    def __init__(self, block_count: int):
        data = [bytes([number]) * BLOCK_BYTES for number in range(block_count)]
        self.blocks = {block_hash(block): block for block in data}
        self.told = list(self.blocks)
        """The blocks that it tells of."""
        self.starts: list[int] = []

    async def tell(self, request: web.Request) -> web.Response:
        asked = msgspec.json.decode(await request.read(), type=GetBlockList)
        assert asked.rev == REV
        self.starts.append(asked.start)
        page = [block.hex() for block in self.told[asked.start :][:PAGE_BLOCKS]]
        return web.Response(body=msgspec.json.encode(BlockList(page, len(self.blocks))))

    async def pack(self, request: web.Request) -> web.Response:
        asked = msgspec.json.decode(await request.read(), type=GetPack)
        found = {block: self.blocks[block] for block in map(parse_hash, asked.hashes)}
        frames = [format_frame_head(b, FrameStatus.OK, len(data)) + data for b, data in found.items()]
        return web.Response(body=b"".join(frames))

    def job(self, folder: Path) -> DownloadJob:
        """Its file, as a listing tells of a large one: without blocks."""
        size, content = len(self.blocks) * BLOCK_BYTES, content_hash(list(self.blocks))
        temp = os.fsencode(folder / "temp")
        return DownloadJob(1, REV, size, content, "2026-01-02T03:04:05Z", None, temp)


async def run(server: Server, job: DownloadJob) -> object:
    """Carry a job out with the client's own calls."""
    app = web.Application()
    app.router.add_post("/v1/files/get_block_list", server.tell)
    app.router.add_post("/v1/blocks/get_pack", server.pack)

    async def token(_refused: str | None) -> str:
        return "token"

    async with TestServer(app) as running, aiohttp.ClientSession() as session:
        urls = [str(running.make_url("")).rstrip("/")]
        servers = Discovery(cluster_id="", metaservers=urls, blockservers=urls, notifservers=urls)
        calls = Calls(session, servers, NsId(1), token)
        return await Downloader(calls, lambda _blocks: {}, Counter()).run_big(job)


@pytest.mark.parametrize(("block_count", "starts"), [(3, [0, 2]), (4, [0, 2])])
async def test_a_block_list_is_asked_for_page_by_page(
    tmp_path: Path, block_count: int, starts: list[int]
) -> None:
    server = Server(block_count)
    job = server.job(tmp_path)
    fetched = await run(server, job)
    assert isinstance(fetched, Fetched)
    assert fetched.blocks == list(server.blocks)
    assert (tmp_path / "temp").read_bytes() == b"".join(server.blocks.values())
    assert server.starts == starts


async def test_a_list_that_ends_early_is_no_file(tmp_path: Path) -> None:
    server = Server(4)
    server.told = server.told[:3]
    with pytest.raises(ContentMismatch):
        await run(server, server.job(tmp_path))
    assert server.starts == [0, 2, 3]
