"""How fast a move may work: the arithmetic of the rate, and what its operator can do to it."""

import threading
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sharding.reshard import pacing
from sharding.reshard.errors import Interrupted
from sharding.reshard.model import Throttle
from sharding.reshard.pacing import (
    CREDIT_S,
    INCREASE_ROWS_PER_S,
    MIN_ROWS_PER_S,
    PROBE_INTERVAL_S,
    Control,
    Governor,
    Pacer,
)
from tests.support.waiting import wait_for

FAST_MS, SLOW_MS = 5.0, 500.0


@dataclass
class Run:
    """A governor at work on a clock of its own: rows are added in batches, and its delays obeyed."""

    governor: Governor
    batch_rows: int = 1000
    capable_rows_per_s: float = 100_000.0
    now_s: float = 0.0
    done_rows: int = 0

    def until(self, end_s: float, commit_ms: float = FAST_MS, lag_bytes: int = 0) -> float:
        """Work on, with a probe now and then; rows per second."""
        began_s, before = self.now_s, self.done_rows
        probed_s = self.now_s
        while self.now_s < end_s:
            self.governor.add(self.batch_rows)
            while (delay_s := self.governor.delay_s(self.now_s)) > 1e-9:
                self.now_s += min(delay_s, 0.2)
                if self.now_s >= probed_s + PROBE_INTERVAL_S:
                    self.governor.observe(commit_ms, lag_bytes, self.now_s)
                    probed_s = self.now_s
            self.done_rows += self.batch_rows
            self.now_s += self.batch_rows / self.capable_rows_per_s
            if self.now_s >= probed_s + PROBE_INTERVAL_S:
                self.governor.observe(commit_ms, lag_bytes, self.now_s)
                probed_s = self.now_s
        return (self.done_rows - before) / (self.now_s - began_s)


def test_without_a_bound_nothing_waits():
    run = Run(Governor(Throttle(), 0.0))
    assert run.until(10.0) == pytest.approx(run.capable_rows_per_s, rel=0.02)
    assert run.governor.reason == ""


@given(
    rate=st.integers(1, 50_000),
    batches=st.lists(st.tuples(st.integers(0, 5_000), st.floats(0, 3)), min_size=1, max_size=50),
)
def test_the_operators_rate_is_never_exceeded(rate: int, batches: list[tuple[int, float]]):
    governor, now_s, rows = Governor(Throttle(max_rows_per_s=rate), 0.0), 0.0, 0
    for batch_rows, work_s in batches:
        governor.add(batch_rows)
        while (delay_s := governor.delay_s(now_s)) > 1e-9:
            now_s += delay_s
        rows += batch_rows
        assert rows <= rate * (now_s + CREDIT_S) * (1 + 1e-6) + 1
        now_s += work_s


def test_a_lower_rate_is_reached_and_kept():
    run = Run(Governor(Throttle(max_rows_per_s=2000), 0.0), batch_rows=100)
    assert run.until(60.0) == pytest.approx(2000, rel=0.05)


def test_a_rate_is_changed_while_something_waits():
    governor = Governor(Throttle(max_rows_per_s=1), 0.0)
    governor.add(1000)
    assert governor.delay_s(0.0) == pytest.approx(1000, rel=0.01)
    governor.throttle = Throttle(max_rows_per_s=500)
    assert governor.delay_s(0.0) == pytest.approx(2, rel=0.01)
    governor.throttle = Throttle()
    assert governor.delay_s(0.0) == 0


@pytest.mark.parametrize(
    ("commit_ms", "lag_bytes", "word"),
    [(SLOW_MS, 0, "commits take 500 ms"), (FAST_MS, 1 << 40, "bytes behind")],
)
def test_what_is_too_much_slows_it_down_but_never_to_a_stop(commit_ms: float, lag_bytes: int, word: str):
    run = Run(Governor(Throttle(), 0.0))
    full = run.until(5.0)
    run.until(8.0, commit_ms, lag_bytes)
    assert MIN_ROWS_PER_S < run.governor.rate < full / 2
    run.until(60.0, commit_ms, lag_bytes)
    assert run.governor.rate == MIN_ROWS_PER_S
    assert word in run.governor.reason
    assert run.until(120.0, commit_ms, lag_bytes) == pytest.approx(MIN_ROWS_PER_S, rel=0.1)


def test_it_grows_again_step_by_step_until_nothing_bounds_it():
    run = Run(Governor(Throttle(), 0.0))
    run.until(60.0, SLOW_MS)
    for _ in range(8):  # the smoothed latency takes some probes to sink
        run.governor.observe(FAST_MS, 0, run.now_s)
    rate = run.governor.rate
    run.governor.observe(FAST_MS, 0, run.now_s)
    assert run.governor.rate == rate + INCREASE_ROWS_PER_S
    run.until(run.now_s + 60.0)
    assert run.until(run.now_s + 10.0) == pytest.approx(run.capable_rows_per_s, rel=0.02)


def test_a_single_slow_commit_is_no_load():
    governor = Governor(Throttle(max_commit_ms=50), 0.0)
    for at in range(10):
        governor.observe(FAST_MS, 0, float(at))
    governor.observe(100.0, 0, 10.0)
    assert (governor.reason, governor.rate) == ("", float("inf"))
    governor.observe(100.0, 0, 10.5)
    assert governor.reason


def test_the_operators_rate_may_be_below_the_floor():
    run = Run(Governor(Throttle(max_rows_per_s=10), 0.0), batch_rows=10)
    run.until(60.0, SLOW_MS)
    assert run.governor.rate == 10


@dataclass
class Operator:
    """What is wanted, to be changed by the test."""

    wanted: Control = field(default_factory=lambda: Control(Throttle()))
    asked: threading.Event = field(default_factory=threading.Event)

    def __call__(self) -> Control:
        self.asked.set()
        return self.wanted


@pytest.fixture
def operator(monkeypatch: pytest.MonkeyPatch) -> Operator:
    """One who is asked often."""
    monkeypatch.setattr(pacing, "CONTROL_INTERVAL_S", 0.0)
    return Operator()


def test_a_pause_lasts_until_it_is_ended(operator: Operator):
    operator.wanted = Control(Throttle(), is_paused=True)
    with Pacer(operator) as pacer:
        waiting = threading.Thread(target=pacer.wait, args=[1])
        waiting.start()
        wait_for(lambda: pacer.reason == "paused", "the pause")
        operator.asked.clear()
        assert operator.asked.wait(30)
        assert waiting.is_alive()
        operator.wanted = Control(Throttle())
        waiting.join(30)
        assert not waiting.is_alive()
        assert pacer.reason == ""


@pytest.mark.parametrize("throttle", [Throttle(), Throttle(max_rows_per_s=1)], ids=["at work", "asleep"])
def test_an_interruption_ends_it_wherever_it_is(operator: Operator, throttle: Throttle):
    operator.wanted = Control(throttle)
    caught: list[Interrupted] = []

    def work() -> None:
        with Pacer(operator) as pacer:
            try:
                while True:
                    pacer.wait(1000)
            except Interrupted as error:
                caught.append(error)

    working = threading.Thread(target=work)
    working.start()
    assert operator.asked.wait(30)
    operator.wanted = Control(throttle, is_interrupted=True)
    working.join(30)
    assert len(caught) == 1


def test_an_interruption_ends_a_pause(operator: Operator):
    operator.wanted = Control(Throttle(), is_paused=True, is_interrupted=True)
    with Pacer(operator) as pacer, pytest.raises(Interrupted):
        pacer.wait(0)
