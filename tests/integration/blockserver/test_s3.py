"""A bucket in real stores that speak S3: what they take, what they refuse, and how they fail."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from io import BytesIO
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import aiohttp
import pytest

from blockserver.storage import s3_client
from blockserver.storage.backend import (
    Attested,
    ObjectMissing,
    ObjectName,
    SignedRequest,
    StagedName,
    StoredObject,
)
from blockserver.storage.s3 import CHECKSUM_HEADER, S3Bucket
from blockserver.storage.threads import ThreadedBackend
from tests.support.s3 import (
    BUCKET,
    MoodyProxy,
    S3Store,
    canned,
    moody_proxy,
    running_rclone,
    running_seaweedfs,
)
from tests.support.waiting import wait_for, wait_until
from wire.errors import StorageFull, UpstreamUnavailable
from wire.hashes import BLOCK_BYTES, block_hash

pytestmark = pytest.mark.xdist_group("blockserver s3")  # they share their store
SESSION = b"session-sixteen-"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Store]:
    with running_rclone(tmp_path_factory.mktemp("rclone")) as found:
        yield found


@pytest.fixture
def bucket(store: S3Store) -> Iterator[S3Bucket]:
    found = S3Bucket(store.options(), max_connections=4)
    yield found
    found.close()


@pytest.fixture
def proxy(store: S3Store) -> Iterator[MoodyProxy]:
    with moody_proxy(store) as found:
        yield found


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time-outs that a test can wait for."""
    monkeypatch.setattr(s3_client, "CONNECT_TIMEOUT_S", 0.5)
    monkeypatch.setattr(s3_client, "READ_TIMEOUT_S", 0.5)


def new_block(size: int = 1_000) -> tuple[ObjectName, bytes]:
    data = os.urandom(size)
    return ObjectName(block_hash(data), os.urandom(16)), data


async def send(signed: SignedRequest, data: bytes | None = None, **changes: str) -> tuple[int, bytes]:
    """What the store answers to somebody who has nothing but the address."""
    headers = {**signed.headers, **changes}
    async with (
        aiohttp.ClientSession(skip_auto_headers=["Content-Type"]) as http,
        http.request(signed.method, signed.url, data=data and BytesIO(data), headers=headers) as answer,
    ):
        return answer.status, await answer.read()


@pytest.mark.parametrize("size", [1, 70_000, BLOCK_BYTES])
def test_an_object_comes_back_and_goes(bucket: S3Bucket, size: int):
    name, data = new_block(size)
    assert bucket.find_size(name) is None
    bucket.put(name, memoryview(bytearray(b"." + data))[1:])
    bucket.put(name, data)
    assert bucket.get(name) == data
    assert bucket.find_size(name) == size
    bucket.delete(name)
    bucket.delete(name)
    assert bucket.find_size(name) is None
    for ask in (bucket.get, bucket.attest):
        with pytest.raises(ObjectMissing):
            ask(name)


def test_objects_are_listed_in_order_under_their_prefix(store: S3Store):
    blocks = [new_block() for _ in range(9)]
    bucket = S3Bucket(store.options(prefix="listed/"), max_connections=4)
    other = S3Bucket(store.options(prefix="other/"), max_connections=4)
    for name, data in blocks:
        bucket.put(name, data)
    assert other.list_objects(None, 10) == []
    assert other.find_size(blocks[0][0]) is None
    names = sorted((name for name, _ in blocks), key=lambda name: name.hash)
    for i in range(3):  # whole pages of what is not ours
        store.overwrite(f"listed/objects/{names[4].hash.hex()}.{i}", b"not ours")
    found: list[StoredObject] = []
    while page := bucket.list_objects(found[-1].name if found else None, 2):
        assert len(page) <= 2
        found += page
    assert found == [StoredObject(name, 1_000) for name in names]
    bucket.close()
    other.close()


def test_no_more_than_a_block_is_read(bucket: S3Bucket, store: S3Store):
    name, data = new_block()
    bucket.put(name, data)
    (key,) = [p.name for p in store.object_dir.iterdir() if p.name.startswith(name.hash.hex())]
    store.overwrite(f"objects/{key}", os.urandom(2 * BLOCK_BYTES))
    assert len(bucket.get(name)) == BLOCK_BYTES + 1
    assert bucket.find_size(name) == 2 * BLOCK_BYTES


