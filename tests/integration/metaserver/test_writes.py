"""Writing to a namespace's tree: modes, conflicts, autorename, moves, deletes, idempotency."""

import pytest

from tests.support.services import Services
from wire.api import CreateFolder, Delete, ListFolder, Move, WriteMode
from wire.errors import IdempotencyMismatch, NotFound, TooManyEntries


async def listing(user, path="", recursive=False):
    result = await user.services.reads.list_folder(user.caller, ListFolder(path=path, recursive=recursive))
    entries = list(result.entries)
    while result.has_more:
        result = await user.services.reads.list_folder_continue(user.caller, result.cursor)
        entries += result.entries
    return entries


async def test_a_file_is_committed_and_found_again(services: Services):
    user = await services.user()
    meta = await user.ok(await user.put("/Docs/Été.txt", b"hello"))
    assert (meta.path_display, meta.size, meta.jid) == ("/Docs/Été.txt", 5, 2)
    again = await services.reads.get_metadata(user.caller, "/docs/éTÉ.TXT")
    assert again == meta
    assert await services.reads.get_metadata(user.caller, meta.id) == meta
    assert [e.path_display for e in await listing(user)] == ["/Docs"]
    assert [e.path_display for e in await listing(user, "/docs")] == ["/Docs/Été.txt"]
    blocks = await services.reads.get_block_list(user.caller, meta.rev, 0)
    assert blocks.total == 1


async def test_modes_and_conflicts(services: Services):
    user = await services.user()
    first = await user.ok(await user.put("/a.txt", b"one"))
    assert await user.refused(await user.put("/a.txt", b"two")) == "conflict/file"
    same = await user.write(await user.put("/A.TXT", b"one"))
    assert same.verdicts[0].changed is False
    assert same.verdicts[0].metadata == first
    assert await user.refused(await user.put("/a.txt", b"one", strict_conflict=True)) == "conflict/file"
    second = await user.ok(await user.put("/A.txt", b"two", mode=WriteMode.UPDATE, rev=first.rev))
    assert second.id == first.id
    assert second.name == "a.txt"
    lost = await user.put("/a.txt", b"three", mode=WriteMode.UPDATE, rev=first.rev)
    assert await user.refused(lost) == "conflict/file"
    copy = await user.ok(
        await user.put("/a.txt", b"three", mode=WriteMode.UPDATE, rev=first.rev, autorename=True)
    )
    assert copy.name == "a (Ada's conflicted copy).txt"
    renamed = await user.ok(await user.put("/a.txt", b"four", autorename=True))
    assert renamed.name == "a (1).txt"
    found = await user.write(await user.put("/a.txt", b"four", autorename=True))
    assert found.verdicts[0].changed is False
    assert await user.refused(await user.put("/a.txt/b", b"x")) == "conflict/file_ancestor"
    await user.ok(CreateFolder(path="/dir"))
    assert await user.refused(await user.put("/dir", b"x")) == "conflict/folder"
    assert await user.refused(CreateFolder(path="/DIR")) == "conflict/folder"
    assert (await user.ok(CreateFolder(path="/DIR", autorename=True))).name == "DIR (1)"
    over = await user.ok(await user.put("/a.txt", b"five", mode=WriteMode.OVERWRITE))
    assert over.id == first.id


async def test_absent_blocks_are_listed(services: Services):
    user, other = await services.user(), await services.user("bob@example.org", "Bob")
    operation = await other.put("/b", b"bob's")
    verdict = (await user.write(operation)).verdicts[0]
    assert verdict.error.code == "blocks_absent"
    assert verdict.error.details == {"hashes": operation.blocks, "count": 1}


