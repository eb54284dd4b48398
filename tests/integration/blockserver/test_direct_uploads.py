"""Direct uploads into a store that speaks S3, by a client that knows nothing of S3."""

import asyncio
import os
import signal
import time
from collections.abc import Iterator

import aiohttp
import pytest

import blockserver.main
from blockserver.storage.backend import ObjectName
from blockserver.storage.s3 import S3Bucket
from tests.integration.blockserver.client import BlockClient, object_names, object_paths
from tests.integration.blockserver.servers import Stack
from tests.integration.blockserver.test_uploads import code, commit_body, sql
from tests.integration.blockserver.uploads import Draft, Uploader, put_plainly
from tests.support.s3 import running_rclone
from wire import faults
from wire.hashes import BLOCK_BYTES
from wire.ids import parse_upload_id
from wire.sessions import KEEP_TARGET_S, UploadSession

assert blockserver.main
pytestmark = pytest.mark.xdist_group("direct uploads")
VERIFIES = "SHARDBOX_S3_VERIFIES_CHECKSUMS"
POINTS = {n for n in faults.declared() if n.startswith("blockserver.direct.")}
STAGED_ALONE = {"blockserver.direct.staged_stored"}
DIRECT_ALONE = {"blockserver.direct.begun", "blockserver.direct.finished"}


@pytest.fixture(scope="module", params=["staged", "verified"])
def store(stack: Stack, request: pytest.FixtureRequest) -> Iterator[Stack]:
    """The blockserver over a store that is said to verify checksums, or not to."""
    folder = stack.folder / request.param
    folder.mkdir()
    verifies = {VERIFIES: "true" if request.param == "verified" else "false"}
    with running_rclone(folder) as found, stack.blocks_in(found, **verifies):
        yield stack


@pytest.fixture
async def ada(store: Stack) -> Uploader:
    return Uploader(store, await store.new_user())


@pytest.fixture
async def bob(store: Stack) -> Uploader:
    return Uploader(store, await store.new_user())


def is_verified(who: Uploader) -> bool:
    return who.stack.blockserver.settings[VERIFIES] == "true"


async def put_all(draft: Draft, session: UploadSession) -> None:
    for target in session.targets:
        assert await asyncio.to_thread(put_plainly, target, draft.block(target.hash)) == 200


def generations(who: Uploader, session: UploadSession) -> list[bytes]:
    """Of the session's targets, in the order of their hashes."""
    _, session_id = parse_upload_id(session.upload_id)
    query = "SELECT generation FROM ns.upload_targets WHERE session_id = %s ORDER BY hash"
    return [row[0] for row in sql(who, query, session_id)]


def set_age(who: Uploader, session: UploadSession, age_s: float) -> bytes:
    """Make the session's only target older; its new generation."""
    _, session_id = parse_upload_id(session.upload_id)
    made = int((time.time() - age_s) * 1e6).to_bytes(8, "big") + os.urandom(8)
    sql(who, "UPDATE ns.upload_targets SET generation = %s WHERE session_id = %s", made, session_id)
    return made


def put_with_checksum(who: Uploader, name: ObjectName, data: bytes) -> None:
    """As a client puts an object, under any generation."""
    assert who.stack.s3 is not None
    bucket = S3Bucket(who.stack.s3.options(), max_connections=1)
    bucket.put(name, data)
    bucket.close()


async def assert_read_back(who: Uploader, draft: Draft) -> None:
    blocks = BlockClient(who.stack, who.user)
    for data in draft.blocks:
        assert (await blocks.get(data))[:2] == (200, data)


async def test_a_plain_client_puts_blocks_into_the_store(ada: Uploader):
    draft = Draft(os.urandom(BLOCK_BYTES + 1_000))
    session = await ada.open(draft.opening())
    assert ada.stack.s3 is not None
    assert all(target.url.startswith(ada.stack.s3.url) for target in session.targets)
    await put_all(draft, session)
    body = commit_body(session.upload_id, draft)
    assert await code(ada.commit(body)) == "blocks_absent"
    assert await ada.completed(session.upload_id, *draft.block_list) == [None, None]
    done = await ada.commit(body)
    assert (await ada.metadata(done.file_id)).block_list == draft.block_list
    await assert_read_back(ada, draft)
    files = [p.name for p in ada.stack.s3.folder.rglob("*") if p.is_file()]
    for name in draft.block_list:
        assert len([file for file in files if name in file]) == 1, "what was staged is gone"
    own = {name.rpartition(".")[2] for data in draft.blocks for name in object_names(ada.stack, data)}
    told = {generation.hex() for generation in generations(ada, session)}
    assert (own == told) == is_verified(ada)


