"""A raw connection, to say over HTTP what no well-behaved client would."""

import asyncio
from contextlib import suppress
from dataclasses import dataclass

import msgspec

from wire.errors import ErrorBody

DEADLINE_S = 20.0


@dataclass(frozen=True)
class RawAnswer:
    """An answer; header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def code(self) -> str:
        """The error's code; empty where there is none."""
        if self.status < 400 or not self.body:
            return ""
        return msgspec.json.decode(self.body, type=ErrorBody).error.code


class RawConnection:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, port: int) -> "RawConnection":
        """A new one."""
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def head(self, line: str, *headers: str) -> None:
        """Send a request's head; `line` without the version."""
        await self.send("\r\n".join([f"{line} HTTP/1.1", "Host: test", *headers, "", ""]).encode())

    async def send(self, data: bytes) -> None:
        """Send bytes, unless the server has hung up."""
        with suppress(ConnectionError):
            self._writer.write(data)
            await self._writer.drain()

    async def answer(self) -> RawAnswer:
        """The next answer."""
        async with asyncio.timeout(DEADLINE_S):
            head = (await self._reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
            body = await self._reader.readexactly(int(headers.get("content-length", 0)))
        return RawAnswer(int(head[0].split()[1]), headers, body)

    async def is_closed(self, *, or_status: int | None = None) -> bool:
        """Whether nothing more comes, or first an answer of that status."""
        async with asyncio.timeout(DEADLINE_S):
            try:
                rest = await self._reader.read()
            except ConnectionError:
                return True
        rest = rest.removeprefix(b"HTTP/1.1 100 (Continue)\r\n\r\n")
        return rest == b"" or (or_status is not None and rest.split()[1] == str(or_status).encode())

    async def close(self) -> None:
        """Hang up."""
        self._writer.close()
        with suppress(ConnectionError):
            await self._writer.wait_closed()
