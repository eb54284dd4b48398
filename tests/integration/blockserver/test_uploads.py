"""Upload sessions with blocks in a folder, over two metaservers: every step, every refusal."""

import asyncio
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import psycopg
import pytest

import metaserver.main
from metaserver.model.write import MAX_NAMED_BLOCKS
from runtime.rates import FORGED_BURST, FORGED_PER_ADDRESS_S, STRANGERS_BURST
from runtime.tokens import TokenIssuer, generate_keys
from tests.integration.blockserver.client import BlockClient
from tests.integration.blockserver.servers import REPOSITORY, ServerProcess, Stack, reserved_ports
from tests.integration.blockserver.uploads import Draft, Refused, Uploader
from tests.support.oidc import AUDIENCE, HandIssuer
from tests.support.waiting import wait_until
from wire import faults
from wire.api import CreateFolder, Delete, Move
from wire.grants import UPLOADS_PATH, UploadGrant, format_upload_url, parse_grant
from wire.hashes import BLOCK_BYTES, MAX_FILE_BYTES, block_hash, content_hash
from wire.ids import format_file_id, format_rev, format_upload_id, parse_rev, parse_upload_id
from wire.keys import KeyRing
from wire.sessions import MAX_COMPLETE_HASHES, MAX_OPEN_SESSIONS, MAX_TARGETS, FileMetadata

assert metaserver.main
pytestmark = pytest.mark.xdist_group("uploads")


@pytest.fixture(scope="module")
async def other(stack: Stack) -> AsyncIterator[ServerProcess]:
    """A second metaserver."""
    with reserved_ports(1) as (port,):
        map_file = str(stack.folder / "map2.json")
        server = stack.metaserver.twin(port, stack.folder / "other.log", SHARDBOX_MAP_FILE=map_file)
        server.start()
        yield server
        server.kill()


@pytest.fixture
async def ada(stack: Stack) -> Uploader:
    return Uploader(stack, await stack.new_user())


@pytest.fixture
async def bob(stack: Stack) -> Uploader:
    return Uploader(stack, await stack.new_user())


def sql(who: Uploader, query: str, *params: object) -> list[Any]:
    """Run a statement on the user's shard."""
    shard = who.stack.services.router.placement(who.user.root_ns).shard
    with psycopg.connect(who.stack.cluster.shard_dsns[shard], autocommit=True) as conn:
        cursor = conn.execute(query, params)  # type: ignore[arg-type]
        return cursor.fetchall() if cursor.description else []


async def refusal(call: Awaitable[object]) -> Refused:
    with pytest.raises(Refused) as caught:
        await call
    return caught.value


async def code(call: Awaitable[object]) -> str:
    return (await refusal(call)).code


def commit_body(session: str, draft: Draft, **fields: Any) -> dict[str, Any]:
    return {"upload_id": session, "block_list": draft.block_list} | fields


# ---- The way it goes


async def test_a_file_goes_up_block_by_block(ada: Uploader):
    first, last = os.urandom(BLOCK_BYTES), os.urandom(70_000)
    draft = Draft(first + first + last)
    session = await ada.open(draft.opening())
    assert session.presigned_url is None
    assert not session.has_more
    assert [target.hash for target in session.targets] == [draft.block_list[0], draft.block_list[2]]
    body = commit_body(session.upload_id, draft, client_modified="2020-02-02T02:02:02Z")
    absent = await refusal(ada.commit(body))
    assert (absent.status, absent.code) == (409, "blocks_absent")
    assert absent.info.details["hashes"] == [draft.block_list[0], draft.block_list[2]]
    assert await ada.completed(session.upload_id, draft.block_list[0]) == ["block_not_found"]
    await ada.send(draft, session)
    done = await ada.commit(body)
    found = await ada.metadata(done.file_id)
    assert (found.version, found.checksum, found.size) == (done.version, draft.checksum, draft.size)
    assert (found.name, found.owner) == (draft.name, ada.user.caller.account_id)
    assert (found.block_list, found.block_count) == (draft.block_list, 3)
    assert found.parent_folder_id == format_file_id(ada.user.root_ns, 0)
    blocks = BlockClient(ada.stack, ada.user)
    assert (await blocks.get(last))[1] == last
    entry = await ada.user.services.reads.get_metadata(ada.user.caller, f"/{draft.name}")
    assert (entry.id, entry.rev, entry.client_modified) == (
        done.file_id,
        done.version,
        "2020-02-02T02:02:02Z",
    )


async def test_what_the_namespace_has_is_not_sent_again(ada: Uploader, bob: Uploader):
    draft = Draft.random()
    session = await ada.open(draft.opening())
    assert session.presigned_url == session.targets[0].url
    await ada.upload(draft)
    again = await ada.open(draft.opening(file_name="copy"))
    assert (again.targets, again.presigned_url, again.has_more) == ([], None, False)
    copy = await ada.commit(commit_body(again.upload_id, draft))
    assert (await ada.metadata(copy.file_id)).name == "copy"
    # Whether somebody else has it never shows.
    assert len((await bob.open(draft.opening())).targets) == 1


