"""What a case is, and the short ways to write one."""

import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tests.badinput.world import World
from tests.support.raw_http import RawAnswer

Outcome = tuple[int, str]
"""Status and code. (0, ""): the server hung up, at most after a bare 400."""
HUNG_UP: Outcome = (0, "")
Send = Callable[[World], Awaitable[Outcome]]
Given = str | Callable[[World], str]
Body = bytes | object | Callable[[World], object]


@dataclass(frozen=True, slots=True)
class Case:
    """Bad input, and what is to be answered."""

    name: str
    send: Send
    want: Outcome


@dataclass(frozen=True, slots=True)
class Twins:
    """Two requests that must be answered alike, but for the words in which they differ."""

    name: str
    first: "Request"
    second: "Request"
    want: Outcome
    words: Callable[[World], Sequence[tuple[str, str]]]
    """What stands in the one where the other has something else."""


@dataclass(frozen=True, slots=True)
class Request:
    """A well-formed HTTP request. A body that is not bytes is sent as JSON.

    `who` is whose token goes along; None: none does.
    """

    method: str
    path: Given
    body: Body = b""
    headers: tuple[str, ...] = ()
    who: str | None = "alice"
    server: str = "metaserver"

    async def send(self, world: World) -> RawAnswer:
        """The answer."""
        body = self.body(world) if callable(self.body) else self.body
        token = None if self.who is None else world.people[self.who].device.access_token
        return await world.ask(
            self.method,
            given(self.path, world),
            body if isinstance(body, bytes) else json.dumps(body).encode(),
            *self.headers,
            server=self.server,
            token=token,
        )


def given(value: Given, world: World) -> str:
    """A text that may depend on the world."""
    return value(world) if callable(value) else value


def ask(name: str, request: Request, status: int, code: str) -> Case:
    """A case of one well-formed request."""

    async def send(world: World) -> Outcome:
        answer = await request.send(world)
        assert (answer.status == 429) <= ("retry-after" in answer.headers), answer
        return answer.status, answer.code

    return Case(name, send, (status, code))


def post(name: str, path: Given, body: Body, status: int, code: str, **how: Any) -> Case:
    """A case of a POST with Alice's token."""
    where = path if isinstance(path, str) else ""
    return ask(f"{name}: {where}", Request("POST", path, body, **how), status, code)


def raw(
    name: str, head: bytes | Callable[[World], bytes], want: Outcome, *, server: str = "metaserver"
) -> Case:
    """A case of bytes that are no lawful request."""

    async def send(world: World) -> Outcome:
        connection = await world.connect(server)
        try:
            await connection.send(head(world) if callable(head) else head)
            if want == HUNG_UP:
                return HUNG_UP if await connection.is_closed(or_status=400) else (200, "not hung up on")
            answer = await connection.answer()
            return answer.status, answer.code
        finally:
            await connection.close()

    return Case(name, send, want)
