"""Which processes are killed, how often, and at which points."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ops.supervisor import SUPERVISOR
from tests.kill.course import CLIENT_VICTIM, Course, Report, running_course
from tests.kill.points import ClientPoints, ServerPoints, client_points, server_points, spread
from tests.support.dev import DevCluster


@dataclass(frozen=True, slots=True)
class Plan:
    """How much of it all."""

    rounds: int
    stop_s: float
    points: int | None
    """Fault points of the client and as many of the servers; None: all."""
    accounts: int = 200
    """Under load, spread over the shards."""
    is_one_of_each_kind: bool = False
    """Whether a shard, and a metaserver, stands for the others."""


async def run_suite(
    cluster: DevCluster, folder: Path, report: Report, plan: Plan, say: Callable[[str], None]
) -> None:
    """The whole course; what was found is in the report."""
    async with running_course(cluster, folder, report, plan.accounts) as course:
        victims = [*sorted(cluster.pids().keys() - {SUPERVISOR}), SUPERVISOR, CLIENT_VICTIM]
        if plan.is_one_of_each_kind:
            victims = list({name.rstrip("-0123456789"): name for name in victims}.values())
        for number in range(plan.rounds):
            for victim in victims:
                say(f"round {number + 1}: kill -9 {victim}")
                await course.kill(victim)
        stopped = sorted(course.router.map.shards)[0]
        say(f"stop {stopped} for {plan.stop_s:g} s")
        await course.stop_shard(stopped, plan.stop_s)
        for client in course.clients:
            client.stop()
        await _cut_points(course, cluster, folder, plan, say)
        course.check_journals()


async def _cut_points(
    course: Course, cluster: DevCluster, folder: Path, plan: Plan, say: Callable[[str], None]
) -> None:
    loop = asyncio.get_running_loop()

    async def add_account(name: str) -> Callable[[], str]:
        # One of their own: new devices are linked all the time, and would fetch all that was edited so far.
        make_code = await course.add_account(name)
        return lambda: asyncio.run_coroutine_threadsafe(make_code(), loop).result(60)

    url = cluster.status().metaserver_urls[0]
    make_code = await add_account("client-points")
    clients = await asyncio.to_thread(ClientPoints, url, make_code, folder, course.report)
    for point in spread(client_points(), plan.points):
        say(f"cut the client at {point}")
        await asyncio.to_thread(clients.cut, point)
    device = course.committers[0].devices[0]
    make_code = await add_account("server-points")
    servers = await asyncio.to_thread(ServerPoints, cluster, make_code, device, folder, course.report)
    for point in spread(server_points(), plan.points):
        say(f"cut a server at {point}")
        await servers.cut(point)
