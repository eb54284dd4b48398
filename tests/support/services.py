"""A metaserver's services in this process, over real databases."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from metaserver.services.access import AccessService
from metaserver.services.accounts import AccountService
from metaserver.services.blocks import BlockService
from metaserver.services.debts import DebtSweep
from metaserver.services.devices import DeviceService
from metaserver.services.expiry import Expiry
from metaserver.services.hints import HintQueue, Publisher
from metaserver.services.history import HistoryService
from metaserver.services.identities import IdentityService
from metaserver.services.reads import ReadService
from metaserver.services.relay import Relay
from metaserver.services.search import SearchService
from metaserver.services.usage import UsageService
from metaserver.services.writes import WriteService
from runtime.rpc import ServiceClient
from runtime.tokens import TokenIssuer, TokenVerifier, generate_keys
from sharding.bootstrap import create_cluster
from sharding.router import Router
from sharding.tx import Transactions
from tests.support.databases import FreshCluster
from wire.api import BatchResult, CommitFile, LinkDevice, Metadata, Operation, WriteMode
from wire.hashes import BLOCK_BYTES, BlockHash, block_hash, content_hash
from wire.ids import AccountId, DeviceId, NsId, parse_ns_id
from wire.internal import BeginBlock, BeginUpload, BlockState, DeviceCaller, FinishBlock, FinishUpload
from wire.keys import KeyRing

TIME = "2026-01-02T03:04:05Z"


@dataclass(slots=True)
class Services:
    """One metaserver's insides."""

    router: Router
    tx: Transactions
    access: AccessService
    identities: IdentityService
    accounts: AccountService
    devices: DeviceService
    blocks: BlockService
    reads: ReadService
    history: HistoryService
    search: SearchService
    writes: WriteService
    relay: Relay
    debts: DebtSweep
    usage: UsageService
    expiry: Expiry
    cursor_keys: KeyRing
    verifier: TokenVerifier

    async def user(self, email: str = "ada@example.org", name: str = "Ada") -> "User":
        """A new account with one linked device."""
        account = await self.accounts.create_account(email, name)
        return await self.link(account.account_id)

    async def link(self, account_id: AccountId) -> "User":
        """One more device of an account."""
        code = await self.devices.make_code(account_id)
        linked = await self.devices.link(
            LinkDevice(code=code, request_id="r" * 32, refresh_token=code[-32:], device_name="laptop")
        )
        caller = DeviceCaller(AccountId(linked.account_id), DeviceId(linked.device_id))
        return User(self, caller, parse_ns_id(linked.root_ns))


@dataclass(frozen=True, slots=True)
class User:
    """A device of an account, and short ways to act as it."""

    services: Services
    caller: DeviceCaller
    root_ns: NsId

    async def write(self, *operations: Operation, key: str | None = None) -> BatchResult:
        """A batch."""
        return await self.services.writes.write_batch(self.caller, operations, key)

    async def ok(self, operation: Operation) -> Metadata:
        """One operation that must succeed."""
        (verdict,) = (await self.write(operation)).verdicts
        assert verdict.error is None, verdict.error
        assert verdict.metadata is not None
        return verdict.metadata

    async def refused(self, operation: Operation) -> str:
        """One operation that must be refused, and the code that it is refused with."""
        (verdict,) = (await self.write(operation)).verdicts
        assert verdict.error is not None, verdict
        return verdict.error.code

    async def store(self, data: bytes) -> list[BlockHash]:
        """Make the blocks of some bytes ready (the rows; there is no object)."""
        parts = [data[i : i + BLOCK_BYTES] for i in range(0, len(data), BLOCK_BYTES)]
        sizes = {block_hash(part): len(part) for part in parts}
        begun = await self.services.blocks.begin(
            BeginUpload(self.caller, self.root_ns, [BeginBlock(h, size) for h, size in sizes.items()])
        )
        finish = [
            FinishBlock(h, sizes[h], b.claim_id, b.generation, b.state is BlockState.ABSENT)
            for h, b in zip(sizes, begun, strict=True)
            if b.state is not BlockState.READY
        ]
        done = await self.services.blocks.finish(FinishUpload(self.caller, self.root_ns, finish))
        assert all(block.state is BlockState.READY for block in done), done
        return [block_hash(part) for part in parts]

    async def put(self, path: str, data: bytes, **how: object) -> CommitFile:
        """The operation that writes some bytes, their blocks being ready."""
        return commit_of(path, data, await self.store(data), **how)


def commit_of(path: str, data: bytes, blocks: list[BlockHash], **how: object) -> CommitFile:
    """The operation that writes some bytes."""
    fields = {"client_modified": TIME, "mode": WriteMode.ADD} | how
    return CommitFile(
        path=path,
        blocks=[block.hex() for block in blocks],
        size=len(data),
        content_hash=content_hash(blocks).hex(),
        **fields,  # type: ignore[arg-type]
    )


@asynccontextmanager
async def run_services(
    cluster: FreshCluster, clock: Callable[[], int] | None = None
) -> AsyncIterator[Services]:
    """Services over a cluster, which is created if need be."""
    create_cluster(cluster.directory_dsn, cluster.shards)
    router = Router(cluster.directory_dsn, None, "test")
    await router.open()
    keys = KeyRing.parse(KeyRing.generate())
    client = ServiceClient([], keys)
    try:
        tx = Transactions(router)
        identities = IdentityService(tx)
        access = AccessService(tx, identities)
        private, public = generate_keys()
        publisher = Publisher([], client)
        debts = DebtSweep(tx)
        expiry = Expiry(tx)
        yield Services(
            router=router,
            tx=tx,
            access=access,
            identities=identities,
            accounts=AccountService(tx),
            devices=DeviceService(tx, access, TokenIssuer(private)),
            blocks=BlockService(tx, access),
            reads=ReadService(tx, access, keys),
            history=HistoryService(tx, access),
            search=SearchService(tx, access, keys),
            writes=WriteService(tx, access, HintQueue(publisher), *([clock] if clock else [])),
            relay=Relay(tx, publisher, [debts, expiry]),
            debts=debts,
            usage=UsageService(tx, access),
            expiry=expiry,
            cursor_keys=keys,
            verifier=TokenVerifier(public),
        )
    finally:
        await client.close()
        await router.close()


@pytest.fixture
async def services(fresh_cluster: FreshCluster) -> AsyncIterator[Services]:
    """A metaserver's services over a cluster of this test's own."""
    async with run_services(fresh_cluster) as found:
        yield found
