"""A reader exactly as the design of the journal tells: it stages pages by entry id, looks at its tree when
has_more is false, and keeps the stage, orphans included, together with the cursor.

What a reader may not leave out is a method or class attribute, so that a test can leave it out.
"""

from dataclasses import dataclass, field
from datetime import datetime

import msgspec
from msgspec import UNSET

from tests.journal.truth import FILE, FOLDER, Difference, Shown, Tree, Truth, expect
from tests.support.services import User
from wire.api import ListFolder, ListFolderContinue, ListFolderResult, Metadata, Tag
from wire.errors import NotFound
from wire.ids import format_file_id, parse_file_id, parse_rev

Stage = dict[int, Shown]
_KINDS = {Tag.FILE: FILE, Tag.FOLDER: FOLDER}
MAX_PAGES = 400
"""More than any history needs: a reader that does not get on has found a difference."""


@dataclass(slots=True)
class Asked:
    """A page on its way: what was known when it was asked for."""

    head: int
    was_live: bool


@dataclass
class Reader:
    """One reader of one namespace, or of the children of one folder in it."""

    user: User
    ns_id: int
    folder: int | None
    limit: int
    include_blocks: bool = False
    cursor: str | None = None
    stage: Stage = field(default_factory=dict)
    at: int = 0
    """The jid up to which it has read; 0 while it scans."""
    has_more: bool = True
    is_over: bool = False
    """Its folder has been deleted."""
    is_following: bool = False
    pages: int = 0
    """Since its trees were last compared."""

    # ---- What the design asks of a reader

    def take(self, entry: Metadata) -> None:
        """Stage one piece of news by entry id; a `deleted` removes that entry alone."""
        entry_id = parse_file_id(entry.id)[1]
        if entry.tag is Tag.DELETED:
            self.stage.pop(entry_id, None)
        else:
            self.stage[entry_id] = shown_of(entry)

    def keep(self, stage: Stage) -> Stage:
        """What is stored with the cursor: the stage, orphans included."""
        return stage

    def look(self) -> Tree:
        """The tree that hangs together; what does not is dropped."""
        if self.folder is not None:
            return dict(self.stage)
        self.stage = hanging(self.stage)
        return dict(self.stage)

    # ---- Reading

    async def ask(self, truth: Truth) -> "ListFolderResult | NotFound":
        """The next page, or that the listed folder is gone."""
        reads, caller = self.user.services.reads, self.user.caller
        try:
            if self.cursor is None:
                path = f"ns:{self.ns_id}"
                if self.folder:
                    path = format_file_id(self.ns_id, self.folder)  # type: ignore[arg-type]
                request = ListFolder(
                    path=path,
                    recursive=self.folder is None,
                    limit=self.limit,
                    include_blocks=self.include_blocks,
                )
                return await reads.list_folder(caller, request)
            request = ListFolderContinue(cursor=self.cursor)
            return await reads.list_folder_continue(caller, request.cursor)
        except NotFound as error:
            return error

    async def read_page(self, truth: Truth) -> bool:
        """Read a page while nothing else happens; whether the reader's tree was compared."""
        asked = Asked(truth.head, truth.is_live(self.folder or 0))
        return self.digest(await self.ask(truth), asked, truth)

    def digest(self, page: "ListFolderResult | NotFound", asked: Asked, truth: Truth) -> bool:
        """Stage a page and hold it against the truth, which has caught up meanwhile.

        Raises:
            Difference: the page breaks a rule, or the reader's tree is not the server's.
        """
        if isinstance(page, NotFound):
            gone = not asked.was_live or not truth.is_live(self.folder or 0)
            expect(self.folder is not None and gone, "not found, though it is there:", self.folder)
            self.is_over, self.has_more = True, False
            return False
        self.pages += 1
        expect(self.pages < MAX_PAGES, "the reader does not get on")
        expect(not page.restarted, "restarted without a reason")
        check_page(self, page, truth)
        if asked.head == truth.head:
            check_present(self, page, truth)
        for entry in page.entries:
            self.take(entry)
        self.cursor = page.cursor
        self.at = page.jid
        self.is_following = self.is_following or page.jid > 0 or not page.has_more
        self.has_more = page.has_more
        if page.has_more:
            self.stage = msgspec.msgpack.decode(msgspec.msgpack.encode(self.keep(self.stage)), type=Stage)
            return False
        expect(asked.was_live or self.folder is None, "a deleted folder is still listed")
        expect(page.jid >= asked.head, "at the end of jid", page.jid, "when", asked.head, "was committed")
        self.pages = 0
        self.compare(truth)
        return True

    def compare(self, truth: Truth) -> None:
        """Hold the reader's tree against the server's as of the reader's jid."""
        want = truth.tree_at(self.at) if self.folder is None else truth.children(self.folder, self.at)
        have = self.look()
        if have != want:
            raise Difference(f"at jid {self.at} the reader has {have}, the server {want}")


async def read_walk(user: User, path: str, limit: int) -> list[Metadata]:
    """All that a recursive listing of a folder tells."""
    reads = user.services.reads
    page = await reads.list_folder(user.caller, ListFolder(path=path, recursive=True, limit=limit))
    told = list(page.entries)
    for _ in range(MAX_PAGES):
        if not page.has_more:
            return told
        page = await reads.list_folder_continue(user.caller, page.cursor)
        told += page.entries
    raise Difference("the walk does not get on")


