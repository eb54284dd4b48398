"""What goes on while processes are killed: commits over HTTP, long-polls, and two sync clients with edits."""

import asyncio
import random
import signal
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from loadtest.trees import read_tree
from sharding.shardmap import ShardMap
from tests.kill.api import ApiDevice, Failed, empty_file, one_block_file
from tests.support.commands import CLIENT, Program, run_command
from tests.support.waiting import wait_for
from wire.hashes import block_hash
from wire.ids import NsId, parse_ns_id, slot_of_digest

COMMIT_INTERVAL_S = 0.02
EDIT_INTERVAL_S = 0.03


@dataclass(slots=True)
class Committer:
    """Accounts of one shard under load, by a device of each, in turn."""

    shard: str
    shard_map: ShardMap
    devices: list[ApiDevice] = field(default_factory=list)
    count: int = 0
    errors: list[str] = field(default_factory=list)
    """Refusals while these accounts' shard was healthy and another was not."""
    must_not_fail: bool = False

    async def run(self) -> None:
        """Commit for ever; a file with a block now and then."""
        while True:
            self.count += 1
            device = self.devices[self.count % len(self.devices)]
            path = f"/load/{self.count % 7}/{self.count}.txt"
            try:
                if self.count % 5 == 0:
                    data = self._data_on_own_shard()
                    block = await device.put_block(data)
                    operation = one_block_file(path, block, len(data))
                else:
                    operation = empty_file(path)
                await device.commit(operation, surely=not self.must_not_fail)
            except Failed as error:
                if self.must_not_fail:
                    self.errors.append(str(error))
                await asyncio.sleep(0.1)
            await asyncio.sleep(COMMIT_INTERVAL_S)

    def _data_on_own_shard(self) -> bytes:
        """Bytes whose hash lies on the shard of the accounts."""
        while True:
            data = random.randbytes(100)
            slot = slot_of_digest(block_hash(data), self.shard_map.slot_count)
            if self.shard_map.slots[slot].shard == self.shard:
                return data

    @property
    def acked_count(self) -> int:
        """How many commits were acknowledged."""
        return sum(len(device.acked) for device in self.devices)


@dataclass(slots=True)
class SyncClient:
    """A linked folder and the process that syncs it."""

    folder: Path
    log: Path
    _process: Program | None = None

    def start(self, *, fault: str = "") -> None:
        """`shardbox sync --watch`, detached from us."""
        env = {"SHARDBOX_FAULT": fault}
        self._process = Program(
            CLIENT, "sync", "--watch", str(self.folder), out=self.log, err=self.log, env=env
        )

    def kill(self) -> None:
        """kill -9."""
        assert self._process is not None
        self._process.kill()

    def revive(self) -> None:
        """Start it again if its fault has killed it.

        Raises:
            AssertionError: it ended in another way.
        """
        status = self._process.poll() if self._process is not None else None
        if status is not None:
            assert status == -signal.SIGKILL, f"the client of {self.folder} ended with {status}"
            self.start()

    def stop(self) -> None:
        """End it."""
        if self._process is not None:
            self._process.send(signal.SIGTERM)
            self._process.wait(30)

    @property
    def is_running(self) -> bool:
        """Whether the process lives: nothing that is killed around it may end it."""
        return self._process is not None and self._process.poll() is None


class Editor:
    """Edits in a folder, one after another, on a thread of its own while started."""

    def __init__(self, folder: Path, own: str, seed: int):
        self._folder = folder
        self._own = own
        self._rng = random.Random(seed)
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self.count = 0

    def start(self) -> None:
        """Begin."""
        self._stopping.clear()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._stopping.wait(EDIT_INTERVAL_S):
            with suppress(FileNotFoundError, FileExistsError, OSError):
                self.edit()

    def edit(self) -> None:
        """Create, change, rename, move or delete something; now and then in the folder that both share."""
        rng, self.count = self._rng, self.count + 1
        where = self._folder / (self._own if rng.random() < 0.8 else "shared")
        where.mkdir(exist_ok=True)
        there = sorted(where.rglob("*"))
        choice = rng.random()
        if choice < 0.5 or len(there) < 5:
            folder = rng.choice([where, *(p for p in there if p.is_dir())])
            (folder / f"{self._own} {self.count}.txt").write_bytes(rng.randbytes(rng.choice([0, 50, 5000])))
        elif choice < 0.6:
            (rng.choice([where, *(p for p in there if p.is_dir())]) / f"dir {self.count}").mkdir()
        elif choice < 0.75:
            path = rng.choice(there)
            path.rename(path.with_name(f"renamed {self._own} {self.count}{path.suffix}"))
        elif choice < 0.9:
            path = rng.choice([p for p in there if p.is_file()] or there)
            if path.is_file():
                path.write_bytes(path.read_bytes() + b"more\n")
        else:
            path = rng.choice(there)
            if path.is_file():
                path.unlink()
            elif not any(path.iterdir()):
                path.rmdir()


def are_equal(one: Path, other: Path) -> bool:
    """Whether two folders hold the same tree at the moment."""
    try:
        return read_tree(one) == read_tree(other)
    except OSError:  # something went while we looked
        return False


def wait_until_equal(one: Path, other: Path, timeout_s: float) -> bool:
    """Whether two folders come to hold the same tree in time."""
    try:
        return wait_for(
            lambda: are_equal(one, other), f"{one} and {other} being the same", timeout_s=timeout_s
        )
    except AssertionError:
        return False


def root_of(device: ApiDevice) -> NsId:
    """A device's root namespace."""
    return parse_ns_id(device.linked.root_ns)


def run_client(folder: Path, *, fault: str | None = None) -> int:
    """`shardbox sync` once; its exit status, negative for the signal that ended it."""
    env = {"SHARDBOX_FAULT": fault} if fault else {}
    # Small pages, so that a small tree's listing has several.
    done = run_command(CLIENT, "sync", "--page-entries", "10", str(folder), env=env, timeout_s=120)
    if done.returncode > 0:
        raise AssertionError(f"sync of {folder}: {done.stderr[-2000:]}")
    return done.returncode
