"""Who waits for what: namespaces, the heads known of them, and waiters.

A namespace is here only while somebody waits for it, so memory is bounded by the polls held. What a head is
known from does not matter here: a hint and an answer both say "at least this far".

How waiting is done (a future, a parked socket) is not known here either: a waiter is a number.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from wire.ids import Jid, NsId

UNKNOWN = Jid(-1)


@dataclass(slots=True)
class _Interest:
    asked_s: float
    head: Jid = UNKNOWN
    waiters: dict[int, Jid] = field(default_factory=dict[int, Jid])
    """By waiter: the jid up to which it has seen this namespace."""


@dataclass(frozen=True, slots=True)
class Added:
    """What came of a new waiter: whether it has nothing to wait for, else whose heads are to be asked for."""

    is_behind: bool
    to_ask: tuple[NsId, ...] = ()


class InterestTable:
    """Namespaces with interest.

    Invariant: no waiter is in the table whose seen jid lies below a head known of its namespace; every
    namespace in the table has a waiter.
    """

    def __init__(self, reask_s: float) -> None:
        """A head asked for longer ago than `reask_s` is asked for again when a waiter comes."""
        self._reask_s = reask_s
        self._interests: dict[NsId, _Interest] = {}
        self._wanted: dict[int, tuple[NsId, ...]] = {}

    @property
    def waiter_count(self) -> int:
        """How many wait."""
        return len(self._wanted)

    @property
    def namespace_count(self) -> int:
        """How many namespaces are waited for."""
        return len(self._interests)

    def add(self, waiter: int, seen: Mapping[NsId, Jid], now_s: float) -> Added:
        """Let a waiter wait until the head of any namespace goes beyond what it has seen of it.

        One that is behind already, by what is known, is not added. `now_s` is of a clock that only goes on.
        """
        if waiter in self._wanted or not seen:
            raise ValueError("a waiter waits once, and for something")
        for ns_id, jid in seen.items():
            known = self._interests.get(ns_id)
            if known is not None and known.head > jid:
                return Added(is_behind=True)
        to_ask: list[NsId] = []
        for ns_id, jid in seen.items():
            interest = self._interests.get(ns_id)
            if interest is None:
                interest = self._interests[ns_id] = _Interest(now_s)
                to_ask.append(ns_id)
            elif interest.asked_s + self._reask_s <= now_s:
                interest.asked_s = now_s
                to_ask.append(ns_id)
            interest.waiters[waiter] = jid
        self._wanted[waiter] = tuple(seen)
        return Added(is_behind=False, to_ask=tuple(to_ask))

    def remove(self, waiter: int) -> list[NsId]:
        """Take a waiter out, if it is in; the namespaces that nobody waits for now, which are forgotten."""
        gone: list[NsId] = []
        for ns_id in self._wanted.pop(waiter, ()):
            interest = self._interests[ns_id]
            del interest.waiters[waiter]
            if not interest.waiters:
                del self._interests[ns_id]
                gone.append(ns_id)
        return gone

    def learn(self, ns_id: NsId, head: Jid) -> list[int]:
        """Note that a namespace has come at least this far; the waiters whom that wakes.

        They are still in the table: whoever wakes them removes each before anything else is added.
        """
        interest = self._interests.get(ns_id)
        if interest is None or head <= interest.head:
            return []
        interest.head = head
        return [waiter for waiter, seen in interest.waiters.items() if seen < head]

    def list_namespaces(self) -> Iterable[NsId]:
        """All namespaces with interest."""
        return self._interests.keys()

    def find_head(self, ns_id: NsId) -> Jid | None:
        """The furthest that a namespace is known to have come; None: not known, or of no interest."""
        interest = self._interests.get(ns_id)
        return interest.head if interest is not None and interest.head != UNKNOWN else None
