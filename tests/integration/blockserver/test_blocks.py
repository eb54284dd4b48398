"""Blocks in and out through a real blockserver and a real metaserver, in a folder and in an S3 store."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from client.account import link
from client.calls import discover
from client.folder import Folder
from client.session import sync_folder
from client.sync import Options
from tests.integration.blockserver.client import BlockClient, object_names, object_paths, pack_of
from tests.integration.blockserver.servers import Stack, reserved_ports
from tests.support.s3 import running_rclone
from tests.support.waiting import wait_until
from wire.blocks import FrameStatus, format_frame_head
from wire.errors import ErrorBody
from wire.hashes import BLOCK_BYTES, block_hash

pytestmark = pytest.mark.xdist_group("blockserver blocks")  # they share their servers
DEADLINE_S = 60.0
DAMAGED = [f'shardbox_block_objects_damaged_total{{kind="{kind}"}}' for kind in ("missing", "corrupt")]
REDIRECTS = "SHARDBOX_S3_REDIRECTS"
MENDED = "shardbox_block_objects_mended_total"


@pytest.fixture(scope="module", params=["folder", "s3"])
def stored(request: pytest.FixtureRequest, stack: Stack) -> Iterator[Stack]:
    """The servers with their blocks in either store."""
    if request.param == "folder":
        yield stack
        return
    redirects = {REDIRECTS: "true"}
    with running_rclone(stack.folder / "s3") as store, stack.blocks_in(store, **redirects):
        yield stack


@pytest.fixture
async def ada(stored: Stack) -> BlockClient:
    return BlockClient(stored, await stored.new_user())


@pytest.fixture
async def bob(stored: Stack) -> BlockClient:
    return BlockClient(stored, await stored.new_user())


async def in_pieces(data: bytes):
    for at in range(0, len(data), 50_000):
        yield data[at : at + 50_000]


@pytest.mark.parametrize("size", [1, 70_000, BLOCK_BYTES])
@pytest.mark.parametrize("is_chunked", [False, True])
async def test_a_block_goes_in_and_comes_out(ada: BlockClient, size: int, is_chunked: bool):
    data = os.urandom(size)
    assert await ada.missing(data) == [block_hash(data).hex()]
    assert await ada.put(data, in_pieces(data) if is_chunked else data) is None
    assert await ada.missing(data) == []
    status, body, answer = await ada.get(data)
    assert (status, body) == (200, data)
    assert answer.headers["Content-Length"] == str(size)
    assert await ada.put(data) is None
    assert len(object_names(ada.stack, data)) == 1


async def test_a_block_can_be_committed(ada: BlockClient):
    data = os.urandom(1_000)
    operation = await ada.user.put("/file", data)  # the rows are made ready beside the blockserver
    other = os.urandom(1_000)
    assert (await ada.user.write(operation)).verdicts[0].error is None
    assert await ada.put(other) is None
    frames = await ada.get_pack([other, data])
    # Rows without an object, which only a test can bring about.
    assert [f.status for f in frames] == [FrameStatus.OK, FrameStatus.CORRUPT]


async def test_ranges(ada: BlockClient):
    data = os.urandom(2_500_000)
    await ada.put(data)
    status, body, answer = await ada.get(data, Range="bytes=1000000-1999999")
    assert (status, body) == (206, data[1_000_000:2_000_000])
    assert answer.headers["Content-Range"] == "bytes 1000000-1999999/2500000"
    etag = answer.headers["ETag"]
    status, body, _ = await ada.get(data, Range="bytes=-10", **{"If-Range": etag})
    assert (status, body) == (206, data[-10:])
    status, body, _ = await ada.get(data, Range="bytes=-10", **{"If-Range": '"else"'})
    assert (status, body) == (200, data)
    status, body, answer = await ada.get(data, Range="bytes=2500000-")
    assert status == 416
    assert answer.headers["Content-Range"] == "bytes */2500000"
    assert msgspec.json.decode(body, type=ErrorBody).error.code == "range_not_satisfiable"


async def test_a_hash_alone_earns_nothing(ada: BlockClient, bob: BlockClient):
    data = os.urandom(5_000)
    await ada.put(data)
    assert await bob.missing(data) == [block_hash(data).hex()]
    status, _, _ = await bob.get(data)
    assert status == 404
    assert [f.status for f in await bob.get_pack([data])] == [FrameStatus.NOT_FOUND]
    bob.ns = ada.ns
    assert (await bob.get(data))[0] in (403, 404)
    error = await bob.put(data)
    assert error is not None
    assert error.code in ("forbidden", "not_found")


async def test_two_users_share_one_object(ada: BlockClient, bob: BlockClient):
    data = os.urandom(5_000)
    assert await ada.put(data) is None
    assert await bob.put(data) is None
    assert len(object_names(ada.stack, data)) == 1
    assert (await bob.get(data))[1] == data


async def test_racing_uploaders_leave_one_object(ada: BlockClient, bob: BlockClient):
    for size in (1_000, 300_000, BLOCK_BYTES):
        data = os.urandom(size)
        outcomes = await asyncio.gather(*(who.put(data) for who in (ada, bob) * 4))
        assert outcomes == [None] * 8
        assert len(object_names(ada.stack, data)) == 1
        assert (await ada.get(data))[1] == data
        assert (await bob.get(data))[1] == data


async def test_wrong_bytes_leave_no_row_and_no_object(ada: BlockClient):
    data = os.urandom(10_000)
    error = await ada.put(data, data[:-1] + b"?")
    assert error is not None
    assert error.code == "hash_mismatch"
    assert object_names(ada.stack, data) == []
    assert await ada.missing(data) == [block_hash(data).hex()]


async def test_a_corrupt_block_is_never_handed_out(ada: BlockClient):
    whole, cut, gone = os.urandom(200_000), os.urandom(200_000), os.urandom(200_000)
    for data in (whole, cut, gone):
        await ada.put(data)
    places = {data: object_paths(ada.stack, data)[0] for data in (whole, cut, gone)}
    _damage(ada.stack, *places.values())
    counts = [await ada.count(sample) for sample in DAMAGED]
    for data in (whole, cut, gone):
        for headers in ({}, {"Range": "bytes=0-9"}):
            status, body, _ = await ada.get(data, **headers)
            assert status == 500
            assert msgspec.json.decode(body, type=ErrorBody).error.code == "block_corrupt"
    good = os.urandom(100)
    await ada.put(good)
    frames = await ada.get_pack([whole, good, cut, gone])
    assert [f.status for f in frames] == [
        FrameStatus.CORRUPT,
        FrameStatus.OK,
        FrameStatus.CORRUPT,
        FrameStatus.CORRUPT,
    ]
    assert bytes(frames[1].data) == good
    assert [await ada.count(sample) for sample in DAMAGED] == [counts[0] + 3, counts[1] + 6]


async def test_sent_again_a_damaged_block_is_mended(ada: BlockClient, bob: BlockClient):
    """Under the generation that its row names, by whoever sends it: the rows stay as they are."""
    flipped, cut, gone, good = (os.urandom(200_000) for _ in range(4))
    blocks = [flipped, cut, gone, good]
    await ada.put_pack(pack_of(*blocks))
    places = [object_paths(ada.stack, data)[0] for data in blocks]
    _damage(ada.stack, *places[:3])
    before = ada.stack.objects() | {places[2].name}
    mended = await ada.count(MENDED)
    assert [v.error for v in await ada.put_pack(pack_of(*blocks))] == [None] * 4
    assert [place.read_bytes() for place in places] == blocks
    assert ada.stack.objects() == before
    # Whose namespace has not got it yet: what another's row promises is there, or is written.
    ada.stack.overwrite(places[2], None)
    ada.stack.overwrite(places[1], b"short")
    assert await bob.put(gone) is None
    assert await bob.put(cut) is None
    assert (await ada.get(gone))[1] == gone
    assert (await ada.get(cut))[1] == cut
    assert ada.stack.objects() == before
    assert await ada.count(MENDED) == mended + 5


def _damage(stack: Stack, flipped: Path, cut: Path, gone: Path) -> None:
    """One byte another, one byte fewer, none at all."""
    data = bytearray(flipped.read_bytes())
    data[len(data) // 2] ^= 1
    stack.overwrite(flipped, bytes(data))
    stack.overwrite(cut, cut.read_bytes()[:-1])
    stack.overwrite(gone, None)


async def test_a_pack_of_many_small_blocks(ada: BlockClient):
    count = 200 if ada.stack.s3 else 1_000  # the limit; an S3 request takes its time
    blocks = [os.urandom(100 + i) for i in range(count)]
    assert [v.error for v in await ada.put_pack(pack_of(*blocks))] == [None] * count
    assert await ada.missing(*blocks) == []
    frames = await ada.get_pack(blocks)
    assert [bytes(f.data) for f in frames] == blocks
    before = ada.stack.objects()
    assert [v.error for v in await ada.put_pack(pack_of(*blocks))] == [None] * count
    assert ada.stack.objects() == before


async def test_each_block_of_a_pack_has_its_verdict(ada: BlockClient):
    good, twice, bad = os.urandom(100), os.urandom(200), os.urandom(300)
    wrong = format_frame_head(block_hash(bad), FrameStatus.OK, 3) + b"abc"
    wrong_twin = format_frame_head(block_hash(twice), FrameStatus.OK, 3) + b"abc"
    empty = format_frame_head(block_hash(b""), FrameStatus.OK, 0)
    pack = pack_of(good, twice) + wrong + pack_of(twice) + wrong_twin + empty
    verdicts = await ada.put_pack(pack)
    codes = [v.error.code if v.error else None for v in verdicts]
    assert codes == [None, None, "hash_mismatch", None, "hash_mismatch", "hash_mismatch"]
    assert verdicts[2].hash == block_hash(bad).hex()
    assert await ada.missing(good, twice, bad) == [block_hash(bad).hex()]
    assert len(object_names(ada.stack, twice)) == 1
    assert await ada.put_pack(b"") == []


async def test_large_packs_both_ways(ada: BlockClient):
    blocks = [os.urandom(BLOCK_BYTES) for _ in range(8)]
    small = os.urandom(10)
    assert [v.error for v in await ada.put_pack(pack_of(*blocks))] == [None] * 8
    assert await ada.put(small) is None
    frames = await ada.get_pack([*blocks, small, blocks[0]])
    assert [f.status for f in frames] == [
        *[FrameStatus.OK] * 7,
        FrameStatus.OVER_LIMIT,
        FrameStatus.OK,
        FrameStatus.OVER_LIMIT,
    ]
    assert [bytes(f.data) for f in frames[:7]] == blocks[:7]


async def test_many_at_once_then_nothing_is_held(ada: BlockClient):
    blocks = [os.urandom(1_500_000) for _ in range(24)]
    assert await asyncio.gather(*map(ada.put, blocks)) == [None] * 24
    found = await asyncio.gather(*map(ada.get, blocks))
    assert [body for _, body, _ in found] == blocks
    async with ada.stack.http.get(f"{ada.stack.blockserver.url}/metrics") as answer:
        metrics = await answer.text()
    assert 'shardbox_block_held_bytes{direction="upload"} 0.0' in metrics
    assert 'shardbox_block_held_bytes{direction="download"} 0.0' in metrics
    assert 'shardbox_blocks_uploaded_total{outcome="stored"}' in metrics


async def test_a_client_that_leaves_a_large_answer_holds_nothing(ada: BlockClient):
    blocks = [os.urandom(BLOCK_BYTES) for _ in range(7)]
    await ada.put_pack(pack_of(*blocks))
    body = {"ns_id": ada.ns, "hashes": [block_hash(b).hex() for b in blocks]}
    url = f"{ada.stack.blockserver.url}/v1/blocks/get_pack"
    answer = await ada.stack.http.post(url, json=body, headers=ada.auth)
    await answer.content.readexactly(100)
    answer.close()
    async with asyncio.timeout(DEADLINE_S):
        while True:
            async with ada.stack.http.get(f"{ada.stack.blockserver.url}/metrics") as metrics:
                if 'shardbox_block_held_bytes{direction="download"} 0.0' in await metrics.text():
                    break


async def test_strangers_and_revoked_devices(ada: BlockClient):
    data = os.urandom(100)
    ada.auth = {"Authorization": "Bearer nonsense"}
    error = await ada.put(data)
    assert error is not None
    assert error.code == "invalid_access_token"
    assert (await ada.get(data))[0] == 401


async def test_who_does_not_read_leaves_memory_to_others(ada: BlockClient, bob: BlockClient):
    blocks = [os.urandom(BLOCK_BYTES) for _ in range(5)]
    mine = os.urandom(BLOCK_BYTES)
    assert [error for block in blocks if (error := await ada.put(block))] == []
    assert await bob.put(mine) is None
    asked = {"ns_id": ada.ns, "hashes": [block_hash(block).hex() for block in blocks]}
    with contextlib.ExitStack() as unread:
        for _ in range(8):  # each holds 18 MiB of the server's 128
            answer = await ada.stack.http.post(
                f"{ada.stack.blockserver.url}/v1/blocks/get_pack", json=asked, headers=ada.auth
            )
            unread.callback(answer.close)
            if answer.status != 200:
                break
        assert answer.status == 503
        assert (await ada.get(blocks[0]))[0] in (200, 503)
        status, body, _ = await bob.get(mine)
        assert (status, body == mine) == (200, True)
        assert [frame.status for frame in await bob.get_pack([mine])] == [FrameStatus.OK]


async def test_term_lets_an_upload_finish(ada: BlockClient):
    """SIGTERM in the middle of a body: the upload is answered, then the server ends."""
    data = os.urandom(1_000_000)
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def slowly():
        yield data[:500_000]
        begun.set()
        await go_on.wait()
        yield data[500_000:]

    server = ada.stack.blockserver
    upload = asyncio.create_task(ada.put(data, slowly()))
    await begun.wait()
    async with asyncio.timeout(DEADLINE_S):
        while True:
            async with ada.stack.http.get(f"{server.url}/metrics") as answer:
                if 'shardbox_block_held_bytes{direction="upload"} 0.0' not in await answer.text():
                    break
    server.signal(signal.SIGTERM)
    async with asyncio.timeout(DEADLINE_S):
        while "draining" not in server.log_text():
            await asyncio.sleep(0)
    go_on.set()
    assert await upload is None
    assert server.wait() == 0
    assert '"drain_timeout"' not in server.log_text()
    server.start()
    assert (await ada.get(data))[1] == data


async def test_a_block_from_the_store_itself(ada: BlockClient, bob: BlockClient):
    """Where the store has addresses of its own; a folder has none, and the block comes as ever."""
    data = os.urandom(100_000)
    assert await ada.put(data) is None
    url = f"{ada.url(data)}&redirect=1"
    async with ada.stack.http.get(url, headers=ada.auth, allow_redirects=False) as answer:
        assert answer.status == (307 if ada.stack.s3 else 200)
        if ada.stack.s3:
            location = answer.headers["Location"]
            assert location.startswith(ada.stack.s3.url)
            async with ada.stack.http.get(location) as direct:
                assert (direct.status, await direct.read()) == (200, data)
            async with ada.stack.http.get(location, headers={"Range": "bytes=10-19"}) as direct:
                assert await direct.read() == data[10:20]  # under a status that is this store's affair
    async with ada.stack.http.get(url, headers=ada.auth) as answer:
        assert (answer.status, await answer.read()) == (200, data)
    # The right is asked for as ever.
    async with ada.stack.http.get(url, headers=bob.auth, allow_redirects=False) as answer:
        assert answer.status in (403, 404)
    async with ada.stack.http.get(f"{bob.url(data)}&redirect=1", headers=bob.auth) as answer:
        assert answer.status == 404
    async with ada.stack.http.get(f"{ada.url(data)}&redirect=yes", headers=ada.auth) as answer:
        assert answer.status == 400


@pytest.mark.parametrize("stored", ["s3"], indirect=True)
async def test_addresses_in_the_store_are_the_operators_choice(ada: BlockClient, bob: BlockClient):
    """They tell when the block first came in, from whomever."""
    data = os.urandom(1_000)
    for client in (bob, ada):
        assert await client.put(data) is None
    server = ada.stack.blockserver
    with reserved_ports(1) as (port,):
        twin = server.twin(port, ada.stack.folder / "twin.log", **(server.settings | {REDIRECTS: "false"}))
        try:
            twin.start()
            url = f"{ada.url(data)}&redirect=1".replace(server.url, twin.url)
            async with ada.stack.http.get(url, headers=ada.auth, allow_redirects=False) as answer:
                assert (answer.status, await answer.read()) == (200, data)
                assert not {"Location", "Last-Modified"} & set(answer.headers)
        finally:
            twin.kill()


@pytest.mark.parametrize("stored", ["s3"], indirect=True)
async def test_a_store_that_is_down_costs_nothing_but_time(ada: BlockClient):
    store = ada.stack.s3
    assert store is not None
    data, other = os.urandom(1_000), os.urandom(1_000)
    assert await ada.put(data) is None
    store.kill()
    began_s = time.monotonic()
    error = await ada.put(other)
    assert error is not None
    assert (error.code, error.retryable) == ("upstream_unavailable", True)
    status, body, answer = await ada.get(data)
    assert (status, answer.headers["Retry-After"]) == (503, "1")
    assert msgspec.json.decode(body, type=ErrorBody).error.code == "upstream_unavailable"
    assert [f.status for f in await ada.get_pack([data])] == [FrameStatus.UNAVAILABLE]
    assert time.monotonic() - began_s < DEADLINE_S / 2
    assert await ada.missing(data, other) == [block_hash(other).hex()]

    async def readiness() -> int:
        async with ada.stack.http.get(f"{ada.stack.blockserver.url}/readyz") as answer:
            return answer.status

    async def is_unready() -> bool:
        return await readiness() == 503

    await wait_until(is_unready, "the blockserver to say so")
    store.start()
    assert await readiness() == 200
    assert await ada.put(other) is None
    assert (await ada.get(data))[1] == data
    assert (await ada.get(other))[1] == other
    assert store.secret_key not in ada.stack.blockserver.log_text()


@pytest.mark.parametrize("stored", ["s3"], indirect=True)
async def test_two_devices_sync_through_it(stored: Stack, tmp_path: Path):
    ada = await stored.new_user()
    places = [Folder(tmp_path / name) for name in ("a", "b")]
    for place in places:
        code = await stored.services.devices.make_code(ada.caller.account_id)
        with contextlib.closing(place.create()) as state:
            url = stored.metaserver.url
            servers = await discover(stored.http, url)
            await link(state, stored.http, url=url, servers=servers, code=code, device_name="laptop")
    tree = {"Docs/a.txt": b"small", "Docs/deep/large.bin": os.urandom(BLOCK_BYTES + 5), "empty": b""}
    for path, content in tree.items():
        (tmp_path / "a" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "a" / path).write_bytes(content)
    before = stored.objects()
    for place in places:
        await sync_folder(place, Options())
    assert {path: (tmp_path / "b" / path).read_bytes() for path in tree} == tree
    assert len(stored.objects() - before) == 3