async def test_blocks_are_sent_as_they_become_known(ada: Uploader):
    """Without a block list there is one address; each block's hash is appended to it."""
    draft = Draft(os.urandom(BLOCK_BYTES + 3_000))
    session = await ada.open(draft.opening(told=False))
    assert session.targets == []
    assert session.presigned_url is not None
    for block, name in zip(draft.blocks, draft.block_list, strict=True):
        await ada.put_to(f"{session.presigned_url}/{name}", block)
    assert await ada.completed(session.upload_id, *draft.block_list) == [None, None]
    done = await ada.commit(commit_body(session.upload_id, draft))
    assert (await ada.metadata(done.file_id)).block_list == draft.block_list


async def test_a_session_may_learn_its_blocks_later(ada: Uploader):
    draft = Draft.random()
    session = await ada.open(draft.opening(told=False))
    told = await ada.open(draft.opening(upload_id=session.upload_id))
    assert (told.upload_id, told.expires_at) == (session.upload_id, session.expires_at)
    kept = await ada.open(draft.opening(told=False, upload_id=session.upload_id))
    assert [t.hash for t in kept.targets] == [t.hash for t in told.targets] == draft.block_list


async def test_the_empty_file(ada: Uploader):
    draft = Draft(b"")
    session = await ada.open(draft.opening())
    assert (session.targets, session.presigned_url) == ([], None)
    done = await ada.commit(commit_body(session.upload_id, draft))
    assert (await ada.metadata(done.file_id)).block_list == []


async def test_versions_follow_one_another(ada: Uploader):
    first, second = Draft.random(name="Doc"), Draft.random(name="doc")
    one = await ada.upload(first)
    added = await refusal(ada.upload(second))
    assert (added.status, added.code) == (409, "conflict/file")
    assert added.info.details == {"id": one.file_id, "rev": one.version, "version": one.version}
    two = await ada.upload(second, original_version=one.version)
    assert (two.file_id, two.version != one.version) == (one.file_id, True)
    lost = await refusal(ada.upload(Draft.random(name="doc"), original_version=one.version))
    assert (lost.code, lost.info.details["version"]) == ("conflict/file", two.version)
    # The same content at the same place is no new version; but a version that is named is held to.
    assert await ada.upload(second) == two
    stale = await refusal(ada.upload(second, original_version=one.version))
    assert (stale.code, stale.info.details["version"]) == ("conflict/file", two.version)
    await ada.user.ok(CreateFolder(path="/taken"))
    folder = await refusal(ada.upload(Draft.random(name="taken")))
    assert (folder.code, folder.info.details["version"]) == ("conflict/folder", None)
    await ada.user.ok(Delete(path="/Doc"))
    gone = await refusal(ada.upload(Draft.random(name="doc"), original_version=two.version))
    assert (gone.status, gone.code, gone.info.details["version"]) == (409, "conflict/file", None)


async def test_a_commit_names_the_first_of_its_absent_blocks(ada: Uploader):
    for draft in (Draft.of_hashes(MAX_NAMED_BLOCKS), Draft.of_hashes(MAX_NAMED_BLOCKS + 1)):
        session = await ada.open(draft.opening())
        absent = await refusal(ada.commit(commit_body(session.upload_id, draft)))
        assert (absent.status, absent.code) == (409, "blocks_absent")
        assert absent.info.details == {
            "hashes": draft.block_list[:MAX_NAMED_BLOCKS],
            "count": len(draft.hashes),
        }


async def test_folders_by_id(ada: Uploader, bob: Uploader):
    folder = await ada.user.ok(CreateFolder(path="/a/b"))
    elsewhere = await ada.user.ok(CreateFolder(path="/c"))
    theirs = await bob.user.ok(CreateFolder(path="/a"))
    draft = Draft.random(name="f")
    session = await ada.open(draft.opening(parent_folder_id=folder.id))
    await ada.send(draft, session)
    await ada.user.ok(Move(from_path="/a/b", to_path="/moved"))
    body = commit_body(session.upload_id, draft)
    assert await code(ada.commit(body | {"parent_folder_id": theirs.id})) == "bad_request"
    done = await ada.commit(body)
    assert (await ada.user.services.reads.get_metadata(ada.user.caller, "/moved/f")).id == done.file_id
    # At the commit another folder of the namespace may be named; null is its root.
    for parent, path in ((elsewhere.id, "/c/g"), (None, "/g")):
        session = await ada.open(draft.opening(file_name="g", parent_folder_id=folder.id))
        done = await ada.commit(commit_body(session.upload_id, draft, parent_folder_id=parent))
        assert (await ada.user.services.reads.get_metadata(ada.user.caller, path)).id == done.file_id
    for parent, expected in (
        (theirs.id, "not_found"),
        (format_file_id(ada.user.root_ns, 999_999), "not_found"),
        (done.file_id, "not_folder"),
        ("id:short", "malformed_id"),
    ):
        assert await code(ada.open(draft.opening(parent_folder_id=parent))) == expected
    session = await ada.open(draft.opening(file_name="h", parent_folder_id=folder.id))
    await ada.user.ok(Delete(path="/moved"))
    assert await code(ada.open(draft.opening(parent_folder_id=folder.id))) == "not_found"
    assert await code(ada.commit(commit_body(session.upload_id, draft))) == "not_found"
    # Refused is not used up.
    await ada.commit(commit_body(session.upload_id, draft, parent_folder_id=None))


