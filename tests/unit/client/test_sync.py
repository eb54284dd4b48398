"""The loop's own bookkeeping, on a real folder and a real state, without a server."""

import asyncio
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from client.account import Account
from client.folder import Folder
from client.model import LocalNode
from client.reading import hash_file
from client.rescan import Rescan
from client.state import State
from client.sync import Options, Sync
from client.upload import Prepared, UploadJob


@pytest.fixture
def place(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "synced")


@pytest.fixture
def state(place: Folder) -> Iterator[State]:
    place.create().close()
    with contextlib.closing(place.open()) as opened:
        yield opened


def the_file(state: State) -> LocalNode:
    found = state.trees.local.child(0, "f")
    node = state.trees.local.get(found) if found is not None else None
    assert node is not None
    return node


async def look(place: Folder, state: State) -> LocalNode:
    await Rescan(place, state).run()
    return the_file(state)


async def test_what_was_read_before_the_last_look_is_past(place: Folder, state: State) -> None:
    account = cast("Account", SimpleNamespace(calls=None, ns_id=0))
    sync = Sync(place, state, account, Options())
    file = place.path / "f"
    file.write_text("first")
    before = await look(place, state)
    path = os.fsencode(file)
    job = UploadJob(before.id, path, before.fingerprint)
    read_first = Prepared(job, hash_file(path))
    # While that read is on its way back, the file is written and looked at.
    file.write_text("second and longer")
    after = await look(place, state)
    assert after.content is None
    with state.tx("hashed"):
        sync._take_prepared(read_first)
    assert the_file(state) == after, "still to be read, under the stat of the later look"
    read_second = Prepared(UploadJob(after.id, path, after.fingerprint), hash_file(path))
    with state.tx("hashed"):
        sync._take_prepared(read_second)
    assert the_file(state).content == read_second.hashed.content


@pytest.mark.parametrize("watch", ["_control_watch", "_disk_watch", "_server_watch"])
async def test_a_watch_that_fails_ends_the_sync(
    place: Folder, state: State, monkeypatch: pytest.MonkeyPatch, watch: str
) -> None:
    account = cast("Account", SimpleNamespace(calls=None, ns_id=0))
    sync = Sync(place, state, account, Options(is_watching=True))
    has_ended: list[str] = []

    async def hang() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            has_ended.append("one")

    async def fail() -> None:
        await asyncio.sleep(0)
        raise ZeroDivisionError

    monkeypatch.setattr(sync, "_loop", hang)
    for name in ("_control_watch", "_disk_watch", "_server_watch"):
        monkeypatch.setattr(getattr(sync, name), "run", fail if name == watch else hang)
    with pytest.raises(ZeroDivisionError):
        async with asyncio.timeout(20):
            await sync.run()
    assert len(has_ended) == 3, "nothing goes on"
    assert state.find_fact("activity") == "stopped"