async def test_moves(services: Services):
    user = await services.user()
    f = await user.ok(await user.put("/x/y/f", b"1"))
    x = await services.reads.get_metadata(user.caller, "/x")
    y = await services.reads.get_metadata(user.caller, "/x/y")
    assert await user.refused(Move(from_path="/x", to_path="/x/y/z")) == "cant_move_folder_into_itself"
    assert await user.refused(Move(from_path="/x", to_path="/x/z")) == "cant_move_folder_into_itself"
    assert await user.refused(Move(from_path=x.id, to_path=f"{y.id}/q/z")) == "cant_move_folder_into_itself"
    moved = await user.ok(Move(from_path=y.id, to_path="/Y"))
    assert (moved.id, moved.path_display) == (y.id, "/Y")
    assert (await services.reads.get_metadata(user.caller, f.id)).path_display == "/Y/f"
    assert (await user.ok(Move(from_path="/Y", to_path="/y"))).name == "y"
    result = await user.write(Move(from_path="/y", to_path="/y"))
    assert result.verdicts[0].changed is False
    await user.ok(await user.put("/g", b"2"))
    assert await user.refused(Move(from_path="/g", to_path="/y")) == "conflict/folder"
    assert (await user.ok(Move(from_path="/g", to_path="/Y", autorename=True))).name == "Y (1)"


async def test_names_change_hands_within_a_batch(services: Services):
    user = await services.user()
    a, b = await user.ok(await user.put("/a", b"a")), await user.ok(await user.put("/b", b"b"))
    result = await user.write(
        Move(from_path=a.id, to_path="/t"),
        Move(from_path=b.id, to_path="/a"),
        Move(from_path=a.id, to_path="/b"),
        Delete(path="/b"),
        await user.put("/b", b"c"),
        await user.put("/n", b"n"),
        Move(from_path="/n", to_path="/m/n"),
        Delete(path="/m"),
    )
    assert [v.error for v in result.verdicts] == [None] * 8
    names = {e.path_display: e.id for e in await listing(user)}
    assert set(names) == {"/a", "/b"}
    assert names["/a"] == b.id
    assert names["/b"] not in (a.id, b.id)


async def test_deletes_are_recursive_and_guarded(services: Services):
    user = await services.user()
    f = await user.ok(await user.put("/d/e/f", b"1"))
    seen = f.jid
    g = await user.ok(await user.put("/d/e/f", b"2", mode=WriteMode.UPDATE, rev=f.rev))
    assert await user.refused(Delete(path="/d", seen_jid=seen)) == "conflict/changed"
    assert await user.refused(Delete(path=f.id, parent_rev=f.rev)) == "conflict/changed"
    assert (await user.ok(Delete(path="/d", seen_jid=g.jid))).path_display == "/d"
    with pytest.raises(NotFound):
        await services.reads.get_metadata(user.caller, f.id)
    assert (
        await user.refused(await user.put(f"{f.id}", b"3", mode=WriteMode.UPDATE, rev=g.rev)) == "not_found"
    )
    again = await user.ok(await user.put("/d/e/f", b"3"))
    assert again.id != f.id


async def test_an_update_of_a_deleted_file_creates(services: Services):
    user = await services.user()
    f = await user.ok(await user.put("/f", b"1"))
    await user.ok(Delete(path="/f"))
    new = await user.ok(await user.put(f.id, b"2", mode=WriteMode.UPDATE, rev=f.rev))
    assert (new.name, new.id == f.id) == ("f", False)
    await user.ok(Delete(path="/f"))
    strict = await user.put("/f", b"3", mode=WriteMode.UPDATE, rev=f.rev, strict_conflict=True)
    assert await user.refused(strict) == "conflict/file"


async def test_a_key_acts_once(services: Services):
    user = await services.user()
    operation = await user.put("/f", b"1")
    first = await user.write(operation, key="k1")
    assert await user.write(operation, key="k1") == first
    with pytest.raises(IdempotencyMismatch):
        await user.write(Delete(path="/f"), key="k1")
    # what changed nothing leaves no row: the key is free
    assert (await user.write(Delete(path="/nothing"), key="k2")).verdicts[0].error is not None
    await user.write(Delete(path="/f"), key="k2")


async def test_limits_and_strangers(services: Services):
    user, other = await services.user(), await services.user("bob@example.org", "Bob")
    f = await user.ok(await user.put("/f", b"1"))
    with pytest.raises(NotFound):
        await other.write(Delete(path=f.id))
    with pytest.raises(NotFound):
        await services.reads.get_metadata(other.caller, f.id)
    with pytest.raises(TooManyEntries):
        await user.write(*[Delete(path="/x")] * 1001)
    result = await user.write(*[CreateFolder(path=f"/d{i}") for i in range(1000)])
    assert result.head == 1001
    assert len(await listing(user)) == 1001