def test_what_a_store_vouches_for_counts_only_if_the_setting_says_so(bucket: S3Bucket, store: S3Store):
    """This store keeps whatever checksum comes with the bytes, and tells it again."""
    name, data = new_block()
    bucket.put(name, data)
    assert bucket.attest(name) is None
    assert bucket.find_direct_place(name, SESSION) == StagedName(SESSION, name.hash)
    trusting = S3Bucket(store.options(is_verifying=True), max_connections=1)
    assert trusting.attest(name) == Attested(name.hash, 1_000)
    assert trusting.find_direct_place(name, SESSION) == name
    store.overwrite(f"objects/{name.hash.hex()}.{name.generation.hex()}", data)
    assert trusting.attest(name) is None, "there is no checksum, so nobody vouches"
    trusting.close()


async def test_a_client_puts_bytes_by_an_address_alone(bucket: S3Bucket):
    name, data = new_block(BLOCK_BYTES)
    staged = StagedName(SESSION, name.hash)
    signed = bucket.presign_put(staged, size=len(data), expires_s=60)
    assert signed is not None
    assert (await send(signed, data))[0] == 200
    assert bucket.get_staged(staged) == data
    assert bucket.find_size(name) is None
    # Wrong bytes under the right header: this store takes them, so nothing staged is what it says.
    assert (await send(signed, bytes(len(data))))[0] == 200
    assert block_hash(bucket.get_staged(staged)) != name.hash
    bucket.delete_staged(staged)
    with pytest.raises(ObjectMissing):
        bucket.get_staged(staged)


async def test_an_address_is_good_for_what_was_signed_and_nothing_else(bucket: S3Bucket):
    name, data = new_block()
    other, other_data = new_block()
    signed = bucket.presign_put(name, size=len(data), expires_s=60)
    hers = bucket.presign_put(other, size=len(data), expires_s=60)
    assert signed is not None
    assert hers is not None
    assert (await send(signed, data[:-1], **{"Content-Length": "999"}))[0] == 403
    assert (await send(signed, other_data, **{CHECKSUM_HEADER: hers.headers[CHECKSUM_HEADER]}))[0] == 403
    bare = SignedRequest("PUT", signed.url, {"Content-Length": "1000"})
    assert (await send(bare, data))[0] == 403
    forged = signed.url[:-4] + ("0000" if signed.url[-4:] != "0000" else "1111")
    assert (await send(SignedRequest("PUT", forged, signed.headers), data))[0] == 403
    moved = signed.url.replace(name.generation.hex(), other.generation.hex())
    assert (await send(SignedRequest("PUT", moved, signed.headers), data))[0] == 403
    longer = signed.url.replace("X-Amz-Expires=60", "X-Amz-Expires=6000")
    assert (await send(SignedRequest("PUT", longer, signed.headers), data))[0] == 403
    assert (await send(SignedRequest("GET", signed.url, {})))[0] == 403
    assert bucket.find_size(name) is None
    assert (await send(signed, data))[0] == 200
    assert bucket.get(name) == data


def sign_both(
    bucket: S3Bucket, name: ObjectName, data: bytes, *, expires_s: int
) -> tuple[SignedRequest, SignedRequest]:
    """Addresses to put and to get an object."""
    put = bucket.presign_put(name, size=len(data), expires_s=expires_s)
    get = bucket.presign_get(name, expires_s=expires_s)
    assert put is not None
    assert get is not None
    return put, get


async def test_headers_that_came_with_a_put_reach_nobody(bucket: S3Bucket):
    name, data = new_block()
    put, get = sign_both(bucket, name, data, expires_s=60)
    chosen = {
        "Content-Type": "text/html",
        "Content-Encoding": "gzip",
        "Cache-Control": "public, max-age=9999",
        "Content-Disposition": "inline; filename=invoice.exe",
    }
    assert (await send(put, data, **chosen))[0] == 200
    async with aiohttp.ClientSession() as http, http.get(get.url) as answer:
        assert (answer.status, await answer.read()) == (200, data)
        assert {header: answer.headers[header] for header in chosen} == {
            "Content-Type": "application/octet-stream",
            "Content-Encoding": "identity",
            "Cache-Control": "no-store",
            "Content-Disposition": "attachment",
        }
    assert bucket.get(name) == data, "nothing is unpacked"


