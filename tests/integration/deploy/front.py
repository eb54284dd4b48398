"""All servers as docs/deploy.md has them, behind HAProxy with the configuration of deploy/."""

import os
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import msgspec
import pytest

from runtime.tokens import TokenIssuer, generate_keys
from tests.integration.blockserver.servers import REPOSITORY, ServerProcess, reserved_ports
from tests.support.databases import FreshCluster
from tests.support.oidc import AUDIENCE, OidcProvider, reserved_provider
from tests.support.services import Services, User, run_services
from tests.support.waiting import wait_for
from wire.keys import KeyRing

CONFIGURATION = REPOSITORY / "deploy" / "haproxy.cfg"
NOTICE_S = 2.5
"""Three looks of the balancer, on a machine that is busy."""
PROXY = "127.0.0.1"
"""Where HAProxy's connections come from; the tests themselves come from elsewhere on the loopback."""


@dataclass
class Front:
    """The servers, and ways in."""

    folder: Path
    cluster: FreshCluster
    services: Services
    issuer: TokenIssuer
    provider: OidcProvider
    metaservers: list[ServerProcess]
    blockserver: ServerProcess
    notifserver: ServerProcess
    ports: list[int]
    env: dict[str, str]
    """What a metaserver is told."""

    def auth(self, user: User) -> dict[str, str]:
        """The header of a device's requests."""
        return {"Authorization": f"Bearer {self.issuer.issue(user.caller)}"}

    def seen(self, request_id: str) -> tuple[str, str]:
        """Which metaserver a request came to, and from where, by its own word."""

        def find() -> tuple[str, str] | None:
            for server in self.metaservers:
                for line in server.log_text().splitlines():
                    if request_id in line and '"event": "request"' in line:
                        return server.url, msgspec.json.decode(line)["remote"]
            return None

        return wait_for(find, f"request {request_id} in a log")


@asynccontextmanager
async def running_front(cluster: FreshCluster, folder: Path) -> AsyncIterator[Front]:
    """Two metaservers, a blockserver, a notifserver and an OpenID provider, killed at the end."""
    private, public = generate_keys()
    files = {
        "service.json": KeyRing.generate(),
        "cursor.json": KeyRing.generate(),
        "private.json": private,
        "public.json": public,
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    async with AsyncExitStack() as stack:
        provider = stack.enter_context(reserved_provider(folder))
        provider.add_user("ada", "ada@example.org", is_verified=True)
        provider.add_user("bob", "Bob@Example.org", is_verified=True)
        provider.add_user("eve", "ada@example.org", is_verified=False)
        provider.start()
        issuers = [{"issuer": provider.issuer, "audiences": [AUDIENCE], "link_by_email": True}]
        (folder / "issuers.json").write_bytes(msgspec.json.encode({"issuers": issuers}))
        ports = stack.enter_context(reserved_ports(5))
        meta_ports, block_port, notif_port = ports[:2], ports[2], ports[3]
        shared = {
            "SHARDBOX_SERVICE_KEYS_FILE": str(folder / "service.json"),
            "SHARDBOX_METASERVER_URLS": ",".join(f"http://127.0.0.1:{port}" for port in meta_ports),
            "SHARDBOX_DRAIN_S": "5",
            "SHARDBOX_DRAIN_NOTICE_S": str(NOTICE_S),
            "SHARDBOX_TRUSTED_PROXIES": PROXY,
            "SHARDBOX_LOG_LEVEL": "debug",
        }
        cursor = {"SHARDBOX_CURSOR_KEYS_FILE": str(folder / "cursor.json")}
        tokens = {"SHARDBOX_OIDC_ISSUERS_FILE": str(folder / "issuers.json")}
        meta_env = cursor | {
            "SHARDBOX_DIRECTORY_DSN": cluster.directory_dsn,
            "SHARDBOX_TOKEN_KEYS_FILE": str(folder / "private.json"),
            "SHARDBOX_NOTIFSERVER_URLS": f"http://127.0.0.1:{notif_port}",
            "SHARDBOX_PUBLIC_URL": f"http://127.0.0.1:{ports[4]}",
        }
        block_env = {
            "SHARDBOX_TOKEN_VERIFY_KEYS_FILE": str(folder / "public.json"),
            "SHARDBOX_BLOCK_DIR": str(folder / "blocks"),
        }
        metaservers = [
            ServerProcess("metaserver", port, shared | tokens | meta_env, folder / f"metaserver-{n}.log")
            for n, port in enumerate(meta_ports)
        ]
        blockserver = ServerProcess(
            "blockserver", block_port, shared | tokens | block_env, folder / "blockserver.log"
        )
        notifserver = ServerProcess("notifserver", notif_port, shared | cursor, folder / "notifserver.log")
        services = await stack.enter_async_context(run_services(cluster))
        servers = [*metaservers, blockserver, notifserver]
        provider.wait()  # a server that did not reach it asks again only after ten seconds
        for server in servers:
            stack.callback(server.kill)
            server.start_unready()
        for server in servers:
            server.wait_ready()
        yield Front(
            folder=folder,
            cluster=cluster,
            services=services,
            issuer=TokenIssuer(private),
            provider=provider,
            metaservers=metaservers,
            blockserver=blockserver,
            notifserver=notifserver,
            ports=ports,
            env=shared | tokens | meta_env,
        )


@contextmanager
def running_haproxy(front: Front, **changes: str) -> Iterator[str]:
    """HAProxy before the servers; the address that clients have. `changes`: lines of its configuration."""
    program = shutil.which("haproxy", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
    if program is None:
        pytest.skip("no haproxy program found: apt-get install haproxy")
    text = CONFIGURATION.read_text()
    # A test's machine may not give that many open files.
    for old, new in ({"maxconn 50000": "maxconn 1000"} | changes).items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    file, log = front.folder / "haproxy.cfg", front.folder / "haproxy.log"
    file.write_text(text)
    env = {
        "SHARDBOX_FRONT": f"127.0.0.1:{front.ports[4]}",
        "SHARDBOX_METASERVER_1": f"127.0.0.1:{front.ports[0]}",
        "SHARDBOX_METASERVER_2": f"127.0.0.1:{front.ports[1]}",
        "SHARDBOX_BLOCKSERVER_1": f"127.0.0.1:{front.ports[2]}",
        "SHARDBOX_NOTIFSERVER_1": f"127.0.0.1:{front.ports[3]}",
    }
    with log.open("wb") as out:
        process = subprocess.Popen([program, "-db", "-f", str(file)], env=env, stdout=out, stderr=out)
    try:
        url = f"http://127.0.0.1:{front.ports[4]}"
        wait_for(lambda: process.poll() is not None or is_open(front.ports[4]), "HAProxy listening")
        assert process.poll() is None, log.read_text()
        yield url
    finally:
        process.kill()
        process.wait()


def is_open(port: int) -> bool:
    """Whether somebody listens there."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def session_from(address: str) -> aiohttp.ClientSession:
    """Whose connections come from an address of the loopback."""
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(local_addr=(address, 0)))