# ---- Once, whoever answers


async def test_a_session_outlives_its_server_and_goes_on_at_another(ada: Uploader, other: ServerProcess):
    draft = Draft(os.urandom(2 * BLOCK_BYTES + 10))
    session = await ada.open(draft.opening())
    await ada.put(session.targets[0], draft.blocks[0])
    ada.stack.metaserver.kill()
    ada.stack.metaserver.start()
    resumed = await ada.over(other).open(draft.opening(told=False, upload_id=session.upload_id))
    assert [target.hash for target in resumed.targets] == draft.block_list[1:]
    await ada.send(draft, resumed)
    body = commit_body(session.upload_id, draft)
    done = await ada.over(other).commit(body)
    assert await ada.commit(body) == done
    assert await ada.over(other).commit(body) == done
    for changed in ({"client_modified": "2020-02-02T02:02:02Z"}, {"original_version": done.version}):
        refused = await refusal(ada.commit(body | changed))
        assert (refused.status, refused.code) == (409, "upload_session_committed")
    resuming = draft.opening(upload_id=session.upload_id)
    assert await code(ada.open(resuming)) == "upload_session_committed"


@pytest.mark.parametrize("is_same", [True, False])
async def test_of_many_commits_at_once_one_counts(ada: Uploader, other: ServerProcess, is_same: bool):
    draft = Draft.random()
    session = await ada.open(draft.opening())
    await ada.send(draft, session)
    bodies = [
        commit_body(session.upload_id, draft)
        | ({} if is_same else {"client_modified": f"2020-02-02T02:02:{number:02}Z"})
        for number in range(10)
    ]
    ends = await asyncio.gather(
        *(ada.over(server).commit(body) for body in bodies for server in (ada.metaserver, other)),
        return_exceptions=True,
    )
    won = [end for end in ends if not isinstance(end, BaseException)]
    lost = [end.code for end in ends if isinstance(end, Refused)]
    assert len({msgspec.json.encode(end) for end in won}) == 1
    assert (len(won), lost) == (20, []) if is_same else (2, ["upload_session_committed"] * 18)
    assert sql(ada, "SELECT head FROM ns.namespaces WHERE ns_id = %s", ada.user.root_ns) == [(1,)]


async def test_quota_is_passed_on(ada: Uploader):
    draft = Draft.random(5_000)
    session = await ada.open(draft.opening())
    await ada.send(draft, session)
    quota = "UPDATE ns.accounts SET quota_bytes = %s WHERE ns_id = %s"
    sql(ada, quota, 4_999, ada.user.root_ns)
    body = commit_body(session.upload_id, draft)
    refused = await refusal(ada.commit(body))
    assert (refused.status, refused.code) == (409, "insufficient_space")
    sql(ada, quota, 5_000, ada.user.root_ns)
    await ada.commit(body)


async def test_what_the_quota_cannot_hold_is_not_begun(ada: Uploader):
    sql(ada, "UPDATE ns.accounts SET quota_bytes = 5000 WHERE ns_id = %s", ada.user.root_ns)
    await ada.user.ok(CreateFolder(path="/d"))
    large = await refusal(ada.open(Draft.random(5_001).opening()))
    assert (large.status, large.code) == (409, "insufficient_space")
    assert large.info.details == {"used": 0, "allocation": 5_000, "needed": 5_001}
    done = await ada.upload(Draft.random(4_000, name="Doc"))
    assert await code(ada.open(Draft.random(1_001).opening())) == "insufficient_space"
    await ada.open(Draft.random(1_000).opening())
    # What is replaced makes room, and what does not grow is never refused.
    assert await code(ada.open(Draft.random(5_001, name="doc").opening())) == "insufficient_space"
    await ada.upload(Draft.random(5_000, name="doc"), original_version=done.version)
    sql(ada, "UPDATE ns.accounts SET quota_bytes = 10 WHERE ns_id = %s", ada.user.root_ns)
    await ada.open(Draft.random(4_999, name="doc").opening())
    await ada.open(Draft(b"").opening())
    assert await code(ada.open(Draft.random(1, name="d").opening())) == "insufficient_space"


# ---- Whose it is


