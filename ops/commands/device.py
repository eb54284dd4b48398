"""`shardctl device`."""

from typing import Annotated

import msgspec
import typer

from metaserver.services.devices import CODE_LIFE_S
from ops.cluster import find_directory_dsn
from ops.commands.dev import DataDirOption
from ops.commands.user import UserArgument
from ops.output import OutputFormat, OutputOption, print_table, say, show
from ops.session import OperatorSession, get_account, run_session
from wire.api import Device

app = typer.Typer(no_args_is_help=True, help="Devices of an account.")


class CodeReport(msgspec.Struct, frozen=True):
    """A one-time code for linking a device."""

    account_id: str
    code: str
    expires_in_s: int


class DevicesReport(msgspec.Struct, frozen=True):
    """The devices of an account, the oldest first."""

    account_id: str
    devices: list[Device]


@app.command()
def code(
    user: UserArgument, data_dir: DataDirOption = None, output: OutputOption = OutputFormat.TEXT
) -> None:
    """Make a one-time code that links one device: `shardbox link URL --code CODE FOLDER`."""

    async def work(session: OperatorSession) -> CodeReport:
        account = await get_account(session.accounts, user)
        made = await session.devices.make_code(account.account_id)
        return CodeReport(account.account_id, made, CODE_LIFE_S)

    report = run_session(find_directory_dsn(data_dir), work)
    if output is OutputFormat.TEXT:
        say(f"good for {report.expires_in_s // 60} minutes and one device:")
    show(report, output, lambda: print(report.code))


@app.command("list")
def list_devices(
    user: UserArgument, data_dir: DataDirOption = None, output: OutputOption = OutputFormat.TEXT
) -> None:
    """List the devices of an account, revoked ones too."""

    async def work(session: OperatorSession) -> DevicesReport:
        account = await get_account(session.accounts, user)
        return DevicesReport(account.account_id, await session.devices.list_devices(account.account_id))

    _show(run_session(find_directory_dsn(data_dir), work), output)


@app.command()
def revoke(
    user: UserArgument,
    device_id: Annotated[str, typer.Argument(help="As `device list` shows it (device:…).")],
    data_dir: DataDirOption = None,
    output: OutputOption = OutputFormat.TEXT,
) -> None:
    """Unlink a device; holds everywhere within 10 s."""

    async def work(session: OperatorSession) -> DevicesReport:
        account = await get_account(session.accounts, user)
        await session.devices.revoke(account.account_id, device_id)
        return DevicesReport(account.account_id, await session.devices.list_devices(account.account_id))

    _show(run_session(find_directory_dsn(data_dir), work), output)


def _show(report: DevicesReport, output: OutputFormat) -> None:
    columns = ["device", "name", "linked", "revoked"]
    rows = [(d.device_id, d.name, d.created_at, d.revoked_at) for d in report.devices]
    show(report, output, lambda: print_table(columns, rows))
