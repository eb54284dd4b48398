"""What one answer holds or looks at, each limit at its edge: the last that fits, the first that does not."""

from typing import cast

import pytest
from msgspec import UNSET, structs

from metaserver.services import reads, sessions
from metaserver.services.hints import HintQueue
from metaserver.services.sessions import SessionService
from metaserver.services.targets import TargetService
from metaserver.storage.revs import MAX_NAMESAKES
from tests.support.services import Services, User, commit_of
from wire.api import (
    MAX_INLINE_BLOCKS,
    BlockList,
    CreateFolder,
    Delete,
    ListFolder,
    ListRevisions,
    Metadata,
    Move,
    Search,
)
from wire.errors import NotFound
from wire.hashes import BLOCK_BYTES, block_hash
from wire.internal import BeginBlock, BeginUpload, BlockState, FinishBlock, FinishUpload
from wire.names import MAX_SHOWN_PATH_CHARS

PAGE_BLOCKS = 4


async def put_blocks(user: User, path: str, count: int) -> tuple[Metadata, list[str]]:
    """A file of so many distinct whole blocks, of which there are rows and no bytes; and their hashes."""
    blocks = [block_hash(str(number).encode()) for number in range(count)]
    services, whole = user.services.blocks, BLOCK_BYTES
    begun = await services.begin(
        BeginUpload(user.caller, user.root_ns, [BeginBlock(b, whole) for b in blocks])
    )
    finish = [
        FinishBlock(block, whole, found.claim_id, found.generation, is_written=True)
        for block, found in zip(blocks, begun, strict=True)
        if found.state is not BlockState.READY
    ]
    await services.finish(FinishUpload(user.caller, user.root_ns, finish))
    operation = structs.replace(commit_of(path, b"", blocks), size=count * whole)
    return await user.ok(operation), [block.hex() for block in blocks]


async def test_a_listing_carries_the_blocks_of_files_up_to_the_limit(services: Services):
    user = await services.user()
    _, blocks = await put_blocks(user, "/fits", MAX_INLINE_BLOCKS)
    await put_blocks(user, "/large", MAX_INLINE_BLOCKS + 1)
    page = await services.reads.list_folder(user.caller, ListFolder(include_blocks=True))
    assert {entry.name: entry.blocks for entry in page.entries} == {"fits": blocks, "large": UNSET}


async def test_a_block_list_comes_in_pages_from_any_block_on(
    services: Services, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(reads, "MAX_BLOCKS_PER_PAGE", PAGE_BLOCKS)
    user = await services.user()
    file, blocks = await put_blocks(user, "/f", 2 * PAGE_BLOCKS + 1)
    for start in range(len(blocks) + 2):
        page = await services.reads.get_block_list(user.caller, file.rev, start)
        assert page == BlockList(blocks[start : start + PAGE_BLOCKS], len(blocks)), start


async def test_a_file_is_shown_with_its_first_blocks(services: Services, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sessions, "MAX_METADATA_BLOCKS", PAGE_BLOCKS)
    user = await services.user()
    # What only opening and committing a session needs is left out.
    nobody = (cast("TargetService", None), cast("HintQueue", None))
    shown = SessionService(services.tx, services.access, services.writes, *nobody)
    for count in (PAGE_BLOCKS, PAGE_BLOCKS + 1):
        file, blocks = await put_blocks(user, f"/{count}", count)
        found = await shown.get_metadata(user.caller, file.id)
        assert (found.block_list, found.block_count) == (blocks[:PAGE_BLOCKS], count)


async def test_a_deleted_file_is_found_among_so_many_folders_of_its_path(services: Services):
    user = await services.user()
    file = await user.ok(await user.put("/d/f", b"1"))

    async def revs(path: str) -> list[object]:
        found = await services.history.list_revisions(user.caller, ListRevisions(path=path))
        return [entry.rev for entry in found.entries]

    await user.ok(Delete(path="/d"))
    for _ in range(MAX_NAMESAKES - 2):
        await user.write(CreateFolder(path="/d"), Delete(path="/d"))
    await user.ok(CreateFolder(path="/d"))  # the live one is looked at before any of the dead
    assert await revs("/d/f") == [file.rev]
    await user.ok(Delete(path="/d"))
    assert await revs("/d/f") == [file.rev]
    await user.ok(CreateFolder(path="/d"))
    with pytest.raises(NotFound):
        await revs("/d/f")
    assert await revs(file.id) == [file.rev]


async def test_a_path_that_is_too_long_is_left_out_of_answers(services: Services):
    user = await services.user()
    folder = await user.ok(CreateFolder(path="/" + "/".join(["d" * 250] * 16)))  # 4,016 characters
    name = "n" * (MAX_SHOWN_PATH_CHARS - len(str(folder.path_display)) - 1)
    fits = await user.ok(CreateFolder(path=f"{folder.id}/{name}"))
    long = await user.ok(CreateFolder(path=f"{folder.id}/{name}x"))
    below = await user.ok(CreateFolder(path=f"{long.id}/{name}"))
    file = await user.ok(await user.put(f"{below.id}/{name}", b"1"))
    shown = {fits.id: len(str(fits.path_display)), long.id: 0, below.id: 0, file.id: 0}
    assert shown[fits.id] == MAX_SHOWN_PATH_CHARS

    async def children(of: str, **how: bool) -> list[Metadata]:
        return (await services.reads.list_folder(user.caller, ListFolder(path=of, **how))).entries

    found = await services.search.search(user.caller, Search(query=name))
    batch = await services.reads.get_metadata_batch(user.caller, list(shown))
    revs = await services.history.list_revisions(user.caller, ListRevisions(path=file.id))
    told: list[Metadata] = [
        *(await children(folder.id)), *(await children(below.id)),
        *(await children(folder.id, recursive=True)), *found.matches,
        *(entry.metadata for entry in batch.entries if entry.metadata), *revs.entries,
        long, below, file,
        await user.ok(Move(from_path=f"{folder.id}/{name}x/{name}", to_path=f"{long.id}/{name}")),
        await user.ok(Delete(path=file.id)),
    ]  # fmt: skip
    assert len(told) == 2 + 1 + 4 + 4 + 4 + 1 + 3 + 2
    for entry in told:
        assert len("" if entry.path_display is UNSET else entry.path_display) == shown[entry.id], entry.name
        assert (entry.path_lower is UNSET) is (entry.path_display is UNSET)
        assert entry.parent_id is not UNSET
        assert entry.name is not UNSET
