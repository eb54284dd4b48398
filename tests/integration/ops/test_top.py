"""`shardctl top` over two shards: what is busy, what is large, and which shard is silent."""

import os
import pty
import re
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest

from ops.commands.top import format_bytes
from ops.errors import EXIT_OK, EXIT_UNAVAILABLE
from sharding.activity import ActivityReporter
from sharding.shardmap import Placement
from tests.support.commands import OPERATOR, Program, run_command
from tests.support.databases import FreshCluster
from tests.support.moving import publish_override
from tests.support.services import Services, User
from tests.support.waiting import PATIENCE_S, wait_for
from wire.api import CreateFolder
from wire.ids import slot_of, system_ns


@dataclass
class Busy:
    """A user on each shard; the first one has written more often, the second one has brought more bytes."""

    services: Services
    cluster: FreshCluster
    often: User
    much: User

    @property
    def env(self) -> dict[str, str]:
        """Where the command finds the cluster."""
        return {"SHARDBOX_DIRECTORY_DSN": self.cluster.directory_dsn}

    def top(self, *args: str, status: int = EXIT_OK) -> Any:
        """Its JSON."""
        done = run_command(OPERATOR, "top", *args, "--output", "json", env=self.env)
        assert done.returncode == status, done.stderr
        return msgspec.json.decode(done.stdout)

    def shard_of(self, user: User) -> str:
        """Where a user is."""
        return self.services.router.placement(user.root_ns).shard


@pytest.fixture
async def busy(services: Services, fresh_cluster: FreshCluster) -> Busy:
    users: dict[str, User] = {}
    for number in range(100):
        user = await services.user(f"{number}@example.org")
        users.setdefault(services.router.placement(user.root_ns).shard, user)
        if len(users) == 2:
            break
    often, much = users.values()
    services.tx.activity.take()
    for _ in range(20):
        await often.ok(CreateFolder(path="/n", autorename=True))
    for name, size in (("a", 3_000_000), ("b", 2_000_000)):
        await much.ok(await much.put(f"/{name}", name.encode() * size))
    await often.ok(await often.put("/small", b"x" * 1_000))
    await ActivityReporter(services.tx.activity, services.router).flush()
    return Busy(services, fresh_cluster, often, much)


async def test_what_comes_first(busy: Busy):
    often, much = str(busy.often.root_ns), str(busy.much.root_ns)
    found = {by: busy.top("--by", by) for by in ("writes", "reads", "bytes", "size")}
    for by, report in found.items():
        assert report["order"] == by
        assert report["shards_out"] == []
        for entry in report["namespaces"] + report["slots"]:
            assert entry["shard"] == busy.services.router.placement(system_ns(entry["slot"])).shard
    assert [e["ns_id"] for e in found["writes"]["namespaces"]][:2] == [often, much]
    assert [e["ns_id"] for e in found["bytes"]["namespaces"]] == [much, often]
    assert [e["ns_id"] for e in found["size"]["namespaces"]][:2] == [much, often]
    assert {often, much} <= {e["ns_id"] for e in found["reads"]["namespaces"]}
    by_bytes, by_size = found["bytes"]["slots"], found["size"]["slots"]
    assert [e["slot"] for e in by_bytes] == [slot_of(busy.much.root_ns), slot_of(busy.often.root_ns)]
    assert by_size[0]["slot"] == slot_of(busy.much.root_ns)


async def test_sizes_are_those_of_the_live_files_and_of_all_rows(busy: Busy):
    report = busy.top("--by", "bytes")
    entry = next(e for e in report["namespaces"] if e["ns_id"] == str(busy.much.root_ns))
    assert entry["live_bytes"] == 5_000_000
    assert entry["rows"] == 4  # two files, a journal row each
    slot = next(e for e in report["slots"] if e["slot"] == slot_of(busy.much.root_ns))
    assert (slot["live_bytes"], slot["ns_id"]) == (5_000_000, None)


async def test_rows_do_not_count_what_a_restore_passed_over(busy: Busy):
    with psycopg.connect(busy.cluster.shard_dsns[busy.shard_of(busy.much)]) as conn:
        conn.execute(
            "UPDATE ns.namespaces SET lost_ranges = lost_ranges || ARRAY[head, head + (1::bigint << 32)],"
            " head = head + (1::bigint << 32), next_entry_id = next_entry_id + (1::bigint << 32)"
            " WHERE ns_id = %s",
            [busy.much.root_ns],
        )
    (entry,) = busy.top("--by", "bytes", "--limit", "1", "--namespaces")["namespaces"]
    assert entry["rows"] == 4


