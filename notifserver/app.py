"""The notifserver's route table."""

import tornado.web

from notifserver.handlers.polls import LongpollHandler, PublishHandler, ReadyHandler
from notifserver.services.polls import PollService
from runtime.bodies import Bodies
from runtime.document import DocumentHandler
from runtime.metrics import ServerMetrics
from runtime.rates import Rates
from runtime.web import HealthHandler, InFlight, MetricsHandler, NotFoundHandler
from wire.keys import KeyRing


def make_app(polls: PollService, service_keys: KeyRing, metrics: ServerMetrics) -> tornado.web.Application:
    """The application."""
    base = {"metrics": metrics}
    with_polls = base | {"polls": polls}
    return tornado.web.Application(
        [
            (r"/v1/files/list_folder/longpoll", LongpollHandler, with_polls),
            (r"/internal/publish", PublishHandler, with_polls | {"service_keys": service_keys}),
            (r"/healthz", HealthHandler, base),
            (r"/readyz", ReadyHandler, base),
            (r"/metrics", MetricsHandler, base),
            (r"/openapi.json", DocumentHandler, base | {"title": "Shardbox notification API"}),
        ],
        default_handler_class=NotFoundHandler,
        default_handler_args=base,
        in_flight=InFlight(),
        bodies=Bodies(),
        rates=Rates(),
        drain=polls.drain,
    )
