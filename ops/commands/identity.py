"""`shardctl user identity`."""

from typing import Annotated

import msgspec
import typer

from ops.cluster import find_directory_dsn
from ops.commands.dev import DataDirOption
from ops.commands.user import UserArgument
from ops.output import OutputFormat, OutputOption, print_table, show
from ops.session import OperatorSession, get_account, run_session
from wire.ids import AccountId

app = typer.Typer(no_args_is_help=True, help="Identities of outside issuers that stand for an account.")

IssuerOption = Annotated[
    str, typer.Option("--issuer", help="The issuer, exactly as its tokens have it (`iss`).")
]
SubjectOption = Annotated[str, typer.Option("--subject", help="Who it is there (`sub`).")]


class IdentityReport(msgspec.Struct, frozen=True):
    """One identity."""

    issuer: str
    subject: str
    since: str


class IdentitiesReport(msgspec.Struct, frozen=True):
    """The identities of an account, the oldest first."""

    account_id: str
    identities: list[IdentityReport]


@app.command()
def add(
    user: UserArgument,
    issuer: IssuerOption,
    subject: SubjectOption,
    data_dir: DataDirOption = None,
    output: OutputOption = OutputFormat.TEXT,
) -> None:
    """Let an identity stand for an account. Exit status 4 when it stands for another."""

    async def work(session: OperatorSession) -> IdentitiesReport:
        account = await get_account(session.accounts, user)
        await session.identities.add(account.account_id, issuer, subject)
        return await _report(session, account.account_id)

    _show(run_session(find_directory_dsn(data_dir), work), output)


@app.command("list")
def list_identities(
    user: UserArgument, data_dir: DataDirOption = None, output: OutputOption = OutputFormat.TEXT
) -> None:
    """List the identities of an account; asks every slot."""

    async def work(session: OperatorSession) -> IdentitiesReport:
        account = await get_account(session.accounts, user)
        return await _report(session, account.account_id)

    _show(run_session(find_directory_dsn(data_dir), work), output)


@app.command()
def remove(
    user: UserArgument,
    issuer: IssuerOption,
    subject: SubjectOption,
    data_dir: DataDirOption = None,
    output: OutputOption = OutputFormat.TEXT,
) -> None:
    """Take an identity from an account; holds everywhere within 10 s, and no sign-in links it again.

    Devices that were linked with it stay: `device revoke` unlinks them.
    """

    async def work(session: OperatorSession) -> IdentitiesReport:
        account = await get_account(session.accounts, user)
        await session.identities.remove(account.account_id, issuer, subject)
        return await _report(session, account.account_id)

    _show(run_session(find_directory_dsn(data_dir), work), output)


async def _report(session: OperatorSession, account_id: AccountId) -> IdentitiesReport:
    found = await session.identities.list_identities(account_id)
    return IdentitiesReport(
        account_id,
        [IdentityReport(i.issuer, i.subject, i.since.isoformat(timespec="seconds")) for i in found],
    )


def _show(report: IdentitiesReport, output: OutputFormat) -> None:
    rows = [(i.issuer, i.subject, i.since) for i in report.identities]
    show(report, output, lambda: print_table(["issuer", "subject", "since"], rows))
