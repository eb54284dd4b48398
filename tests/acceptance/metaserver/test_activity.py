"""What metaservers do shows in `shardctl top` by itself, and adds up over processes."""

import json
import secrets

import aiohttp
import pytest

from sharding.activity import FADE_S
from tests.kill.api import ApiDevice, empty_file
from tests.support.commands import OPERATOR, run_command
from tests.support.dev import DevCluster
from tests.support.waiting import wait_until
from wire.api import Batch, BatchResult

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("own_passfile")]

COMMITS = 40


def ctl(cluster: DevCluster, *args: str) -> dict:
    """What a shardctl command answers."""
    env = {"SHARDBOX_DEV_DIR": str(cluster.layout.root)}
    done = run_command(OPERATOR, *args, "--output", "json", env=env)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


async def test_commits_through_two_processes_add_up(shared_cluster: DevCluster):
    shared_cluster.ensure_up()
    status = shared_cluster.status()
    email = f"{secrets.token_hex(4)}@example.org"
    ctl(shared_cluster, "user", "add", email, "--name", "Ada")
    code = ctl(shared_cluster, "device", "code", email)["code"]
    async with aiohttp.ClientSession() as session:
        device = await ApiDevice.link(
            session, status.metaserver_urls, status.blockserver_url, status.notifserver_url, code
        )
        assert len(set(device.metaservers)) == 2
        for number in range(COMMITS):
            await device.post("/v1/files/batch", Batch([empty_file(f"/{number}")]), BatchResult)

    def has_both() -> bool:
        # Each of the two has seen half of them.
        report = ctl(shared_cluster, "top", "--namespaces", "--limit", "1000")
        rates = {entry["ns_id"]: entry["writes_per_s"] for entry in report["namespaces"]}
        return rates.get(device.linked.root_ns, 0) * FADE_S > COMMITS * 0.7

    await wait_until(has_both, "the commits of both metaservers")
