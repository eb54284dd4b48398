"""The programs under measurement, started as a user starts them."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BIN = Path(sys.executable).parent


def run(program: str, *args: str | Path) -> str:
    """What a program prints; its own words when it fails.

    Raises:
        RuntimeError: it exited with an error.
    """
    done = subprocess.run([BIN / program, *args], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{program} {' '.join(map(str, args))}: {done.stderr or done.stdout}")
    return done.stdout


def run_json(program: str, *args: str | Path) -> Any:
    """The same with `--output json`, decoded."""
    return json.loads(run(program, *args, "--output", "json"))


@dataclass(frozen=True, slots=True)
class Cluster:
    """A running embedded cluster."""

    data_dir: Path
    urls: list[str]
    """Of the metaservers."""
    blockserver_url: str
    notifserver_url: str

    def ctl(self, *args: str) -> Any:
        """What a shardctl command answers, as JSON."""
        return run_json("shardctl", *args)

    def pid(self, process: str) -> int:
        """The pid of a process by its name."""
        found = next(p for p in self.ctl("dev", "status")["processes"] if p["name"] == process)
        return int(found["pid"])

    @property
    def url(self) -> str:
        """One metaserver."""
        return self.urls[0]

    def add_user(self, email: str, name: str) -> str:
        """A new account's id."""
        return str(self.ctl("user", "add", email, "--name", name)["account_id"])

    def link(self, email: str, folder: Path, name: str) -> "Device":
        """A new device of an account, linked to a folder."""
        code = self.ctl("device", "code", email)["code"]
        folder.mkdir(parents=True, exist_ok=True)
        run("shardbox", "link", self.url, "--code", code, "--name", name, folder)
        return Device(folder)


@contextmanager
def running_cluster(
    data_dir: Path | None, *, metaservers: int = 2, shards: int | None = None
) -> Iterator[Cluster]:
    """A cluster in a folder of its own, which goes with it, or in the one given, which stays."""
    # Not below the caller's home: as root, PostgreSQL runs under a user who cannot look into root's.
    folder = data_dir or Path(tempfile.mkdtemp(prefix="shardbox-bench-", dir="/var/tmp"))
    folder.chmod(0o755)
    os.environ["SHARDBOX_DEV_DIR"] = str(folder)
    try:
        options = [] if shards is None else ["--shards", str(shards)]
        run("shardctl", "dev", "up", "--metaservers", str(metaservers), *options)
        status = run_json("shardctl", "dev", "status")
        yield Cluster(folder, status["metaserver_urls"], status["blockserver_url"], status["notifserver_url"])
    finally:
        if data_dir is None:
            subprocess.run([BIN / "shardctl", "dev", "reset", "--yes"], capture_output=True, check=False)
            shutil.rmtree(folder, ignore_errors=True)
        else:
            subprocess.run([BIN / "shardctl", "dev", "down"], capture_output=True, check=False)


@dataclass(slots=True)
class Device:
    """A linked folder."""

    folder: Path
    rss_bytes_max: int = 0
    """Of all its processes so far."""
    cpu_s: float = 0.0
    """Of the last one."""

    def sync(self, *options: str) -> float:
        """Sync once; the seconds that it took."""
        started = time.monotonic()
        with self._running("sync", *options):
            pass
        return time.monotonic() - started

    @contextmanager
    def watching(self) -> Iterator[None]:
        """`sync --watch` beside what the caller does."""
        with self._running("sync", "--watch") as child:
            try:
                yield
            finally:
                child.terminate()

    @contextmanager
    def _running(self, *args: str) -> "Iterator[subprocess.Popen[bytes]]":
        """A command on the folder; waited for at the end, and what it took is noted.

        Raises:
            RuntimeError: it exited with an error.
        """
        with tempfile.TemporaryFile() as output:
            child = subprocess.Popen(
                [BIN / "shardbox", *args, self.folder], stdout=output, stderr=subprocess.STDOUT
            )
            try:
                yield child
            finally:
                _, status, usage = os.wait4(child.pid, 0)
                child.returncode = os.waitstatus_to_exitcode(status)
                self.rss_bytes_max = max(self.rss_bytes_max, usage.ru_maxrss * 1024)
                self.cpu_s = usage.ru_utime + usage.ru_stime
            if child.returncode != 0:
                output.seek(0)
                raise RuntimeError(f"{args} {self.folder}: {output.read().decode()[-4000:]}")

    def status(self) -> Any:
        """The client's own account of itself."""
        return run_json("shardbox", "status", self.folder)