async def test_to_others_a_session_is_not_there(ada: Uploader, bob: Uploader):
    draft = Draft.random()
    session = await ada.open(draft.opening())
    ns_id, _ = parse_upload_id(session.upload_id)
    nowhere = format_upload_id((2**12 - 1 << 51) + 5, bytes(16))  # type: ignore[arg-type]
    for upload_id in (session.upload_id, format_upload_id(ns_id, os.urandom(16)), nowhere):
        for refused in (
            await refusal(bob.open(draft.opening(upload_id=upload_id))),
            await refusal(bob.commit(commit_body(upload_id, draft))),
            await refusal(bob.complete(upload_id, *draft.block_list)),
        ):
            assert (refused.status, refused.code) == (404, "upload_session_not_found")
            assert refused.info.message == "There is no such upload session, or it has expired."
            assert refused.info.details == {}
    for wrong in ("", "up:", session.upload_id + "A", session.upload_id.removeprefix("up:")):
        assert await code(ada.open(draft.opening(upload_id=wrong))) == "malformed_id"
    # Another device of the account is not a stranger.
    phone = await ada.user.services.link(ada.user.caller.account_id)
    resumed = await Uploader(ada.stack, phone).open(draft.opening(upload_id=session.upload_id))
    assert len(resumed.targets) == 1


async def test_who_loses_the_namespace_loses_the_session(ada: Uploader, bob: Uploader):
    draft = Draft.random()
    folder = format_file_id(ada.user.root_ns, 0)
    member = "INSERT INTO ns.members (ns_id, account_id, level) VALUES (%s, %s, %s)"
    leave = "DELETE FROM ns.members WHERE ns_id = %s AND account_id = %s"
    whose = (ada.user.root_ns, bob.user.caller.account_id)
    sql(ada, member, *whose, "v")
    assert await code(bob.open(draft.opening(parent_folder_id=folder))) == "forbidden"
    sql(ada, leave, *whose)
    sql(ada, member, *whose, "e")
    session = await bob.open(draft.opening(parent_folder_id=folder))
    await bob.send(draft, session)
    sql(ada, leave, *whose)
    resuming = draft.opening(parent_folder_id=folder, upload_id=session.upload_id)
    assert await code(bob.open(resuming)) == "upload_session_not_found"
    body = commit_body(session.upload_id, draft)
    assert await code(bob.commit(body)) == "upload_session_not_found"
    assert await code(bob.complete(session.upload_id, *draft.block_list)) == "upload_session_not_found"
    sql(ada, member, *whose, "e")
    done = await bob.commit(body)
    assert (await bob.metadata(done.file_id)).owner == ada.user.caller.account_id
    sql(ada, leave, *whose)
    assert await code(bob.metadata(done.file_id)) == "not_found"


async def test_an_expired_session_is_gone(ada: Uploader):
    draft = Draft.random()
    session = await ada.open(draft.opening())
    _, session_id = parse_upload_id(session.upload_id)
    (left,) = sql(
        ada,
        "SELECT extract(epoch FROM expires_at - now())::float8 FROM ns.upload_sessions WHERE session_id = %s",
        session_id,
    )
    assert 7 * 86_400 - 60 < left[0] <= 7 * 86_400
    sql(ada, "UPDATE ns.upload_sessions SET expires_at = now() WHERE session_id = %s", session_id)
    for call in (
        ada.open(draft.opening(upload_id=session.upload_id)),
        ada.commit(commit_body(session.upload_id, draft)),
        ada.complete(session.upload_id, *draft.block_list),
    ):
        assert await code(call) == "upload_session_not_found"


async def test_metadata_shows_files_alone(ada: Uploader, bob: Uploader):
    folder = await ada.user.ok(CreateFolder(path="/d"))
    draft = Draft.random(name="f")
    session = await ada.open(draft.opening(parent_folder_id=folder.id))
    await ada.send(draft, session)
    done = await ada.commit(commit_body(session.upload_id, draft))
    assert await code(bob.metadata(done.file_id)) == "not_found"
    for other_id in (folder.id, format_file_id(ada.user.root_ns, 0), format_file_id(ada.user.root_ns, 99)):
        assert await code(ada.metadata(other_id)) == "not_found"
    assert await code(ada.metadata("f")) == "malformed_id"
    await ada.user.ok(Delete(path="/d"))
    assert await code(ada.metadata(done.file_id)) == "not_found"
    for query in ("", "?file_id=a&file_id=b"):
        async with ada.stack.http.get(
            f"{ada.metaserver.url}/files/metadata{query}", headers=ada.auth
        ) as answer:
            assert answer.status == 400


# ---- What does not fit


async def test_contents_that_do_not_fit_are_refused(ada: Uploader):
    draft = Draft.random(BLOCK_BYTES + 5)
    full, half = draft.block_list
    wrong = block_hash(b"?").hex()
    for fields in (
        {"checksum": wrong},
        {"file_size": BLOCK_BYTES},
        {"file_size": 2 * BLOCK_BYTES + 1},
        {"block_list": [half, full]},
        {"block_list": [full]},
        {"block_list": []},
        {"file_size": MAX_FILE_BYTES + 1, "block_list": None},
        {"file_size": 0, "block_list": None},
        {"block_list": [full, full], "checksum": content_hash([draft.hashes[0]] * 2).hex()},
    ):
        assert await code(ada.open(draft.opening(**fields))) == "content_mismatch", fields
    assert await code(ada.open(draft.opening(checksum="?"))) == "malformed_id"
    assert await code(ada.open(draft.opening(block_list=[full, half.upper()]))) == "malformed_id"
    assert await code(ada.open(draft.opening(file_size=-1))) == "bad_request"
    largest = await ada.open(draft.opening(told=False, file_size=MAX_FILE_BYTES))
    assert largest.presigned_url is not None


