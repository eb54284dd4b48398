"""Revisions of files, and metadata by rev and in batches."""

import pytest

from tests.support.services import Services, User
from wire.api import MAX_REVISIONS, CreateFolder, Delete, ListRevisions, Move, WriteMode
from wire.errors import MalformedPath, NotAFile, NotFound, TooManyEntries
from wire.ids import EntryId, Jid, NsId, format_file_id, format_rev, parse_file_id, parse_rev

OVER = {"mode": WriteMode.OVERWRITE}


async def revs_of(user: User, path: str, **how):
    return await user.services.history.list_revisions(user.caller, ListRevisions(path=path, **how))


async def test_the_revs_of_a_file_newest_first(services: Services):
    user = await services.user()
    made = [await user.ok(await user.put("/a/f", bytes([i]) * (i + 1), **OVER)) for i in range(5)]
    await user.ok(Move(from_path="/a/f", to_path="/b/g"))
    made.append(await user.ok(await user.put("/b/g", b"after the move", **OVER)))
    await user.ok(Move(from_path="/b", to_path="/c"))
    found = await revs_of(user, "/C/g")
    assert not found.is_deleted
    assert not found.has_more
    assert [entry.rev for entry in found.entries] == [meta.rev for meta in reversed(made)]
    assert [entry.size for entry in found.entries] == [14, 5, 4, 3, 2, 1]
    assert {(e.id, e.name, e.path_display) for e in found.entries} == {(made[0].id, "g", "/c/g")}
    assert [(e.client_modified, e.server_modified, e.content_hash) for e in found.entries] == [
        (m.client_modified, m.server_modified, m.content_hash) for m in reversed(made)
    ]
    assert await revs_of(user, made[0].id) == found

    first = await revs_of(user, "/c/g", limit=2)
    assert (len(first.entries), first.has_more) == (2, True)
    rest = await revs_of(user, "/c/g", limit=4, before_rev=first.entries[-1].rev)
    assert (first.entries + rest.entries, rest.has_more) == (found.entries, False)
    nothing = await revs_of(user, "/c/g", before_rev=found.entries[-1].rev)
    assert (nothing.entries, nothing.has_more) == ([], False)


async def test_all_the_limits_of_a_history(services: Services):
    user = await services.user()
    puts = [await user.put("/f", data, **OVER) for data in (b"1", b"2")]
    await user.write(*[puts[i % 2] for i in range(MAX_REVISIONS + 1)])
    found = await revs_of(user, "/f", limit=MAX_REVISIONS)
    assert (len(found.entries), found.has_more) == (MAX_REVISIONS, True)
    last = await revs_of(user, "/f", limit=1, before_rev=found.entries[-1].rev)
    assert (len(last.entries), last.has_more, last.entries[0].jid) == (1, False, 1)


async def test_a_deleted_file_by_its_path_and_by_its_id(services: Services):
    user = await services.user()
    f = await user.ok(await user.put("/d/e/f", b"1"))
    g = await user.ok(await user.put("/d/e/f", b"22", **OVER))
    await user.ok(Delete(path="/d/e/f"))
    found = await revs_of(user, "/D/E/F")
    assert (found.is_deleted, [e.rev for e in found.entries]) == (True, [g.rev, f.rev])
    assert isinstance(found.server_deleted, str)
    assert found.entries[0].path_display == "/d/e/f"
    # A folder above it dies as well, and another of its name takes its place.
    await user.ok(Delete(path="/d"))
    await user.ok(await user.put("/d/e/other", b"x"))
    assert await revs_of(user, "/d/e/f") == found
    assert await revs_of(user, f.id) == found
    # What is there now comes first; by id the old one is found still.
    new = await user.ok(await user.put("/d/e/f", b"333"))
    assert [e.rev for e in (await revs_of(user, "/d/e/f")).entries] == [new.rev]
    assert await revs_of(user, f.id) == found
    # Of several dead ones the one that was made last; below a dead folder without a death of its own.
    await user.ok(Delete(path="/d/e"))
    below = await revs_of(user, "/d/e/f")
    assert ([e.rev for e in below.entries], below.is_deleted) == ([new.rev], True)
    assert not isinstance(below.server_deleted, str)
    # A folder has the name now: the file that had it is found nevertheless.
    await user.ok(CreateFolder(path="/d/e/f"))
    assert await revs_of(user, "/d/e/f") == below
    with pytest.raises(NotAFile):
        await revs_of(user, "/d/e")
    with pytest.raises(NotAFile):
        await revs_of(user, "")


