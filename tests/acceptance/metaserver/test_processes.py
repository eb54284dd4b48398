"""What holds for server processes: idempotency keys between two, a refresh that is cut short, their logs."""

import asyncio
import json
import re
import secrets
from pathlib import Path

import aiohttp
import pytest
from typer.testing import CliRunner

from ops.cli import app
from tests.kill.api import ApiDevice, Failed, empty_file, post_to
from tests.support.dev import DevCluster
from wire.api import (
    AccessGranted,
    Batch,
    BatchResult,
    Copy,
    Delete,
    GetMetadataBatch,
    LinkDevice,
    LinkedDevice,
    ListFolder,
    ListFolderContinue,
    ListFolderResult,
    ListRevisions,
    ListRevisionsResult,
    Metadata,
    MetadataBatch,
    RefreshAccess,
    Restore,
    Search,
    SearchContinue,
    SearchResult,
)

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("own_passfile")]


async def ctl(cluster: DevCluster, *args: str) -> dict:
    """What a shardctl command answers; it runs a loop of its own."""
    runner = CliRunner(env={"SHARDBOX_DEV_DIR": str(cluster.layout.root)})
    done = await asyncio.to_thread(runner.invoke, app, [*args, "--output", "json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


async def test_a_retry_through_another_process_does_not_act_twice(shared_cluster: DevCluster):
    email = f"{secrets.token_hex(4)}@example.org"
    await ctl(shared_cluster, "user", "add", email, "--name", "Ada")
    status = shared_cluster.status()
    async with aiohttp.ClientSession() as session:
        device = await ApiDevice.link(
            session,
            status.metaserver_urls,
            status.blockserver_url,
            status.notifserver_url,
            (await ctl(shared_cluster, "device", "code", email))["code"],
        )
        assert len(set(device.metaservers)) == 2
        batch, key = Batch([empty_file("/once.txt")]), secrets.token_hex(8)
        first = await device.post("/v1/files/batch", batch, BatchResult, key)
        again = await device.post("/v1/files/batch", batch, BatchResult, key)  # the next process
        assert again == first
        assert first.head == 1
        with pytest.raises(Failed, match="idempotency_key_reused"):
            await device.post("/v1/files/batch", Batch([Delete(path="/once.txt")]), BatchResult, key)


async def test_a_refresh_that_was_cut_after_its_commit_is_repeated_elsewhere(
    shared_cluster: DevCluster, tmp_path: Path
):
    email = f"{secrets.token_hex(4)}@example.org"
    await ctl(shared_cluster, "user", "add", email, "--name", "Ada")
    token = tmp_path / "token"
    config = shared_cluster.layout.config_file
    fault = f"metaserver.devices.refreshed@{token}"
    config.write_text(json.dumps({"env": {"metaserver-1": {"SHARDBOX_FAULT": fault}}}))
    try:
        shared_cluster.wait_restarted("metaserver-1", shared_cluster.kill("metaserver-1"))
    finally:
        config.unlink()
    first, second = shared_cluster.status().metaserver_urls
    code = (await ctl(shared_cluster, "device", "code", email))["code"]
    old, following = secrets.token_hex(16), secrets.token_hex(16)
    link = LinkDevice(code=code, request_id=secrets.token_hex(16), refresh_token=old, device_name="x")
    async with aiohttp.ClientSession() as session:
        linked = await post_to(session, second + "/v1/devices/link", link, LinkedDevice, {})
        refresh = RefreshAccess(device_id=linked.device_id, refresh_token=old, next_refresh_token=following)
        token.touch()
        with pytest.raises(Failed) as cut:
            await post_to(session, first + "/v1/devices/refresh", refresh, AccessGranted, {})
        assert cut.value.status is None
        assert not token.exists()
        await post_to(session, second + "/v1/devices/refresh", refresh, AccessGranted, {})


async def test_the_logs_say_where_a_request_went_and_no_secret(shared_cluster: DevCluster):
    shared_cluster.ensure_up()
    servers = ("metaserver-1", "metaserver-2", "blockserver", "notifserver")
    config = shared_cluster.layout.config_file
    config.write_text(json.dumps({"env": {name: {"SHARDBOX_LOG_LEVEL": "debug"} for name in servers}}))
    try:
        killed = {name: shared_cluster.kill(name) for name in servers}
        for name, pid in killed.items():
            shared_cluster.wait_restarted(name, pid)
    finally:
        config.unlink()
    email = f"{secrets.token_hex(4)}@example.org"
    await ctl(shared_cluster, "user", "add", email, "--name", "Ada")
    code = (await ctl(shared_cluster, "device", "code", email))["code"]
    refresh_tokens = [secrets.token_hex(16) for _ in range(2)]
    status = shared_cluster.status()
    async with aiohttp.ClientSession() as session:
        link = LinkDevice(
            code=code, request_id=secrets.token_hex(16), refresh_token=refresh_tokens[0], device_name="x"
        )
        first = status.metaserver_urls[0]
        linked = await post_to(session, first + "/v1/devices/link", link, LinkedDevice, {})
        device = ApiDevice(
            session, status.metaserver_urls, status.blockserver_url, status.notifserver_url, linked
        )
        await device.put_block(b"a block")
        await device.commit(empty_file("/a name"))
        refresh = RefreshAccess(
            device_id=linked.device_id,
            refresh_token=refresh_tokens[0],
            next_refresh_token=refresh_tokens[1],
        )
        granted = await post_to(session, first + "/v1/devices/refresh", refresh, AccessGranted, {})
        page = await device.post("/v1/files/list_folder", ListFolder(recursive=True), ListFolderResult)
        await session.post(
            status.notifserver_url + "/v1/files/list_folder/longpoll",
            json={"cursor": page.cursor, "timeout": 1},  # refused: too short
        )
        for url in (first, status.blockserver_url, status.notifserver_url):
            # Where secrets do not belong: in the address, half a header, a body that is no JSON.
            await session.get(f"{url}/no/such?access_token={linked.access_token}")
            await session.post(
                url + "/v1/devices/refresh",
                data=f"{{{refresh_tokens[1]}",
                headers={"Authorization": f"bearer{linked.access_token}"},
            )
    logs = "".join(shared_cluster.layout.log(name).read_text() for name in servers)
    lines = [json.loads(line) for line in logs.splitlines() if line.startswith("{")]
    commit = next(x for x in lines if x.get("namespace") == linked.root_ns and x["route"] == "files/batch")
    assert commit["shard"] in {"shard-1", "shard-2"}
    assert commit["epoch"] == 1
    assert {"request_id", "status", "ms"} <= commit.keys()
    assert all({"event", "level", "timestamp", "server"} <= line.keys() for line in lines)
    keys = [
        secret
        for path in shared_cluster.layout.secrets.iterdir()
        for secret in re.findall(r'"(?:secret|d)":\s*"([^"]+)"', path.read_text())
    ]
    passwords = [line.rpartition(":")[2] for line in shared_cluster.layout.passfile.read_text().splitlines()]
    assert len(keys) >= 3
    for secret in (
        code,
        *refresh_tokens,
        linked.access_token,
        granted.access_token,
        page.cursor,
        *keys,
        *passwords,
    ):
        assert secret not in logs, secret


async def test_the_wide_addresses_over_http(shared_cluster: DevCluster):
    email = f"{secrets.token_hex(4)}@example.org"
    await ctl(shared_cluster, "user", "add", email, "--name", "Ada")
    status = shared_cluster.status()
    async with aiohttp.ClientSession() as session:
        device = await ApiDevice.link(
            session,
            status.metaserver_urls,
            status.blockserver_url,
            status.notifserver_url,
            (await ctl(shared_cluster, "device", "code", email))["code"],
        )
        made = await device.post("/v1/files/batch", Batch([empty_file("/a/f.txt")]), BatchResult)
        rev = made.verdicts[0].metadata.rev
        copy = await device.post("/v1/files/copy", Copy(from_path="/a", to_path="/b/c"), Metadata)
        assert copy.path_display == "/b/c"
        batch = Batch([Delete(path="/a"), Restore(path="/back.txt", rev=rev)])
        mixed = await device.post("/v1/files/batch", batch, BatchResult)
        assert [verdict.error for verdict in mixed.verdicts] == [None, None]
        with pytest.raises(Failed, match="not_found"):
            await device.post("/v1/files/restore", Restore(path="/b/c/f.txt", rev=rev), Metadata)
        paths = ["/back.txt", "/nothing", f"rev:{rev}"]
        found = await device.post("/v1/files/get_metadata_batch", GetMetadataBatch(paths), MetadataBatch)
        assert [v.error.code if v.error else v.metadata.name for v in found.entries] == [
            "back.txt",
            "not_found",
            "back.txt",
        ]
        revisions = await device.post(
            "/v1/files/list_revisions", ListRevisions(path="/back.txt"), ListRevisionsResult
        )
        assert [entry.rev for entry in revisions.entries][1:] == [rev]
        searched = await device.post("/v1/files/search", Search(query="TXT", limit=1), SearchResult)
        rest = await device.post("/v1/files/search/continue", SearchContinue(searched.cursor), SearchResult)
        assert sorted(e.path_display for e in searched.matches + rest.matches) == ["/b/c/f.txt", "/back.txt"]
        walked = await device.post(
            "/v1/files/list_folder", ListFolder(path="/b", recursive=True), ListFolderResult
        )
        assert [entry.path_display for entry in walked.entries] == ["/b/c", "/b/c/f.txt"]
        with pytest.raises(Failed, match="listing_ended"):
            await device.post(
                "/v1/files/list_folder/continue", ListFolderContinue(walked.cursor), ListFolderResult
            )
