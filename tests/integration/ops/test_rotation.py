"""Keys and passwords are replaced under running requests, and none of them fails."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import psycopg
import pytest

from ops.keys import KeyKind
from ops.specs import cursor_keys_file, service_keys_file, token_keys_file, token_verify_keys_file
from tests.kill.api import ApiDevice, one_block_file
from tests.support.commands import OPERATOR, run_command
from tests.support.databases import PgServers
from tests.support.dev import DevCluster
from tests.support.waiting import wait_until
from wire.api import ListFolder, ListFolderContinue, ListFolderResult, Longpoll, LongpollResult

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]


@pytest.fixture
def cluster(shared_cluster: DevCluster, pg_servers: PgServers, own_passfile: None) -> DevCluster:
    return shared_cluster


def run(cluster: DevCluster, *args: str, fault: str = "") -> Any:
    env = {"SHARDBOX_DEV_DIR": str(cluster.layout.root), "SHARDBOX_FAULT": fault}
    env["PGPASSFILE"] = str(cluster.layout.passfile)
    return run_command(OPERATOR, *args, "--output", "json", env=env)


def ctl(cluster: DevCluster, *args: str) -> Any:
    done = run(cluster, *args)
    assert done.returncode == 0, done.stderr
    return msgspec.json.decode(done.stdout)


async def new_device(cluster: DevCluster, session: aiohttp.ClientSession, email: str) -> ApiDevice:
    status = cluster.status()
    if email not in {user["email"] for user in ctl(cluster, "user", "list")["users"]}:
        ctl(cluster, "user", "add", email)
    code = ctl(cluster, "device", "code", email)["code"]
    return await ApiDevice.link(
        session, status.metaserver_urls, status.blockserver_url, status.notifserver_url, code
    )


@asynccontextmanager
async def under_requests(device: ApiDevice, writers: int = 2) -> AsyncIterator[None]:
    """Blocks, commits, deltas and polls, none of which may fail, while the body runs."""
    done: list[int] = []

    async def commit_all(name: str) -> None:
        for n in range(100_000):
            data = f"{name} {n} {os.urandom(4).hex()}".encode()
            block = await device.put_block(data)
            await device.commit(one_block_file(f"/{name}/{n}", block, len(data)), surely=False)
            done.append(n)

    async def follow() -> None:
        page: ListFolderResult = await device.post(
            "/v1/files/list_folder", ListFolder(recursive=True, limit=2000), ListFolderResult
        )
        while True:
            page = await device.post(
                "/v1/files/list_folder/continue", ListFolderContinue(page.cursor), ListFolderResult
            )
            async with device.session.post(
                device.notifserver + "/v1/files/list_folder/longpoll",
                data=msgspec.json.encode(Longpoll(page.cursor, 30)),
            ) as answer:
                assert answer.status == 200, await answer.text()
                assert msgspec.json.decode(await answer.read(), type=LongpollResult).backoff is None

    place = os.urandom(4).hex()
    tasks = [asyncio.create_task(commit_all(f"{place}-{n}")) for n in range(writers)]
    tasks.append(asyncio.create_task(follow()))

    def are_going_on(count: int) -> bool:
        return len(done) > count or any(task.done() for task in tasks)

    try:
        await wait_until(lambda: are_going_on(3), "requests under way")
        yield
        count = len(done)
        await wait_until(lambda: are_going_on(count + 3), "requests going on")
    finally:
        for task in tasks:
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [o for o in outcomes if not isinstance(o, asyncio.CancelledError)] == []


def key_file(cluster: DevCluster, kind: KeyKind) -> Path:
    files = {
        KeyKind.TOKEN: token_keys_file,
        KeyKind.CURSOR: cursor_keys_file,
        KeyKind.SERVICE: service_keys_file,
    }
    return files[kind](cluster.layout)


async def test_each_kind_of_key_is_rotated_and_retired_under_requests(cluster: DevCluster):
    async with aiohttp.ClientSession() as session:
        device = await new_device(cluster, session, "rotation@example.org")
        async with under_requests(device):
            for kind in KeyKind:
                (old,) = ctl(cluster, "keys", "list", kind)["keys"]
                first_cut = "ops.keys.public_added" if kind is KeyKind.TOKEN else "ops.keys.added"
                for cut in (first_cut, "ops.keys.signing"):
                    done = await asyncio.to_thread(run, cluster, "keys", "rotate", kind, fault=cut)
                    assert done.returncode == -9, done.stderr
                cut_short, former = ctl(cluster, "keys", "list", kind)["keys"]
                assert (cut_short["role"], former["role"]) == ("signs", "verifies")
                assert former["key_id"] == old["key_id"]
                # The key that signs already is not the one that is asked for now.
                new = (await asyncio.to_thread(ctl, cluster, "keys", "rotate", kind))["key_id"]
                roles = {key["key_id"]: key["role"] for key in ctl(cluster, "keys", "list", kind)["keys"]}
                assert roles == {
                    new: "signs",
                    cut_short["key_id"]: "verifies",
                    old["key_id"]: "verifies",
                }
                # What the old one has signed is good still: the device's token, its cursors.
                early = run(cluster, "keys", "retire", kind)
                assert (early.returncode, early.stderr.split(": ")[1]) == (4, "keys_in_use")
        fresh = await new_device(cluster, session, "rotation@example.org")
        async with under_requests(fresh):
            for kind in KeyKind:
                done = await asyncio.to_thread(
                    run, cluster, "keys", "retire", kind, "--force", fault="ops.keys.private_retired"
                )
                assert done.returncode == -9, done.stderr
                assert ctl(cluster, "keys", "retire", kind, "--force")["retired"] == []
                assert len(ctl(cluster, "keys", "list", kind)["keys"]) == 1
        public = msgspec.json.decode(token_verify_keys_file(cluster.layout).read_bytes())["keys"]
        private = ctl(cluster, "keys", "list", "token")["keys"]
        assert [key["kid"] for key in public] == [key["key_id"] for key in private]
        # A stolen key is out everywhere as soon as the files have been looked at.
        urls = [*cluster.status().metaserver_urls, cluster.status().blockserver_url]

        async def is_refused() -> bool:
            header = {"Authorization": f"Bearer {device.linked.access_token}"}
            statuses = []
            for url in urls:
                path = "/v1/blocks/missing" if url == device.blockserver else "/v1/files/list_folder"
                async with session.post(url + path, data=b"{}", headers=header) as answer:
                    statuses.append(answer.status)
            return statuses == [401] * len(urls)

        await wait_until(is_refused, "the old token being refused")


async def test_a_broken_file_changes_nothing_but_the_log(cluster: DevCluster):
    async with aiohttp.ClientSession() as session:
        device = await new_device(cluster, session, "broken@example.org")
        kept = {kind: key_file(cluster, kind).read_bytes() for kind in KeyKind}
        logs = [cluster.layout.log(name) for name in ("metaserver-1", "blockserver", "notifserver")]
        before = [log.read_text().count("keys_refused") for log in logs]
        try:
            async with under_requests(device):
                for kind in KeyKind:
                    key_file(cluster, kind).write_bytes(b'{"keys": []}')
                token_verify_keys_file(cluster.layout).write_bytes(b"nothing of the kind")
                await wait_until(
                    lambda: all(
                        log.read_text().count("keys_refused") > was
                        for log, was in zip(logs, before, strict=True)
                    ),
                    "the refusal in the logs",
                )
        finally:
            for kind, content in kept.items():
                key_file(cluster, kind).write_bytes(content)
            private = msgspec.json.decode(kept[KeyKind.TOKEN])["keys"]
            public = [{k: v for k, v in key.items() if k != "d"} for key in private]
            token_verify_keys_file(cluster.layout).write_bytes(msgspec.json.encode({"keys": public}))
        async with under_requests(device):
            pass


@pytest.mark.long
async def test_a_database_password_is_replaced_under_requests(cluster: DevCluster):
    def read_password(port: int) -> str:
        lines = cluster.layout.passfile.read_text().splitlines()
        return next(line.rpartition(":")[2] for line in lines if f":{port}:" in line)

    port = int(cluster.process("shard-1").port or 0)
    old = read_password(port)
    async with aiohttp.ClientSession() as session:
        device = await new_device(cluster, session, "password@example.org")
        async with under_requests(device, writers=8):  # more than there are connections yet
            for cut in ("ops.passwords.noted", "ops.passwords.altered", "ops.passwords.replaced"):
                done = await asyncio.to_thread(run, cluster, "keys", "password", "shard-1", fault=cut)
                assert done.returncode == -9, done.stderr
                # Another server's rotation has nothing to do with it.
                await asyncio.to_thread(ctl, cluster, "keys", "password", "shard-2")
            await asyncio.to_thread(ctl, cluster, "keys", "password", "shard-1")
    new = read_password(port)
    assert new != old
    assert list(cluster.layout.passfile.parent.glob("pgpass.next*")) == []
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(host="127.0.0.1", port=port, user="shardbox", password=old, dbname="shard_1")
    for name in ("shard-1", "shard-2"):
        with cluster.connect(name) as conn:
            assert conn.execute("SELECT 1").fetchone() == (1,)
