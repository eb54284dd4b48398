"""What random histories rarely meet, or never: directed cases of the journal's rules."""

from collections.abc import AsyncIterator
from dataclasses import dataclass

import psycopg
import pytest

from metaserver.services.writes import parse_write
from sharding.tx import Tx
from tests.journal.reader import Reader, shown_of
from tests.journal.truth import Truth
from tests.support.databases import FreshCluster
from tests.support.services import Services, User
from wire.api import CreateFolder, Delete, ListFolder, ListFolderResult, Move, Tag, WriteMode
from wire.cursors import Cursor, Following, Position, Scanning, format_cursor, parse_cursor
from wire.errors import CursorReset, Forbidden, InvalidCursor, ListingEnded, NotFound
from wire.ids import EntryId, Jid, NsId, pack_device_id, parse_file_id, parse_rev

JUMP = 2**32


@dataclass
class Place:
    """A user's root namespace, its truth and its database."""

    user: User
    truth: Truth
    conn: psycopg.AsyncConnection

    async def write(self, *operations) -> list:
        """Metadata of operations that all succeed, in one batch."""
        verdicts = (await self.user.write(*operations)).verdicts
        assert [v.error for v in verdicts] == [None] * len(verdicts)
        await self.truth.catch_up(self.conn)
        return [v.metadata for v in verdicts]

    def reader(self, limit: int = 500, folder: int | None = None) -> Reader:
        """A reader of the whole namespace, or of a folder's children."""
        return Reader(self.user, self.user.root_ns, folder, limit)

    async def read_all(self, reader: Reader) -> int:
        """Read until the trees are compared; how many pages that took."""
        pages = 1
        while not await reader.read_page(self.truth):
            assert not reader.is_over
            pages += 1
        return pages

    async def page(self, **how) -> ListFolderResult:
        """The first page of a listing."""
        return await self.user.services.reads.list_folder(self.user.caller, ListFolder(**how))

    async def more(self, cursor: str) -> ListFolderResult:
        """The next page."""
        return await self.user.services.reads.list_folder_continue(self.user.caller, cursor)

    def cursor(self, *positions: Position, limit: int = 500) -> str:
        """A cursor of our own making."""
        keys = self.user.services.cursor_keys
        return format_cursor(Cursor(self.user.caller.account_id, positions, limit), keys)

    def parse(self, cursor: str) -> Cursor:
        """What a cursor says."""
        return parse_cursor(cursor, self.user.services.cursor_keys)


def ids(result: ListFolderResult) -> list[tuple[str, int]]:
    """Tag and entry of each piece of news."""
    return [(entry.tag.value, parse_file_id(entry.id)[1]) for entry in result.entries]


def entry_of(meta) -> int:
    """The entry that metadata is of."""
    return parse_file_id(meta.id)[1]


@pytest.fixture
async def place(services: Services, fresh_cluster: FreshCluster) -> AsyncIterator[Place]:
    user = await services.user()
    dsn = fresh_cluster.shard_dsns[services.router.placement(user.root_ns).shard]
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
        yield Place(user, Truth(user.root_ns, pack_device_id(user.caller.device_id)), conn)


async def test_an_entry_below_a_deleted_folder_is_moved_out_by_a_later_page(place: Place):
    _f, x, _y = await place.write(
        CreateFolder(path="/f"), CreateFolder(path="/f/x"), CreateFolder(path="/f/x/y")
    )
    reader = place.reader(limit=1)
    await place.read_all(reader)
    await place.write(Move(from_path="/f/x", to_path="/tmp"))
    await place.write(Delete(path="/f"))
    await place.write(Move(from_path="/tmp", to_path="/x"))
    # The first row is no longer the last of its entry: an empty page, and more to come.
    assert not await reader.read_page(place.truth)
    assert entry_of(x) in reader.stage
    assert not await reader.read_page(place.truth)
    # /f is gone; what was below it waits in the stage, for nobody tells of y again.
    assert {entry_of(x), 3} <= set(reader.stage)
    assert await reader.read_page(place.truth)
    assert set(reader.stage) == {2, 3}


async def test_orphans_are_dropped_when_all_has_been_read(place: Place):
    await place.write(CreateFolder(path="/f/x/y"))
    reader = place.reader(limit=2)
    await place.read_all(reader)
    await place.write(Delete(path="/f"))
    await place.read_all(reader)
    assert reader.stage == {}


async def test_a_page_of_rows_that_do_not_count_is_empty_and_has_more(place: Place):
    await place.read_all(reader := place.reader(limit=2))
    await place.write(CreateFolder(path="/n"), CreateFolder(path="/m"))
    for name in "abcdef":
        await place.write(Move(from_path="/n", to_path=f"/{name}"), Move(from_path=f"/{name}", to_path="/n"))
    first = await place.more(reader.cursor)
    assert (first.jid, first.has_more, ids(first)) == (2, True, [("folder", 2)])
    second = await place.more(first.cursor)
    assert (second.jid, second.has_more, second.entries) == (4, True, [])
    await place.read_all(reader)


