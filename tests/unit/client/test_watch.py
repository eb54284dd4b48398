"""Watching a folder for which the kernel has too few watches, in a process with a limit of its own; and a
server that has nothing to tell."""

import asyncio
import errno
import sqlite3
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from client.account import Account
from client.remote import Remote
from client.watch import ServerWatch
from wire.api import LongpollResult
from wire.errors import DeviceRevoked

LIMIT = Path("/proc/sys/user/max_inotify_watches")
"""Of a user namespace: nobody else has to do with it."""

SCRIPT = """
import asyncio, contextlib, sys
from pathlib import Path
import client.watch
from client.folder import Folder
from client.rescan import Rescan
from tests.support.waiting import wait_until

client.watch.PROBE_S = 0.05
client.watch.LOOK_S = 60

async def is_seen(rescan, state, path):
    path.write_text("new")
    name = str(path.relative_to(place.path)).encode()

    async def look():
        if rescan.is_due:
            await rescan.run()
        return state.trees.find_local(name) is not None

    await wait_until(look, path.name)

async def main(limit):
    rescan = Rescan(place, state)
    woken = asyncio.Event()
    watch = client.watch.DiskWatch(place, rescan, woken.set)
    running = asyncio.create_task(watch.run())
    last = place.path / "39"
    {steps}
    running.cancel()

place = Folder(Path(sys.argv[1]))
for n in range(40):
    (place.path / f"{n:02}").mkdir(parents=True)
place.create().close()
limit = Path("/proc/sys/user/max_inotify_watches")
limit.write_text("20")
with contextlib.closing(place.open()) as state:
    asyncio.run(main(limit))
"""


def run_under_limit(place: Path, steps: str) -> None:
    enter = ["unshare", "--user", "--map-root-user"]
    try:
        subprocess.run([*enter, "test", "-w", str(LIMIT)], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no user namespace with a limit of its own to be had here")
    script = SCRIPT.replace("{steps}", steps)
    done = subprocess.run(
        [*enter, sys.executable, "-c", script, str(place)], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr


def test_what_has_no_watch_is_looked_at_now_and_then(tmp_path: Path) -> None:
    run_under_limit(
        tmp_path / "synced",
        """
    await wait_until(lambda: watch.trouble, "trouble")
    assert "watch limit" in watch.trouble and woken.is_set()
    await is_seen(rescan, state, last / "a")
    await is_seen(rescan, state, last / "b")
""",
    )


def test_when_there_are_watches_again_all_folders_are_watched(tmp_path: Path) -> None:
    run_under_limit(
        tmp_path / "synced",
        """
    await wait_until(lambda: watch.trouble, "trouble")
    limit.write_text("1000")
    await wait_until(lambda: watch.trouble is None, "no trouble")
    await rescan.run()
    await is_seen(rescan, state, last / "a")
""",
    )


def full_disk() -> Exception:
    problem = sqlite3.OperationalError("database or disk is full")
    problem.sqlite_errorname = "SQLITE_FULL"
    return problem


@pytest.mark.parametrize("problem", [full_disk(), OSError(errno.ENOSPC, "No space left on device")])
async def test_a_full_disk_does_not_end_the_watch(problem: Exception) -> None:
    troubles: list[str | None] = []

    async def longpoll(cursor: str, timeout_s: int) -> LongpollResult:
        await asyncio.sleep(0)
        troubles.append(watch.trouble)
        return LongpollResult(changes=False)

    async def get_token(refused: str | None) -> str:
        if len(troubles) == 1:
            raise problem
        if len(troubles) == 3:
            raise DeviceRevoked()
        return "good"

    remote = cast("Remote", SimpleNamespace(cursor="cursor", is_complete=True))
    account = cast("Account", SimpleNamespace(calls=SimpleNamespace(longpoll=longpoll), get_token=get_token))
    watch = ServerWatch(remote, account, 30, lambda: None)
    with pytest.raises(DeviceRevoked):
        async with asyncio.timeout(20):
            await watch.run()
    assert troubles == [None, str(problem), None]


async def test_a_device_with_nothing_to_do_notices_that_it_was_revoked() -> None:
    asked = 0

    async def longpoll(cursor: str, timeout_s: int) -> LongpollResult:
        await asyncio.sleep(0)
        return LongpollResult(changes=False)

    async def get_token(refused: str | None) -> str:
        nonlocal asked
        asked += 1
        if asked == 3:
            raise DeviceRevoked()
        return "good"

    remote = cast("Remote", SimpleNamespace(cursor="cursor", is_complete=True))
    account = cast("Account", SimpleNamespace(calls=SimpleNamespace(longpoll=longpoll), get_token=get_token))
    with pytest.raises(DeviceRevoked):
        async with asyncio.timeout(20):
            await ServerWatch(remote, account, 30, lambda: None).run()
    assert asked == 3
