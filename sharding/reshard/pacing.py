"""How fast a move copies and deletes: as fast as the shards' own work and the operator allow.

Twice a second a small commit is timed on each shard, and it is asked how far its standbys and streams are
behind. Above one of the bounds the rate is cut by a third, below both it grows by a little, as TCP does with
what it has in flight; it never becomes nothing, as a copy holds things up as well while it lasts.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import LiteralString, Self

from sharding.directory import Connection
from sharding.reshard.errors import Interrupted
from sharding.reshard.model import Throttle
from sharding.reshard.sites import Site

PROBE_INTERVAL_S = 0.5
CONTROL_INTERVAL_S = 1.0
"""An operator who stops or slows a move wants to see it; the directory is asked no more often."""
MIN_ROWS_PER_S = 500.0
DECREASE = 0.67
INCREASE_ROWS_PER_S = 2000.0
"""Per probe: from the floor to a full copy's 200,000 rows/s in a minute."""
CREDIT_S = 0.1
"""How much of the rate may be saved up: what a sleep that lasts too long loses, and no burst."""
SMOOTHING = 0.4
"""The newest probe's weight: two or three slow commits in a row are a load, a single one is not."""
_NAP_S = 0.2


@dataclass(frozen=True, slots=True)
class Control:
    """What the operator wants of a move that runs."""

    throttle: Throttle
    is_paused: bool = False
    is_interrupted: bool = False


class Governor:
    """The rate that is allowed, from what probes saw: arithmetic on a clock that is passed in."""

    def __init__(self, throttle: Throttle, now_s: float):
        self.throttle = throttle
        """May be set at any time, and counts from then on."""
        self.reason = ""
        """Why the rate was cut at the last probe, in words; "" if it was not."""
        self._rate = float("inf")
        self._debt_rows = 0.0
        self._filled_s = now_s
        self._probed_s = now_s
        self._rows_since = 0
        self._commit_ms: float | None = None

    @property
    def rate(self) -> float:
        """Rows per second that are allowed now; inf: as fast as it goes."""
        most = self.throttle.max_rows_per_s
        return min(self._rate, most) if most else self._rate

    def add(self, rows: int) -> None:
        """Take rows into account that were, or are to be, worked off."""
        self._debt_rows += rows
        self._rows_since += rows

    def delay_s(self, now_s: float) -> float:
        """How long to wait until what was added is allowed."""
        passed_s, self._filled_s = now_s - self._filled_s, now_s
        if self.rate == float("inf"):
            self._debt_rows = 0.0
            return 0.0
        self._debt_rows = max(self._debt_rows - passed_s * self.rate, -CREDIT_S * self.rate)
        return max(self._debt_rows, 0.0) / self.rate

    def observe(self, commit_ms: float, lag_bytes: int, now_s: float) -> None:
        """Set the rate by a probe.

        Args:
            commit_ms: what a small commit took.
            lag_bytes: by how much the slowest reader is behind.
            now_s: the clock's time.
        """
        before = commit_ms if self._commit_ms is None else self._commit_ms
        self._commit_ms = SMOOTHING * commit_ms + (1 - SMOOTHING) * before
        done_rate = self._rows_since / max(now_s - self._probed_s, 1e-3)
        self._rows_since, self._probed_s = 0, now_s
        self.reason = self._excess(lag_bytes)
        if self.reason:
            # From what was done, as the rate that was allowed may never have been reached.
            self._rate = max(min(self.rate, done_rate) * DECREASE, MIN_ROWS_PER_S)
        else:
            self._rate += INCREASE_ROWS_PER_S

    def _excess(self, lag_bytes: int) -> str:
        if self._commit_ms is not None and self._commit_ms > self.throttle.max_commit_ms:
            return f"commits take {self._commit_ms:.0f} ms, and {self.throttle.max_commit_ms:g} are allowed"
        if lag_bytes > self.throttle.max_lag_bytes:
            return f"a standby or stream is {lag_bytes:,} bytes behind"
        return ""


class Pacer:
    """Where a copy or deletion waits its turn. Open it with `with`: it has a connection to each shard."""

    def __init__(self, control: Callable[[], Control], *sites: Site):
        self._control = control
        self._sites = sites
        self._governor = Governor(Throttle(), time.monotonic())
        self._closing = ExitStack()
        self._conns: Sequence[Connection] = ()
        self._asked_s = self._probed_s = float("-inf")
        self._is_paused = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.close()

    @property
    def reason(self) -> str:
        """Why it is slower than it could be, in words; "" if nothing holds it back."""
        return "paused" if self._is_paused else self._governor.reason

    def wait(self, rows: int) -> None:
        """Return when so many rows more may be copied or deleted; after a pause, when it has ended.

        Raises:
            Interrupted: the operator stops the move.
        """
        self._governor.add(rows)
        while (nap_s := self._nap_s()) > 0:
            time.sleep(nap_s)

    def _nap_s(self) -> float:
        """For how long to rest before the next look; 0: go on."""
        if self._is_held():
            return _NAP_S
        return min(self._governor.delay_s(time.monotonic()), _NAP_S)

    def _is_held(self) -> bool:
        """Whether the move is paused; asks and probes when that is due."""
        now_s = time.monotonic()
        if now_s >= self._asked_s + CONTROL_INTERVAL_S:
            self._asked_s = now_s
            self._obey(self._control())
        if not self._is_paused and now_s >= self._probed_s + PROBE_INTERVAL_S:
            self._probe()
        return self._is_paused

    def _obey(self, control: Control) -> None:
        if control.is_interrupted:
            raise Interrupted("stopped while copying or deleting; resume the move when you like")
        self._governor.throttle = control.throttle
        self._is_paused = control.is_paused

    def _probe(self) -> None:
        if not self._conns or any(conn.closed for conn in self._conns):
            self._closing.close()
            self._conns = [self._closing.enter_context(site.connect()) for site in self._sites]
        commit_ms = max((time_commit_ms(conn) for conn in self._conns), default=0.0)
        lag_bytes = max((find_lag_bytes(conn) for conn in self._conns), default=0)
        self._probed_s = time.monotonic()
        self._governor.observe(commit_ms, lag_bytes, self._probed_s)


def time_commit_ms(conn: Connection) -> float:
    """What a commit takes that waits for the disk, and for the synchronous standbys, as a client's does."""
    began_s = time.monotonic()
    conn.execute("SELECT pg_logical_emit_message(true, 'shardbox.probe', '')")
    return (time.monotonic() - began_s) * 1000


def find_lag_bytes(conn: Connection) -> int:
    """By how much WAL the slowest standby or stream is behind; 0 if there is none.

    A slot that nobody reads does not count: waiting for it would not help.
    """
    row = conn.execute(_LAG).fetchone()
    assert row is not None
    return int(row[0])


_LAG: LiteralString = (
    "SELECT coalesce(max(pg_wal_lsn_diff(pg_current_wal_lsn(), coalesce(replay_lsn, flush_lsn))), 0)"
    " FROM pg_stat_replication"
)
