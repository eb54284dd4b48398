"""Recursive listings of folders, page by page, while nothing or something changes; searches."""

import asyncio

import pytest

from metaserver.storage import search as search_rows
from tests.support.services import Services, User
from wire.api import CreateFolder, Delete, ListFolder, Move, Search
from wire.cursors import MAX_CURSOR_CHARS
from wire.errors import InvalidCursor, ListingEnded, MalformedPath, NotAFolder, NotFound, TooDeep
from wire.names import MAX_NAME_CHARS


async def walk(user: User, path: str, limit: int = 500, **how):
    """All that a recursive listing tells, and how many pages that took."""
    reads = user.services.reads
    page = await reads.list_folder(user.caller, ListFolder(path=path, recursive=True, limit=limit, **how))
    entries, pages = list(page.entries), 1
    while page.has_more:
        assert len(page.entries) <= limit
        assert pages < 500
        page = await reads.list_folder_continue(user.caller, page.cursor)
        entries, pages = entries + page.entries, pages + 1
    with pytest.raises(ListingEnded):
        await reads.list_folder_continue(user.caller, page.cursor)
    return entries, pages


class Pages:
    """A listing under way."""

    def __init__(self, user: User, path: str, limit: int):
        self.user, self.cursor, self.has_more = user, "", True
        self.request = ListFolder(path=path, recursive=True, limit=limit)

    async def next(self) -> list[str]:
        """The paths of the next page."""
        reads, caller = self.user.services.reads, self.user.caller
        page = await (
            reads.list_folder_continue(caller, self.cursor)
            if self.cursor
            else reads.list_folder(caller, self.request)
        )
        self.cursor, self.has_more = page.cursor, page.has_more
        return [entry.path_display for entry in page.entries]

    async def until(self, path: str) -> list[str]:
        """The paths up to the page that tells of one."""
        told: list[str] = []
        while path not in told:
            told += await self.next()
        return told

    async def rest(self) -> list[str]:
        """The paths of all further pages."""
        told: list[str] = []
        while self.has_more:
            told += await self.next()
        return told


PATHS = [
    "/R/a",
    "/R/a/1",
    "/R/a/2",
    "/R/a/deep/x/y/z",
    "/R/b",
    "/R/c/1",
    "/R/c/2",
    "/R/d",
    "/R/Été/é",
    "/S/x",
]
BELOW = ["/R/a", "/R/a/1", "/R/a/2", "/R/a/deep", "/R/a/deep/x", "/R/a/deep/x/y", "/R/a/deep/x/y/z", "/R/b",
         "/R/c", "/R/c/1", "/R/c/2", "/R/d", "/R/Été", "/R/Été/é"]  # fmt: skip


async def tree(services: Services, email: str = "ada@example.org") -> User:
    user = await services.user(email)
    await user.write(*[CreateFolder(path=path) for path in PATHS])
    return user


