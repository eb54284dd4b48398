"""The blockserver's route table."""

from dataclasses import dataclass, field

import tornado.web

from blockserver.handlers.blocks import BlockHandler, GetPackHandler, MissingHandler, PutPackHandler
from blockserver.handlers.ready import ReadyHandler
from blockserver.handlers.sessions import CompleteHandler, SignedUploadHandler, TargetsHandler
from blockserver.services.direct import DirectService
from blockserver.services.download import DownloadService
from blockserver.services.metrics import BlockMetrics
from blockserver.services.upload import UploadService
from blockserver.storage.backend import Backend
from runtime.bodies import Bodies, ByteBudget
from runtime.document import DocumentHandler
from runtime.metrics import ServerMetrics
from runtime.rates import Rates
from runtime.tokens import TokenVerifier
from runtime.web import HealthHandler, InFlight, MetricsHandler, NotFoundHandler
from wire.keys import KeyRing


@dataclass(frozen=True, slots=True)
class Parts:
    """What the handlers are wired with."""

    metrics: ServerMetrics
    block_metrics: BlockMetrics
    verifier: TokenVerifier
    service_keys: KeyRing
    backend: Backend
    uploads: UploadService
    downloads: DownloadService
    direct: DirectService
    upload_budget: ByteBudget
    download_budget: ByteBudget
    rates: Rates = field(default_factory=Rates)


def make_app(parts: Parts) -> tornado.web.Application:
    """The application."""
    base = {"metrics": parts.metrics}
    body = base | {"verifier": parts.verifier}
    reads = {"downloads": parts.downloads}
    sends = reads | {"read_budget": parts.download_budget}
    writes = {"uploads": parts.uploads}
    return tornado.web.Application(
        [
            (r"/v1/blocks/missing", MissingHandler, body | reads),
            (r"/v1/blocks/put_pack", PutPackHandler, body | writes),
            (r"/v1/blocks/get_pack", GetPackHandler, body | sends),
            (r"/v1/blocks/([^/]+)", BlockHandler, body | sends | writes),
            (r"/blocks/complete", CompleteHandler, body | {"direct": parts.direct}),
            (
                r"/v1/uploads/([^/]+)/([^/]*)",
                SignedUploadHandler,
                body | writes | {"service_keys": parts.service_keys},
            ),
            (
                r"/internal/targets",
                TargetsHandler,
                base | {"service_keys": parts.service_keys, "direct": parts.direct},
            ),
            (r"/healthz", HealthHandler, base),
            (
                r"/readyz",
                ReadyHandler,
                base | {"backend": parts.backend, "block_metrics": parts.block_metrics},
            ),
            (r"/metrics", MetricsHandler, base),
            (r"/openapi.json", DocumentHandler, base | {"title": "Shardbox block API"}),
        ],
        default_handler_class=NotFoundHandler,
        default_handler_args=base,
        in_flight=InFlight(),
        bodies=Bodies(parts.upload_budget),
        rates=parts.rates,
    )
