"""The servers' applications without anything behind them: what they are is in their route tables."""

import dataclasses
from typing import Any, cast

import tornado.web

from blockserver import app as blockserver
from metaserver import app as metaserver
from notifserver import app as notifserver
from runtime.metrics import ServerMetrics


class _Nothing:
    """Stands where a route table only passes a part on."""

    def __getattr__(self, name: str) -> "_Nothing":
        return self


def empty_apps() -> dict[str, tornado.web.Application]:
    """Each server's application by its kind; its handlers cannot be called."""
    nothing = cast(Any, _Nothing())
    return {
        "metaserver": metaserver.make_app(_empty(metaserver.Parts)),
        "blockserver": blockserver.make_app(_empty(blockserver.Parts)),
        "notifserver": notifserver.make_app(nothing, nothing, ServerMetrics()),
    }


def _empty(parts: Any) -> Any:
    return parts(**{field.name: _Nothing() for field in dataclasses.fields(parts)})
