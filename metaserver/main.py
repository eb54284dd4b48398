"""Wiring: builds all objects of a metaserver and passes them to one another."""

from contextlib import AsyncExitStack

import tornado.web

from metaserver.app import Parts, make_app
from metaserver.services.access import AccessService
from metaserver.services.blocks import BlockService
from metaserver.services.debts import DebtSweep
from metaserver.services.devices import DeviceService
from metaserver.services.expiry import Expiry
from metaserver.services.heads import HeadService
from metaserver.services.hints import HintQueue, Publisher
from metaserver.services.history import HistoryService
from metaserver.services.identities import IdentityService
from metaserver.services.reads import ReadService
from metaserver.services.relay import Relay
from metaserver.services.search import SearchService
from metaserver.services.sessions import SessionService
from metaserver.services.targets import TargetService
from metaserver.services.usage import UsageService
from metaserver.services.writes import WriteService
from metaserver.settings import MetaserverSettings
from runtime.bodies import Bodies, ByteBudget
from runtime.keyfiles import KeyFiles
from runtime.metrics import ServerMetrics
from runtime.oidc import read_linking_issuers
from runtime.process import run_server
from runtime.rpc import ServiceClient
from runtime.settings import make_rates
from runtime.tokens import TokenIssuer, open_verifier
from sharding.activity import ActivityReporter
from sharding.metrics import ShardCollector
from sharding.router import Router
from sharding.tx import Transactions


async def build(settings: MetaserverSettings, stack: AsyncExitStack) -> tornado.web.Application:
    """A metaserver's application, its background work begun."""
    metrics = ServerMetrics()
    keys = KeyFiles(metrics.registry)
    service_keys = keys.ring("service", settings.service_keys_file)
    token_keys = settings.token_keys_file.read_bytes()
    router = Router(settings.directory_dsn, settings.map_file, "metaserver")
    metrics.registry.register(ShardCollector(router))
    stack.push_async_callback(router.close)
    await router.open()
    transactions = Transactions(router, metrics.registry)
    reporter = ActivityReporter(transactions.activity, router)
    reporter.start()
    stack.push_async_callback(reporter.stop)
    linking = read_linking_issuers(settings.oidc_issuers_file)
    rates = make_rates(settings)
    access = AccessService(transactions, IdentityService(transactions, linking), rates.owners)
    client = await stack.enter_async_context(
        ServiceClient(settings.notifserver_urls, service_keys, ca_file=settings.ca_file)
    )
    blockservers = await stack.enter_async_context(
        ServiceClient(
            settings.blockserver_internal_urls or settings.blockserver_urls,
            service_keys,
            ca_file=settings.ca_file,
        )
    )
    publisher = Publisher(settings.notifserver_urls, client)
    hints = HintQueue(publisher)
    hints.start()
    stack.push_async_callback(hints.stop)
    relay = Relay(transactions, publisher, [DebtSweep(transactions), Expiry(transactions)])
    relay.start()
    stack.push_async_callback(relay.stop)
    writes = WriteService(transactions, access, hints, quota_bytes=settings.quota_bytes)
    targets = TargetService(
        transactions, blockservers, settings.told(settings.blockserver_urls), service_keys
    )
    cursor_keys = keys.ring("cursor", settings.cursor_keys_file)
    verifier, issuer = await open_verifier(settings, token_keys, stack), TokenIssuer(token_keys)
    keys.tokens(settings.token_keys_file, verifier, issuer)
    keys.start()
    stack.push_async_callback(keys.stop)
    return make_app(
        Parts(
            metrics=metrics,
            verifier=verifier,
            service_keys=service_keys,
            router=router,
            writes=writes,
            reads=ReadService(transactions, access, cursor_keys),
            history=HistoryService(transactions, access),
            search=SearchService(transactions, access, cursor_keys),
            devices=DeviceService(transactions, access, issuer),
            blocks=BlockService(transactions, access),
            heads=HeadService(router),
            bodies=Bodies(ByteBudget(settings.body_memory_bytes)),
            rates=rates,
            usage=UsageService(transactions, access, settings.quota_bytes),
            sessions=SessionService(
                transactions, access, writes, targets, hints, quota_bytes=settings.quota_bytes
            ),
            urls={
                "metaservers": settings.told(settings.metaserver_urls),
                "blockservers": settings.told(settings.blockserver_urls),
                "notifservers": settings.told(settings.notifserver_urls),
            },
        )
    )


def main() -> None:
    """Run a metaserver until it is told to stop."""
    run_server("metaserver", MetaserverSettings, build)
