"""Servers for the tests of this folder."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.integration.blockserver.servers import Stack, running_stack
from tests.support.databases import PgServers, cloned_cluster


@pytest.fixture(scope="module")
async def stack(pg_templates: PgServers, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    """Real servers over databases of this module's own."""
    folder: Path = tmp_path_factory.mktemp("stack")
    with cloned_cluster(pg_templates) as cluster:
        async with running_stack(cluster, folder) as found:
            yield found
