"""What goes wrong around a client, one thing at a time: reported, survived, and nothing is lost."""

import asyncio
import contextlib
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import msgspec
import pytest

from client import rests
from client.account import Account
from client.cli import Exit
from client.folder import Folder
from client.selection import Verb
from tests.acceptance.client.conftest import Pair
from tests.acceptance.client.devices import Accounts, Device, choose, settle
from tests.acceptance.client.trouble import (
    busy_front,
    home_of,
    lead_through,
    lose_since,
    shards_of,
    small_disk,
    stopped_shard,
)
from tests.support.waiting import wait_for
from wire.api import Batch, CreateFolder, Move
from wire.hashes import BLOCK_BYTES
from wire.ids import LOST_IDS

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120)]

LONG = "日" * 100
"""100 characters, which the server takes, and 300 bytes, which most disks do not."""
WITHOUT_OVERRIDE = """
import ctypes, os, sys
for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    assert os.geteuid() or not ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP
os.execv(sys.executable, [sys.executable, "-m", "client", *sys.argv[1:]])
"""


def sync_without_override(device: Device) -> subprocess.CompletedProcess[str]:
    """Sync as somebody for whom the mode of a file counts: root without its say over that."""
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_OVERRIDE, "sync", str(device.folder)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


# ---- The disk


@pytest.fixture
def tight(accounts: Accounts, pair: Pair, tmp_path: Path) -> Iterator[Device]:
    """A third device, on a disk of 24 MiB."""
    with small_disk(tmp_path / "disk", "24m") as is_mounted:
        if not is_mounted:
            pytest.skip("mounting a small disk takes root")
        yield accounts.link(pair.a.status().email, tmp_path / "disk" / "c")


def test_what_does_not_fit_on_the_disk_waits_for_room(pair: Pair, tight: Device) -> None:
    pair.a.write("small", "fits")
    (pair.a.folder / "big").write_bytes(os.urandom(BLOCK_BYTES * 3))
    pair.a.sync()
    ballast = tight.folder.parent / "ballast"
    ballast.write_bytes(bytes(9 * 2**20))
    done = tight.run("sync")
    assert done.returncode == Exit.LEFT, done.stderr
    assert tight.skipped() == {"big": "disk_full"}
    assert tight.tree() == {"small": b"fits"}
    assert list((tight.folder / ".shardbox/tmp").iterdir()) == []
    ballast.unlink()
    assert tight.run("sync").returncode == Exit.OK
    assert tight.tree() == pair.a.tree()
    settle(*pair)
    assert "big" in pair.b.tree()


def fill_up(ballast: Path) -> None:
    """Leave not a byte."""
    with ballast.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(4096)):
            pass


def test_a_disk_without_room_for_the_state_loses_nothing(pair: Pair, tight: Device) -> None:
    for n in range(30):
        pair.a.write(f"d/{n}", f"file {n}" * 50)
    settle(pair.a, tight)
    (tight.folder / "d/1").rename(tight.folder / "moved")
    (tight.folder / "d/2").unlink()
    ballast = tight.folder.parent / "ballast"
    fill_up(ballast)
    pair.a.write("d/3", "edited")
    (pair.a.folder / "d/4").unlink()
    pair.a.sync()
    done = tight.run("sync")
    assert done.returncode == Exit.ERROR
    assert "state cannot be written" in done.stderr
    assert "Traceback" not in done.stderr
    ballast.unlink()
    settle(pair.a, tight)
    assert tight.tree() == pair.a.tree()
    assert len(tight.tree()) == 29
    assert tight.tree()["moved"] == b"file 1" * 50