async def test_histories_that_are_not_there(services: Services):
    user, other = await services.user(), await services.user("bob@example.org", "Bob")
    _f, g = await user.ok(await user.put("/f", b"1")), await user.ok(await user.put("/g", b"2"))
    theirs = await other.ok(await other.put("/f", b"1"))
    nowhere = format_file_id(user.root_ns, EntryId(77))
    for path in ("/nothing", "/f/below", nowhere, theirs.id, f"ns:{other.root_ns}/f", "ns:5/f"):
        with pytest.raises(NotFound):
            await revs_of(user, path)
    for rev in (g.rev, theirs.rev, format_rev(user.root_ns, Jid(9)), format_rev(NsId(5), Jid(1))):
        with pytest.raises(NotFound):
            await revs_of(user, "/f", before_rev=rev)


async def test_metadata_by_rev(services: Services):
    user, other = await services.user(), await services.user("bob@example.org", "Bob")
    old = await user.ok(await user.put("/f", b"1"))
    new = await user.ok(await user.put("/f", b"22", **OVER))
    await user.ok(Move(from_path="/f", to_path="/sub/g"))
    get = services.reads.get_metadata
    then = await get(user.caller, f"rev:{old.rev}")
    assert (then.rev, then.size, then.path_display, then.id) == (old.rev, 1, "/sub/g", old.id)
    assert (then.content_hash, then.server_modified) == (old.content_hash, old.server_modified)
    assert (await get(user.caller, f"rev:{new.rev}")).rev == new.rev
    ns_id = user.root_ns
    for rev in (format_rev(ns_id, Jid(3)), format_rev(ns_id, Jid(0)), format_rev(ns_id, Jid(2**63 - 1))):
        with pytest.raises(NotFound):  # a move, nothing, nothing yet
            await get(user.caller, f"rev:{rev}")
    with pytest.raises(NotFound):
        await get(other.caller, f"rev:{old.rev}")
    await user.ok(Delete(path="/sub"))
    with pytest.raises(NotFound):
        await get(user.caller, f"rev:{old.rev}")


async def test_many_metadata_at_once(services: Services):
    user, other = await services.user(), await services.user("bob@example.org", "Bob")
    await user.write(*[await user.put(f"/d{i % 7}/f{i}", b"1") for i in range(40)])
    f = await user.ok(await user.put("/d0/f0", b"22", **OVER))
    dead = await user.ok(Delete(path="/d1/f1"))
    theirs = await other.ok(await other.put("/x", b"1"))
    paths = [f"/D{i % 7}/F{i}" for i in range(40)]
    paths += [f.id, f"rev:{f.rev}", f"{f.parent_id}/f7", "/d0", dead.id, theirs.id, f"rev:{theirs.rev}"]
    paths += ["", "no slash", "rev:x", "id:x", f"ns:{other.root_ns}/x", "/d0/f0/below", "ns:5"]
    found = (await services.reads.get_metadata_batch(user.caller, paths)).entries
    names = [v.metadata.name if v.metadata else v.error.code for v in found]
    assert names[:40] == [f"f{i}" if i != 1 else "not_found" for i in range(40)]
    assert names[40:45] == ["f0", "f0", "f7", "d0", "not_found"]
    assert names[45:47] == ["not_found"] * 2
    assert names[47:] == ["malformed_path"] * 2 + ["malformed_id"] * 2 + ["not_found"] * 3
    for path, verdict in zip(paths, found, strict=True):
        if verdict.metadata is not None:
            assert verdict.metadata == await services.reads.get_metadata(user.caller, path)


async def test_the_limits_of_many_metadata(services: Services):
    user = await services.user()
    get = services.reads.get_metadata_batch
    assert len((await get(user.caller, ["/x"] * 1000)).entries) == 1000
    assert len((await get(user.caller, [f"ns:{i}/x" for i in range(1, 101)])).entries) == 100
    for paths in ([], ["/x"] * 1001, [f"ns:{i}/x" for i in range(1, 102)]):
        with pytest.raises(TooManyEntries):
            await get(user.caller, paths)
    with pytest.raises(MalformedPath):
        await services.reads.get_metadata(user.caller, "")
    assert parse_rev((await user.ok(await user.put("/f", b"1"))).rev)[0] == user.root_ns
    assert parse_file_id(format_file_id(user.root_ns, EntryId(1)))[0] == user.root_ns
