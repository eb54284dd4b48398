"""The course of `make bench-rebalance`: a cluster grows and shrinks by `shardctl`; what each step came to."""

import json
import re
import subprocess
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from loadtest.commands import BIN, Cluster

BOUND = 1.15
"""Of its fair share of slots: how much the fullest shard may end with."""
METRICS_TIMEOUT_S = 10.0
_REFUSED = re.compile(
    r'^shardbox_http_requests_total\{route="/v1/[^"]*",status="(?:5..|429)"\} (\S+)$', re.MULTILINE
)


@dataclass(frozen=True, slots=True)
class Step:
    """One change of the set of shards, and the rebalance that followed it."""

    name: str
    slots: dict[str, int]
    """How many each shard has at the end."""
    over_fair: float
    """The fullest shard's slots, as a multiple of its fair share."""
    moved_share: float
    """Of all data, as the rebalance reports it."""
    min_share: float
    """What had to leave: all that was on shards that go, and what others had beyond the bound."""
    moved_slots: int
    min_slots: int
    moves: int
    longest_cutover_ms: float
    taken_s: float
    ails: list[str]
    """What `shardctl doctor` finds wrong afterwards."""


@dataclass(frozen=True, slots=True)
class Course:
    """The steps, on a running cluster; whatever fails raises RuntimeError in the command's own words."""

    cluster: Cluster
    max_parallel: int = 2

    def grow(self, count: int) -> Step:
        """Have so many shards, and fill the new ones."""

        def change() -> None:
            self.cluster.ctl("dev", "up", "--shards", str(count))

        return self._take(f"grown to {count}", change)

    def shrink(self, names: Sequence[str]) -> Step:
        """Empty some shards and remove them."""

        def change() -> None:
            for name in names:
                self.cluster.ctl("shard", "drain", name)

        def remove() -> None:
            for name in names:
                self.cluster.ctl("shard", "remove", name)

        left = len(set(self._holders()) - set(names))
        return self._take(f"shrunk to {left}", change, remove)

    def _take(self, name: str, change: Callable[[], None], finish: Callable[[], None] | None = None) -> Step:
        began = time.monotonic()
        change()
        placed = self._holders()
        outlook = self.cluster.ctl("plan")["shards"]
        report = self.cluster.ctl(
            *("rebalance", "--auto", "--max-parallel", str(self.max_parallel), "--quarantine", "0")
        )
        now_placed = self._holders()
        if finish is not None:
            finish()
        taken_s = time.monotonic() - began
        weights = {s["name"]: s["weight"] for s in outlook if s["state"] == "in_service"}
        counts = {shard: now_placed.count(shard) for shard in sorted({*weights, *now_placed})}
        return Step(
            name=name,
            slots=counts,
            over_fair=max(counts[s] / fair for s, fair in share_out(weights, len(placed)).items()),
            moved_share=report["moved_share"],
            min_share=least_share({s["name"]: s["bytes_before"] for s in outlook}, weights),
            moved_slots=sum(before != after for before, after in zip(placed, now_placed, strict=True)),
            min_slots=least_slots(Counter(placed), weights),
            moves=len(report["moves"]),
            longest_cutover_ms=max(
                (c["total_ms"] for m in report["moves"] for c in m["cutovers"]), default=0.0
            ),
            taken_s=taken_s,
            ails=examine(),
        )

    def _holders(self) -> list[str]:
        """The shard of each slot, by the map."""
        return [shard for shard, _ in self.cluster.ctl("map", "show")["slots"]]


def share_out(weights: dict[str, int], whole: float) -> dict[str, float]:
    """The fair share of each shard in service, by weight."""
    return {name: whole * weight / sum(weights.values()) for name, weight in weights.items()}


def least_share(sizes: dict[str, int], weights: dict[str, int]) -> float:
    """The part of all data that has to leave its shard, were data divisible.

    Args:
        sizes: bytes by shard, in service or not.
        weights: of the shards in service.
    """
    whole = sum(sizes.values())
    fair = share_out(weights, whole)
    return sum(max(0.0, size - BOUND * fair.get(name, 0.0)) for name, size in sizes.items()) / whole


def least_slots(counts: Counter[str], weights: dict[str, int]) -> int:
    """How many slots have to leave their shards, for every shard to be within the bound."""
    fair = share_out(weights, counts.total())
    return sum(max(0, count - int(BOUND * fair.get(name, 0.0))) for name, count in counts.items())


def examine() -> list[str]:
    """What `shardctl doctor` finds wrong; nothing on a cluster that is well."""
    command = [str(BIN / "shardctl"), "doctor", "--output", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        findings: list[dict[str, Any]] = json.loads(done.stdout)["findings"]
    except ValueError:
        return [f"doctor: {done.stderr.strip()}"]
    return [f"{f['check']} of {f['subject']}: {f['detail']}" for f in findings if f["verdict"] == "fail"]


def count_refused(cluster: Cluster) -> int:
    """Requests that the servers failed or put off since they were started, whoever sent them."""
    count = 0
    for url in [*cluster.urls, cluster.blockserver_url, cluster.notifserver_url]:
        with urllib.request.urlopen(f"{url}/metrics", timeout=METRICS_TIMEOUT_S) as answer:
            count += sum(int(float(number)) for number in _REFUSED.findall(answer.read().decode()))
    return count
