"""`shardctl user`."""

from typing import Annotated

import msgspec
import typer

from metaserver.storage.accounts import Account, AccountState
from ops.cluster import find_directory_dsn
from ops.commands.dev import DataDirOption
from ops.output import OutputFormat, OutputOption, print_table, show
from ops.session import OperatorSession, get_account, run_session
from wire.api import UNLIMITED_BYTES
from wire.ids import format_ns_id, slot_of

app = typer.Typer(no_args_is_help=True, help="Accounts.")

UserArgument = Annotated[str, typer.Argument(help="An e-mail address or an account id (dbid:…).")]


class UserReport(msgspec.Struct, frozen=True, kw_only=True):
    """One account, and where it lives."""

    account_id: str
    email: str
    display_name: str
    state: str
    root_ns: str
    slot: int
    shard: str
    created_at: str
    used_bytes: int
    quota: str
    """Bytes, `none`, or `default`: what the servers' SHARDBOX_QUOTA_BYTES says."""


def report_account(session: OperatorSession, account: Account) -> UserReport:
    """An account as the commands tell of it."""
    return UserReport(
        account_id=account.account_id,
        email=account.email,
        display_name=account.display_name,
        state=account.state.name.lower(),
        root_ns=format_ns_id(account.root_ns),
        slot=slot_of(account.root_ns),
        shard=session.router.placement(account.root_ns).shard,
        created_at=account.created_at.isoformat(timespec="seconds"),
        used_bytes=account.used_bytes,
        quota=_tell_quota(account.quota_bytes),
    )


def _tell_quota(quota_bytes: int | None) -> str:
    if quota_bytes is None:
        return "default"
    return "none" if quota_bytes == UNLIMITED_BYTES else str(quota_bytes)


def _show(users: list[UserReport], output: OutputFormat, *, is_list: bool) -> None:
    columns = ["account", "e-mail", "name", "state", "root namespace", "shard", "used", "quota", "created"]
    show(
        {"users": users} if is_list else users[0],
        output,
        lambda: print_table(
            columns,
            [
                (
                    *(u.account_id, u.email, u.display_name, u.state, u.root_ns, u.shard),
                    *(u.used_bytes, u.quota, u.created_at),
                )
                for u in users
            ],
        ),
    )


@app.command()
def add(
    email: Annotated[str, typer.Argument(help="The e-mail address; one account for each.")],
    name: Annotated[
        str, typer.Option("--name", help="The display name. Default: the address's local part.")
    ] = "",
    retry: Annotated[
        bool,
        typer.Option("--retry", help="Take up an `add` of this address that died; nobody may be at it."),
    ] = False,
    data_dir: DataDirOption = None,
    output: OutputOption = OutputFormat.TEXT,
) -> None:
    """Create an account. Exit status 4 when the address has one."""

    async def work(session: OperatorSession) -> UserReport:
        if retry:
            await session.accounts.resolve_reservation(email, is_retry=True)
        display_name = name or email.strip().partition("@")[0]
        return report_account(session, await session.accounts.create_account(email, display_name))

    _show([run_session(find_directory_dsn(data_dir), work)], output, is_list=False)


@app.command("list")
def list_users(data_dir: DataDirOption = None, output: OutputOption = OutputFormat.TEXT) -> None:
    """List all accounts and what they use, slot by slot."""

    async def work(session: OperatorSession) -> list[UserReport]:
        return [report_account(session, account) async for account in session.accounts.iter_accounts()]

    _show(run_session(find_directory_dsn(data_dir), work), output, is_list=True)


@app.command()
def disable(
    user: UserArgument, data_dir: DataDirOption = None, output: OutputOption = OutputFormat.TEXT
) -> None:
    """Refuse an account everything; holds everywhere within 10 s. Its data stays."""
    _set_state(user, data_dir, output, AccountState.DISABLED)


@app.command()
def enable(
    user: UserArgument, data_dir: DataDirOption = None, output: OutputOption = OutputFormat.TEXT
) -> None:
    """Take back `disable`."""
    _set_state(user, data_dir, output, AccountState.ACTIVE)


@app.command()
def quota(
    user: UserArgument,
    size_bytes: Annotated[
        int | None, typer.Option("--bytes", min=0, help="What its live files may come to.")
    ] = None,
    is_default: Annotated[bool, typer.Option("--default", help="What the servers' settings say.")] = False,
    is_none: Annotated[bool, typer.Option("--none", help="No limit, whatever the settings say.")] = False,
    data_dir: DataDirOption = None,
    output: OutputOption = OutputFormat.TEXT,
) -> None:
    """Show what an account uses and may use, or set it; holds from the next write on."""
    if (size_bytes is not None) + is_default + is_none > 1:
        raise typer.BadParameter("give one of --bytes, --default and --none")
    is_set = is_default or is_none or size_bytes is not None

    async def work(session: OperatorSession) -> UserReport:
        account = await get_account(session.accounts, user)
        if is_set:
            wanted = UNLIMITED_BYTES if is_none else size_bytes
            await session.usage.set_quota(account.account_id, wanted)
            account = await get_account(session.accounts, account.account_id)
        return report_account(session, account)

    _show([run_session(find_directory_dsn(data_dir), work)], output, is_list=False)


def _set_state(user: str, data_dir: DataDirOption, output: OutputFormat, state: AccountState) -> None:
    async def work(session: OperatorSession) -> UserReport:
        account = await get_account(session.accounts, user)
        is_disabled = state is AccountState.DISABLED
        await session.accounts.set_disabled(account.account_id, is_disabled=is_disabled)
        return report_account(session, await get_account(session.accounts, account.account_id))

    _show([run_session(find_directory_dsn(data_dir), work)], output, is_list=False)
