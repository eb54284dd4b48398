"""Copies and restores against real databases: contents, usage, guards, and what is not the caller's."""

import psycopg
import pytest

from metaserver.model.changes import MAX_CHANGES_LOOKED_AT
from metaserver.model.write import MAX_ROWS_PER_TX
from metaserver.storage.usage import list_debts
from tests.support.databases import FreshCluster
from tests.support.services import Services, User
from wire.api import Copy, CreateFolder, Delete, ListFolder, ListRevisions, Move, Restore, Search, WriteMode
from wire.errors import IdempotencyMismatch, NotFound
from wire.hashes import BLOCK_BYTES
from wire.ids import EntryId, Jid, NsId, format_rev

OVER = {"mode": WriteMode.OVERWRITE}


async def listing(user: User, path: str = "") -> dict[str, str]:
    """Ids by path, of all that lives."""
    reads = user.services.reads
    found: dict[str, str] = {}
    todo = [path]
    while todo:
        page = await reads.list_folder(user.caller, ListFolder(path=todo.pop()))
        assert not page.has_more
        found |= {entry.path_display: entry.id for entry in page.entries}
        todo += [entry.path_display for entry in page.entries if entry.tag.value == "folder"]
    return found


async def used(user: User) -> int:
    return (await user.services.usage.get_own(user.caller)).used


async def pay(user: User) -> None:
    """Have all debts paid."""
    services = user.services
    async with services.router.pool(services.router.placement(user.root_ns).shard).connection() as conn:
        debts = await list_debts(conn, (NsId(-1), EntryId(0)), 100)
    for debt in debts:
        assert await services.debts.settle(debt)


async def test_a_copied_folder_has_revs_of_its_own_and_the_same_content(services: Services):
    user = await services.user()
    large = bytes(BLOCK_BYTES) + b"tail"
    f = await user.ok(await user.put("/a/f", large, client_modified="2020-02-02T02:02:02Z"))
    await user.ok(await user.put("/a/sub/g", b"g"))
    before = await used(user)
    copy = await user.ok(Copy(from_path="/A", to_path="/x/copy"))
    assert copy.path_display == "/x/copy"
    assert set(await listing(user, "/x")) == {"/x/copy", "/x/copy/f", "/x/copy/sub", "/x/copy/sub/g"}
    twin = await services.reads.get_metadata(user.caller, "/x/copy/f")
    assert (twin.content_hash, twin.size, twin.client_modified) == (
        f.content_hash,
        f.size,
        "2020-02-02T02:02:02Z",
    )
    assert twin.rev != f.rev
    blocks = services.reads.get_block_list
    assert await blocks(user.caller, twin.rev, 0) == await blocks(user.caller, f.rev, 0)
    assert await used(user) == 2 * before == 2 * (len(large) + 1)
    # One goes on without the other.
    await user.ok(await user.put("/x/copy/f", b"changed", **OVER))
    assert (await services.reads.get_metadata(user.caller, "/a/f")).rev == f.rev
    revisions = await services.history.list_revisions(user.caller, ListRevisions(path="/x/copy/f"))
    assert [entry.rev for entry in revisions.entries][1:] == [twin.rev]
    # A copy of what the same batch has only just written, and of a copy.
    result = await user.write(
        await user.put("/new", b"new"),
        Copy(from_path="/new", to_path="/new2"),
        Copy(from_path="/new2", to_path="/new3"),
        Copy(from_path="/a/f", to_path="/f2"),
        Copy(from_path="/f2", to_path="/f3"),
    )
    metas = [verdict.metadata for verdict in result.verdicts]
    assert len({meta.rev for meta in metas}) == 5
    for meta, first in zip(metas, [*[metas[0]] * 3, f, f], strict=True):
        assert meta == await services.reads.get_metadata(user.caller, meta.id)
        assert await blocks(user.caller, meta.rev, 0) == await blocks(user.caller, first.rev, 0)
        assert meta.client_modified == first.client_modified


