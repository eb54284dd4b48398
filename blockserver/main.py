"""Wiring of the blockserver."""

from contextlib import AsyncExitStack

import tornado.web

from blockserver.app import Parts, make_app
from blockserver.services.direct import DirectService
from blockserver.services.download import DownloadService
from blockserver.services.mend import Mender
from blockserver.services.metrics import BlockMetrics
from blockserver.services.upload import UploadService
from blockserver.settings import BlockserverSettings
from blockserver.storage.index import BlockIndex
from blockserver.storage.sessions import SessionIndex
from blockserver.stores import open_backend
from runtime.bodies import ByteBudget
from runtime.keyfiles import KeyFiles
from runtime.metrics import ServerMetrics
from runtime.process import run_server
from runtime.rpc import ServiceClient
from runtime.settings import make_rates
from runtime.tokens import open_verifier


async def build(settings: BlockserverSettings, stack: AsyncExitStack) -> tornado.web.Application:
    """All objects of the process."""
    metrics = ServerMetrics()
    block_metrics = BlockMetrics(metrics.registry)
    backend = open_backend(settings)
    stack.push_async_callback(backend.close)
    keys = KeyFiles(metrics.registry)
    service_keys = keys.ring("service", settings.service_keys_file)
    metaservers = ServiceClient(settings.metaserver_urls, service_keys, ca_file=settings.ca_file)
    await stack.enter_async_context(metaservers)
    rates = make_rates(settings)
    index = BlockIndex(metaservers, rates.owners)
    upload_budget = ByteBudget(settings.block_upload_memory_bytes)
    download_budget = ByteBudget(settings.block_download_memory_bytes)
    block_metrics.held_bytes.labels("upload").set_function(lambda: upload_budget.used_bytes)
    block_metrics.held_bytes.labels("download").set_function(lambda: download_budget.used_bytes)
    mender = Mender(index, backend, block_metrics)
    uploads = UploadService(index, backend, mender, block_metrics)
    sessions = SessionIndex(metaservers)
    direct = DirectService(sessions, index, backend, uploads, mender, upload_budget, block_metrics)
    verifier = await open_verifier(settings, settings.token_verify_keys_file.read_bytes(), stack)
    keys.tokens(settings.token_verify_keys_file, verifier)
    keys.start()
    stack.push_async_callback(keys.stop)
    return make_app(
        Parts(
            metrics=metrics,
            block_metrics=block_metrics,
            verifier=verifier,
            service_keys=service_keys,
            backend=backend,
            uploads=uploads,
            downloads=DownloadService(
                index,
                backend,
                block_metrics,
                url_expires_s=settings.block_url_expires_s if settings.s3_redirects else None,
            ),
            direct=direct,
            upload_budget=upload_budget,
            download_budget=download_budget,
            rates=rates,
        )
    )


def main() -> None:
    """Run the blockserver until it is told to stop."""
    run_server("blockserver", BlockserverSettings, build)
