"""Wiring of the notifserver."""

import resource
from contextlib import AsyncExitStack

import tornado.web

from notifserver.app import make_app
from notifserver.services.heads import HeadsUpstream
from notifserver.services.metrics import NotifMetrics
from notifserver.services.polls import PollLimits, PollService
from notifserver.settings import NotifserverSettings
from runtime.keyfiles import KeyFiles
from runtime.metrics import ServerMetrics
from runtime.process import run_server
from runtime.rpc import ServiceClient

SPARE_FILES = 1_000
"""Descriptors for everything that is not a poll; connections that keep alive between two polls count too."""


async def build(settings: NotifserverSettings, stack: AsyncExitStack) -> tornado.web.Application:
    """All objects of the process."""
    raise_file_limit(2 * settings.max_polls + SPARE_FILES)
    metrics = ServerMetrics()
    notif_metrics = NotifMetrics(metrics.registry)
    keys = KeyFiles(metrics.registry)
    service_keys = keys.ring("service", settings.service_keys_file)
    cursor_keys = keys.ring("cursor", settings.cursor_keys_file)
    keys.start()
    stack.push_async_callback(keys.stop)
    metaservers = await stack.enter_async_context(
        ServiceClient(settings.metaserver_urls, service_keys, ca_file=settings.ca_file)
    )
    upstream = HeadsUpstream(metaservers, notif_metrics)
    stack.push_async_callback(upstream.close)
    notif_metrics.unknown_heads.set_function(lambda: upstream.unanswered_count)
    limits = PollLimits(settings.max_polls, settings.max_polls_per_account)
    polls = PollService(cursor_keys, upstream, limits, notif_metrics)
    upstream.connect(polls)
    return make_app(polls, service_keys, metrics)


def raise_file_limit(wanted: int) -> None:
    """Allow this process that many open files, as far as the hard limit goes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    target = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < target:
        resource.setrlimit(resource.RLIMIT_NOFILE, (target, hard))


def main() -> None:
    """Run the notifserver until it is told to stop."""
    run_server("notifserver", NotifserverSettings, build)
