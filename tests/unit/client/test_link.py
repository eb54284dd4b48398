"""`link` with a URL that is not a server's leaves nothing behind; a link that was not done is none."""

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from client.cli import Exit, app
from client.folder import Folder
from wire.api import Discovery
from wire.errors import InvalidLinkCode

REFUSAL = b'{"error": {"code": "%s", "message": "no", "retryable": false}}'


class WebPage(http.server.BaseHTTPRequestHandler):
    """Any web site; below /blocks another of the servers, and below /meta one that refuses every code."""

    def do_GET(self) -> None:
        if self.path == "/meta/.well-known/shardbox":
            servers = Discovery(
                cluster_id="c",
                metaservers=[f"http://{self.headers['Host']}/meta"],
                blockservers=[],
                notifservers=[],
            )
            self._answer(200, msgspec.json.encode(servers))
        elif self.path.startswith("/blocks/"):
            self._answer(404, REFUSAL % b"not_found")
        else:
            self._answer(404 if self.path.startswith("/none/") else 200, b"<p>Welcome!</p>")

    def do_POST(self) -> None:
        self._answer(401, REFUSAL % InvalidLinkCode.code.encode())

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def web_site() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), WebPage)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("path", ["", "/none", "/blocks", "/blocks "])
def test_a_link_to_another_web_site_leaves_nothing_behind(web_site: str, path: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["link", web_site + path, str(tmp_path / "above/synced"), "--code", "c"])
    assert done.exit_code == Exit.UNREACHABLE
    assert done.output == f"{web_site}{path.strip()} is not a Shardbox server\n"
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    "url",
    [
        "ftp://example.org",
        "example.org",
        "localhost:8080",
        "https://",
        "http://[",
        "http://..",
        "http://xn--",
        f"http://{'a' * 70}.example.org",
        "http://example.org:99999",
        "http://example.org:0",
        "http://example.org:abc",
    ],
)
def test_what_is_not_a_web_address_is_refused_at_once(url: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["link", url, str(tmp_path / "synced"), "--code", "c"])
    assert done.exit_code == 2
    assert "https://" in done.output
    assert not [*tmp_path.iterdir()]


def test_a_link_whose_code_is_refused_is_none(web_site: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["link", web_site + "/meta", str(tmp_path), "--code", "c"])
    assert done.exit_code == Exit.BAD_CODE
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("command", ["sync", "unlink"])
def test_a_folder_whose_link_was_not_done_is_not_linked(command: str, tmp_path: Path) -> None:
    Folder(tmp_path).create().close()
    done = CliRunner().invoke(app, [command, str(tmp_path)])
    assert done.exit_code == Exit.FOLDER
    assert "not linked yet" in done.output
