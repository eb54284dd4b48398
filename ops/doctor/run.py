"""All checks over a whole cluster."""

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import psycopg

from migrations import Tree
from ops.doctor.databases import check_database, connect, read_ownership
from ops.doctor.finding import Finding, fail, ok
from ops.doctor.moves import LOOK_AGAIN_S, MIN_LOOKS, PATIENCE_S, check_moves
from ops.doctor.ownership import OwnershipFaults, OwnershipRow, describe_faults, find_faults
from ops.errors import NoCluster
from ops.readiness import http_status
from ops.session import load_map
from sharding.shardmap import ShardMap

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
        dsns = {name: shard_map.shards[name].dsn for name in names}
        checked = {name: pool.submit(check_database, name, Tree.SHARD, dsn) for name, dsn in dsns.items()}
        results = {name: check.result() for name, check in checked.items()}
    readable = {name: dsns[name] for name, (_, owned) in results.items() if owned is not None}
    findings += [finding for found, _ in results.values() for finding in found]
    return [*findings, *_check_owners(directory_dsn, readable), *_check_moves(directory_dsn), *servers]


def _check_owners(directory_dsn: str, shard_dsns: Mapping[str, str]) -> list[Finding]:
    """What several looks find: a cutover may lie between what one look asks of two shards."""
    deadline = time.monotonic() + PATIENCE_S
    try:
        shard_map, faults = _look_for_faults(directory_dsn, shard_dsns)
        looks = 1
        while faults and (looks < MIN_LOOKS or time.monotonic() < deadline):
            time.sleep(LOOK_AGAIN_S)
            looks += 1
            shard_map, again = _look_for_faults(directory_dsn, shard_dsns)
            faults &= again
    except (NoCluster, psycopg.Error) as error:
        return [_lost("ownership", error)]
    return describe_faults(faults, shard_map, is_whole=len(shard_dsns) == len(shard_map.shards))


def _look_for_faults(directory_dsn: str, shard_dsns: Mapping[str, str]) -> tuple[ShardMap, OwnershipFaults]:
    rows: dict[str, list[OwnershipRow]] = {}
    for name, dsn in shard_dsns.items():
        with connect(dsn) as conn:
            rows[name] = read_ownership(conn)
    shard_map = load_map(directory_dsn)
    return shard_map, find_faults(shard_map, rows)


def _check_moves(directory_dsn: str) -> list[Finding]:
    try:
        return check_moves(directory_dsn)
    except psycopg.errors.UndefinedTable:
        return []  # a directory of an older schema, which is said already
    except (NoCluster, psycopg.Error) as error:
        return [_lost("moves", error)]


def _lost(check: str, error: Exception) -> Finding:
    text = f"a server went away meanwhile: {str(error).strip()}"
    return fail(check, "cluster", text, "look again")


def _check_server(url: str) -> Finding:
    status = http_status(url, "/readyz")
    if status == 200:
        return ok("ready", url, "ready")
    if status is None:
        return fail("ready", url, "does not answer", "start it; its log tells why it ended")
    return fail(
        "ready", url, f"answers {status} to /readyz", "its log and the body of /readyz tell what it lacks"
    )
