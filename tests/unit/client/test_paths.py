"""Paths as they are given to the commands that ask the server."""

import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from client.cli import app
from client.folder import Folder

BAD = os.fsdecode(b"A/bad\xff")


@pytest.mark.parametrize(
    "command", [["ls"], ["history"], ["restore"], ["exclude", "add"], ["exclude", "remove"]]
)
def test_a_path_that_is_not_utf8_is_wrong_usage(tmp_path: Path, command: list[str]) -> None:
    Folder(tmp_path).create().close()
    for args in ([BAD, "--folder", str(tmp_path)], [f"{tmp_path}/{BAD}"]):
        done = CliRunner().invoke(app, [*command, *args])
        assert done.exit_code == 2, done.exception
        # The terminal's frame may break the line.
        assert "UTF-8" in done.stderr