async def test_a_child_comes_before_its_parent(place: Place):
    await place.write(CreateFolder(path="/child"), CreateFolder(path="/parent"))
    await place.write(Move(from_path="/child", to_path="/parent/child"))
    reader = place.reader(limit=1)
    assert not await reader.read_page(place.truth)
    assert [shown[1] for shown in reader.stage.values()] == ["child"]
    await place.read_all(reader)


async def test_two_entries_hold_one_name_for_a_moment(place: Place):
    a, b = await place.write(CreateFolder(path="/a"), CreateFolder(path="/b"))
    await place.read_all(reader := place.reader(limit=1))
    await place.write(
        Move(from_path=a.id, to_path="/t"),
        Move(from_path=b.id, to_path="/a"),
        Move(from_path=a.id, to_path="/b"),
    )
    names = []
    while not await reader.read_page(place.truth):
        names.append(sorted(shown[1] for shown in reader.stage.values()))
    assert ["a", "a"] in names


async def test_a_rename_of_the_case_alone_shows(place: Place):
    (folder,) = await place.write(CreateFolder(path="/Été"))
    await place.read_all(reader := place.reader())
    (renamed,) = await place.write(Move(from_path="/ÉTÉ", to_path="/éTÉ"))
    assert (renamed.id, renamed.name) == (folder.id, "éTÉ")
    page = await place.more(reader.cursor)
    assert [(e.tag, e.name) for e in page.entries] == [(Tag.FOLDER, "éTÉ")]


async def test_a_folder_of_any_size_moves_and_goes_in_one_row(place: Place):
    await place.write(*[CreateFolder(path=f"/big/{i % 30}/{i}") for i in range(900)])
    await place.read_all(reader := place.reader())
    before = await _versions(place)
    await place.write(Move(from_path="/big", to_path="/b/huge"))
    assert place.truth.ops[-2:] == ["f", "m"]
    assert await place.read_all(reader) == 1
    await place.write(Delete(path="/b"))
    assert place.truth.ops[-1:] == ["d"]
    page = await place.more(reader.cursor)
    assert [tag for tag, _ in ids(page)] == ["deleted"]
    after = await _versions(place)
    assert sum(before[i] != after.get(i) for i in before) == 1, "only the moved folder's row was written"
    assert place.truth.tree == {}
    await place.truth.check_tables(place.conn)


async def _versions(place: Place) -> dict[int, str]:
    cursor = await place.conn.execute(
        "SELECT entry_id, ctid::text FROM ns.entries WHERE ns_id = %s", [place.user.root_ns]
    )
    return dict(await cursor.fetchall())


async def test_an_edit_touches_no_index(place: Place):
    (first,) = await place.write(await place.user.put("/f", b"1"))
    edit = await place.user.put("/f", b"2", mode=WriteMode.UPDATE, rev=first.rev)
    writes, who = place.user.services.writes, await place.user.services.access.identify(place.user.caller)

    async def write(tx: Tx) -> list[tuple[str, int, int]]:
        await writes.write_in_tx(tx, who, await parse_write([edit], who, None))
        cursor = await tx.conn.execute(
            "SELECT relname, n_tup_upd, n_tup_hot_upd FROM pg_stat_xact_user_tables"
            " WHERE relname IN ('entries', 'namespaces', 'outbox') ORDER BY relname"
        )
        return await cursor.fetchall()

    updated = await place.user.services.tx.run_tx([place.user.root_ns], "test", write)
    # A backend's counts may hold those of its last transactions too.
    assert [name for name, *_ in updated] == ["entries", "namespaces", "outbox"]
    assert all(count == hot >= 1 for _, count, hot in updated), updated
    query = "SELECT indexname FROM pg_indexes WHERE schemaname = 'ns' AND tablename = 'entries'"
    indexes = await (await place.conn.execute(query)).fetchall()
    assert sorted(indexes) == [("entries_by_name",), ("entries_deleted",), ("entries_pkey",)]


async def test_content_stays_in_its_first_row_whatever_is_renamed(place: Place):
    (f,) = await place.write(await place.user.put("/d/f", b"content"))
    for path in ("/d/g", "/h"):
        await place.write(Move(from_path=f.id, to_path=path))
    await place.write(Move(from_path="/d", to_path="/e"), Delete(path="/h"))
    cursor = await place.conn.execute(
        "SELECT jid, rev_jid, blocklist IS NOT NULL, old_path FROM ns.server_file_journal"
        " WHERE ns_id = %s AND entry_id = %s ORDER BY jid",
        [place.user.root_ns, entry_of(f)],
    )
    assert await cursor.fetchall() == [
        (2, 2, True, None),
        (3, 2, False, "/d/f"),
        (4, 2, False, "/d/g"),
        (6, 2, False, "/h"),
    ]
    assert parse_rev(f.rev) == (place.user.root_ns, 2)


