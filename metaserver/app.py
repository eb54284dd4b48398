"""The metaserver's route table."""

from dataclasses import dataclass, field
from typing import Any

import tornado.web

from metaserver.handlers import about, account, devices, files, history, internal, search, sessions
from metaserver.services.blocks import BlockService
from metaserver.services.devices import DeviceService
from metaserver.services.heads import HeadService
from metaserver.services.history import HistoryService
from metaserver.services.reads import ReadService
from metaserver.services.search import SearchService
from metaserver.services.sessions import SessionService
from metaserver.services.usage import UsageService
from metaserver.services.writes import WriteService
from runtime.bodies import Bodies
from runtime.document import DocumentHandler
from runtime.metrics import ServerMetrics
from runtime.rates import Rates
from runtime.tokens import TokenVerifier
from runtime.web import HealthHandler, InFlight, MetricsHandler, NotFoundHandler
from sharding.router import Router
from wire.keys import KeyRing


@dataclass(frozen=True, slots=True)
class Parts:
    """What the handlers call."""

    metrics: ServerMetrics
    verifier: TokenVerifier
    service_keys: KeyRing
    router: Router
    writes: WriteService
    reads: ReadService
    history: HistoryService
    search: SearchService
    devices: DeviceService
    blocks: BlockService
    heads: HeadService
    usage: UsageService
    sessions: SessionService
    urls: dict[str, list[str]]
    bodies: Bodies = field(default_factory=Bodies)
    rates: Rates = field(default_factory=Rates)


def make_app(parts: Parts) -> tornado.web.Application:
    """Every address of a metaserver."""
    plain = {"metrics": parts.metrics}
    user = {**plain, "verifier": parts.verifier}
    writes = {**user, "writes": parts.writes}
    reads = {**user, "reads": parts.reads}
    searches = {**user, "search": parts.search}
    owns = {**user, "devices": parts.devices}
    service = {**plain, "service_keys": parts.service_keys}
    rows = {**service, "blocks": parts.blocks}
    uploads = {**user, "sessions": parts.sessions}
    routes: list[tuple[str, type[tornado.web.RequestHandler], dict[str, Any]]] = [
        ("/v1/files/batch", files.BatchHandler, writes),
        ("/v1/files/commit", files.CommitHandler, writes),
        ("/v1/files/create_folder", files.CreateFolderHandler, writes),
        ("/v1/files/move", files.MoveHandler, writes),
        ("/v1/files/copy", files.CopyHandler, writes),
        ("/v1/files/delete", files.DeleteHandler, writes),
        ("/v1/files/restore", files.RestoreHandler, writes),
        ("/v1/files/get_metadata", files.GetMetadataHandler, reads),
        ("/v1/files/get_metadata_batch", files.GetMetadataBatchHandler, reads),
        ("/v1/files/list_folder", files.ListFolderHandler, reads),
        ("/v1/files/list_folder/continue", files.ListFolderContinueHandler, reads),
        ("/v1/files/get_block_list", files.GetBlockListHandler, reads),
        ("/v1/files/list_revisions", history.ListRevisionsHandler, {**user, "history": parts.history}),
        ("/v1/files/search", search.SearchHandler, searches),
        ("/v1/files/search/continue", search.SearchContinueHandler, searches),
        ("/v1/devices/link", devices.LinkHandler, owns),
        ("/v1/devices/link_identity", devices.LinkIdentityHandler, owns),
        ("/v1/devices/refresh", devices.RefreshHandler, owns),
        ("/v1/devices/list", devices.ListDevicesHandler, owns),
        ("/v1/devices/current", devices.CurrentHandler, owns),
        ("/v1/devices/revoke", devices.RevokeHandler, owns),
        ("/v1/account/usage", account.UsageHandler, {**user, "usage": parts.usage}),
        ("/files/upload_session", sessions.OpenUploadHandler, uploads),
        ("/files/commit", sessions.CommitUploadHandler, uploads),
        ("/files/metadata", sessions.FileMetadataHandler, uploads),
        ("/internal/blocks/begin", internal.BeginHandler, rows),
        ("/internal/blocks/finish", internal.FinishHandler, rows),
        ("/internal/blocks/locate", internal.LocateHandler, rows),
        (
            "/internal/uploads/targets",
            sessions.FindTargetsHandler,
            {**service, "sessions": parts.sessions},
        ),
        ("/internal/heads", internal.HeadsHandler, {**service, "heads": parts.heads}),
        (
            "/.well-known/shardbox",
            about.DiscoveryHandler,
            {**plain, "router": parts.router, "urls": parts.urls},
        ),
        ("/readyz", about.ReadyHandler, {**plain, "router": parts.router}),
        ("/healthz", HealthHandler, plain),
        ("/metrics", MetricsHandler, plain),
        ("/openapi.json", DocumentHandler, {**plain, "title": "Shardbox metadata API"}),
    ]
    return tornado.web.Application(
        [tornado.web.url(path, handler, kwargs) for path, handler, kwargs in routes],
        default_handler_class=NotFoundHandler,
        default_handler_args=plain,
        in_flight=InFlight(),
        bodies=parts.bodies,
        rates=parts.rates,
    )