def test_a_watch_outlasts_a_full_disk(pair: Pair, tight: Device) -> None:
    pair.a.write("d/1", "one")
    settle(pair.a, tight)
    ballast = tight.folder.parent / "ballast"
    with tight.watching():
        fill_up(ballast)
        pair.a.write("d/2", "two" * 5000)
        (pair.a.folder / "d/1").unlink()
        pair.a.sync()
        (tight.folder / "d").rename(tight.folder / "e")
        time.sleep(1)  # the fault itself: a disk that stays full for this long
        ballast.unlink()
        wait_for(lambda: (tight.folder / "e/2").exists(), "what was missing", timeout_s=40)
        wait_for(lambda: not tight.status().pending.total, "in step")
    settle(pair.a, tight)
    assert len(pair.a.tree()) == 2
    assert tight.tree() == pair.a.tree()


def test_what_may_not_be_read_is_reported_and_left_alone(pair: Pair) -> None:
    a, b = pair
    for name in ("closed/inside", "secret", "open"):
        a.write(name, name)
    settle(*pair)
    a.write("new and secret", "x")
    a.write("new", "x")
    closed = [a.folder / "secret", a.folder / "new and secret", a.folder / "closed"]
    for path in closed:
        path.chmod(0)
    b.write("closed/inside", "edited on b")
    b.write("secret", "edited on b")
    b.sync()
    done = sync_without_override(a)
    assert done.returncode == Exit.LEFT, done.stderr
    closed_names = {"secret", "new and secret", "closed", "closed/inside"}
    assert a.skipped() == dict.fromkeys(closed_names, "unreadable")
    b.sync()
    assert sorted(b.tree()) == ["closed", "closed/inside", "new", "open", "secret"]
    for path in closed:
        path.chmod(0o755)
    settle(*pair)
    assert a.tree() == b.tree()
    assert {b"edited on b", b"x"} <= set(a.tree().values())
    assert a.tree()["closed/inside"] == b"edited on b"
    assert a.skipped() == {}


def change_on_server(device: Device, *operations: CreateFolder | Move) -> None:
    """Operations that no disk here could have made, by the device's own account."""

    async def run() -> None:
        with contextlib.closing(Folder(device.folder).open()) as state:
            async with aiohttp.ClientSession() as session:
                calls = Account(state, session).calls
                body = msgspec.json.encode(Batch(list(operations)))
                result = await calls.send_batch(secrets.token_hex(16), body)
                assert [x.error for x in result.verdicts] == [None] * len(operations)

    asyncio.run(run())


def test_names_that_the_disk_does_not_take_are_reported(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rests, "SOON_S", 0.01)  # each of many syncs tries four times
    a, b = pair
    a.write("d/f", "one")
    a.write("g", "two")
    settle(*pair)
    change_on_server(
        a,
        CreateFolder(path=f"/{LONG}/below"),
        Move(from_path="/g", to_path=f"/d/{LONG}"),
    )
    settle(*pair)
    for device in pair:
        assert device.tree() == {"d": None, "d/f": b"one", "g": b"two"}
        assert device.skipped() == {LONG: "name_too_long", "g": "name_too_long"}
    # The file goes on under the name that it has here, and the rest too.
    a.write("g", "three")
    a.write("h", "four")
    settle(*pair)
    assert b.tree() == {"d": None, "d/f": b"one", "g": b"three", "h": b"four"}
    change_on_server(a, Move(from_path=f"/d/{LONG}", to_path="/d/g"))
    settle(*pair)
    assert a.tree() == b.tree() == {"d": None, "d/f": b"one", "d/g": b"three", "h": b"four"}
    # A crash between such a step and its outcome is judged like any other.
    change_on_server(a, CreateFolder(path=f"/d/{LONG}"))
    a.run("sync", fault="client.state.intent_after")
    a.sync()
    assert a.skipped() == {LONG: "name_too_long", f"d/{LONG}": "name_too_long"}


# ---- The server


def test_what_a_server_has_lost_is_sent_again(accounts: Accounts, pair: Pair) -> None:
    a, b = pair
    a.write("old", "old")
    settle(*pair)
    ns_id, shard = home_of(accounts, a)
    old_head = a.status().jid
    a.write("late/f", "late")
    a.write("late/g", "late too")
    settle(*pair)
    with accounts.cluster.connect(shard) as conn:
        lose_since(conn, ns_id, old_head)
    b.write("old", "edited")
    settle(*pair)
    wanted = {"old": b"edited", "late": None, "late/f": b"late", "late/g": b"late too"}
    assert a.tree() == b.tree() == wanted