async def test_a_row_that_has_lost_its_entry_reads_as_deleted(place: Place):
    gone, folder, child = await place.write(
        CreateFolder(path="/gone"), CreateFolder(path="/folder"), CreateFolder(path="/folder/child")
    )
    await place.read_all(reader := place.reader())
    await place.write(Move(from_path=child.id, to_path="/folder/kid"))
    await place.write(Delete(path=gone.id), Delete(path=folder.id))
    # What a purge will do: the rows of dead entries go, those of the journal stay as tombstones.
    await place.conn.execute(
        "DELETE FROM ns.entries WHERE ns_id = %s AND entry_id = ANY(%s)",
        [place.user.root_ns, [entry_of(gone), entry_of(folder)]],
    )
    page = await place.more(reader.cursor)
    assert ids(page) == [("deleted", 3), ("deleted", 1), ("deleted", 2)]
    listed = await place.page(recursive=True)
    assert (listed.entries, listed.has_more) == ([], False)
    with pytest.raises(NotFound):
        await place.user.services.reads.get_metadata(place.user.caller, child.id)
    refused = await place.user.refused(CreateFolder(path=f"{child.id}/x"))
    assert refused == "not_found"


async def test_cursors_and_a_lost_range(place: Place):
    await place.write(CreateFolder(path="/a"), CreateFolder(path="/b"))
    ns_id = place.user.root_ns
    await place.conn.execute(
        "UPDATE ns.namespaces SET head = head + %s, next_entry_id = next_entry_id + %s,"
        " lost_ranges = ARRAY[2::bigint, 2 + %s] WHERE ns_id = %s",
        [JUMP, JUMP, JUMP, ns_id],
    )
    at_old_head = await place.more(place.cursor(Position(ns_id, Following(Jid(2)))))
    assert (at_old_head.entries, at_old_head.restarted) == ([], False)
    below = await place.more(place.cursor(Position(ns_id, Following(Jid(1)))))
    assert (ids(below), below.restarted) == ([("folder", 2)], False)
    for state in (Following(Jid(3)), Following(Jid(JUMP)), Scanning(Jid(5), EntryId(1))):
        page = await place.more(place.cursor(Position(ns_id, state)))
        assert (ids(page), page.restarted) == ([("folder", 1), ("folder", 2)], True)
        assert (page.jid, page.has_more) == (JUMP + 2, False)
    result = await place.user.write(CreateFolder(path="/c"))
    assert result.head == JUMP + 3
    assert entry_of(result.verdicts[0].metadata) == JUMP + 3
    went_on = await place.more(at_old_head.cursor)
    assert (ids(went_on), went_on.has_more, went_on.jid) == ([("folder", JUMP + 3)], False, JUMP + 3)
    with pytest.raises(CursorReset):
        await place.more(place.cursor(Position(ns_id, Following(Jid(JUMP + 4)))))


async def test_a_reader_at_the_old_head_comes_to_rest_after_a_jump(place: Place):
    await place.write(CreateFolder(path="/a"))
    ns_id = place.user.root_ns
    await place.conn.execute(
        "UPDATE ns.namespaces SET head = head + %s, lost_ranges = ARRAY[1::bigint, 1 + %s] WHERE ns_id = %s",
        [JUMP, JUMP, ns_id],
    )
    page = await place.more(place.cursor(Position(ns_id, Following(Jid(1)))))
    assert (page.has_more, page.jid) == (False, JUMP + 1)


async def test_cursors_that_are_refused(place: Place, services: Services):
    (folder,) = await place.write(CreateFolder(path="/a/b"))
    ns_id = place.user.root_ns
    with pytest.raises(CursorReset):
        await place.more(place.cursor(Position(ns_id, Following(Jid(3)))))
    with pytest.raises(ListingEnded):
        await place.more((await place.page(path="/a", recursive=True)).cursor)
    with pytest.raises(ListingEnded):
        await place.more((await place.page(path=folder.id, recursive=True)).cursor)
    with pytest.raises(InvalidCursor):
        await place.more(place.cursor())
    other = await services.user("bob@example.org", "Bob")
    listed = await place.page(recursive=True)
    with pytest.raises(InvalidCursor):
        await services.reads.list_folder_continue(other.caller, listed.cursor)
    foreign = format_cursor(
        Cursor(other.caller.account_id, (Position(ns_id, Following(Jid(0))),), 10), services.cursor_keys
    )
    with pytest.raises(NotFound):
        await services.reads.list_folder_continue(other.caller, foreign)


