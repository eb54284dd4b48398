"""A TCP proxy before a PostgreSQL server, for connections that break at the worst moment."""

import contextlib
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

# A statement that psycopg has prepared travels by its name alone from then on.
_PARSE = re.compile(rb"(_pg3_\d+)\0([^\0]*)\0")
_ANSWER_S = 10.0


class CuttingProxy:
    """Passes bytes on; once `word` is set, cuts the connection on which a client sends it next.

    `is_delivered` says whether the server still gets that message; its answer is never passed on.
    """

    def __init__(self, dsn: str):
        info = psycopg.conninfo.conninfo_to_dict(dsn)
        self._server = (str(info["host"]), int(info["port"] or 0))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.word: bytes | None = None
        self.is_delivered = True
        self.cuts = 0
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    def close(self) -> None:
        """Cut everything."""
        _cut(self._listener)
        for each in list(self._open):
            _cut(each)
        for thread in self._threads:
            thread.join()

    def _start(self, target, *args: object) -> threading.Thread:  # type: ignore[no-untyped-def]
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()
        return thread

    def _accept(self) -> None:
        with self._listener, contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._start(self._serve, client)

    def _serve(self, client: socket.socket) -> None:
        with client, socket.create_connection(self._server) as server, contextlib.suppress(OSError):
            self._open |= {client, server}
            is_cut = threading.Event()
            back = self._start(self._pass_back, server, client, is_cut)
            self._pass_on(client, server, is_cut)
            if is_cut.is_set() and self.is_delivered:
                back.join(_ANSWER_S)  # the server's answer is the proof that it has acted
            _cut(server)
            back.join()

    def _pass_on(self, client: socket.socket, server: socket.socket, is_cut: threading.Event) -> None:
        prepared: dict[bytes, bytes] = {}
        while data := client.recv(65536):
            prepared |= dict(_PARSE.findall(data))
            named = (text for name, text in prepared.items() if b"\0" + name + b"\0" in data)
            if self.word is not None and any(self.word in text for text in (data, *named)):
                self.cuts += 1
                self.word = None
                is_cut.set()
                if self.is_delivered:
                    server.sendall(data)
                return
            server.sendall(data)

    @staticmethod
    def _pass_back(server: socket.socket, client: socket.socket, is_cut: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(65536):
                if is_cut.is_set():
                    break
                client.sendall(data)
            client.shutdown(socket.SHUT_RDWR)


def _cut(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)


@contextmanager
def cutting_proxy(dsn: str) -> Iterator[tuple[CuttingProxy, str]]:
    """A proxy before a database, and the DSN that leads to it, with the password."""
    with psycopg.connect(dsn) as conn:
        password = conn.info.password
    proxy = CuttingProxy(dsn)
    try:
        yield proxy, psycopg.conninfo.make_conninfo(dsn, port=proxy.port, password=password)
    finally:
        proxy.close()
