"""The files of deploy/: they are taken by what they are for, and fit the servers."""

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from blockserver.settings import BlockserverSettings
from metaserver.settings import MetaserverSettings
from notifserver.main import SPARE_FILES
from notifserver.settings import NotifserverSettings
from ops.specs import CURSOR_KEYS, SERVICE_KEYS, TOKEN_KEYS, TOKEN_VERIFY_KEYS
from runtime.process import CLOSE_TIMEOUT_S
from runtime.settings import ServerSettings

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
UNITS = sorted((DEPLOY / "systemd").iterdir())
KINDS: dict[str, type[ServerSettings]] = {
    "metaserver": MetaserverSettings,
    "blockserver": BlockserverSettings,
    "notifserver": NotifserverSettings,
}


def program(name: str) -> str:
    found = shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin:/usr/local/sbin")
    if found is None:
        pytest.skip(f"no {name} program found")
    return found


def unit_of(kind: str) -> str:
    return (DEPLOY / "systemd" / f"shardbox-{kind}@.service").read_text()


def value_of(unit: str, name: str) -> str:
    (found,) = re.findall(rf"^{name}=(.*)$", unit, re.MULTILINE)
    return str(found)


def test_haproxy_takes_its_configuration():
    done = subprocess.run(
        [program("haproxy"), "-c", "-f", str(DEPLOY / "haproxy.cfg")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr


def test_systemd_takes_the_units(tmp_path: Path):
    for unit in UNITS:
        # What they start is not installed here; that it would be is the next test's.
        text = unit.read_text().replace("/opt/shardbox/bin/", f"{tmp_path}/")
        name = unit.name.replace("@.", "@8001.")
        (tmp_path / name).write_text(text)
    for kind in KINDS:
        (tmp_path / f"shardbox-{kind}").write_text("#!/bin/sh\n")
        (tmp_path / f"shardbox-{kind}").chmod(0o755)
    names = sorted(str(file) for file in tmp_path.iterdir() if file.suffix in (".service", ".target"))
    assert len(names) == 4
    done = subprocess.run(
        [program("systemd-analyze"), "verify", "--man=no", *names], capture_output=True, text=True
    )
    # It also tells of units that this machine has already.
    own = [line for line in done.stderr.splitlines() if "shardbox" in line]
    assert own == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_unit_starts_what_the_wheel_installs(kind: str):
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert value_of(unit_of(kind), "ExecStart") == f"/opt/shardbox/bin/shardbox-{kind}"
    assert scripts[f"shardbox-{kind}"] == f"{kind}.main:main"


@pytest.mark.parametrize("kind", KINDS)
def test_the_settings_of_the_examples_are_taken(kind: str, monkeypatch: pytest.MonkeyPatch):
    unit = unit_of(kind)
    for name in list(os.environ):
        if name.startswith("SHARDBOX_"):
            monkeypatch.delenv(name)
    files = [Path(path).name for path in re.findall(r"^EnvironmentFile=(.*)$", unit, re.MULTILINE)]
    assert files == ["shardbox.env", f"{kind}.env"]
    lines = [line for file in files for line in (DEPLOY / "env" / file).read_text().splitlines()]
    lines += re.findall(r"^Environment=(.*)$", unit.replace("%i", "8001"), re.MULTILINE)
    given = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    settings = KINDS[kind]()  # type: ignore[call-arg]
    told = {name.removeprefix("SHARDBOX_").lower() for name in given if name.startswith("SHARDBOX_")}
    files_named = {Path(value).name for name, value in given.items() if name.endswith("_KEYS_FILE")}
    assert files_named <= {SERVICE_KEYS, CURSOR_KEYS, TOKEN_KEYS, TOKEN_VERIFY_KEYS}
    # What the shared file says may be nothing to one kind; what the kind's own says must be.
    own = (DEPLOY / "env" / f"{kind}.env").read_text()
    named = set(re.findall(r"^#? ?SHARDBOX_(\w+)=", own, re.MULTILINE))
    assert {name.lower() for name in named} <= set(KINDS[kind].model_fields)
    assert told >= {name for name, field in KINDS[kind].model_fields.items() if field.is_required()}
    # systemd kills nobody who would have ended by himself.
    longest_s = settings.drain_notice_s + settings.drain_s + CLOSE_TIMEOUT_S
    assert longest_s + 5 <= int(value_of(unit, "TimeoutStopSec"))
    assert settings.drain_notice_s >= 4, "several looks of the balancer"


def test_a_notifserver_may_open_as_many_files_as_it_wants():
    wanted = 2 * NotifserverSettings.model_fields["max_polls"].default + SPARE_FILES
    assert int(value_of(unit_of("notifserver"), "LimitNOFILE")) >= wanted
