"""The metaserver's services in an operator's own process: the same code, on a connection of their own."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

import psycopg

from metaserver.services.access import AccessService
from metaserver.services.accounts import AccountService
from metaserver.services.devices import DeviceService
from metaserver.services.identities import IdentityService
from metaserver.services.usage import UsageService
from metaserver.storage.accounts import Account
from ops.errors import NoCluster
from runtime.logs import configure_logs
from sharding.directory import ClusterNotCreated, Connection, load_map_sync
from sharding.router import Router
from sharding.shardmap import ShardMap
from sharding.tx import Transactions
from wire.errors import NotFound
from wire.ids import AccountId, root_ns_of_account

T = TypeVar("T")

CONNECT_TIMEOUT_S = 5
APPLICATION = "shardctl"
_ACCOUNT_PREFIX = "dbid:"


@dataclass(frozen=True, slots=True)
class OperatorSession:
    """What a command works with."""

    router: Router
    accounts: AccountService
    devices: DeviceService
    identities: IdentityService
    usage: UsageService


@asynccontextmanager
async def open_session(directory_dsn: str) -> AsyncIterator[OperatorSession]:
    """Services over the cluster of a directory.

    Raises:
        NoCluster: the directory does not answer, or holds no cluster.
    """
    # A service's own warnings are for servers' logs; what matters here is raised.
    configure_logs("error", APPLICATION)
    load_map(directory_dsn)
    router = Router(directory_dsn, None, APPLICATION)
    await router.open()
    try:
        transactions = Transactions(router)
        identities = IdentityService(transactions)
        access = AccessService(transactions, identities)
        yield OperatorSession(
            router,
            AccountService(transactions),
            DeviceService(transactions, access, issuer=None),
            identities,
            UsageService(transactions, access),
        )
    finally:
        await router.close()


def run_session(directory_dsn: str, work: Callable[[OperatorSession], Awaitable[T]]) -> T:
    """What `work` makes of the services."""

    async def run() -> T:
        async with open_session(directory_dsn) as session:
            return await work(session)

    return asyncio.run(run())


def connect_directory(directory_dsn: str) -> Connection:
    """A connection to the directory.

    Raises:
        NoCluster: it does not answer.
    """
    try:
        return psycopg.connect(
            directory_dsn, autocommit=True, connect_timeout=CONNECT_TIMEOUT_S, application_name=APPLICATION
        )
    except psycopg.OperationalError as error:
        raise NoCluster(f"the directory does not answer: {str(error).strip()}") from error


def load_map(directory_dsn: str) -> ShardMap:
    """The shard map in force.

    Raises:
        NoCluster: the directory does not answer, or holds no cluster.
    """
    with connect_directory(directory_dsn) as conn:
        return read_map(conn)


def read_map(conn: Connection) -> ShardMap:
    """The shard map in force.

    Raises:
        NoCluster: the directory holds no cluster.
    """
    try:
        return load_map_sync(conn)
    except (ClusterNotCreated, psycopg.errors.UndefinedTable) as error:
        raise NoCluster("the directory holds no cluster yet; `shardctl dev up` makes one") from error


async def get_account(accounts: AccountService, who: str) -> Account:
    """The account of an e-mail address or account id.

    Raises:
        NotFound: there is none.
        MalformedId: something that starts like an account id and is none.
    """
    if who.startswith(_ACCOUNT_PREFIX):
        root_ns_of_account(who)
        found = await accounts.find_account(AccountId(who))
    else:
        found = await accounts.find_by_email(who)
    if found is None:
        raise NotFound(f"there is no account {who!r}")
    return found
