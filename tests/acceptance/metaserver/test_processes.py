"""What holds between two metaserver processes: idempotency keys, and a refresh that is cut short."""

import asyncio
import json
import secrets
from pathlib import Path

import aiohttp
import pytest
from typer.testing import CliRunner

from ops.cli import app
from tests.kill.api import ApiDevice, Failed, empty_file, post_to
from tests.support.dev import DevCluster
from wire.api import AccessGranted, Batch, BatchResult, Delete, LinkDevice, LinkedDevice, RefreshAccess

pytestmark = pytest.mark.cluster


async def ctl(cluster: DevCluster, *args: str) -> dict:
    """What a shardctl command answers; it runs a loop of its own."""
    runner = CliRunner(env={"SHARDBOX_DEV_DIR": str(cluster.layout.root)})
    done = await asyncio.to_thread(runner.invoke, app, [*args, "--output", "json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


async def test_a_retry_through_another_process_does_not_act_twice(dev_cluster: DevCluster):
    email = f"{secrets.token_hex(4)}@example.org"
    await ctl(dev_cluster, "user", "add", email, "--name", "Ada")
    status = dev_cluster.status()
    async with aiohttp.ClientSession() as session:
        device = await ApiDevice.link(
            session,
            status.metaserver_urls,
            status.blockserver_url,
            status.notifserver_url,
            (await ctl(dev_cluster, "device", "code", email))["code"],
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
    dev_cluster: DevCluster, tmp_path: Path
):
    email = f"{secrets.token_hex(4)}@example.org"
    await ctl(dev_cluster, "user", "add", email, "--name", "Ada")
    token = tmp_path / "token"
    config = dev_cluster.layout.config_file
    fault = f"metaserver.devices.refreshed@{token}"
    config.write_text(json.dumps({"env": {"metaserver-1": {"SHARDBOX_FAULT": fault}}}))
    try:
        dev_cluster.wait_restarted("metaserver-1", dev_cluster.kill("metaserver-1"))
    finally:
        config.unlink()
    first, second = dev_cluster.status().metaserver_urls
    code = (await ctl(dev_cluster, "device", "code", email))["code"]
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
