"""`shardctl dev demo`: the embedded cluster, and two devices of one account that keep folders in sync."""

import os
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import msgspec

from client.folder import Folder
from client.state import State
from ops import dev
from ops.cluster import find_directory_dsn
from ops.errors import StartFailed
from ops.files import tail
from ops.layout import CODE_ROOT, DevLayout
from ops.processes import base_environment
from ops.session import OperatorSession, run_session
from ops.specs import ProcessKind, ProcessSpec, Stage
from ops.state import write_demo_specs

EMAIL = "demo@example.org"
DISPLAY_NAME = "Demo"
DEVICES = ("laptop", "desktop")
GREETING_FILE = "Hello.txt"
GREETING = "Written on the laptop. Change me on either device.\n"
CLIENT_GRACE_S = 15.0
"""For what is being sent when it is told to stop; it would be taken up again anyway."""
FIRST_SYNC_TIMEOUT_S = 60.0
POLL_S = 0.05


class DemoReport(msgspec.Struct, frozen=True, kw_only=True):
    """What the demonstration consists of."""

    email: str
    url: str
    folders: dict[str, str]
    """By device."""
    logs: dict[str, str]
    data_dir: str


def run_demo(layout: DevLayout, say: dev.Say) -> DemoReport:
    """Start, or go on with, the cluster and the two devices; returns when they are in sync.

    Raises:
        OpsError: something did not come up; what did is left running.
    """
    record = dev.up(layout, say)
    url = record.url(record.metaserver_names[0])
    folders = {device: layout.root / "demo" / device for device in DEVICES}
    unlinked = [device for device, folder in folders.items() if not is_linked(folder)]
    for device in unlinked:
        say(f"linking {device}")
        _link(url, _make_code(layout), folders[device], device)
    specs = [_spec(layout, device, folder) for device, folder in folders.items()]
    write_demo_specs(layout, specs)
    dev.run_beside(layout, specs, say)
    if unlinked:
        say("waiting for the first file to go from one to the other")
        _greet(layout, folders)
    return DemoReport(
        email=EMAIL,
        url=url,
        folders={device: str(folder) for device, folder in folders.items()},
        logs={device: str(layout.log(device)) for device in DEVICES},
        data_dir=str(layout.root),
    )


def is_linked(folder: Path) -> bool:
    """Whether a folder is a device already; a link that was cut short does not count."""
    place = Folder(folder)
    if not place.is_linked() or not place.state_path.exists():
        return False
    with closing(State(place.state_path)) as state:
        return state.find_fact("device_id") is not None


def _make_code(layout: DevLayout) -> str:
    async def work(session: OperatorSession) -> str:
        account = await session.accounts.find_by_email(EMAIL)
        if account is None:
            # Nobody else makes this account, so a creation that was cut short is ours to take up.
            await session.accounts.resolve_reservation(EMAIL, is_retry=True)
            account = await session.accounts.create_account(EMAIL, DISPLAY_NAME)
        return await session.devices.make_code(account.account_id)

    return run_session(find_directory_dsn(layout.root), work)


def _link(url: str, code: str, folder: Path, device: str) -> None:
    folder.parent.mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-m", "client", "link", url, str(folder), "--name", device, "--code", code],
        cwd=CODE_ROOT,
        env=base_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise StartFailed(f"{device} could not be linked: {done.stderr.strip() or done.stdout.strip()}")


def _spec(layout: DevLayout, device: str, folder: Path) -> ProcessSpec:
    # The supervisor's own umask is private; a person's files get the person's.
    umask = os.umask(0o077)
    os.umask(umask)
    return ProcessSpec(
        name=device,
        kind=ProcessKind.CLIENT,
        stage=Stage.CLIENT,
        argv=[sys.executable, "-m", "client", "sync", "--watch", str(folder)],
        env={},
        cwd=str(CODE_ROOT),
        log=str(layout.log(device)),
        grace_s=CLIENT_GRACE_S,
        umask=umask,
    )


def _greet(layout: DevLayout, folders: dict[str, Path]) -> None:
    """Write a file on the first device, if none is there, and wait until the second one has it."""
    first, second = (folders[device] / GREETING_FILE for device in DEVICES)
    if not first.exists() and not second.exists():
        first.write_text(GREETING)
    deadline = time.monotonic() + FIRST_SYNC_TIMEOUT_S
    while not (first.exists() and second.exists()):
        if time.monotonic() > deadline:
            logs = "\n".join(f"{device}: {tail(layout.log(device), 5)}" for device in DEVICES)
            raise StartFailed(f"{GREETING_FILE} did not get from {first} to {second}:\n{logs}")
        time.sleep(POLL_S)
