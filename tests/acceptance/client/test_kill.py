"""The client killed at each of its fault points, in the middle of everything it does, and started again."""

import contextlib
import os
import shutil
import signal

import pytest

import client.cli  # noqa: F401 - declares every point
from client.folder import Folder
from client.selection import Verb
from tests.acceptance.client.conftest import Pair
from tests.acceptance.client.devices import Accounts, Device, choose, settle
from wire.faults import declared
from wire.hashes import BLOCK_BYTES

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

POINTS = [name for name in declared() if name.startswith("client.")]
LINK_POINTS = {"client.account.link_sent", "client.state.link_before", "client.state.link_after"}
COMMAND_POINTS = {
    f"client.state.{name}_{when}" for name in ("order", "config") for when in ("before", "after")
}
"""Steps of commands beside a sync."""
SYNC_POINTS = [x for x in POINTS if x not in LINK_POINTS | COMMAND_POINTS]
PER_RUN = 16
PARTS = [SYNC_POINTS[n : n + PER_RUN] for n in range(0, len(SYNC_POINTS), PER_RUN)]
SOME = SYNC_POINTS[:: len(SYNC_POINTS) // 6]


def prepare(pair: Pair) -> None:
    """What the work of the first round is done to."""
    pair.a.write("left out/sub/f", "left out in every round")
    work(pair, -1)
    settle(*pair)


def work(pair: Pair, n: int) -> None:
    """Changes of every kind on both sides; most undo or repeat those of the last round."""
    a, b = pair
    last = n - 1
    a.write(f"from a {n}/new/file {n}", f"new {n}")
    a.write("edited by a", f"edit {n}" * (n + 2))
    a.write("edited by both", f"a's edit {n}")
    b.write(f"from b {n}/new/file {n}", f"new {n}")
    b.write("edited by b", f"edit {n}" * (n + 2))
    b.write("edited by both", f"b's own edit {n}")
    for device, name in ((a, "a"), (b, "b")):
        with (device.folder / f"big of {name}").open("wb") as file:
            file.write(bytes([n % 256]) * BLOCK_BYTES + os.urandom(BLOCK_BYTES) + b"end")
        if (device.folder / f"from {name} {last}").exists():
            (device.folder / f"from {name} {last}").rename(device.folder / f"renamed by {name} {last}")
            shutil.rmtree(device.folder / f"renamed by {name} {last - 1}", ignore_errors=True)
        # First the new one, then the old one's end: its inode must not be used again at once.
        device.write(f"goes {name} {n}", f"goes {n}")
        if (device.folder / f"goes {name} {last}").exists():
            (device.folder / f"goes {name} {last}").unlink()


def cut(device: Device, point: str) -> bool:
    """Sync until the point, if it is reached; whether it was."""
    with contextlib.closing(Folder(device.folder).open()) as state, state.tx("token"):
        state.put_fact("access_until", "0")  # so that the token's steps are gone through too
    done = device.run("sync", "--allow-mass-delete", "--page-entries", "5", fault=point)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode != 0


# `make test-kill` comes by every point; so does `make test-long`.
@pytest.mark.parametrize("points", [SOME, *(pytest.param(part, marks=pytest.mark.long) for part in PARTS)])
def test_a_client_killed_at_any_point_goes_on(pair: Pair, points: list[str]) -> None:
    prepare(pair)
    missed = []
    for n, point in enumerate(points):
        work(pair, n)
        choose(pair.b, Verb.ADD, "left out")
        hits = [cut(device, point) for device in pair]
        choose(pair.b, Verb.REMOVE, "left out")
        if not any(hits):
            missed.append(point)
        settle(*pair)
        assert pair.a.tree() == pair.b.tree(), (point, pair.a.skipped(), pair.b.skipped())
        contents = set(pair.a.tree().values())
        assert {f"a's edit {n}".encode(), f"b's own edit {n}".encode()} <= contents, point
    # Pages with more to come are only met by a new listing.
    assert [x for x in missed if not x.startswith("client.state.page")] == []


@pytest.mark.parametrize("point", sorted(COMMAND_POINTS))
def test_a_command_cut_short_can_be_given_again(pair: Pair, point: str) -> None:
    pair.a.write("out/f", "f")
    settle(*pair)
    folder = ["--folder", str(pair.b.folder)]
    args = ["config", "set", "limit-up", "1M"] if "config" in point else ["exclude", "add", "out"]
    assert pair.b.command(*args, *folder, fault=point).returncode == -signal.SIGKILL
    assert pair.b.command(*args, *folder).returncode == 0
    settle(*pair)
    assert pair.b.status().limit_up == (1_000_000 if "config" in point else None)
    assert pair.b.tree() == ({"out": None, "out/f": b"f"} if "config" in point else {})
    assert pair.a.tree() == {"out": None, "out/f": b"f"}


@pytest.mark.parametrize("point", sorted(LINK_POINTS))
def test_a_link_cut_short_is_taken_up_again(accounts: Accounts, pair: Pair, point: str) -> None:
    email = pair.a.status().email
    folder = pair.a.folder.parent / "c"
    code = accounts.ctl("device", "code", email)["code"]
    url = accounts.cluster.status().metaserver_urls[0]
    device = Device(folder)
    assert device.run("link", url, "--code", code, fault=point).returncode == -signal.SIGKILL
    done = device.run("link", url, "--code", code)
    assert done.returncode == 0 or "linked already" in done.stderr, done.stderr
    pair.a.write("f", "text")
    settle(pair.a, device)
    assert device.tree() == {"f": b"text"}


def test_a_new_listing_cut_between_pages_goes_on(accounts: Accounts, pair: Pair) -> None:
    for n in range(12):
        pair.a.write(f"d{n % 3}/{n}", f"{n}")
    pair.a.sync()
    for point in ("client.state.page_before", "client.state.page_after:2"):
        done = pair.b.run("sync", "--page-entries", "4", fault=point)
        assert done.returncode == -signal.SIGKILL, done.stderr
    settle(*pair)
    assert pair.a.tree() == pair.b.tree()
