"""`link` with a URL that is not a server's leaves nothing behind; a link that was not done is none."""

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from client.cli import Exit, app
from client.folder import Folder


class WebPage(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<p>Welcome!</p>")

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


def test_a_link_to_another_web_site_leaves_nothing_behind(web_site: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["link", web_site, str(tmp_path / "above/synced"), "--code", "c"])
    assert done.exit_code == Exit.UNREACHABLE
    assert "is not a Shardbox server" in done.output
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    "url", ["ftp://example.org", "example.org", "localhost:8080", "https://", "http://["]
)
def test_what_is_not_a_web_address_is_refused_at_once(url: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["link", url, str(tmp_path / "synced"), "--code", "c"])
    assert done.exit_code == 2
    assert "https://" in done.output
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("command", ["sync", "unlink"])
def test_a_folder_whose_link_was_not_done_is_not_linked(command: str, tmp_path: Path) -> None:
    Folder(tmp_path).create().close()
    done = CliRunner().invoke(app, [command, str(tmp_path)])
    assert done.exit_code == Exit.FOLDER
    assert "not linked yet" in done.output
