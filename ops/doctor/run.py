"""All checks over a whole cluster."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from migrations import Tree
from ops.doctor.databases import check_database
from ops.doctor.finding import Finding, fail, ok
from ops.doctor.ownership import OwnershipRow, check_ownership
from ops.errors import NoCluster
from ops.readiness import http_status
from ops.session import load_map

PARALLEL = 16


def examine(directory_dsn: str, server_urls: Sequence[str]) -> list[Finding]:
    """Findings about the directory, the shards, the map and the servers; never raises for what it finds.

    Args:
        directory_dsn: the directory.
        server_urls: HTTP servers whose readiness is asked.
    """
    findings, _ = check_database("directory", Tree.DIRECTORY, directory_dsn)
    with ThreadPoolExecutor(PARALLEL) as pool:
        servers = list(pool.map(_check_server, server_urls))
        try:
            shard_map = load_map(directory_dsn)
        except NoCluster as error:
            missing = fail(
                "map", "directory", str(error), "start the directory; servers go on with the map they know"
            )
            return [*findings, missing, *servers]
        names = sorted(shard_map.shards)
        checked = list(pool.map(lambda n: check_database(n, Tree.SHARD, shard_map.shards[n].dsn), names))
    rows: dict[str, list[OwnershipRow]] = {}
    for name, (found, owned) in zip(names, checked, strict=True):
        findings += found
        if owned is not None:
            rows[name] = owned
    return [*findings, *check_ownership(shard_map, rows), *servers]


def _check_server(url: str) -> Finding:
    status = http_status(url, "/readyz")
    if status == 200:
        return ok("ready", url, "ready")
    if status is None:
        return fail("ready", url, "does not answer", "start it; its log tells why it ended")
    return fail(
        "ready", url, f"answers {status} to /readyz", "its log and the body of /readyz tell what it lacks"
    )
