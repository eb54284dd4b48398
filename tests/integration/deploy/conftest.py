"""The servers of this folder's tests."""

from collections.abc import AsyncIterator

import pytest

from tests.integration.deploy.front import Front, running_front
from tests.support.databases import PgServers, cloned_cluster


@pytest.fixture(scope="module")
async def front(pg_templates: PgServers, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Front]:
    """Real servers over databases of this module's own."""
    with cloned_cluster(pg_templates) as cluster:
        async with running_front(cluster, tmp_path_factory.mktemp("front")) as found:
            yield found