async def test_what_has_not_been_put_is_not_there(ada: Uploader):
    draft = Draft(os.urandom(BLOCK_BYTES + 1_000))
    session = await ada.open(draft.opening())
    assert session.presigned_url is None
    first, second = draft.block_list
    assert put_plainly(session.targets[1], draft.blocks[1]) == 200
    assert await ada.completed(session.upload_id, first, second) == ["block_not_found", None]
    again = await ada.open(draft.opening(upload_id=session.upload_id))
    assert [target.hash for target in again.targets] == [first]
    assert again.presigned_url is None


async def test_wrong_bytes_are_found_out(ada: Uploader):
    """By reading them: this store believes whatever checksum comes along."""
    if is_verified(ada):
        pytest.skip("the store is believed")
    draft, wrong = Draft.random(), os.urandom(5_000)
    session = await ada.open(draft.opening())
    assert put_plainly(session.targets[0], wrong) == 200
    assert await ada.completed(session.upload_id, *draft.block_list) == ["hash_mismatch"]
    assert await code(ada.commit(commit_body(session.upload_id, draft))) == "blocks_absent"
    assert object_names(ada.stack, draft.blocks[0]) == []
    await put_all(draft, session)
    assert await ada.completed(session.upload_id, *draft.block_list) == [None]
    # The address is still good, and what comes by it now changes nothing.
    assert put_plainly(session.targets[0], wrong) == 200
    await ada.commit(commit_body(session.upload_id, draft))
    await assert_read_back(ada, draft)


async def test_two_users_share_one_object(ada: Uploader, bob: Uploader):
    draft = Draft.random()
    for who in (ada, bob):
        session = await who.open(draft.opening())
        assert len(session.targets) == 1, "whether somebody else has it never shows"
        await put_all(draft, session)
        assert await who.completed(session.upload_id, *draft.block_list) == [None]
        await who.commit(commit_body(session.upload_id, draft))
    assert len(object_names(ada.stack, draft.blocks[0])) == 1
    for who in (ada, bob):
        await assert_read_back(who, draft)


@pytest.mark.parametrize("left", [None, b"cut off"], ids=["missing", "cut off"])
async def test_what_others_lost_is_mended_before_ones_own_goes(
    ada: Uploader, bob: Uploader, left: bytes | None
):
    draft = Draft.random()
    session = await bob.open(draft.opening())
    await bob.send(draft, session)
    await bob.commit(commit_body(session.upload_id, draft))
    (place,) = object_paths(bob.stack, draft.blocks[0])
    bob.stack.overwrite(place, left)
    session = await ada.open(draft.opening())
    await put_all(draft, session)
    assert await ada.completed(session.upload_id, *draft.block_list) == [None]
    await ada.commit(commit_body(session.upload_id, draft))
    assert object_names(ada.stack, draft.blocks[0]) == [place.name]
    for who in (ada, bob):
        await assert_read_back(who, draft)


async def test_ones_own_stays_while_what_others_lost_cannot_be_mended(ada: Uploader, bob: Uploader):
    """Its bytes are wrong by now, in a store that was wrongly said to verify; nothing is finished by them."""
    if not is_verified(ada):
        pytest.skip("the bytes go through the blockserver")
    draft = Draft.random()
    session = await bob.open(draft.opening())
    await bob.send(draft, session)
    (place,) = object_paths(bob.stack, draft.blocks[0])
    bob.stack.overwrite(place, None)
    session = await ada.open(draft.opening())
    assert put_plainly(session.targets[0], os.urandom(5_000)) == 200
    assert await ada.completed(session.upload_id, *draft.block_list) == ["hash_mismatch"]
    assert await code(ada.commit(commit_body(session.upload_id, draft))) == "blocks_absent"
    assert len(object_names(ada.stack, draft.blocks[0])) == 1
    await put_all(draft, session)
    assert await ada.completed(session.upload_id, *draft.block_list) == [None]
    for who in (ada, bob):
        await assert_read_back(who, draft)


