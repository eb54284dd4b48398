"""The commands beside `sync`: what they print, how they end, and that a running sync hears of them."""

import asyncio
import contextlib
import json
import os
from typing import Any

import pytest

from client.cli import Exit
from client.folder import Folder
from client.session import sync_folder
from client.sync import NO_LIMIT, Options, Sync
from tests.acceptance.client.conftest import Pair
from tests.acceptance.client.devices import Device, settle
from tests.support.waiting import wait_for
from wire.blocks import FRAME_OVERHEAD_BYTES
from wire.hashes import BLOCK_BYTES

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]


def ask(device: Device, *args: str) -> Any:
    """A command about a device's folder, as JSON."""
    done = device.command(*args, "--folder", str(device.folder), "--output", "json")
    assert done.returncode == Exit.OK, done.stderr
    return json.loads(done.stdout)


def code_of(device: Device, *args: str) -> int:
    return device.command(*args, "--folder", str(device.folder)).returncode


def test_ls_shows_what_the_server_has(pair: Pair) -> None:
    a, b = pair
    a.write("Docs/deep/f.txt", "text")
    a.write("Docs/g.txt", "longer text")
    a.write("top", "t")
    a.sync()
    assert [(x["path"], x["kind"]) for x in ask(b, "ls")["entries"]] == [("Docs", "folder"), ("top", "file")]
    found = ask(b, "ls", "Docs")
    assert found["path"] == "Docs"
    assert [(x["path"], x["size"]) for x in found["entries"]] == [("Docs/deep", None), ("Docs/g.txt", 11)]
    assert set(found["entries"][1]) == {
        *("path", "kind", "id", "size", "rev", "content_hash", "client_modified", "server_modified")
    }
    assert all(found["entries"][1].values())
    whole = ["Docs", "Docs/deep", "Docs/deep/f.txt", "Docs/g.txt", "top"]
    assert [x["path"] for x in ask(b, "ls", "-r")["entries"]] == whole
    done = b.command("ls", str(b.folder / "Docs"), "-l")
    assert done.returncode == Exit.OK
    assert done.stdout.splitlines()[0].split() == ["deep/"]
    assert done.stdout.splitlines()[1].endswith("g.txt")
    assert code_of(b, "ls", "nowhere") == Exit.REFUSED
    assert code_of(b, "ls", "../elsewhere") == 2
    assert b.command("ls", str(b.folder.parent)).returncode == Exit.FOLDER


def test_limits_hold_for_all_blocks_that_pass(pair: Pair) -> None:
    a, b = pair
    (a.folder / "big").write_bytes(os.urandom(BLOCK_BYTES + 100_000))
    for n in range(30):
        a.write(f"d/{n}", f"file {n}")
    sizes = [path.stat().st_size for path in (a.folder / "big", *(a.folder / "d").iterdir())]
    assert ask(a, "config", "set", "limit-up", "400M")["limit_up"] == 400_000_000
    assert ask(b, "config", "list") == {"folder": str(b.folder), "limit_up": None, "limit_down": None}
    ups = [run_noting(a, Options())]
    downs = [run_noting(b, Options(limit_down=400_000_000))]
    assert [x._account.calls.up.rate for x in ups] == [400_000_000]
    assert run_noting(a, Options(limit_up=NO_LIMIT))._account.calls.up.rate is None
    assert [x._account.calls.down.rate for x in downs] == [400_000_000]
    # Packs have a frame around each block; big blocks go up by themselves.
    assert sum(sizes) <= ups[0]._account.calls.up.granted <= sum(sizes) + 32 * FRAME_OVERHEAD_BYTES
    assert sum(sizes) <= downs[0]._account.calls.down.granted <= sum(sizes) + 64 * FRAME_OVERHEAD_BYTES
    assert ups[0]._account.calls.down.granted == downs[0]._account.calls.up.granted == 0
    assert a.tree() == b.tree()
    assert code_of(a, "config", "set", "limit-up", "1") == 2
    assert code_of(a, "config", "set", "speed", "1M") == 2
    assert a.run("sync", "--limit-up", "fast").returncode == 2
    assert ask(a, "config", "set", "limit-up", "none")["limit_up"] is None


def run_noting(device: Device, options: Options) -> Sync:
    """Sync to the end; the sync itself."""
    seen: list[Sync] = []

    class Note:
        def __init__(self, runner: Sync):
            seen.append(runner)

        async def __aenter__(self) -> None: ...

        async def __aexit__(self, *_: object) -> None: ...

    asyncio.run(sync_folder(Folder(device.folder), options, Note))
    return seen[0]