async def test_the_children_of_a_folder(place: Place):
    f, _g, _x, y = await place.write(
        CreateFolder(path="/f"), CreateFolder(path="/g"), CreateFolder(path="/f/x"), CreateFolder(path="/f/y")
    )
    await place.read_all(reader := place.reader(limit=1, folder=entry_of(f)))
    await place.write(Move(from_path="/f/x", to_path="/g/x"), CreateFolder(path="/g/x/deep"))
    await place.write(Move(from_path="/f", to_path="/F2"), CreateFolder(path="/F2/z"))
    cursor, news = reader.cursor, []
    while True:
        page = await place.more(cursor)
        news += page.entries
        cursor = page.cursor
        if not page.has_more:
            break
    told = [(e.tag.value, parse_file_id(e.id)[1], e.path_display) for e in news]
    unset = news[0].path_display
    assert told == [("deleted", 3, unset), ("deleted", 1, unset), ("folder", 6, "/F2/z")]
    await place.read_all(reader)
    await place.write(Delete(path="/F2"))
    with pytest.raises(NotFound):
        await place.more(reader.cursor)
    with pytest.raises(NotFound):
        await place.page(path=y.id)


async def test_what_is_created_and_deleted_while_a_scan_goes_on(place: Place):
    await place.write(*[CreateFolder(path=f"/{i}") for i in range(4)])
    reader = place.reader(limit=3)
    assert not await reader.read_page(place.truth)
    await place.write(CreateFolder(path="/new"))
    await reader.read_page(place.truth)
    await place.write(Delete(path="/new"), Delete(path="/0"))
    await place.read_all(reader)
    assert {shown[1] for shown in reader.stage.values()} == {"1", "2", "3"}


async def test_a_scan_of_children_while_names_change(place: Place):
    await place.write(*[CreateFolder(path=f"/{name}") for name in "bdfhj"])
    reader = place.reader(limit=2, folder=0)
    assert not await reader.read_page(place.truth)  # b, d
    # One that was read moves ahead, one that was not moves back, and one takes another's name.
    await place.write(Move(from_path="/b", to_path="/i"), Move(from_path="/j", to_path="/a"))
    await place.write(Delete(path="/f"), CreateFolder(path="/F"))
    await place.read_all(reader)
    assert {shown[1] for shown in reader.stage.values()} == {"a", "d", "F", "h", "i"}


async def test_a_cursor_over_two_namespaces(place: Place, services: Services):
    other = await services.user("bob@example.org", "Bob")
    conn = await _open(services, place, other.root_ns)
    async with conn:
        await conn.execute(
            "INSERT INTO ns.members (ns_id, account_id, level) VALUES (%s, %s, 'v')",
            [other.root_ns, place.user.caller.account_id],
        )
        await place.write(*[CreateFolder(path=f"/{i}") for i in range(5)])
        for i in range(3):
            await other.ok(CreateFolder(path=f"/other{i}"))
        cursor = place.cursor(
            *[Position(n, Scanning(Jid(-1), EntryId(0))) for n in (place.user.root_ns, other.root_ns)],
            limit=2,
        )
        names = await _drain(place, cursor)
        assert sorted(names[0]) == ["0", "1", "2", "3", "4", "other0", "other1", "other2"]
        await other.ok(CreateFolder(path="/later"))
        assert (await _drain(place, names[1]))[0] == ["later"]
        await conn.execute("DELETE FROM ns.members WHERE ns_id = %s AND level = 'v'", [other.root_ns])
        with pytest.raises(NotFound):
            await _drain(place, names[1])
    assert await place.user.refused(CreateFolder(path="/0")) == "conflict/folder"


async def _open(services: Services, place: Place, ns_id: NsId) -> psycopg.AsyncConnection:
    pool = services.router.pool(services.router.placement(ns_id).shard)
    return await psycopg.AsyncConnection.connect(pool.dsn, autocommit=True)


async def _drain(place: Place, cursor: str) -> tuple[list[str], str]:
    names: list[str] = []
    for _ in range(20):
        page = await place.more(cursor)
        names += [shown_of(entry)[1] for entry in page.entries]
        cursor = page.cursor
        if not page.has_more:
            return names, cursor
    pytest.fail("the cursor does not get on")


async def test_a_viewer_reads_and_does_not_write(place: Place, services: Services):
    other = await services.user("bob@example.org", "Bob")
    await place.write(CreateFolder(path="/a"))
    await place.conn.execute(
        "INSERT INTO ns.members (ns_id, account_id, level) VALUES (%s, %s, 'v')",
        [place.user.root_ns, other.caller.account_id],
    )
    listed = await services.reads.list_folder(other.caller, ListFolder(path=f"ns:{place.user.root_ns}"))
    assert [e.name for e in listed.entries] == ["a"]
    with pytest.raises(Forbidden):
        await other.write(CreateFolder(path=f"ns:{place.user.root_ns}/b"))