async def test_names_follow_the_rules_for_names(ada: Uploader):
    draft = Draft(b"")
    for name, expected in (
        ("", "malformed_path"),
        ("a/b", "malformed_path"),
        ("..", "malformed_path"),
        ("a ", "malformed_path"),
        ("a\x00b", "malformed_path"),
        ("x" * 256, "malformed_path"),
        (".DS_Store", "disallowed_name"),
    ):
        assert await code(ada.open(draft.opening(file_name=name))) == expected, name
    session = await ada.open(draft.opening(file_name="x" * 255))
    done = await ada.commit(commit_body(session.upload_id, draft))
    assert (await ada.metadata(done.file_id)).name == "x" * 255


async def test_the_commit_holds_the_session_to_its_word(ada: Uploader, bob: Uploader):
    draft, other = Draft.random(), Draft.random()
    session = await ada.open(draft.opening(told=False))
    await ada.put_to(f"{session.presigned_url}/{draft.block_list[0]}", draft.blocks[0])
    await ada.send(other, await ada.open(other.opening()))
    body = commit_body(session.upload_id, draft)
    for fields in (
        {"block_list": other.block_list},
        {"block_list": []},
        {"block_list": draft.block_list * 2},
        {"checksum": other.checksum},
        {"file_size": draft.size + 1},
    ):
        refused = await refusal(ada.commit(body | fields))
        assert (refused.status, refused.code) == (400, "content_mismatch"), fields
    for fields in ({"client_modified": "yesterday"}, {"original_version": format_rev(bob.user.root_ns, 1)}):
        assert await code(ada.commit(body | fields)) == "bad_request"
    assert await code(ada.commit(body | {"original_version": "1"})) == "malformed_id"
    lying = await ada.open(draft.opening(told=False, file_size=draft.size - 1))
    assert await code(ada.commit(commit_body(lying.upload_id, draft))) == "content_mismatch"
    for fields in ({"file_name": "other"}, {"checksum": other.checksum}, {"file_size": 7}):
        resuming = draft.opening(told=False, upload_id=session.upload_id, **fields)
        assert await code(ada.open(resuming)) == "bad_request"
    assert sql(ada, "SELECT head FROM ns.namespaces WHERE ns_id = %s", ada.user.root_ns) == [(0,)]
    done = await ada.commit(body | {"checksum": draft.checksum, "file_size": draft.size})
    assert parse_rev(done.version) == (ada.user.root_ns, 1)


async def test_a_long_list_is_told_in_parts(ada: Uploader):
    draft = Draft.of_hashes(MAX_TARGETS + 1)
    session = await ada.open(draft.opening())
    assert [target.hash for target in session.targets] == draft.block_list[:MAX_TARGETS]
    assert (session.has_more, session.presigned_url) == (True, None)
    exact = Draft.of_hashes(MAX_TARGETS)
    session = await ada.open(exact.opening())
    assert (len(session.targets), session.has_more) == (MAX_TARGETS, False)
    codes = await ada.completed(session.upload_id, *exact.block_list)
    assert codes == ["block_not_found"] * MAX_COMPLETE_HASHES
    for hashes in ([], [*exact.block_list, draft.block_list[0]]):
        assert await code(ada.complete(session.upload_id, *hashes)) == "too_many_entries"


async def test_open_sessions_are_bounded(ada: Uploader):
    draft = Draft(b"")
    first = await ada.open(draft.opening())
    _, session_id = parse_upload_id(first.upload_id)
    sql(
        ada,
        "INSERT INTO ns.upload_sessions SELECT ns_id, decode(md5(n::text), 'hex'), account_id, parent_id,"
        " file_name, file_size, content_hash, blocklist, 0, 0, expires_at, NULL, NULL"
        " FROM ns.upload_sessions, generate_series(3, %s) n WHERE session_id = %s",
        MAX_OPEN_SESSIONS,
        session_id,
    )
    await ada.open(draft.opening())
    assert await code(ada.open(draft.opening())) == "too_many_entries"
    await ada.open(draft.opening(upload_id=first.upload_id))
    await ada.commit(commit_body(first.upload_id, draft))
    await ada.open(draft.opening())
    assert await code(ada.open(draft.opening())) == "too_many_entries"


async def test_only_blocks_of_the_session_can_be_completed(ada: Uploader):
    draft, other = Draft.random(), Draft.random()
    session, foreign = await ada.open(draft.opening()), await ada.open(other.opening())
    await ada.put(session.targets[0], draft.blocks[0])
    name, stranger = draft.block_list[0], other.block_list[0]
    assert await ada.completed(session.upload_id, name, stranger, name) == [None, "block_not_found", None]
    assert await ada.completed(foreign.upload_id, stranger) == ["block_not_found"]
    assert await code(ada.complete(session.upload_id, "?")) == "malformed_id"


# ---- Signed addresses


