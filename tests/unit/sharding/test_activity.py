"""What a process counts between two flushes, and what it tells of it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sharding import activity
from sharding.activity import ActivityCounter, Counts, sum_up
from wire.ids import NsId, Slot, make_ns_id, slot_of, system_ns

NS_IDS = st.builds(make_ns_id, st.integers(0, 3).map(Slot), st.integers(0, 9))
COUNTS = st.builds(Counts, *[st.integers(0, 1_000)] * 3)


def kinds(counts: Counts) -> tuple[int, int, int]:
    return counts.writes, counts.reads, counts.content_bytes


def total(counts: list[Counts]) -> Counts:
    whole = Counts()
    for counted in counts:
        whole.add(counted)
    return whole


def test_counts_are_kept_until_they_are_taken():
    counter = ActivityCounter()
    ns_id = make_ns_id(Slot(1), 5)
    counter.of(ns_id).writes += 1
    counter.of(ns_id).reads += 2
    assert counter.take() == {ns_id: Counts(writes=1, reads=2)}
    assert counter.take() == {}


def test_beyond_the_bound_a_namespace_counts_for_its_slot(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(activity, "MAX_NAMESPACES", 3)
    counter = ActivityCounter()
    for count in range(1, 8):
        counter.of(make_ns_id(Slot(count % 2), count)).writes += 1
    counter.of(make_ns_id(Slot(1), 1)).writes += 1
    taken = counter.take()
    assert {ns_id: counts.writes for ns_id, counts in taken.items()} == {
        make_ns_id(Slot(1), 1): 2,
        make_ns_id(Slot(0), 2): 1,
        make_ns_id(Slot(1), 3): 1,
        system_ns(Slot(0)): 2,
        system_ns(Slot(1)): 2,
    }
    assert [c.writes for c in sum_up(taken, ()).values()][:2] == [5, 3]


@given(st.dictionaries(NS_IDS, COUNTS), st.sets(NS_IDS.filter(lambda n: n != system_ns(slot_of(n)))))
def test_totals_are_of_what_lives_with_the_slot(counts: dict[NsId, Counts], alone: set[NsId]):
    totals = sum_up(counts, alone)
    for slot in {slot_of(ns_id) for ns_id in counts}:
        with_slot = [c for ns_id, c in counts.items() if slot_of(ns_id) == slot and ns_id not in alone]
        assert totals.get(system_ns(slot), Counts()) == total(with_slot)
    for ns_id in alone & counts.keys():
        assert totals[ns_id] == counts[ns_id]


@given(st.dictionaries(NS_IDS, COUNTS), st.integers(1, 5))
def test_the_busiest_of_each_kind_are_told(counts: dict[NsId, Counts], limit: int):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(activity, "MAX_TOLD", limit)
        totals = sum_up(counts, ())
    single = {ns_id: c for ns_id, c in counts.items() if ns_id != system_ns(slot_of(ns_id))}
    told = {ns_id: c for ns_id, c in totals.items() if ns_id != system_ns(slot_of(ns_id))}
    assert told.items() <= single.items()
    assert len(told) <= 3 * limit
    for kind in range(3):
        ranked = sorted((kinds(c)[kind] for c in single.values()), reverse=True)[:limit]
        busy = [value for value in ranked if value]
        assert sorted((kinds(c)[kind] for c in told.values()), reverse=True)[: len(busy)] == busy


def test_what_was_not_done_is_not_told():
    quiet, busy = make_ns_id(Slot(0), 1), make_ns_id(Slot(0), 2)
    assert sum_up({quiet: Counts(), busy: Counts(reads=1)}, ()) == {
        system_ns(Slot(0)): Counts(reads=1),
        busy: Counts(reads=1),
    }
