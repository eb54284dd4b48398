"""The load of `make bench-rebalance`: the mix of `make loadtest`, as long as needed, and accounts at rest."""

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from loadtest.commands import Cluster
from loadtest.devices import make_codes
from loadtest.move_members import Member, link_members, read_on, renew, seed
from loadtest.move_requests import Asker, Failed
from loadtest.run_load import make_plan, running_locust

STOP_TIMEOUT_S = 60
"""For a device to compare its tree with the server's when all stop at once."""


@dataclass(slots=True)
class Mix:
    """Devices under Locust, and how their requests went; known when they have stopped."""

    cluster: Cluster
    users: int
    requests: int = 0
    failures: int = 0
    errors: list[str] = field(default_factory=list)

    @contextmanager
    def running(self) -> Iterator[None]:
        """The devices at work beside what the caller does."""
        plan = make_plan(self.cluster, self.users)
        with tempfile.TemporaryDirectory(prefix="shardbox-mix-") as folder:
            stats = Path(folder) / "stats"
            options = ["--only-summary", "--loglevel", "ERROR", "--stop-timeout", str(STOP_TIMEOUT_S)]
            with running_locust(plan, self.users, "--json-file", stats, *options) as locust:
                try:
                    yield
                finally:
                    locust.terminate()
                    status = locust.wait()
            self._read(stats.with_name("stats.json"), status)

    def _read(self, file: Path, status: int) -> None:
        entries = json.loads(file.read_text())
        self.requests = sum(entry["num_requests"] for entry in entries)
        self.failures = sum(entry["num_failures"] for entry in entries)
        self.errors = [f"{e['name']}: {e['num_failures']} failed" for e in entries if e["num_failures"]]
        if status != 0 and not self.failures:
            self.failures = 1
            self.errors.append(f"locust ended with {status}")


async def store(cluster: Cluster, accounts: int, rows: int) -> list[Member]:
    """New accounts that hold so many rows of the journal, all told, and from then on rest."""
    asker = Asker(cluster.urls)
    try:
        members = await link_members(asker, cluster.blockserver_url, make_codes(cluster, accounts))
        await seed(asker, members, rows)
        return members
    finally:
        asker.close()


async def find_changed(cluster: Cluster, members: Sequence[Member]) -> list[str]:
    """Accounts at rest whose journal is not as long as it was; each read on from its first cursor."""
    asker = Asker(cluster.urls)
    changed: list[str] = []
    try:
        await renew(asker, members)
        for number, member in enumerate(members):
            try:
                head = await read_on(asker, member, number)
            except Failed as error:
                changed.append(f"{member.ns_id}: {error}")
                continue
            if head != member.ledger.head:
                changed.append(f"{member.ns_id} ends at {head}, not at {member.ledger.head}")
    finally:
        asker.close()
    return changed