def test_what_was_sent_after_an_old_place_and_lost_is_sent_again(accounts: Accounts, pair: Pair) -> None:
    a, b = pair
    a.write("old", "old")
    settle(*pair)
    ns_id, shard = home_of(accounts, a)
    old_head = a.status().jid
    a.write("late", "late")
    # Acknowledged, and not read back: the cursor is from before what the server loses, and simply goes on.
    assert a.run("sync", fault="client.state.verdicts_after").returncode < 0
    assert a.status().jid == old_head
    with accounts.cluster.connect(shard) as conn:
        lose_since(conn, ns_id, old_head, jump=LOST_IDS)
    settle(*pair)
    assert a.tree() == b.tree()
    assert b.tree()["late"] == b"late"


@pytest.mark.parametrize("cursor", ["nonsense", None])
def test_a_cursor_that_is_refused_begins_a_new_listing(
    accounts: Accounts, pair: Pair, cursor: str | None
) -> None:
    a, b = pair
    a.write("old", "old")
    a.write("late", "late")
    settle(*pair)
    ns_id, shard = home_of(accounts, a)
    with accounts.cluster.connect(shard) as conn:
        conn.execute("DELETE FROM ns.entries WHERE ns_id = %s AND name = 'late'", [ns_id])
        if cursor is None:
            # The server answers `reset`: it has never been as far as the cursor.
            conn.execute("DELETE FROM ns.server_file_journal WHERE ns_id = %s AND jid > 1", [ns_id])
            conn.execute("UPDATE ns.namespaces SET head = 1 WHERE ns_id = %s", [ns_id])
    for device in pair:
        if cursor is not None:
            with contextlib.closing(Folder(device.folder).open()) as state, state.tx("page"):
                state.put_fact("cursor", cursor)
    settle(*pair)
    assert a.tree() == b.tree() == {"old": b"old", "late": b"late"}


def revoke(accounts: Accounts, device: Device) -> None:
    status = device.status()
    accounts.ctl("device", "revoke", status.email, status.device_id)


def test_a_revoked_device_stops_and_keeps_its_files(accounts: Accounts, pair: Pair) -> None:
    a, b = pair
    a.write("f", "stays")
    settle(*pair)
    revoke(accounts, b)
    (a.folder / "f").unlink()
    a.sync()
    b.write("g", "unsent")

    def refused() -> subprocess.CompletedProcess[str] | None:
        done = b.run("sync")
        return done if done.returncode else None

    done = wait_for(refused, "the revocation", timeout_s=15)
    assert done.returncode == Exit.UNLINKED
    assert "no longer linked" in done.stderr
    assert (b.folder / "g").read_text() == "unsent"


def test_a_watch_feels_a_revocation_within_10_s(accounts: Accounts, pair: Pair) -> None:
    pair.b.write("f", "stays")
    with pair.b.watch() as (child, errors):
        revoke(accounts, pair.b)
        since = time.monotonic()

        def ended() -> bool:
            pair.b.write("f", f"edited {time.monotonic()}")
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(0.3)
            return child.poll() is not None

        wait_for(ended, "the end of the watch")
        took_s = time.monotonic() - since
        assert child.poll() == Exit.UNLINKED
        assert "no longer linked" in errors.read_text()
    assert took_s < 10 + 2  # the promise, and a busy machine
    assert (pair.b.folder / "f").exists()


def test_a_busy_server_is_left_alone_for_as_long_as_it_asks(pair: Pair) -> None:
    target = pair.a.status().url
    pair.a.write("f", "text")
    with busy_front(target, retry_after_s=1) as front:
        lead_through(pair.a, front)
        pair.a.sync()
    pauses = front.pauses()
    assert {"/v1/files/list_folder", "/v1/files/batch"} <= pauses.keys()
    assert min(pauses.values()) >= 0.95
    pair.b.sync()
    assert pair.b.tree() == {"f": b"text"}