async def test_a_copy_of_many_is_one_transaction_or_nothing(services: Services, fresh_cluster: FreshCluster):
    user = await services.user()
    await user.ok(CreateFolder(path="/a"))
    dsn = fresh_cluster.shard_dsns[services.router.placement(user.root_ns).shard]
    # Folders that nobody had to wait for: 1 holds 100, each of which holds some of the others.
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
        await conn.execute(
            "INSERT INTO ns.entries"
            " (ns_id, entry_id, parent_id, name, name_key, kind, is_deleted, created_jid, last_jid)"
            " SELECT %s, i, greatest(1, i / 100), i, i, 'd', false, 1, 1 FROM generate_series(2, %s) i",
            [user.root_ns, MAX_ROWS_PER_TX],
        )
        await conn.execute(
            "UPDATE ns.namespaces SET next_entry_id = %s WHERE ns_id = %s",
            [MAX_ROWS_PER_TX + 1, user.root_ns],
        )
    batch = [Copy(from_path="/a", to_path="/b"), CreateFolder(path="/no room")]
    result = await user.write(*batch, key="k")
    assert result.head == 1 + MAX_ROWS_PER_TX
    assert [verdict.error and verdict.error.code for verdict in result.verdicts] == [None, "too_many_entries"]
    assert await user.write(*batch, key="k") == result
    with pytest.raises(IdempotencyMismatch):
        await user.write(Copy(from_path="/a", to_path="/c"), key="k")
    found = await services.search.search(user.caller, Search(query="9999", path="/b"))
    assert [entry.path_display for entry in found.matches] == ["/b/99/9999"]
    await user.ok(CreateFolder(path="/a/one more"))
    assert await user.refused(Copy(from_path="/a", to_path="/c")) == "too_many_entries"
    assert (await user.write(Delete(path="/nothing"))).head == result.head + 1


async def test_old_contents_come_back(services: Services):
    user = await services.user()
    one = await user.ok(await user.put("/d/f", b"1", client_modified="2020-02-02T02:02:02Z"))
    two = await user.ok(await user.put("/d/f", b"22", **OVER))
    back = await user.ok(Restore(path="/d/f", rev=one.rev))
    assert (back.id, back.size, back.content_hash) == (one.id, 1, one.content_hash)
    assert back.client_modified == "2020-02-02T02:02:02Z"
    assert back.rev not in (one.rev, two.rev)
    assert await services.reads.get_block_list(user.caller, back.rev, 0) == (
        await services.reads.get_block_list(user.caller, one.rev, 0)
    )
    for rev in (one.rev, back.rev):
        (verdict,) = (await user.write(Restore(path=one.id, rev=rev))).verdicts
        assert (verdict.changed, verdict.metadata) == (False, back)
    await user.ok(Delete(path="/d/f"))
    deleted = await services.history.list_revisions(user.caller, ListRevisions(path="/d/f"))
    revived = await user.ok(Restore(path="/d/f", rev=deleted.entries[1].rev))
    assert (revived.id, revived.size, revived.path_display) == (one.id, 2, "/d/f")
    found = await services.history.list_revisions(user.caller, ListRevisions(path=one.id))
    assert not found.is_deleted
    assert [entry.rev for entry in found.entries] == [revived.rev, back.rev, two.rev, one.rev]
    assert await used(user) == 2


@pytest.mark.parametrize("is_paid", [True, False])
async def test_what_is_revived_from_a_deleted_folder_is_counted_once(services: Services, is_paid: bool):
    user = await services.user()
    f = await user.ok(await user.put("/d/e/f", b"12345"))
    small = await user.ok(await user.put("/d/e/f", b"1", **OVER))
    await user.ok(await user.put("/d/e/g", b"123"))
    h = await user.ok(await user.put("/d/h", b"1234567"))
    await user.ok(Delete(path="/d/h"))
    await user.ok(Delete(path="/d"))
    if is_paid:
        await pay(user)
        assert await used(user) == 0
    revived = await user.ok(Restore(path=f.id, rev=f.rev))
    assert (revived.id, revived.path_display) == (f.id, "/d/e/f")
    assert (await user.ok(Restore(path="/elsewhere/h", rev=h.rev))).id == h.id
    assert set(await listing(user)) == {"/d", "/d/e", "/d/e/f", "/elsewhere", "/elsewhere/h"}
    assert await used(user) == 5 + 7 + (0 if is_paid else 3)
    await pay(user)
    assert await used(user) == 5 + 7
    # It dies with its new folder, and not with the old one.
    await user.write(Delete(path="/d"), Restore(path="/back", rev=small.rev))
    await pay(user)
    assert await used(user) == 1 + 7