async def test_a_walk_tells_all_in_order_whatever_the_page(services: Services):
    user = await tree(services)
    f = await user.ok(await user.put("/R/c/3", b"12345"))
    want = sorted([*BELOW, "/R/c/3"], key=lambda path: path.casefold().split("/"))
    for limit in (1, 2, 3, 5, 500):
        entries, pages = await walk(user, "/r", limit, include_blocks=True)
        assert [entry.path_display for entry in entries] == want
        # A step for each entry, and one more for each folder left.
        assert pages == -(-(15 + 15) // limit) or limit == 500
    (file,) = [entry for entry in entries if entry.path_display == "/R/c/3"]
    assert (file.id, file.rev, file.size) == (f.id, f.rev, 5)
    assert len(file.blocks) == 1
    folder = await services.reads.get_metadata(user.caller, "/R/a/deep")
    assert [e.path_display for e in (await walk(user, folder.id))[0]] == BELOW[4:7]
    assert (await walk(user, "/S/x"))[0] == []


async def test_a_walk_while_the_tree_changes(services: Services):
    user = await tree(services)
    pages = Pages(user, "/R", 1)
    told = await pages.until("/R/a/deep/x")
    # The folder that is being read is renamed, with all above it: the walk goes on in it.
    await user.write(Move(from_path="/R/a/deep", to_path="/R/a/below"), Move(from_path="/R", to_path="/Q"))
    told = await pages.until("/Q/a/below/x/y")
    # It moves to where the walk has not been: told again, from its beginning.
    await user.write(Move(from_path="/Q/a/below", to_path="/Q/c/below"))
    told = await pages.rest()
    assert told == [
        "/Q/b", "/Q/c", "/Q/c/1", "/Q/c/2", "/Q/c/below", "/Q/c/below/x", "/Q/c/below/x/y",
        "/Q/c/below/x/y/z", "/Q/d", "/Q/Été", "/Q/Été/é",
    ]  # fmt: skip


async def test_a_walk_leaves_what_is_deleted_or_has_left(services: Services):
    user = await tree(services)
    pages = Pages(user, "/R", 1)
    await pages.until("/R/a/deep/x/y")
    await user.write(Delete(path="/R/a/deep/x"), CreateFolder(path="/R/a/deep/x/new"))
    # Another folder has the name: it comes too late.
    assert await pages.until("/R/c") == ["/R/b", "/R/c"]
    await user.write(Move(from_path="/R/c", to_path="/S/c"))
    assert await pages.rest() == ["/R/d", "/R/Été", "/R/Été/é"]


async def test_a_walk_whose_folder_goes(services: Services):
    user = await tree(services)
    pages, others = Pages(user, "/R/a/deep", 1), Pages(user, "/R/a", 1)
    await pages.next()
    await others.next()
    await user.write(Delete(path="/R"))
    for listing in (pages, others):
        with pytest.raises(NotFound):
            await listing.next()


async def test_a_walk_while_others_write(services: Services):
    user = await tree(services)
    steady = [f"/R/n{i}/{j}" for i in range(12) for j in range(3)]
    await user.write(*[CreateFolder(path=path) for path in steady])
    stop = asyncio.Event()

    async def disturb() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            place = f"/R/{'zabm'[number % 4]}{number % 5}"
            await user.write(
                CreateFolder(path=f"{place}/x/y"),
                Move(from_path="/R/z0", to_path=f"/R/n3/{number}", autorename=True),
                Move(from_path="/R/n3", to_path=f"/R/{number % 3}/n3"),
                Move(from_path=f"/R/{number % 3}/n3", to_path="/R/n3"),
                Delete(path=f"/R/{'zabm'[(number + 2) % 4]}{number % 5}"),
            )

    writing = asyncio.create_task(disturb())
    try:
        for limit in (2, 7, 50):
            entries, _ = await walk(user, "/R", limit)
            told = [entry.path_display for entry in entries]
            for path in steady:
                if not path.startswith("/R/n3"):
                    assert told.count(path) == 1, path
    finally:
        stop.set()
        await writing


async def test_a_walk_holds_any_path_that_posix_can_name_and_refuses_what_is_deeper(services: Services):
    user = await services.user()
    for name, depth in (("n" * 7, 511), ("é" * 255, 15)):
        await user.ok(CreateFolder(path="/top/" + "/".join([name] * depth)))
        entries, _ = await walk(user, "/top", 400)
        assert len(entries) == depth
        await user.ok(Delete(path="/top"))
    await user.ok(CreateFolder(path="/top/" + "/".join(["n" * 250] * 70)))
    first = await services.reads.list_folder(user.caller, ListFolder(path="/top", recursive=True, limit=40))
    assert len(first.cursor) < MAX_CURSOR_CHARS
    with pytest.raises(TooDeep):
        await services.reads.list_folder_continue(user.caller, first.cursor)


async def search(user: User, query: str, **how):
    """All that a search finds, and how many pages that took."""
    service = user.services.search
    page = await service.search(user.caller, Search(query=query, **how))
    found, pages = list(page.matches), 1
    while page.has_more:
        page = await service.search_continue(user.caller, page.cursor)
        found, pages = found + page.matches, pages + 1
    return [entry.path_display for entry in found], pages


async def test_a_search_finds_live_names_whatever_their_case(services: Services, monkeypatch):
    user = await services.user()
    f = await user.ok(await user.put("/Docs/Résumé.TXT", b"1"))
    await user.write(*[CreateFolder(path=p) for p in ("/docs/old/resume", "/RÉSUMÉS", "/dead/résumé", "/%_")])
    await user.ok(Delete(path="/dead"))
    assert await search(user, "résumé") == (["/Docs/Résumé.TXT", "/RÉSUMÉS"], 1)
    assert await search(user, "re\u0301sumE\u0301.t") == (["/Docs/Résumé.TXT"], 1)
    assert (await search(user, "docs", path="/docs"))[0] == []
    assert (await search(user, "u", path="/docs"))[0] == ["/Docs/Résumé.TXT", "/Docs/old/resume"]
    assert (await search(user, "u", path=f.parent_id))[0] == ["/Docs/Résumé.TXT", "/Docs/old/resume"]
    assert (await search(user, "%"))[0] == ["/%_"]
    assert (await search(user, "nothing"))[0] == []
    assert (await search(user, "/"))[0] == []
    # Page by page, however few rows a page looks at.
    for rows, candidates, limit in ((1, 2000, 100), (3, 2000, 1), (100, 1, 100), (100, 2, 1), (2, 2, 2)):
        monkeypatch.setattr(search_rows, "MAX_SEARCH_ROWS", rows)
        monkeypatch.setattr(search_rows, "MAX_CANDIDATES", candidates)
        found, pages = await search(user, "é", limit=limit)
        assert found == ["/Docs/Résumé.TXT", "/RÉSUMÉS"]
        assert pages > 1 or rows * limit > 100


async def test_searches_that_are_refused(services: Services):
    user, other = await services.user(), await services.user("bob@example.org", "Bob")
    f = await user.ok(await user.put("/d/f", b"1"))
    service = services.search
    with pytest.raises(NotAFolder):
        await service.search(user.caller, Search(query="f", path="/d/f"))
    for path in ("/nothing", f"ns:{other.root_ns}", "ns:5"):
        with pytest.raises(NotFound):
            await service.search(user.caller, Search(query="f", path=path))
    with pytest.raises(MalformedPath):
        await service.search(user.caller, Search(query="f", path="d"))
    page = await service.search(user.caller, Search(query="f" * MAX_NAME_CHARS, path="/d"))
    listed = await services.reads.list_folder(user.caller, ListFolder())
    for caller, cursor in ((other.caller, page.cursor), (user.caller, listed.cursor), (user.caller, "x")):
        with pytest.raises(InvalidCursor):
            await service.search_continue(caller, cursor)
    with pytest.raises(InvalidCursor):
        await services.reads.list_folder_continue(user.caller, page.cursor)
    await user.ok(Delete(path=f.parent_id))
    with pytest.raises(NotFound):
        await service.search_continue(user.caller, page.cursor)
