"""A keep-alive HTTP/1.1 connection that costs its own process as little as can be.

A general client takes as long for a request as the server under measurement does, and on the same machine.
"""

import asyncio
from dataclasses import dataclass
from urllib.parse import urlsplit

READ_LIMIT_BYTES = 8 * 2**20


@dataclass(frozen=True, slots=True)
class Answer:
    """A status and a body."""

    status: int
    body: bytes


class Connection:
    """One connection; one request at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str):
        self._reader = reader
        self._writer = writer
        self._host = host.encode()

    @classmethod
    async def open(cls, url: str) -> "Connection":
        """Connect to a server."""
        parts = urlsplit(url)
        assert parts.hostname is not None
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port, limit=READ_LIMIT_BYTES)
        return cls(reader, writer, parts.netloc)

    async def post(self, path: str, body: bytes, token: str = "", key: str = "") -> Answer:
        """Send one request and read its whole answer."""
        head = b"POST %b HTTP/1.1\r\nHost: %b\r\nContent-Length: %d\r\nContent-Type: application/json\r\n" % (
            path.encode(),
            self._host,
            len(body),
        )
        if token:
            head += b"Authorization: Bearer %b\r\n" % token.encode()
        if key:
            head += b"Idempotency-Key: %b\r\n" % key.encode()
        self._writer.write(head + b"\r\n" + body)
        answer = await self._reader.readuntil(b"\r\n\r\n")
        lower = answer.lower()
        at = lower.index(b"content-length:") + 15
        length = int(lower[at : lower.index(b"\r\n", at)])
        return Answer(int(answer[9:12]), await self._reader.readexactly(length) if length else b"")

    def close(self) -> None:
        """Hang up."""
        self._writer.close()
