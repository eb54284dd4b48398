"""The built wheel alone gives the commands and the migrations."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from tests.support.databases import PgServers, clone_database, drop_database

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel's files and nothing else of the project."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    # A copy: a build leaves its own folders beside its input.
    for name in msgspec.toml.decode((REPOSITORY / "pyproject.toml").read_bytes())["tool"]["setuptools"][
        "packages"
    ]["find"]["include"]:
        package = name.removesuffix("*")
        shutil.copytree(REPOSITORY / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(source)]
    subprocess.run(build, check=True, timeout=120)
    (wheel,) = folder.glob("*.whl")
    site = folder / "site"
    subprocess.run([*pip, "install", "--no-deps", "--target", str(site), str(wheel)], check=True, timeout=120)
    shutil.rmtree(source)
    return site


def run_script(site: Path, name: str, *args: str, **env: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [str(site / "bin" / name), *args],
        env={**os.environ, "PYTHONPATH": str(site), **env},
        cwd=site.parent,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.long
@pytest.mark.parametrize("name", ["shardctl", "shardbox"])
def test_a_command_runs_from_the_wheel(installed: Path, name: str):
    done = run_script(installed, name, "--help")
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout


def test_nothing_is_taken_from_the_checkout(installed: Path):
    shown = subprocess.run(
        [sys.executable, "-c", "import ops.cli, migrations; print(ops.__file__, migrations.__file__)"],
        env={**os.environ, "PYTHONPATH": str(installed)},
        cwd=installed.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    assert all(path.startswith(str(installed)) for path in shown.stdout.split())


def test_empty_databases_are_migrated_from_the_wheel(installed: Path, pg_servers: PgServers):
    name = f"wheel_{os.getpid()}"
    clone_database(pg_servers.directory, "template0", name)
    try:
        directory = pg_servers.directory.dsn(name)
        done = run_script(
            installed, "shardctl", "migrate", "--output", "json", SHARDBOX_DIRECTORY_DSN=directory
        )
        assert done.returncode == 0, done.stderr
        assert "0001" in done.stdout
    finally:
        drop_database(pg_servers.directory, name)
