"""A server process from start to drain."""

import argparse
import asyncio
import signal
import ssl
import sys
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from typing import TypeVar

import pydantic
import tornado.httpserver
import tornado.netutil
import tornado.web
import uvloop

from runtime.logs import configure_logs, get_log
from runtime.settings import PREFIX, ServerSettings
from runtime.tls import keep_certificate_fresh, open_server_context
from runtime.web import in_flight
from wire import faults

_log = get_log(__name__)

S = TypeVar("S", bound=ServerSettings)
Build = Callable[[S, AsyncExitStack], Awaitable[tornado.web.Application]]
"""Builds a server's objects on the running loop; what must be closed is pushed on the stack."""

REFUSED_STATUS = 2
"""Exit status where a setting will not do: to start again changes nothing."""

MAX_HEADER_BYTES = 64 * 1024
MAX_HTTP_BODY_BYTES = 2**30
"""Where Tornado itself hangs up, with a bare 400: beyond what any address takes and throws away."""
READ_BUFFER_BYTES = 2**20
"""Of a connection: bodies are taken out of it piece by piece."""
LISTEN_BACKLOG = 4_096
CLOSE_TIMEOUT_S = 2.0
"""Closing a connection waits for its request's loop, which takes a turn or two; it may not keep us alive."""


def run_server(name: str, kind: type[S], build: Build[S]) -> None:
    """Run until SIGTERM or SIGINT, then drain: be unready for a moment, stop accepting, let requests finish,
    close.

    An application that holds requests back has `drain` among its settings: an `async def (drain_s)` that lets
    them go within that time.
    """
    _make_parser(name, kind).parse_args()
    configure_logs("info", name)
    settings = _read_settings(kind)
    configure_logs(settings.log_level, name)
    faults.arm_from_environment()
    uvloop.run(_serve(name, settings, build))


def _make_parser(name: str, kind: type[ServerSettings]) -> argparse.ArgumentParser:
    """There is nothing to be given but `--help`, which lists the settings."""
    lines = [
        f"  {_variable((field,))} = {'(needed)' if info.is_required() else _show(info)}"
        for field, info in kind.model_fields.items()
    ]
    return argparse.ArgumentParser(
        prog=f"shardbox-{name}",
        description=f"The {name}: all settings come from the environment (docs/settings.md tells of each).",
        epilog="\n".join(["settings and their defaults:", *sorted(lines)]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _variable(place: tuple[int | str, ...]) -> str:
    return PREFIX + str(place[0]).upper() if place else "several together"


def _show(info: pydantic.fields.FieldInfo) -> str:
    default = info.get_default(call_default_factory=True, validated_data={})
    return "" if default is None or default == [] else str(default)


def _read_settings(kind: type[S]) -> S:
    try:
        return kind()
    except pydantic.ValidationError as refused:
        # Not the values: a DSN may hold a password.
        errors = {_variable(e["loc"]): e["msg"] for e in refused.errors()}
        _log.error("settings_refused", errors=errors)
        sys.exit(REFUSED_STATUS)


def make_http_server(
    app: tornado.web.Application,
    *,
    header_timeout_s: float,
    body_timeout_s: float,
    ssl_options: ssl.SSLContext | None = None,
) -> tornado.httpserver.HTTPServer:
    """A server with its bounds: what is too long or too slow ends the connection."""
    return tornado.httpserver.HTTPServer(
        app,
        ssl_options=ssl_options,
        max_body_size=MAX_HTTP_BODY_BYTES,
        max_buffer_size=READ_BUFFER_BYTES,
        max_header_size=MAX_HEADER_BYTES,
        body_timeout=body_timeout_s,
        idle_connection_timeout=header_timeout_s,
    )


async def _serve(name: str, settings: S, build: Build[S]) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with AsyncExitStack() as stack:
        try:
            app = await build(settings, stack)
            server = _listen(app, settings, stack)
        except (OSError, ValueError) as error:
            # A file that is missing or not what it should be, or a port that is taken.
            _log.error("start_refused", error=f"{type(error).__name__}: {error}")
            sys.exit(1)
        await stop.wait()
        _log.info("draining", notice_s=settings.drain_notice_s, seconds=settings.drain_s)
        in_flight(app).is_draining = True
        await asyncio.sleep(settings.drain_notice_s)
        server.stop()
        server.conn_params.no_keep_alive = True  # each connection ends with the request that comes next
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


def _listen(
    app: tornado.web.Application, settings: ServerSettings, stack: AsyncExitStack
) -> tornado.httpserver.HTTPServer:
    app.settings["trusted_proxies"] = settings.trusted_proxies
    server = make_http_server(
        app,
        header_timeout_s=settings.header_timeout_s,
        body_timeout_s=settings.body_timeout_s,
        ssl_options=_open_tls(settings, stack),
    )
    sockets = tornado.netutil.bind_sockets(settings.listen_port, settings.listen_host, backlog=LISTEN_BACKLOG)
    server.add_sockets(sockets)
    _log.info("listening", host=settings.listen_host, port=sockets[0].getsockname()[1])
    return server


def _open_tls(settings: ServerSettings, stack: AsyncExitStack) -> ssl.SSLContext | None:
    """What connections are met with; None: TLS ends in front of us."""
    cert_file, key_file = settings.tls_cert_file, settings.tls_key_file
    if cert_file is None or key_file is None:
        return None
    context = open_server_context(cert_file, key_file)
    task = asyncio.create_task(keep_certificate_fresh(context, cert_file, key_file))
    stack.callback(task.cancel)
    return context
