"""Linked folders for tests: made through the operator's commands, synced in this process or in another."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from client.account import link
from client.calls import discover
from client.folder import Folder
from client.selection import Verb, find_by_path, order
from client.session import open_session, sync_folder
from client.status import Status, read_status
from client.sync import Options
from ops.cli import app
from tests.support.commands import CLIENT, Program, run_command
from tests.support.dev import DevCluster
from tests.support.waiting import wait_for
from wire.hashes import block_hash

MARKER = b".shardbox"


@dataclass(frozen=True, slots=True)
class Accounts:
    """Makes accounts and devices of a running cluster."""

    cluster: DevCluster

    def ctl(self, *args: str) -> Any:
        """What a shardctl command answers."""
        # In this process: starting one takes longer than what it does.
        done = CliRunner().invoke(
            app,
            [*args, "--output", "json"],
            env={"SHARDBOX_DEV_DIR": str(self.cluster.layout.root)},
            catch_exceptions=False,
        )
        assert done.exit_code == 0, done.stderr
        return json.loads(done.stdout)

    def add_user(self, email: str) -> None:
        self.ctl("user", "add", email, "--name", "Ada")

    def link(self, email: str, folder: Path) -> "Device":
        code = self.ctl("device", "code", email)["code"]
        url = self.cluster.status().metaserver_urls[0]

        async def run() -> None:
            with contextlib.closing(Folder(folder).create()) as state:
                async with open_session() as session:
                    servers = await discover(session, url)
                    await link(state, session, url=url, servers=servers, code=code, device_name=folder.name)

        asyncio.run(run())
        return Device(folder)


@dataclass(frozen=True, slots=True)
class Device:
    """One linked folder."""

    folder: Path

    def sync(self, **options: Any) -> Status:
        """Sync to the end in this process."""
        asyncio.run(sync_folder(Folder(self.folder), Options(**options)))
        return self.status()

    def run(self, *args: str, fault: str = "", timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
        """The command line, in another process."""
        return self.command(*args, str(self.folder), fault=fault, timeout_s=timeout_s)

    def command(self, *args: str, fault: str = "", timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
        """The same without the folder at the end."""
        env = {"SHARDBOX_FAULT": fault} if fault else {}
        return run_command(CLIENT, *args, env=env, timeout_s=timeout_s)

    @contextmanager
    def watching(self, *args: str, until: str = "idle") -> Iterator[None]:
        """`sync --watch` while the body runs, from when its activity is `until` on."""
        with self.watch(*args, until=until) as (child, errors):
            try:
                yield
            finally:
                child.send(signal.SIGTERM)
                status = child.wait(20)
                print(errors.read_text())
            assert status == 0, errors.read_text()

    @contextmanager
    def watch(self, *args: str, until: str = "idle") -> Iterator[tuple[Program, Path]]:
        """The same, for a body that ends it; where it tells of errors."""
        with tempfile.TemporaryDirectory() as folder:
            errors = Path(folder, "errors")
            command = (CLIENT, "sync", "--watch", *args, str(self.folder))
            with Program(*command, out=Path(os.devnull), err=errors) as child:
                wait_for(lambda: self.status().activity == until, f"the watch is {until}")
                yield child, errors

    def status(self) -> Status:
        place = Folder(self.folder)
        with contextlib.closing(place.open(read_only=True)) as state:
            return read_status(place, state)

    def tree(self) -> dict[str, bytes | None]:
        """Relative path → content (its hash, if long), None for a folder; without the marker."""
        while True:
            try:
                return self._read_tree()
            except (FileNotFoundError, NotADirectoryError):  # something went while we looked
                if not self.folder.is_dir():
                    raise

    def _read_tree(self) -> dict[str, bytes | None]:
        found: dict[str, bytes | None] = {}
        todo = [os.fsencode(self.folder)]
        while todo:
            for entry in os.scandir(todo.pop()):
                if entry.name == MARKER:
                    continue
                path = os.path.relpath(entry.path, os.fsencode(self.folder)).decode(errors="replace")
                if entry.is_dir(follow_symlinks=False):
                    found[path] = None
                    todo.append(entry.path)
                else:
                    content = Path(os.fsdecode(entry.path)).read_bytes()
                    found[path] = content if len(content) < 1_000 else block_hash(content)
        return found

    def write(self, path: str, text: str) -> Path:
        target = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        return target

    def skipped(self) -> dict[str, str]:
        """Path → reason of what is left alone."""
        return {x.path: x.reason for x in self.status().skipped}


def choose(device: Device, verb: Verb, *paths: str) -> None:
    """What `shardbox exclude` does to folders in the root that the listing has shown."""
    with contextlib.closing(Folder(device.folder).open()) as state:
        for path in paths:
            node_id = find_by_path(state.trees, path)
            assert node_id is not None
            order(state, verb, node_id, path)


def settle(*devices: Device) -> None:
    """Sync all in turn until none has anything new."""
    for _ in range(10):
        before = [device.status().jid for device in devices]
        for device in devices:
            device.sync(allow_mass_delete=True)
        after = [device.status().jid for device in devices]
        if before == after and len(set(after)) == 1:
            return
    raise AssertionError("the devices do not settle")