async def test_only_what_was_asked_for(busy: Busy):
    slots, namespaces = busy.top("--slots"), busy.top("--namespaces", "--limit", "1")
    assert slots["namespaces"] is None
    assert slots["slots"]
    assert namespaces["slots"] is None
    assert [e["ns_id"] for e in namespaces["namespaces"]] == [str(busy.often.root_ns)]
    assert len(busy.top("--by", "size", "--limit", "1")["slots"]) == 1


async def test_a_namespace_that_is_placed_by_itself(busy: Busy):
    """It is shown where it is; its slot's size is without it."""
    away = busy.shard_of(busy.often)
    async with await psycopg.AsyncConnection.connect(busy.cluster.directory_dsn, autocommit=True) as conn:
        await publish_override(conn, busy.much.root_ns, away, 2)
    report = busy.top("--by", "bytes")
    entry = report["namespaces"][0]
    assert (entry["ns_id"], entry["is_alone"], entry["shard"]) == (str(busy.much.root_ns), True, away)
    slot = next(e for e in report["slots"] if e["slot"] == slot_of(busy.much.root_ns))
    assert slot["live_bytes"] == 0
    assert Placement(slot["shard"], 1) == busy.services.router.placement(system_ns(slot["slot"]))


async def test_a_shard_that_does_not_answer_is_named(busy: Busy):
    out, there = busy.shard_of(busy.much), busy.shard_of(busy.often)
    with psycopg.connect(busy.cluster.directory_dsn) as conn:
        conn.execute("UPDATE shards SET dsn = 'host=127.0.0.1 port=1' WHERE name = %s", [out])
    for by in ("writes", "size"):
        report = busy.top("--by", by, status=EXIT_UNAVAILABLE)
        assert report["shards_out"] == [out]
        assert {e["shard"] for e in report["namespaces"]} == {there}
    done = run_command(OPERATOR, "top", env=busy.env)
    assert done.returncode == EXIT_UNAVAILABLE
    assert out in done.stderr
    assert str(busy.often.root_ns) in done.stdout


async def test_as_text(busy: Busy):
    done = run_command(OPERATOR, "top", "--by", "bytes", env=busy.env)
    lines = [re.split(r"  +", line.strip()) for line in done.stdout.splitlines()]
    assert lines[0] == ["slot", "shard", "writes/s", "reads/s", "content/s", "size", "rows"]
    (much,) = (line for line in lines if line[0] == str(busy.much.root_ns))
    assert much[1:3] == [str(slot_of(busy.much.root_ns)), busy.shard_of(busy.much)]
    assert much[-2:] == ["5.0 MB", "4"]


@pytest.mark.parametrize("output", ["text", "json"])
async def test_watching_a_pipe_gives_lines_until_interrupted(busy: Busy, tmp_path: Path, output: str):
    out = tmp_path / "out"
    with Program(
        OPERATOR,
        "top",
        "--watch",
        "--interval",
        "1",
        "-o",
        output,
        out=out,
        err=tmp_path / "err",
        env=busy.env,
    ) as program:
        often = str(busy.often.root_ns)
        wait_for(lambda: out.read_text().count(often) >= 2, "two reports")
        program.send(signal.SIGINT)
        assert program.wait(PATIENCE_S) == EXIT_OK
    text = out.read_text()
    assert "\x1b" not in text
    if output == "json":
        for line in text.splitlines():
            assert msgspec.json.decode(line)["shards_out"] == []


async def test_watching_a_terminal_shows_it_in_place(busy: Busy, tmp_path: Path):
    ours, theirs = pty.openpty()
    shown = b""
    with Program(
        OPERATOR,
        "top",
        "--watch",
        "--interval",
        "1",
        out=Path(os.ttyname(theirs)),
        err=tmp_path / "err",
        env={**busy.env, "TERM": "xterm", "COLUMNS": "200"},
    ) as program:
        while shown.count(b"content/s") < 4:  # two tables, twice
            shown += os.read(ours, 65_536)
        program.send(signal.SIGINT)
        assert program.wait(PATIENCE_S) == EXIT_OK
    os.close(theirs)
    os.close(ours)
    assert b"\x1b[" in shown


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (999.7, "1.0 kB"),
        (1_500, "1.5 kB"),
        (123_456, "123 kB"),
        (5_000_000, "5.0 MB"),
        (7.5e15, "7.5 PB"),
    ],
)
def test_bytes_for_people(count: float, text: str):
    assert format_bytes(count) == text