async def test_completing_twice_at_once(ada: Uploader, bob: Uploader):
    draft = Draft.random()
    sessions = [await who.open(draft.opening()) for who in (ada, bob)]
    for session in sessions:
        await put_all(draft, session)
    ends = await asyncio.gather(
        *(
            who.completed(session.upload_id, *draft.block_list)
            for _ in range(4)
            for who, session in zip((ada, bob), sessions, strict=True)
        )
    )
    assert ends == [[None]] * 8
    for who in (ada, bob):
        await assert_read_back(who, draft)
    assert len(object_names(ada.stack, draft.blocks[0])) == 1


async def test_a_target_is_issued_anew_when_it_is_old(ada: Uploader):
    draft = Draft.random()
    session = await ada.open(draft.opening())
    (first,) = generations(ada, session)
    resuming = draft.opening(upload_id=session.upload_id)
    young = await ada.open(resuming)
    assert generations(ada, session) == [first]
    assert put_plainly(young.targets[0], draft.blocks[0]) == 200
    old = set_age(ada, session, KEEP_TARGET_S + 1)
    session = await ada.open(resuming)
    assert generations(ada, session) != [old]
    await put_all(draft, session)
    assert await ada.completed(session.upload_id, *draft.block_list) == [None]


async def test_an_object_that_is_an_hour_old_is_refused(ada: Uploader):
    if not is_verified(ada):
        pytest.skip("the object is written when the upload is completed")
    draft = Draft.random()
    session = await ada.open(draft.opening())
    await put_all(draft, session)
    old = set_age(ada, session, 3_601)
    put_with_checksum(ada, ObjectName(draft.hashes[0], old), draft.blocks[0])
    assert await ada.completed(session.upload_id, *draft.block_list) == ["upload_expired"]
    session = await ada.open(draft.opening(upload_id=session.upload_id))
    await put_all(draft, session)
    assert await ada.completed(session.upload_id, *draft.block_list) == [None]
    await ada.commit(commit_body(session.upload_id, draft))
    await assert_read_back(ada, draft)


async def test_a_store_that_tells_no_checksum_is_not_believed(ada: Uploader):
    """Right bytes could still be replaced by whoever holds the address."""
    if not is_verified(ada):
        pytest.skip("the store is not asked")
    draft = Draft.random()
    session = await ada.open(draft.opening())
    (generation,) = generations(ada, session)
    assert ada.stack.s3 is not None
    ada.stack.s3.overwrite(f"objects/{draft.block_list[0]}.{generation.hex()}", draft.blocks[0])
    (verdict,) = await ada.complete(session.upload_id, *draft.block_list)
    assert verdict.error is not None
    assert (verdict.error.code, verdict.error.retryable) == ("upstream_unavailable", True)
    assert VERIFIES in verdict.error.message
    assert VERIFIES in ada.stack.blockserver.log_text()
    assert await code(ada.commit(commit_body(session.upload_id, draft))) == "blocks_absent"
    await put_all(draft, session)
    assert await ada.completed(session.upload_id, *draft.block_list) == [None]


async def test_cut_at_each_step_and_completed_again(ada: Uploader):
    """The blockserver dies at each point in turn; afterwards every upload can be brought to its end."""
    server = ada.stack.blockserver
    points = sorted(POINTS - (STAGED_ALONE if is_verified(ada) else DIRECT_ALONE))
    begun = []
    for _ in points:
        draft = Draft.random()
        session = await ada.open(draft.opening())
        await put_all(draft, session)
        begun.append((draft, session))
    for point, (draft, session) in zip(points, begun, strict=True):
        server.kill()
        server.start(SHARDBOX_FAULT=point)
        with pytest.raises(aiohttp.ClientError):
            await ada.complete(session.upload_id, *draft.block_list)
        assert server.wait() == -signal.SIGKILL, point
    server.start()
    for draft, session in begun:
        assert await ada.completed(session.upload_id, *draft.block_list) == [None]
        await ada.commit(commit_body(session.upload_id, draft))
        await assert_read_back(ada, draft)
        assert 1 <= len(object_names(ada.stack, draft.blocks[0])) <= 2
