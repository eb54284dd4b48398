"""What a server says of settings that it cannot start with."""

import json
import socket
from pathlib import Path

import pytest

from tests.support.commands import SERVERS, run_command
from wire.keys import KeyRing


def run(module: str, **settings: str) -> tuple[int, dict[str, object]]:
    done = run_command(module, env={f"SHARDBOX_{name}": value for name, value in settings.items()})
    (line,) = done.stderr.splitlines()
    return done.returncode, json.loads(line)


@pytest.fixture
def notifserver(tmp_path: Path) -> dict[str, str]:
    """Settings that it starts with."""
    path = tmp_path / "keys.json"
    path.write_bytes(KeyRing.generate())
    files = {"SERVICE_KEYS_FILE": str(path), "CURSOR_KEYS_FILE": str(path)}
    return files | {"LISTEN_PORT": "0", "METASERVER_URLS": "http://127.0.0.1:1"}


@pytest.mark.parametrize("module", SERVERS)
def test_a_setting_that_will_not_do_is_named_in_one_line(module: str):
    status, line = run(module, LISTEN_PORT="secret", LOG_LEVEL="loud")
    assert (status, line["event"]) == (2, "settings_refused")
    errors = line["errors"]
    assert isinstance(errors, dict)
    assert {"SHARDBOX_LISTEN_PORT", "SHARDBOX_LOG_LEVEL", "SHARDBOX_SERVICE_KEYS_FILE"} <= errors.keys()
    assert "secret" not in str(line)


def test_settings_that_do_not_go_together(notifserver: dict[str, str]):
    status, line = run("notifserver.main", **notifserver, TLS_CERT_FILE="/cert")
    assert status == 2
    assert "come together" in str(line["errors"])


@pytest.mark.parametrize("content", [None, b"", b"{}", b"[]", b"\xff"])
def test_a_key_file_that_will_not_do(notifserver: dict[str, str], tmp_path: Path, content: bytes | None):
    path = tmp_path / "other.json"
    if content is not None:
        path.write_bytes(content)
    status, line = run("notifserver.main", **notifserver | {"CURSOR_KEYS_FILE": str(path)})
    assert (status, line["event"]) == (1, "start_refused")


def test_a_port_that_is_taken(notifserver: dict[str, str]):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        status, line = run("notifserver.main", **notifserver | {"LISTEN_PORT": port})
    assert (status, line["event"]) == (1, "start_refused")
    assert "in use" in str(line["error"])


@pytest.mark.parametrize("module", SERVERS)
def test_help_lists_the_settings(module: str):
    done = run_command(module, "--help")
    assert done.returncode == 0
    assert "SHARDBOX_LISTEN_PORT = (needed)" in done.stdout
    assert "SHARDBOX_DRAIN_S = 10.0" in done.stdout
    assert run_command(module, "--port", "1").returncode == 2