def test_what_the_quota_does_not_take_rests_and_stops_nothing_else(accounts: Accounts, pair: Pair) -> None:
    a, b = pair
    email = a.status().email
    accounts.ctl("user", "quota", email, "--bytes", "1000")
    a.write("d/fits", "fits")
    a.write("d/big", "x" * 5_000)
    a.write("fits too", "fits too")
    done = a.run("sync")
    assert done.returncode == Exit.LEFT, done.stderr
    assert a.skipped() == {"d/big": "insufficient_space"}
    b.sync()
    assert b.tree() == {"d": None, "d/fits": b"fits", "fits too": b"fits too"}
    accounts.ctl("user", "quota", email, "--none")
    settle(*pair)
    assert a.tree() == b.tree()
    assert "d/big" in b.tree()
    assert a.skipped() == {}


def test_a_request_older_than_its_key_is_compared_and_not_sent_again(accounts: Accounts, pair: Pair) -> None:
    a, b = pair
    a.write("out/f", "f")
    settle(*pair)
    choose(b, Verb.ADD, "out")
    b.sync()
    b.write("out/mine", "mine")
    # The server makes `out (Selective Sync Conflict)`; the answer is lost, and the server forgets the key.
    assert b.run("sync", fault="client.state.verdicts_before").returncode < 0
    ns_id, shard = home_of(accounts, b)
    with accounts.cluster.connect(shard) as conn:
        conn.execute("DELETE FROM ns.idempotency WHERE ns_id = %s", [ns_id])
    with contextlib.closing(Folder(b.folder).open()) as state, state.tx("verdicts") as conn:
        conn.execute("UPDATE requests SET made_at = made_at - 86400")
        assert conn.execute("SELECT count(*) FROM requests").fetchone()[0] == 1
    settle(*pair)
    conflict = "out (Selective Sync Conflict)"
    assert b.tree() == {conflict: None, f"{conflict}/mine": b"mine"}
    assert a.tree() == {"out": None, "out/f": b"f"} | b.tree()


def test_what_lies_on_a_healthy_shard_goes_on(accounts: Accounts, pair: Pair) -> None:
    a, b = pair
    cluster = accounts.cluster
    _, home = home_of(accounts, a)
    other = next(name for name in shards_of(cluster) if name != home)
    a.write("before", "before")
    settle(*pair)
    for n in range(24):
        a.write(f"d/{n}", f"file {n} {os.urandom(8).hex()}")
    with stopped_shard(cluster, other), a.watching(until="syncing"):
        wait_for(lambda: a.status().jid > 6, "some files of the healthy shard")
        b.sync()
        arrived = len(b.tree())
        assert 2 < arrived < 26
        assert set(a.skipped().values()) <= {"shard_unavailable", "unreachable"}
    settle(*pair)
    assert len(b.tree()) == 26
    assert a.tree() == b.tree()
    assert a.skipped() == b.skipped() == {}


# ---- Under a watch


def test_edits_right_after_a_folders_rename_are_noticed(pair: Pair) -> None:
    a, b = pair
    for n in range(3):
        a.write(f"top/{n}/deep/f", f"file {n}")
    settle(*pair)
    with a.watching():
        for turn, name in enumerate(("one", "two", "three")):
            last = next(x for x in a.folder.iterdir() if x.name != ".shardbox")
            last.rename(a.folder / name)
            for n in range(3):
                a.write(f"{name}/{n}/deep/f", f"edited {turn} {n}")
            a.write(f"{name}/1/deep/new {turn}", "new")
            wait_for(lambda: b.sync() and a.tree() == b.tree(), f"rename and edits on b ({name})")
    assert b.tree()["three/2/deep/f"] == b"edited 2 2"