async def test_an_address_is_good_for_its_block_alone(ada: Uploader):
    draft, other = Draft.random(), Draft.random()
    url = (await ada.open(draft.opening())).targets[0].url
    base, _, name = url.rpartition("/")
    swapped = await refusal(ada.put_to(f"{base}/{other.block_list[0]}", other.blocks[0]))
    assert (swapped.status, swapped.code) == (403, "invalid_upload_url")
    for data in (other.blocks[0], draft.blocks[0][:-1]):
        wrong = await refusal(ada.put_to(url, data))
        assert (wrong.status, wrong.code) == (400, "hash_mismatch")
    assert await code(ada.put_to(url, draft.blocks[0] + b"?")) == "body_too_large"
    assert await code(ada.put_to(base + "/", draft.blocks[0])) == "bad_request"
    assert await code(ada.put_to(f"{base}/{name.upper()}", draft.blocks[0])) == "malformed_id"
    await ada.put_to(url, draft.blocks[0])
    await ada.put_to(url, draft.blocks[0])
    open_url = (await ada.open(draft.opening(told=False))).presigned_url
    assert await code(ada.put_to(f"{open_url}/{draft.block_list[0]}", os.urandom(BLOCK_BYTES + 1))) == (
        "body_too_large"
    )


async def test_an_open_address_takes_what_the_file_can_have(ada: Uploader):
    draft = Draft(os.urandom(2 * BLOCK_BYTES + 5))
    session = await ada.open(draft.opening(told=False))

    async def put(data: bytes) -> None:
        await ada.put_to(f"{session.presigned_url}/{block_hash(data).hex()}", data)

    async def is_refused(data: bytes) -> bool:
        return await code(put(data)) == "content_mismatch"

    assert await is_refused(os.urandom(6))
    assert await is_refused(os.urandom(BLOCK_BYTES - 1))
    for block in (draft.blocks[2], draft.blocks[0], draft.blocks[0], draft.blocks[1]):
        await put(block)
        assert (await is_refused(os.urandom(5))) is True
    assert await is_refused(os.urandom(BLOCK_BYTES))
    # What it was refused has left nothing behind, and what it took may come again.
    for block in draft.blocks:
        await put(block)
    await ada.commit(commit_body(session.upload_id, draft))


async def test_of_many_at_once_an_address_takes_as_many_as_the_file_has(ada: Uploader, other: ServerProcess):
    blocks = [os.urandom(5_000) for _ in range(8)]
    session = await ada.open(Draft.random(5_000).opening(told=False))
    ends = await asyncio.gather(
        *(ada.put_to(f"{session.presigned_url}/{block_hash(data).hex()}", data) for data in blocks),
        return_exceptions=True,
    )
    assert sorted(end.code for end in ends if isinstance(end, Refused)) == ["content_mismatch"] * 7


async def test_wrong_blocks_do_not_keep_the_right_ones_out(ada: Uploader):
    draft = Draft.random()
    session = await ada.open(draft.opening(told=False))
    wrong = os.urandom(draft.size)
    await ada.put_to(f"{session.presigned_url}/{block_hash(wrong).hex()}", wrong)
    assert (
        await code(ada.put_to(f"{session.presigned_url}/{draft.block_list[0]}", draft.blocks[0]))
        == "content_mismatch"
    )
    await ada.send(draft, await ada.open(draft.opening(upload_id=session.upload_id)))
    await ada.commit(commit_body(session.upload_id, draft))


@pytest.mark.parametrize("told", [True, False])
async def test_an_address_ends_with_its_session(ada: Uploader, told: bool):
    for end in ("committed", "expired"):
        draft = Draft.random()
        session = await ada.open(draft.opening(told=told))
        url = session.presigned_url if told else f"{session.presigned_url}/{draft.block_list[0]}"
        assert url is not None
        await ada.put_to(url, draft.blocks[0])
        _, session_id = parse_upload_id(session.upload_id)
        if end == "committed":
            await ada.commit(commit_body(session.upload_id, draft))
            expected = (409, "upload_session_committed")
        else:
            sql(ada, "UPDATE ns.upload_sessions SET expires_at = now() WHERE session_id = %s", session_id)
            expected = (404, "upload_session_not_found")
        refused = await refusal(ada.put_to(url, draft.blocks[0]))
        assert (refused.status, refused.code) == expected


async def test_nobody_else_makes_an_address(ada: Uploader):
    draft = Draft.random()
    session = await ada.open(draft.opening())
    grant_text = session.targets[0].url.partition(UPLOADS_PATH)[2].partition("/")[0]
    grant = parse_grant(grant_text, ada.stack.service_keys, now_s=time.time())
    block_url = ada.stack.blockserver.url
    expired = msgspec.structs.replace(grant, expires_at_s=int(time.time()))
    flipped = ("A" if grant_text[40] != "A" else "B").join([grant_text[:40], grant_text[41:]])
    for url in (
        format_upload_url(block_url, expired, ada.stack.service_keys),
        format_upload_url(block_url, grant, KeyRing.parse(KeyRing.generate())),
        format_upload_url(block_url, grant, ada.stack.cursor_keys),
        f"{block_url}{UPLOADS_PATH}{flipped}/{draft.block_list[0]}",
        f"{block_url}{UPLOADS_PATH}grant/{draft.block_list[0]}",
    ):
        refused = await refusal(ada.put_to(url, draft.blocks[0]))
        assert (refused.status, refused.code) == (403, "invalid_upload_url")
    assert await ada.completed(session.upload_id, *draft.block_list) == ["block_not_found"]
    # An expired target is issued anew by asking again.
    again = await ada.open(draft.opening(upload_id=session.upload_id))
    await ada.send(draft, again)