def test_a_paused_sync_rests_until_it_is_resumed(pair: Pair) -> None:
    a, b = pair
    a.write("before", "before")
    settle(*pair)
    with b.watching():
        done = b.run("pause", "--output", "json")
        assert json.loads(done.stdout) == {"folder": str(b.folder), "is_paused": True, "is_running": True}
        wait_for(lambda: b.status().activity == "paused", "the pause")
        a.write("during", "during")
        a.sync()
        b.write("mine", "mine")
        head = a.status().jid
        # Whatever the watch does with an event it has done when it reports a change of its settings.
        assert ask(b, "config", "set", "limit-up", "1M")["limit_up"] == 1_000_000
        wait_for(lambda: b.status().activity == "paused", "still the pause")
        assert a.sync().jid == head
        assert set(b.tree()) == {"before", "mine"}
    assert b.run("sync").returncode == Exit.PAUSED, "a pause outlives the watch"
    assert set(b.tree()) == {"before", "mine"}
    with b.watching(until="paused"):
        assert b.run("resume").returncode == Exit.OK
        wait_for(lambda: set(b.tree()) == {"before", "mine", "during"}, "what came meanwhile")
        wait_for(lambda: a.sync() and (a.folder / "mine").exists(), "what was written meanwhile")
    assert not b.status().is_paused


def test_exclude_prints_and_refuses(pair: Pair) -> None:
    a, b = pair
    a.write("out/f", "f")
    a.write("file", "f")
    a.sync()
    waiting = {"folder": str(b.folder), "exclusions": [{"path": "out", "state": "waiting"}]}
    assert ask(b, "exclude", "add", "out") == ask(b, "exclude", "list") == waiting
    b.sync()
    assert ask(b, "exclude", "list")["exclusions"] == [{"path": "out", "state": "excluded"}]
    assert ask(b, "exclude", "remove", "out")["exclusions"] == [{"path": "out", "state": "returning"}]
    b.sync()
    assert ask(b, "exclude", "list")["exclusions"] == []
    assert code_of(b, "exclude", "remove", "out") == Exit.REFUSED
    assert code_of(b, "exclude", "add", "nowhere") == Exit.REFUSED
    assert code_of(b, "exclude", "add", "file") == 2
    assert code_of(b, "exclude", "add", ".") == 2
    done = a.run("unlink", "--output", "json")
    assert json.loads(done.stdout) == {"folder": str(a.folder)}


def test_history_and_restore(pair: Pair) -> None:
    a, b = pair
    for text in ("one", "two, longer", "three"):
        a.write("d/f", text)
        a.sync()
    found = ask(a, "history", "d/f")
    assert [x["size"] for x in found["entries"]] == [5, 11, 3]
    assert [x["is_current"] for x in found["entries"]] == [True, False, False]
    assert not found["is_deleted"]
    assert code_of(a, "restore", "d/f") == 2, "which one?"
    restored = ask(a, "restore", "d/f", "--rev", found["entries"][2]["rev"])
    assert (restored["path"], restored["entry"]["size"]) == ("d/f", 3)
    settle(*pair)
    assert a.tree() == b.tree() == {"d": None, "d/f": b"one"}
    (a.folder / "d/f").unlink()
    settle(*pair)
    assert b.tree() == {"d": None}
    assert ask(a, "history", str(a.folder / "d/f"))["is_deleted"]
    ask(b, "restore", "d/f")
    settle(*pair)
    assert a.tree() == b.tree() == {"d": None, "d/f": b"one"}
    assert code_of(a, "history", "never") == Exit.REFUSED
    assert code_of(a, "restore", "d/f", "--rev", "123456789") == Exit.REFUSED


def test_commands_renew_the_token_beside_a_sync_that_runs(pair: Pair) -> None:
    a, _ = pair
    a.write("f", "f")
    a.sync()
    with a.watching():
        for _ in range(2):
            expire_access(a)
            assert [x["path"] for x in ask(a, "ls")["entries"]] == ["f"]
            a.write("f", f"edited {os.urandom(4).hex()}")
            jid = a.status().jid
            wait_for(lambda jid=jid: a.status().jid > jid, "the sync goes on")


def expire_access(device: Device) -> None:
    with contextlib.closing(Folder(device.folder).open()) as state, state.tx("token"):
        state.put_fact("access_until", "0")
