"""People with two devices that keep a folder in sync all the while, and what their clients complained of."""

import contextlib
import random
import threading
import time
import unicodedata
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from client.folder import Folder
from client.status import read_status
from loadtest.commands import Cluster, Device, run_json
from loadtest.trees import read_tree

CHANGE_EVERY_S = 0.3
"""Between two changes on a device."""
LOOK_EVERY_S = 0.1
"""What a client complains of is shown until it has heard from the servers again."""
SETTLE_S = 120.0
"""For the last changes to arrive everywhere."""
MAX_FILE_BYTES = 60_000
MAX_FILES = 100
"""That a device has made: then it deletes as many as it makes."""


@dataclass(slots=True)
class Person:
    """Someone who works on two devices; on each only with files that were made there."""

    devices: list[Device]
    errors: list[str] = field(default_factory=list)
    """What the clients complained of, or ended with."""
    changes: int = 0
    is_in_step: bool = False
    """Whether in the end both devices had what the server has."""

    @contextmanager
    def working(self) -> Iterator[None]:
        """Changes on both devices and both in sync, beside what the caller does; then they come to rest."""
        working, watching = threading.Event(), threading.Event()
        workers = [
            threading.Thread(target=self._work, args=(d, n, working)) for n, d in enumerate(self.devices)
        ]
        watchers = [threading.Thread(target=self._watch, args=(d, watching)) for d in self.devices]
        with ExitStack() as syncing:
            for device in self.devices:
                syncing.enter_context(self._syncing(device))
            for thread in (*workers, *watchers):
                thread.start()
            try:
                yield
                _end(workers, working)
                self.is_in_step = self._come_to_rest()
            finally:
                _end(workers, working)
                _end(watchers, watching)

    @contextmanager
    def _syncing(self, device: Device) -> Iterator[None]:
        try:
            with device.watching():
                yield
        except RuntimeError as error:
            self.errors.append(str(error))

    def _work(self, device: Device, number: int, stop: threading.Event) -> None:
        desk = Desk(device.folder / f"made on {number}", random.Random(number))
        while not stop.wait(CHANGE_EVERY_S):
            desk.change()
            self.changes += 1

    def _watch(self, device: Device, stop: threading.Event) -> None:
        last: dict[str, str | None] = {}
        with contextlib.closing(Folder(device.folder).open(read_only=True)) as state:
            while not stop.wait(LOOK_EVERY_S):
                for fact in ("last_error", "troubles"):
                    found = state.find_fact(fact)
                    if found is not None and found != last.get(fact):
                        self.errors.append(f"{device.folder.name}: {found}")
                    last[fact] = found

    def _come_to_rest(self) -> bool:
        deadline = time.monotonic() + SETTLE_S
        while time.monotonic() < deadline:
            if all(map(_is_done, self.devices)):
                trees = [read_tree(device.folder) for device in self.devices]
                if all(tree == list_server(self.devices[0]) for tree in trees):
                    return True
            time.sleep(LOOK_EVERY_S)
        return False


class Desk:
    """A folder in which somebody works."""

    def __init__(self, folder: Path, rng: random.Random):
        self._folder = folder
        self._rng = rng
        self._files: list[Path] = []
        self._made = 0

    def change(self) -> None:
        """Make, edit, rename or delete a file."""
        if len(self._files) > MAX_FILES:
            self._files.pop(self._rng.randrange(len(self._files))).unlink()
        draw = self._rng.random()
        if not self._files or draw < 0.6:
            self._made += 1
            path = self._folder / f"folder {self._made % 7}" / f"file {self._made}.bin"
            path.parent.mkdir(parents=True, exist_ok=True)
            self._files.append(path)
            self._write(path)
            return
        index = self._rng.randrange(len(self._files))
        path = self._files[index]
        if draw < 0.8:
            self._write(path)
        elif draw < 0.9:
            self._files[index] = path.rename(path.with_name(f"{path.stem} renamed.bin"))
        else:
            self._files.pop(index).unlink()

    def _write(self, path: Path) -> None:
        path.write_bytes(self._rng.randbytes(self._rng.randint(1, MAX_FILE_BYTES)))


def make_person(cluster: Cluster, name: str, folder: Path) -> Person:
    """Someone new, both devices linked and in step."""
    email = f"{name}@bench.example"
    cluster.add_user(email, name)
    devices = [cluster.link(email, folder / f"{name} {device}", device) for device in ("A", "B")]
    for device in devices:
        device.sync()
    return Person(devices)


def list_server(device: Device) -> dict[str, bytes | None]:
    """The account's tree as the server has it, in the form of `read_tree`."""
    entries = run_json("shardbox", "ls", "--recursive", "--folder", device.folder)["entries"]
    return {
        unicodedata.normalize("NFC", entry["path"]): (
            None if entry["content_hash"] is None else bytes.fromhex(entry["content_hash"])
        )
        for entry in entries
    }


def _is_done(device: Device) -> bool:
    place = Folder(device.folder)
    with contextlib.closing(place.open(read_only=True)) as state:
        status = read_status(place, state)
    return status.activity == "idle" and status.pending.total == 0


def _end(threads: list[threading.Thread], stop: threading.Event) -> None:
    stop.set()
    for thread in threads:
        thread.join()
