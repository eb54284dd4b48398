"""Where interest goes up to and hints come down from.

The root of the tree asks metaservers for heads (`services/heads.py`); a node below will hold a link to its
parent behind the same interface.
"""

from collections.abc import Iterable
from typing import Protocol

from wire.ids import Jid, NsId


class Sink(Protocol):
    """Takes what an upstream learns."""

    def take_heads(self, heads: Iterable[tuple[NsId, Jid]]) -> None:
        """Namespaces have come at least this far. In any order, as often as you like."""
        ...


class Upstream(Protocol):
    """Learns how far namespaces have come, for as long as they are subscribed.

    After `subscribe`, the sink is told a head that was read *after* this call, as soon as somebody can be
    asked, and every later one; so "register interest, then subscribe, then compare" leaves no gap.
    """

    def subscribe(self, ns_ids: Iterable[NsId]) -> None:
        """Begin with these; for one that is subscribed already: learn its head afresh."""
        ...

    def unsubscribe(self, ns_ids: Iterable[NsId]) -> None:
        """These are of no interest any more."""
        ...
