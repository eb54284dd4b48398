"""`shardctl user`."""

from typing import Annotated

import msgspec
import typer

from metaserver.storage.accounts import Account, AccountState
from ops.cluster import find_directory_dsn
from ops.commands.dev import DataDirOption
from ops.output import OutputFormat, OutputOption, print_table, show
from ops.session import OperatorSession, get_account, run_session
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
    )


def _show(users: list[UserReport], output: OutputFormat, *, is_list: bool) -> None:
    columns = ["account", "e-mail", "name", "state", "root namespace", "shard", "created"]
    show(
        {"users": users} if is_list else users[0],
        output,
        lambda: print_table(
            columns,
            [
                (u.account_id, u.email, u.display_name, u.state, u.root_ns, u.shard, u.created_at)
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
    """List all accounts, slot by slot."""

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


def _set_state(user: str, data_dir: DataDirOption, output: OutputFormat, state: AccountState) -> None:
    async def work(session: OperatorSession) -> UserReport:
        account = await get_account(session.accounts, user)
        is_disabled = state is AccountState.DISABLED
        await session.accounts.set_disabled(account.account_id, is_disabled=is_disabled)
        return report_account(session, await get_account(session.accounts, account.account_id))

    _show([run_session(find_directory_dsn(data_dir), work)], output, is_list=False)
