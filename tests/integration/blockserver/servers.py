"""Real server processes over a cluster of a test module's own: metaserver, blockserver, notifserver."""

import signal
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from ops.ports import reserve_port
from runtime.tokens import TokenIssuer, generate_keys
from tests.support.commands import Program
from tests.support.databases import FreshCluster
from tests.support.s3 import S3Store
from tests.support.services import Services, User, run_services
from tests.support.waiting import wait_for
from wire.keys import KeyRing

REPOSITORY = Path(__file__).parents[3]
STOP_TIMEOUT_S = 30.0
START_TIMEOUT_S = 90.0
"""Several processes import everything at once, on a machine that other tests keep busy."""


class ServerProcess:
    """One server process at one port, which may be started again and again."""

    def __init__(self, kind: str, port: int, env: dict[str, str], log: Path):
        self.kind = kind
        self.url = f"http://127.0.0.1:{port}"
        self._env = env | {"SHARDBOX_LISTEN_PORT": str(port)}
        self.settings: dict[str, str] = {}
        self._log = log
        self._process: Program | None = None

    def twin(self, port: int, log: Path, **settings: str) -> "ServerProcess":
        """One more server like it, at another port."""
        return ServerProcess(self.kind, port, self._env | settings, log)

    def start(self, **settings: str) -> None:
        """Start it and wait until it is ready; `settings` are further environment variables."""
        self.start_unready(**settings)
        self.wait_ready()

    def wait_ready(self) -> None:
        """Until it is ready."""
        wait_for(
            self._is_ready, f"{self.kind} ready: {self._log.read_text()[-2_000:]}", timeout_s=START_TIMEOUT_S
        )

    def start_unready(self, **settings: str) -> None:
        """Start it, as it may well die before it is ready."""
        env = self._env | self.settings | settings
        self._process = Program(f"{self.kind}.main", out=self._log, err=self._log, env=env)

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self._process is not None
        self._process.send(number)

    def wait(self) -> int:
        """Its exit status, once it has ended."""
        assert self._process is not None
        return self._process.wait(STOP_TIMEOUT_S)

    def kill(self) -> None:
        """End it as a loss of power would."""
        if self._process is not None:
            self._process.kill()

    def log_text(self) -> str:
        """All that it has logged."""
        return self._log.read_text()

    def _is_ready(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, f"{self.kind} ended: {self._log.read_text()[-2_000:]}"
        try:
            with urllib.request.urlopen(self.url + "/readyz", timeout=2) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False


@dataclass
class Stack:
    """The servers of a module's tests and the keys that they share."""

    folder: Path
    cluster: FreshCluster
    services: Services
    service_keys: KeyRing
    cursor_keys: KeyRing
    issuer: TokenIssuer
    http: aiohttp.ClientSession
    metaserver: ServerProcess
    blockserver: ServerProcess
    notifserver: ServerProcess
    user_count: int = 0
    s3: S3Store | None = None
    """Where the blocks are; None: in a folder."""

    @contextmanager
    def blocks_in(self, store: S3Store, **settings: str) -> Iterator[None]:
        """Have the blockserver keep its blocks there meanwhile, with these further settings."""
        try:
            self._restart_blockserver(store, store.settings() | settings)
            yield
        finally:
            self._restart_blockserver(None, {})

    def _restart_blockserver(self, store: S3Store | None, settings: dict[str, str]) -> None:
        self.blockserver.kill()
        self.s3, self.blockserver.settings = store, settings
        self.blockserver.start()

    async def new_user(self) -> User:
        """A new account with one device."""
        self.user_count += 1
        return await self.services.user(f"user{self.user_count}@example.org", f"User {self.user_count}")

    def auth(self, user: User) -> dict[str, str]:
        """The header that a user's requests carry."""
        return {"Authorization": f"Bearer {self.issuer.issue(user.caller)}"}

    def objects(self) -> set[str]:
        """The names of all objects."""
        return {p.name for p in self.object_dir.rglob("*") if p.is_file()}

    def overwrite(self, place: Path, data: bytes | None) -> None:
        """Put other bytes in place of an object's, or remove it, behind the blockserver's back."""
        if self.s3:
            self.s3.overwrite(f"objects/{place.name}", data)
        elif data is None:
            place.unlink()
        else:
            place.write_bytes(data)

    @property
    def object_dir(self) -> Path:
        """Where the objects lie as files, in either store."""
        return self.s3.object_dir if self.s3 else self.folder / "blocks" / "objects"


@contextmanager
def reserved_ports(count: int) -> Iterator[list[int]]:
    """Ports that nobody else takes meanwhile."""
    with ExitStack() as stack:
        held = [reserve_port() for _ in range(count)]
        for one in held:
            stack.callback(one.close)
        yield [one.port for one in held]


@asynccontextmanager
async def running_stack(cluster: FreshCluster, folder: Path) -> AsyncIterator[Stack]:
    """A metaserver, a blockserver and a notifserver, killed at the end."""
    private, public = generate_keys()
    files = {
        "service.json": KeyRing.generate(),
        "cursor.json": KeyRing.generate(),
        "private.json": private,
        "public.json": public,
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    with reserved_ports(3) as (meta_port, block_port, notif_port):
        meta_url = f"http://127.0.0.1:{meta_port}"
        shared = {
            "SHARDBOX_SERVICE_KEYS_FILE": str(folder / "service.json"),
            "SHARDBOX_METASERVER_URLS": meta_url,
            "SHARDBOX_DRAIN_S": "5",
        }
        cursor = {"SHARDBOX_CURSOR_KEYS_FILE": str(folder / "cursor.json")}
        meta_env = cursor | {
            "SHARDBOX_DIRECTORY_DSN": cluster.directory_dsn,
            "SHARDBOX_TOKEN_KEYS_FILE": str(folder / "private.json"),
            "SHARDBOX_MAP_FILE": str(folder / "map.json"),
            "SHARDBOX_BLOCKSERVER_URLS": f"http://127.0.0.1:{block_port}",
            "SHARDBOX_NOTIFSERVER_URLS": f"http://127.0.0.1:{notif_port}",
        }
        block_env = {
            "SHARDBOX_TOKEN_VERIFY_KEYS_FILE": str(folder / "public.json"),
            "SHARDBOX_BLOCK_DIR": str(folder / "blocks"),
        }
        metaserver = ServerProcess("metaserver", meta_port, shared | meta_env, folder / "metaserver.log")
        blockserver = ServerProcess("blockserver", block_port, shared | block_env, folder / "blockserver.log")
        notifserver = ServerProcess("notifserver", notif_port, shared | cursor, folder / "notifserver.log")
        async with AsyncExitStack() as stack:
            services = await stack.enter_async_context(run_services(cluster))
            # A kept connection to a server that a test kills would be what fails, not the server.
            connector = aiohttp.TCPConnector(force_close=True)
            http = await stack.enter_async_context(aiohttp.ClientSession(connector=connector))
            for server in (metaserver, blockserver, notifserver):
                stack.callback(server.kill)
                server.start()
            yield Stack(
                folder=folder,
                cluster=cluster,
                services=services,
                service_keys=KeyRing.parse(files["service.json"]),
                cursor_keys=KeyRing.parse(files["cursor.json"]),
                issuer=TokenIssuer(private),
                http=http,
                metaserver=metaserver,
                blockserver=blockserver,
                notifserver=notifserver,
            )