async def test_places_that_a_file_cannot_come_back_to(services: Services):
    user = await services.user()
    f, g = await user.ok(await user.put("/f", b"1")), await user.ok(await user.put("/g", b"2"))
    await user.ok(await user.put("/f", b"3", **OVER))
    await user.ok(Move(from_path="/f", to_path="/moved"))
    again = await user.ok(Restore(path="/f", rev=f.rev))
    assert again.id != f.id
    assert await user.refused(Restore(path="/g", rev=f.rev)) == "not_found"
    assert await user.refused(Restore(path=g.id, rev=f.rev)) == "not_found"
    await user.ok(Delete(path="/moved"))
    taken = (await user.write(Restore(path="/g", rev=f.rev))).verdicts[0].error
    assert (taken.code, taken.details) == ("conflict/file", {"id": g.id, "rev": g.rev})
    await user.ok(CreateFolder(path="/d"))
    assert await user.refused(Restore(path="/d", rev=f.rev)) == "conflict/folder"
    assert await user.refused(Restore(path="/g/x", rev=f.rev)) == "conflict/file_ancestor"
    assert await user.refused(Restore(path="", rev=f.rev)) == "malformed_path"
    assert await user.refused(Restore(path="/x", rev="no rev")) == "malformed_id"


async def test_what_is_not_the_callers_is_not_there(services: Services):
    user, other = await services.user(), await services.user("bob@example.org", "Bob")
    theirs = await other.ok(await other.put("/f", b"1"))
    mine = await user.ok(await user.put("/f", b"1"))
    for rev in (theirs.rev, format_rev(user.root_ns, Jid(77)), format_rev(NsId(5), Jid(1))):
        verdict = (await user.write(Restore(path="/f", rev=rev))).verdicts[0]
        assert verdict.error.code == "not_found"
    for operation in (
        Restore(path=theirs.id, rev=theirs.rev),
        Restore(path=theirs.id, rev=mine.rev),
        Copy(from_path=theirs.id, to_path=f"ns:{other.root_ns}/x"),
    ):
        with pytest.raises(NotFound):
            await user.write(operation)
    assert await user.refused(Copy(from_path=theirs.id, to_path="/x")) == "bad_request"
    assert await user.refused(Copy(from_path="/f", to_path=f"ns:{other.root_ns}/x")) == "bad_request"


async def test_a_guard_looks_so_far_and_no_further(services: Services, fresh_cluster: FreshCluster):
    user = await services.user()
    await user.write(CreateFolder(path="/seen"), CreateFolder(path="/old"))
    dsn = fresh_cluster.shard_dsns[services.router.placement(user.root_ns).shard]
    # As many changes of others as a guard looks at, without waiting for them to be made.
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
        await conn.execute(
            "INSERT INTO ns.server_file_journal (ns_id, jid, entry_id, parent_id, prev_jid, at_us, op, kind,"
            " is_deleted, name, old_path)"
            " SELECT ns_id, 2 + i, 2, 0, 1 + i, at_us, 'm', 'd', false, name, '/old'"
            " FROM ns.server_file_journal, generate_series(1, %s) i WHERE ns_id = %s AND jid = 2",
            [MAX_CHANGES_LOOKED_AT, user.root_ns],
        )
        head = 2 + MAX_CHANGES_LOOKED_AT
        await conn.execute(
            "UPDATE ns.entries SET last_jid = %s WHERE ns_id = %s AND entry_id = 2", [head, user.root_ns]
        )
        await conn.execute("UPDATE ns.namespaces SET head = %s WHERE ns_id = %s", [head, user.root_ns])
    assert await user.refused(Delete(path="/seen", seen_jid=1)) == "conflict/changed"
    assert await user.refused(Delete(path="/old", seen_jid=2)) == "conflict/changed"
    result = await user.write(Delete(path="/old", seen_jid=head), Delete(path="/seen", seen_jid=2))
    assert [verdict.error for verdict in result.verdicts] == [None, None]