def hanging(stage: Stage) -> Stage:
    """What can be reached from the root."""
    below: dict[int, list[int]] = {}
    for entry_id, shown in stage.items():
        below.setdefault(shown[0], []).append(entry_id)
    tree: Stage = {}
    todo = [0]
    while todo:
        for entry_id in below.get(todo.pop(), ()):
            if entry_id not in tree:
                tree[entry_id] = stage[entry_id]
                todo.append(entry_id)
    return tree


def shown_of(entry: Metadata) -> Shown:
    """What a metadata record says."""
    assert isinstance(entry.parent_id, str)
    assert isinstance(entry.name, str)
    assert isinstance(entry.jid, int)
    rev = parse_rev(entry.rev)[1] if isinstance(entry.rev, str) else None
    size = None if entry.size is UNSET else entry.size
    content = bytes.fromhex(entry.content_hash) if isinstance(entry.content_hash, str) else None
    return (parse_file_id(entry.parent_id)[1], entry.name, _KINDS[entry.tag], rev, size, content, entry.jid)


def check_page(reader: Reader, page: ListFolderResult, truth: Truth) -> None:
    """What holds for each page by itself, given where the reader was before.

    Raises:
        Difference: something does not hold.
    """
    expect(len(page.entries) <= reader.limit, "a page is longer than its limit")
    ids = [parse_file_id(entry.id) for entry in page.entries]
    expect(all(ns_id == reader.ns_id for ns_id, _ in ids), "news of another namespace")
    told = [entry_id for _, entry_id in ids]
    expect(len(set(told)) == len(told), "a page tells of one entry twice")
    if reader.is_following:
        _check_follow(reader, page, told, truth)
    else:
        _check_scan(reader, page, told, truth)
    for entry in page.entries:
        if entry.tag is Tag.DELETED:
            told_more = (entry.parent_id, entry.name, entry.path_display, entry.rev, entry.size)
            expect(all(part is UNSET for part in told_more), "a `deleted` tells more than an id:", entry)
        elif entry.tag is Tag.FILE:
            _check_rev(reader, entry, truth)


def check_present(reader: Reader, page: ListFolderResult, truth: Truth) -> None:
    """News of a page that was read while nothing was written: each tells how its entry is now.

    Raises:
        Difference: it tells how the entry was, or that something dead lives.
    """
    for entry in page.entries:
        entry_id = parse_file_id(entry.id)[1]
        now = truth.tree.get(entry_id)
        if entry.tag is Tag.DELETED:
            is_here = now is not None and reader.folder in (None, now[0])
            expect(not is_here, "`deleted` for entry", entry_id, "which is there:", now)
        else:
            expect(shown_of(entry) == now, "entry", entry_id, "is told as", entry, "and is", now)
            if reader.folder is not None:
                expect(entry.path_display == truth.path_of(entry_id), "the path of", entry)


def _check_follow(reader: Reader, page: ListFolderResult, told: list[int], truth: Truth) -> None:
    looked_at = range(reader.at + 1, page.jid + 1)
    expect(len(looked_at) <= reader.limit, "a page looked at", len(looked_at), "rows")
    jids = [entry.jid for entry in page.entries]
    expect(jids == sorted(jids), "news out of the order of the last changes:", jids)
    for entry, entry_id in zip(page.entries, told, strict=True):
        expect(entry.jid in looked_at, "jid", entry.jid, "is told with rows", looked_at)
        expect(truth.names_at[entry.jid] == entry_id, "jid", entry.jid, "is not of entry", entry_id)
        if entry.tag is Tag.DELETED:
            created = truth.nodes[entry_id].created_jid
            expect(created <= reader.at, "`deleted` for an entry that a reader at", reader.at, "never saw")
        elif reader.folder is not None:
            expect(shown_of(entry)[0] == reader.folder, "news of another folder")


def _check_scan(reader: Reader, page: ListFolderResult, told: list[int], truth: Truth) -> None:
    expect(all(entry.tag is not Tag.DELETED for entry in page.entries), "a scan tells of something gone")
    if reader.folder is None:
        expect(told == sorted(told), "a scan of a namespace goes by entry id:", told)
    else:
        keys = [truth.nodes[entry_id].key for entry_id in told]
        expect(all(shown_of(e)[0] == reader.folder for e in page.entries), "news of another folder")
        expect(len(set(keys)) == len(keys), "one name twice in a page:", keys)
    expect(page.has_more or page.jid <= truth.head, "a scan ends beyond the head")


def _check_rev(reader: Reader, entry: Metadata, truth: Truth) -> None:
    assert isinstance(entry.rev, str)
    ns_id, jid = parse_rev(entry.rev)
    expect(ns_id == reader.ns_id and jid in truth.revs, "no such rev:", entry.rev)
    rev = truth.revs[jid]
    seconds = (rev.client_modified_us // 1_000_000, rev.at_us // 1_000_000)
    told = (_seconds(entry.client_modified), _seconds(entry.server_modified))
    expect(told == seconds, "the times of rev", jid, "are", told, "and not", seconds)
    if reader.include_blocks:
        assert not isinstance(entry.blocks, type(UNSET))
        expect(bytes.fromhex("".join(entry.blocks)) == rev.blocklist, "the blocks of rev", jid)
    else:
        expect(entry.blocks is UNSET, "blocks that nobody asked for")


def _seconds(text: object) -> int:
    return int(datetime.strptime(f"{text}+0000", "%Y-%m-%dT%H:%M:%SZ%z").timestamp())