async def test_an_address_acts_for_its_caller(ada: Uploader, bob: Uploader):
    """What the caller may no longer do, the address cannot do either."""
    draft = Draft.random()
    phone = await ada.user.services.link(ada.user.caller.account_id)
    session = await Uploader(ada.stack, phone).open(draft.opening())
    await ada.user.services.devices.revoke_own(ada.user.caller, phone.caller.device_id)

    async def is_refused() -> bool:
        try:
            await ada.put(session.targets[0], draft.blocks[0])
        except Refused as refused:
            return refused.code == "device_revoked"
        return False

    grant = UploadGrant(
        ada.user.root_ns, bytes(16), bob.user.caller, None, BLOCK_BYTES, int(time.time()) + 60
    )
    url = format_upload_url(ada.stack.blockserver.url, grant, ada.stack.service_keys)
    assert await code(ada.put_to(f"{url}/{draft.block_list[0]}", draft.blocks[0])) == "not_found"
    await wait_until(is_refused, "the revocation", timeout_s=10)


def path_of_nothing(kind: str, who: Uploader) -> str:
    """What a user may ask a server for, and does not find."""
    file_id = format_file_id(who.user.root_ns, 99)
    return {
        "metaserver": f"/files/metadata?file_id={file_id}",
        "blockserver": f"/v1/blocks/{'0' * 64}?ns={who.user.root_ns}",
    }[kind]


@pytest.mark.parametrize("kind", ["metaserver", "blockserver"])
async def test_an_address_that_forges_tokens_is_told_to_wait(ada: Uploader, kind: str):
    server: ServerProcess = getattr(ada.stack, kind)
    path = path_of_nothing(kind, ada)
    forged = {"Authorization": f"Bearer {TokenIssuer(generate_keys()[0]).issue(ada.user.caller)}"}

    async def ask(http: aiohttp.ClientSession, headers: dict[str, str]) -> tuple[int, str | None]:
        async with http.get(server.url + path, headers=headers) as answer:
            return answer.status, answer.headers.get("Retry-After")

    elsewhere = aiohttp.TCPConnector(local_addr=("127.0.0.2", 0))
    async with aiohttp.ClientSession(connector=elsewhere) as http:
        assert (await ask(http, ada.auth))[0] == 404
        begun, refused_count = time.monotonic(), 0
        while (found := await ask(http, forged)) == (401, None):
            refused_count += 1
        assert found == (429, "1")
        most = FORGED_BURST + FORGED_PER_ADDRESS_S * (time.monotonic() - begun) + 1
        assert FORGED_BURST <= refused_count <= most
        assert (await ask(http, ada.auth))[0] == 404
    assert (await ask(ada.stack.http, forged))[0] == 401


async def test_a_household_of_ipv6_is_one_stranger(ada: Uploader, tmp_path: Path):
    settings = {"SHARDBOX_TRUSTED_PROXIES": "127.0.0.1", "SHARDBOX_MAP_FILE": str(tmp_path / "map.json")}
    with reserved_ports(1) as (port,):
        twin = ada.stack.metaserver.twin(port, tmp_path / "log", **settings)

        async def refresh(address: str) -> int:
            url, headers = f"{twin.url}/v1/devices/refresh", {"X-Forwarded-For": address}
            async with ada.stack.http.post(url, json={}, headers=headers) as answer:
                return answer.status

        try:
            twin.start()
            statuses: list[int] = []
            while 429 not in statuses and len(statuses) < 10 * STRANGERS_BURST:
                addresses = (f"2001:db8::{len(statuses) + number:x}" for number in range(100))
                statuses += await asyncio.gather(*map(refresh, addresses))
            assert set(statuses) == {400, 429}
            assert statuses.count(400) >= STRANGERS_BURST
            assert await refresh("2001:db8:0:1::1") == 400
        finally:
            twin.kill()


