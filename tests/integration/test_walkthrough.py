"""docs/walkthrough.md against the code, and against what traced requests really call, in order."""

import importlib
import inspect
import re
import sys
from pathlib import Path

import msgspec
import pytest
import tornado.httpclient
import tornado.httpserver
import tornado.netutil

from metaserver.app import Parts, make_app
from metaserver.services.heads import HeadService
from metaserver.services.hints import HintQueue, Publisher
from metaserver.services.sessions import SessionService
from metaserver.services.targets import TargetService
from runtime.metrics import ServerMetrics
from runtime.rpc import ServiceClient
from tests.support.services import Services
from wire.api import CommitFile, ListFolder, ListFolderContinue
from wire.keys import KeyRing

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/walkthrough.md").read_text()
NAME = re.compile(r"`([\w/]+\.py):([\w.]+)`")


def section(title: str) -> list[tuple[str, str]]:
    """The (file, function) pairs of the numbered steps of a section, in order."""
    body = PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]
    return NAME.findall(body[body.index("\n1. ") :])


def test_every_named_function_exists():
    names = NAME.findall(PAGE)
    assert len(names) > 20
    for file, function in names:
        module = importlib.import_module(file.removesuffix(".py").replace("/", "."))
        found = module
        for part in function.split("."):
            found = getattr(found, part)
        assert inspect.getsourcefile(inspect.unwrap(found)) == str(ROOT / file), (file, function)


class Trace:
    """The calls of our own functions, in order, while it is on."""

    def __init__(self):
        self.calls: list[tuple[str, str]] = []

    def __enter__(self):
        sys.setprofile(self._on_event)
        return self

    def __exit__(self, *_):
        sys.setprofile(None)

    def _on_event(self, frame, event, _arg):
        file = frame.f_code.co_filename
        if event == "call" and file.startswith(str(ROOT)) and "/.venv/" not in file:
            self.calls.append((file[len(str(ROOT)) + 1 :], frame.f_code.co_qualname))


def assert_in_order(steps, calls):
    """Each step is entered (or, for a coroutine, resumed) after the one before it."""
    at = 0
    for step in steps:
        assert step in calls[at:], f"{step} was not called after {calls[at]}"
        at = calls.index(step, at)


@pytest.fixture
async def address(services: Services):
    """A metaserver's application on a port of its own."""
    keys = KeyRing.parse(KeyRing.generate())
    client = ServiceClient([], keys)
    hints = HintQueue(Publisher([], client))
    targets = TargetService(services.tx, client, [], keys)
    app = make_app(
        Parts(
            metrics=ServerMetrics(),
            verifier=services.verifier,
            service_keys=keys,
            router=services.router,
            writes=services.writes,
            reads=services.reads,
            history=services.history,
            search=services.search,
            devices=services.devices,
            blocks=services.blocks,
            heads=HeadService(services.router),
            usage=services.usage,
            sessions=SessionService(services.tx, services.access, services.writes, targets, hints),
            urls={"metaservers": [], "blockservers": [], "notifservers": []},
        )
    )
    server = tornado.httpserver.HTTPServer(app)
    sockets = tornado.netutil.bind_sockets(0, "127.0.0.1")
    server.add_sockets(sockets)
    yield f"http://127.0.0.1:{sockets[0].getsockname()[1]}"
    server.stop()
    await server.close_all_connections()
    await client.close()


async def test_a_commit_and_a_delta_take_the_steps_of_the_page(services: Services, address: str):
    user = await services.user()
    token = services.devices._issue(user.caller)
    client = tornado.httpclient.AsyncHTTPClient(force_instance=True)

    async def post(path, body):
        answer = await client.fetch(
            address + path,
            method="POST",
            body=msgspec.json.encode(body),
            headers={"Authorization": f"Bearer {token}", "Idempotency-Key": "k"},
        )
        return msgspec.json.decode(answer.body)

    cursor = (await post("/v1/files/list_folder", ListFolder(recursive=True)))["cursor"]
    operation: CommitFile = await user.put("/Docs/a.txt", b"hello")
    with Trace() as commit:
        made = await post("/v1/files/commit", operation)
    assert made["path_display"] == "/Docs/a.txt"
    assert_in_order(section("A commit"), commit.calls)
    with Trace() as delta:
        page = await post("/v1/files/list_folder/continue", ListFolderContinue(cursor))
    assert [entry["name"] for entry in page["entries"]] == ["Docs", "a.txt"]
    assert_in_order(section("A delta"), delta.calls)
    client.close()
