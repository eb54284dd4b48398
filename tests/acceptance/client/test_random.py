"""Random work on two devices with syncs in between: they end alike, and nothing is lost by itself."""

import contextlib
import random
import shutil
from pathlib import Path

import pytest

from tests.acceptance.client.conftest import Pair
from tests.acceptance.client.devices import Device, settle
from tests.support.waiting import wait_for
from wire.names import name_key

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

NAMES = ["a", "b", "A", "ß", "é"]
SEEDS = 6


class User:
    """Somebody at one device who knows what they have thrown away."""

    def __init__(
        self, device: Device, rng: random.Random, gone: set[bytes], made: list[bytes], names: list[str]
    ):
        self.device, self.rng, self.gone, self.made, self.names = device, rng, gone, made, names

    def act(self) -> None:
        paths = [self.device.folder / path for path in sorted(self.device.tree())]
        files = [path for path in paths if path.is_file()]
        folders = [self.device.folder, *(path for path in paths if path.is_dir())]
        target = self.rng.choice(folders) / self.rng.choice(self.names)
        is_free = name_key(target.name) not in {name_key(path.name) for path in target.parent.iterdir()}
        match self.rng.choice(["create", "create", "mkdir", "edit", "move", "move", "delete", "save"]):
            case "create" if is_free:
                target.write_bytes(self.content())
            case "mkdir" if is_free:
                target.mkdir()
            case "edit" if files:
                path = self.rng.choice(files)
                self.gone.add(path.read_bytes())
                path.write_bytes(self.content())
            case "save" if files:
                path = self.rng.choice(files)
                self.gone.add(path.read_bytes())
                fresh = path.with_name("saving")
                fresh.write_bytes(self.content())
                fresh.rename(path)
            case "move" if paths:
                path = self.rng.choice(paths)
                if is_free and path not in [target, *target.parents]:
                    path.rename(target)
            case "delete" if paths:
                self.delete(self.rng.choice(paths))

    def delete(self, path: Path) -> None:
        # Taken out at once and looked at afterwards: a sync may be at work in it.
        out = self.device.folder.parent / f"thrown away by {self.device.folder.name}"
        path.rename(out)
        if out.is_dir():
            self.gone |= {below.read_bytes() for below in out.rglob("*") if below.is_file()}
            shutil.rmtree(out)
        else:
            self.gone.add(out.read_bytes())
            out.unlink()

    def content(self) -> bytes:
        self.made.append(f"content {len(self.made)} {'x' * self.rng.randrange(3)}".encode())
        return self.made[-1]


@pytest.mark.parametrize("seed", range(SEEDS))
def test_random_work_converges(pair: Pair, seed: int) -> None:
    play(pair, seed)


@pytest.mark.parametrize("seed", range(2))
def test_random_work_under_two_watches_converges(pair: Pair, seed: int) -> None:
    play_live(pair, seed)


def play_live(pair: Pair, seed: int) -> None:
    rng = random.Random(seed)
    gone: set[bytes] = set()
    made: list[bytes] = []
    users = [User(device, rng, gone, made, NAMES) for device in pair]
    with pair.a.watching("--allow-mass-delete"), pair.b.watching("--allow-mass-delete"):
        for _ in range(120):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError):
                rng.choice(users).act()
            if rng.random() < 0.1:
                jid = pair.a.status().jid
                wait_for(lambda jid=jid: pair.a.status().jid >= jid, "any progress")
        wait_for(lambda: is_settled(pair), "both at rest and alike", timeout_s=60)
    settle(*pair)
    assert pair.a.tree() == pair.b.tree(), (pair.a.skipped(), pair.b.skipped())
    kept = {content for content in pair.a.tree().values() if content is not None}
    assert set(made) - gone <= kept


def is_settled(pair: Pair) -> bool:
    found = [device.status() for device in pair]
    are_idle = all(x.activity == "idle" and not x.pending.total for x in found)
    return are_idle and found[0].jid == found[1].jid and pair.a.tree() == pair.b.tree()


def play(pair: Pair, seed: int) -> None:
    rng = random.Random(seed)
    gone: set[bytes] = set()
    made: list[bytes] = []
    users = [User(device, rng, gone, made, NAMES) for device in pair]
    for _ in range(rng.randrange(3, 8)):
        for user in users:
            for _ in range(rng.randrange(6)):
                user.act()
        if rng.random() < 0.7:
            rng.choice(pair).sync(allow_mass_delete=True)
    settle(*pair)
    assert pair.a.tree() == pair.b.tree(), (pair.a.skipped(), pair.b.skipped())
    assert pair.a.status().pending.total == pair.b.status().pending.total == 0
    kept = {content for content in pair.a.tree().values() if content is not None}
    assert set(made) - gone <= kept