@pytest.mark.parametrize("kind", ["metaserver", "blockserver"])
async def test_all_who_stand_for_an_account_have_one_rate(ada: Uploader, tmp_path: Path, kind: str):
    server: ServerProcess = getattr(ada.stack, kind)
    path = path_of_nothing(kind, ada)
    account_id = ada.user.caller.account_id
    async with HandIssuer() as issuer:
        issuer.add_key("k")
        issuers = {"issuers": [{"issuer": issuer.issuer, "audiences": [AUDIENCE]}]}
        (tmp_path / "issuers.json").write_bytes(msgspec.json.encode(issuers))
        tokens = [issuer.token("k", sub=f"{ada.user.root_ns}-{number}") for number in range(2)]
        settings = {
            "SHARDBOX_OIDC_ISSUERS_FILE": str(tmp_path / "issuers.json"),
            "SHARDBOX_REQUESTS_PER_ACCOUNT_S": "0.001",
            "SHARDBOX_REQUEST_BURST_PER_ACCOUNT": "5",
            "SHARDBOX_MAP_FILE": str(tmp_path / "map.json"),
            "SHARDBOX_BLOCK_DIR": str(tmp_path / "blocks"),
        }

        async def ask(token: str) -> int:
            auth = {"Authorization": f"Bearer {token}"}
            async with ada.stack.http.get(twin.url + path, headers=auth) as answer:
                return answer.status

        with reserved_ports(1) as (port,):
            twin = server.twin(port, tmp_path / "log", **settings)
            try:
                twin.start()
                assert [await ask(token) for token in tokens] == [403, 403]
                for number in range(2):
                    subject = f"{ada.user.root_ns}-{number}"
                    await ada.user.services.identities.add(account_id, issuer.issuer, subject)
                # The first request of each is its own; the account's are what comes after it.
                assert [await ask(token) for token in tokens * 3] == [404] * 6
                own = ada.auth["Authorization"].removeprefix("Bearer ")
                assert await ask(own) == 404
                assert [await ask(token) for token in (own, *tokens)] == [429] * 3
            finally:
                twin.kill()


async def test_only_servers_ask_what_servers_ask(ada: Uploader):
    for server, path in (
        (ada.stack.metaserver, "/internal/uploads/targets"),
        (ada.stack.blockserver, "/internal/targets"),
    ):
        async with ada.stack.http.post(server.url + path, headers=ada.auth) as answer:
            assert answer.status == 403
    for method, path in (
        ("POST", "/files/upload_session"),
        ("POST", "/files/commit"),
        ("GET", "/files/metadata"),
    ):
        async with ada.stack.http.request(method, ada.stack.metaserver.url + path) as answer:
            assert answer.status == 401
    async with ada.stack.http.post(ada.stack.blockserver.url + "/blocks/complete") as answer:
        assert answer.status == 401


async def test_without_blockservers_a_session_waits(ada: Uploader):
    draft = Draft.random()
    ada.stack.blockserver.kill()
    refused = await refusal(ada.open(draft.opening()))
    assert (refused.code, refused.info.retryable) == ("upstream_unavailable", True)
    ada.stack.blockserver.start()
    await ada.upload(draft)


# ---- As it is written


def test_the_example_of_the_page_runs(ada: Uploader, tmp_path: Path):
    if not all(map(shutil.which, ("bash", "curl", "jq", "xxd"))):
        pytest.skip("curl, jq and xxd are needed")
    (script,) = re.findall(
        r"```sh\n(.*?)```", (REPOSITORY / "docs/upload-sessions.md").read_text(), re.DOTALL
    )
    places = {
        "META": ada.stack.metaserver.url,
        "BLOCK": ada.stack.blockserver.url,
        "TOKEN": ada.auth["Authorization"].removeprefix("Bearer "),
    }
    command = ["bash", "-euo", "pipefail", "-c", script]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | places, capture_output=True, check=True)
    *_, last = done.stdout.splitlines()
    found = msgspec.json.decode(last[last.index(b'{"file_id"') :], type=FileMetadata)
    assert (found.name, found.size) == ("hello.txt", 6)


# ---- Cut short


OPENING = ["metaserver.sessions.opened", "metaserver.targets.issued", "metaserver.targets.signed"]
COMMITTING = ["metaserver.sessions.marked", "metaserver.sessions.committed"]


def test_every_point_is_cut():
    points = {n for n in faults.declared() if n.startswith(("metaserver.sessions.", "metaserver.targets."))}
    assert points == {*OPENING, *COMMITTING}


async def test_cut_at_each_step_and_taken_up_again(ada: Uploader, other: ServerProcess):
    """A metaserver dies at each point in turn; afterwards, at another one, everything goes on."""
    server, elsewhere = ada.stack.metaserver, ada.over(other)
    begun = []
    for point in (*OPENING, *COMMITTING):
        draft = Draft.random()
        session = await ada.open(draft.opening())
        if point in COMMITTING:
            await ada.send(draft, session)
        begun.append((point, draft, session))
    for point, draft, session in begun:
        server.kill()
        server.start(SHARDBOX_FAULT=point)
        with pytest.raises(aiohttp.ClientError):  # noqa: PT012
            if point in OPENING:
                await ada.open(draft.opening(upload_id=session.upload_id))
            else:
                await ada.commit(commit_body(session.upload_id, draft))
        assert server.wait() == -signal.SIGKILL, point
    server.start()
    for point, draft, session in begun:
        body = commit_body(session.upload_id, draft)
        if point in OPENING:
            assert await code(elsewhere.commit(body)) == "blocks_absent"
            await ada.send(draft, await elsewhere.open(draft.opening(upload_id=session.upload_id)))
        done = await elsewhere.commit(body)
        assert await ada.commit(body) == done
    head = sql(ada, "SELECT head FROM ns.namespaces WHERE ns_id = %s", ada.user.root_ns)
    assert head == [(len(begun),)], "each was committed once"
