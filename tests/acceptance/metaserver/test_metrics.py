"""What the servers tell Prometheus, held against docs/metrics.md."""

import re
from pathlib import Path

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.dev import DevCluster

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("own_passfile")]

PAGE = Path(__file__).parents[3] / "docs" / "metrics.md"
FOREIGN = ("process_", "python_gc_")
MAX_VALUES = 100
"""Of one label. Routes are the most; nothing that callers choose may be a label."""


def read_page() -> dict[str, set[str]]:
    """Metric → its labels."""
    rows = re.findall(r"^\| `(\w+)` \|([^|]*)\|", PAGE.read_text(), re.MULTILINE)
    return {name: {label.strip() for label in labels.split(",") if label.strip()} for name, labels in rows}


async def test_the_page_names_every_metric_and_its_labels(shared_cluster: DevCluster):
    shared_cluster.ensure_up()
    status = shared_cluster.status()
    documented, seen = read_page(), set()
    async with aiohttp.ClientSession() as session:
        for url in (status.metaserver_urls[0], status.blockserver_url, status.notifserver_url):
            for n in range(MAX_VALUES):  # addresses that nobody has, and a method that nobody takes
                await session.get(f"{url}/nowhere/{n}")
            await session.request("BREW", f"{url}/healthz")
            async with session.get(f"{url}/metrics") as answer:
                text = await answer.text()
            for family in text_string_to_metric_families(text):
                name = family.name + ("_total" if family.type == "counter" else "")
                if name.startswith(FOREIGN):
                    continue
                seen.add(name)
                labels = {label for sample in family.samples for label in sample.labels} - {"le"}
                assert labels <= documented.get(name, set()), (name, labels)
                for label in labels:
                    values = {sample.labels[label] for sample in family.samples}
                    assert len(values) < MAX_VALUES, (name, label)
    assert documented.keys() == seen