async def test_addresses_expire(bucket: S3Bucket):
    name, data = new_block()
    put, get = sign_both(bucket, name, data, expires_s=1)
    assert (await send(put, data))[0] == 200
    assert await send(get) == (200, data)

    async def is_refused() -> bool:
        return (await send(put, bytes(1_000)))[0] >= 400 and (await send(get))[0] >= 400

    await wait_until(is_refused, "the addresses to expire")
    assert bucket.get(name) in (data, bytes(1_000))


def test_addresses_are_made_for_where_clients_reach_the_store(store: S3Store):
    name, _ = new_block()
    options = store.options()
    public = s3_client.S3Options(
        bucket=options.bucket,
        endpoint_url=options.endpoint_url,
        public_endpoint_url="https://blocks.example.org",
        addressing="virtual",
        credentials_file=options.credentials_file,
    )
    bucket = S3Bucket(public, max_connections=1)
    signed = bucket.presign_get(name, expires_s=60)
    assert signed is not None
    assert signed.url.startswith(f"https://{BUCKET}.blocks.example.org/objects/{name.hash.hex()}")
    bucket.close()
    hidden = S3Bucket(
        s3_client.S3Options(bucket=BUCKET, credentials_file=options.credentials_file, is_direct=False),
        max_connections=1,
    )
    assert hidden.find_direct_place(name, SESSION) is None
    assert hidden.presign_put(name, size=1, expires_s=60) is None
    assert hidden.presign_get(name, expires_s=60) is None
    hidden.close()


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("", []),
        ("aws_session_token =\n", []),
        ("aws_session_token = a-token\n", ["a-token"]),
    ],
)
def test_an_address_carries_a_session_token_only_if_there_is_one(tmp_path: Path, line: str, told: list[str]):
    file = tmp_path / "credentials"
    file.write_text(f"[default]\naws_access_key_id = id\naws_secret_access_key = secret\n{line}")
    bucket = S3Bucket(s3_client.S3Options(bucket=BUCKET, credentials_file=file), max_connections=1)
    signed = bucket.presign_get(new_block()[0], expires_s=60)
    assert signed is not None
    query = parse_qs(urlsplit(signed.url).query, keep_blank_values=True)
    assert query.get("X-Amz-Security-Token", []) == told
    bucket.close()


