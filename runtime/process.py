"""A server process from start to drain."""

import asyncio
import signal
import ssl
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress

import tornado.httpserver
import tornado.netutil
import tornado.web
import uvloop

from runtime.logs import configure_logs, get_log
from runtime.settings import ServerSettings
from runtime.tls import keep_certificate_fresh, open_server_context
from runtime.web import in_flight
from wire import faults

_log = get_log(__name__)

Build = Callable[[AsyncExitStack], Awaitable[tornado.web.Application]]
"""Builds a server's objects on the running loop; what must be closed is pushed on the stack."""

MAX_HEADER_BYTES = 64 * 1024
BODY_TIMEOUT_S = 120.0
"""A body of 150 MiB at 10 Mbit/s takes 120 s; a slower sender sends smaller bodies."""
IDLE_TIMEOUT_S = 600.0
"""Beyond the longest long-poll (480 + 75 s), so that a parked connection is never cut for idleness."""
LISTEN_BACKLOG = 4_096
CLOSE_TIMEOUT_S = 2.0
"""Closing a connection waits for its request's loop, which takes a turn or two; it may not keep us alive."""


def run_server(name: str, settings: ServerSettings, build: Build, *, max_body_bytes: int) -> None:
    """Run until SIGTERM or SIGINT, then drain: be unready for a moment, stop accepting, let requests finish,
    close.

    An application that holds requests back has `drain` among its settings: an `async def (drain_s)` that lets
    them go within that time.
    """
    configure_logs(settings.log_level, name)
    faults.arm_from_environment()
    uvloop.run(_serve(name, settings, build, max_body_bytes))


async def _serve(name: str, settings: ServerSettings, build: Build, max_body_bytes: int) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with AsyncExitStack() as stack:
        app = await build(stack)
        app.settings["trusted_proxies"] = settings.trusted_proxies
        server = tornado.httpserver.HTTPServer(
            app,
            ssl_options=_open_tls(settings, stack),
            max_body_size=max_body_bytes,
            max_buffer_size=max_body_bytes,
            max_header_size=MAX_HEADER_BYTES,
            body_timeout=BODY_TIMEOUT_S,
            idle_connection_timeout=IDLE_TIMEOUT_S,
        )
        sockets = tornado.netutil.bind_sockets(
            settings.listen_port, settings.listen_host, backlog=LISTEN_BACKLOG
        )
        server.add_sockets(sockets)
        port = sockets[0].getsockname()[1]
        _log.info("listening", host=settings.listen_host, port=port)
        await stop.wait()
        _log.info("draining", notice_s=settings.drain_notice_s, seconds=settings.drain_s)
        in_flight(app).is_draining = True
        await asyncio.sleep(settings.drain_notice_s)
        server.stop()
        try:
            async with asyncio.timeout(settings.drain_s):
                if "drain" in app.settings:
                    await app.settings["drain"](settings.drain_s)
                await in_flight(app).wait_empty()
        except TimeoutError:
            _log.warning("drain_timeout", requests=in_flight(app).count)
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await server.close_all_connections()
    _log.info("stopped", name=name)


def _open_tls(settings: ServerSettings, stack: AsyncExitStack) -> ssl.SSLContext | None:
    """What connections are met with; None: TLS ends in front of us."""
    cert_file, key_file = settings.tls_cert_file, settings.tls_key_file
    if cert_file is None or key_file is None:
        return None
    context = open_server_context(cert_file, key_file)
    task = asyncio.create_task(keep_certificate_fresh(context, cert_file, key_file))
    stack.callback(task.cancel)
    return context
