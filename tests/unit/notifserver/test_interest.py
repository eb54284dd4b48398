"""The interest table against a plain model, by random histories."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from notifserver.model.interest import InterestTable
from wire.ids import Jid, NsId

REASK_S = 10.0
NAMESPACES = st.integers(1, 4).map(NsId)
JIDS = st.integers(0, 6).map(Jid)


class Interest(RuleBasedStateMachine):
    """The model: for each waiter what it has seen, for each namespace with waiters what is known of it."""

    waiters = Bundle("waiters")

    def __init__(self) -> None:
        super().__init__()
        self.table = InterestTable(REASK_S)
        self.seen: dict[int, dict[NsId, Jid]] = {}
        self.heads: dict[NsId, Jid] = {}
        self.asked: dict[NsId, float] = {}
        self.count = 0
        self.now_s = 0.0

    @rule(target=waiters, seen=st.dictionaries(NAMESPACES, JIDS, min_size=1), passed_s=st.floats(0, 6))
    def add(self, seen: dict[NsId, Jid], passed_s: float) -> int:
        self.count += 1
        self.now_s += passed_s
        added = self.table.add(self.count, seen, self.now_s)
        assert added.is_behind == any(self.heads.get(ns, -1) > jid for ns, jid in seen.items())
        if added.is_behind:
            assert added.to_ask == ()
            return self.count
        due = {ns for ns in seen if ns not in self.asked or self.asked[ns] + REASK_S <= self.now_s}
        assert set(added.to_ask) == due
        self.asked |= dict.fromkeys(due, self.now_s)
        self.seen[self.count] = seen
        return self.count

    @rule(waiter=consumes(waiters))
    def remove(self, waiter: int) -> None:
        gone = self.table.remove(waiter)
        wanted = self.seen.pop(waiter, {})
        assert set(gone) == {ns for ns in wanted if not self.waited_for(ns)}
        for ns in gone:
            self.heads.pop(ns, None)
            del self.asked[ns]
        assert self.table.remove(waiter) == []

    @rule(ns_id=NAMESPACES, head=JIDS)
    def learn(self, ns_id: NsId, head: Jid) -> None:
        woken = self.table.learn(ns_id, head)
        is_news = self.waited_for(ns_id) and head > self.heads.get(ns_id, -1)
        behind = {w for w, seen in self.seen.items() if ns_id in seen and head > seen[ns_id]}
        assert set(woken) == (behind if is_news else set())
        assert len(woken) == len(set(woken))
        if is_news:
            self.heads[ns_id] = head
        for waiter in woken:
            self.remove(waiter)

    @rule(ns_id=NAMESPACES)
    def find_head(self, ns_id: NsId) -> None:
        assert self.table.find_head(ns_id) == self.heads.get(ns_id)

    def waited_for(self, ns_id: NsId) -> bool:
        return any(ns_id in seen for seen in self.seen.values())

    @invariant()
    def nothing_is_kept_without_interest(self) -> None:
        assert self.table.waiter_count == len(self.seen)
        wanted = {ns for seen in self.seen.values() for ns in seen}
        assert set(self.table.list_namespaces()) == wanted
        assert self.table.namespace_count == len(wanted)

    @invariant()
    def nobody_waits_who_is_behind(self) -> None:
        for seen in self.seen.values():
            assert all(self.heads.get(ns, -1) <= jid for ns, jid in seen.items())


TestInterest = Interest.TestCase
TestInterest.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