def test_credentials_are_rotated_under_a_running_server(
    store: S3Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(s3_client, "CREDENTIALS_REREAD_S", 0.2)
    name, data = new_block()
    bucket = S3Bucket(store.options(), max_connections=1)
    bucket.put(name, data)
    try:
        store.write_credentials("another-secret-that-is-not-the-right-one")
        with pytest.raises(UpstreamUnavailable) as refused:
            wait_for(lambda: bucket.get(name) != data, "the new secret to be used")
        assert "secret" not in str(refused.value)
        store.credentials_file.write_text("[default]\naws_access_key_id")
        with pytest.raises(UpstreamUnavailable, match="credentials"):
            wait_for(lambda: bucket.presign_get(name, expires_s=60) is None, "the file to be read")
    finally:
        store.write_credentials()

    def is_back() -> bool:
        try:
            return bucket.get(name) == data
        except UpstreamUnavailable:
            return False

    wait_for(is_back, "the right secret to be used again")
    logged = capsys.readouterr()
    assert "another-secret" not in logged.out + logged.err
    bucket.close()


@pytest.mark.parametrize(
    ("status", "code", "error", "connections"),
    [
        ("503 Slow Down", "SlowDown", UpstreamUnavailable, 2),
        ("500 Internal Server Error", "InternalError", UpstreamUnavailable, 2),
        ("403 Forbidden", "AccessDenied", UpstreamUnavailable, 1),
        ("404 Not Found", "NoSuchBucket", UpstreamUnavailable, 1),
        ("400 Bad Request", "BadDigest", UpstreamUnavailable, 1),
        ("403 Forbidden", "QuotaExceeded", StorageFull, 1),
        ("507 Insufficient Storage", "XMinioStorageFull", StorageFull, 1),
    ],
)
def test_what_a_store_refuses_is_told(
    store: S3Store, proxy: MoodyProxy, status: str, code: str, error: type[Exception], connections: int
):
    name, data = new_block(BLOCK_BYTES)
    bucket = S3Bucket(store.options(proxy.url), max_connections=1)
    proxy.answer = canned(status, code)
    proxy.set("refusing")
    with pytest.raises(error):
        bucket.put(name, data)
    assert proxy.connections == connections
    if error is UpstreamUnavailable:
        with pytest.raises(UpstreamUnavailable):
            bucket.get(name)
    proxy.set("well")
    bucket.put(name, data)
    assert bucket.get(name) == data
    bucket.close()


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("mood", ["gone", "mute"])
def test_a_store_that_does_not_answer(store: S3Store, proxy: MoodyProxy, mood: str):
    name, data = new_block(BLOCK_BYTES)
    bucket = S3Bucket(store.options(proxy.url), max_connections=1)
    bucket.put(name, data)
    proxy.set(mood)  # type: ignore[arg-type]
    began_s = time.monotonic()
    for ask in (lambda: bucket.put(name, data), lambda: bucket.get(name), bucket.find_free_bytes):
        with pytest.raises(UpstreamUnavailable):
            ask()
    # Each at most twice 0.5 s of silence, and up to a second between.
    assert time.monotonic() - began_s < 3 * 3
    proxy.set("well")
    assert bucket.get(name) == data
    bucket.close()


@asynccontextmanager
async def threaded(store: S3Store, url: str, deadline_s: float) -> AsyncIterator[ThreadedBackend]:
    bucket = S3Bucket(store.options(url), max_connections=10)
    backend = ThreadedBackend(bucket, write_threads=4, read_threads=4, deadline_s=deadline_s)
    yield backend
    await backend.close()


async def test_slow_reads_hold_up_neither_writes_nor_one_another_for_ever(
    store: S3Store, proxy: MoodyProxy, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("blockserver.storage.s3.DEADLINE_S", 1.0)
    name, data = new_block(BLOCK_BYTES)
    async with threaded(store, proxy.url, deadline_s=1.5) as backend:
        await backend.put(name, data)
        proxy.set("slow")
        before = proxy.connections
        reads = [asyncio.create_task(backend.get(name)) for _ in range(12)]
        await wait_until(lambda: proxy.connections >= before + 4, "all read threads to be busy")
        proxy.mood = "well"  # for those who come now
        other, other_data = new_block()
        began_s = time.monotonic()
        await backend.put(other, other_data)
        await backend.find_free_bytes()
        assert await backend.presign_get(other, expires_s=60) is not None
        assert time.monotonic() - began_s < 1.0
        ends = await asyncio.gather(*reads, return_exceptions=True)
        assert {type(end) for end in ends} <= {UpstreamUnavailable, bytes}
        assert sum(isinstance(end, UpstreamUnavailable) for end in ends) >= 4
        assert time.monotonic() - began_s < 5
        assert await backend.get(other) == other_data


async def test_a_store_that_verifies_refuses_wrong_bytes(tmp_path_factory: pytest.TempPathFactory):
    """So there a client may write the object itself."""
    with running_seaweedfs(tmp_path_factory.mktemp("weed")) as weed:
        bucket = S3Bucket(weed.options(is_verifying=True), max_connections=4)
        name, data = new_block(70_000)
        place = bucket.find_direct_place(name, SESSION)
        assert place == name
        signed = bucket.presign_put(name, size=len(data), expires_s=60)
        assert signed is not None
        assert (await send(signed, bytes(len(data))))[0] == 400
        assert bucket.find_size(name) is None
        assert (await send(signed, data))[0] == 200
        assert bucket.attest(name) == Attested(name.hash, len(data))
        assert (await send(signed, bytes(len(data))))[0] == 400
        assert bucket.get(name) == data
        assert bucket.list_objects(None, 10) == [StoredObject(name, len(data))]
        bucket.put(name, data)
        with pytest.raises(UpstreamUnavailable):
            bucket.put(name, bytes(len(data)))
        assert bucket.get(name) == data
        bucket.delete(name)
        with pytest.raises(ObjectMissing):
            bucket.attest(name)
        bucket.close()
