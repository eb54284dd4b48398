"""`make bench-move`: slots with a million rows of journal move between two servers under load, and back.

Writes build/bench/move.json. Exits with 1 if a client saw an error, read something stale or lost a poll, or
if an acknowledged commit is lost or there twice, however fast it was.

python -m loadtest.bench_move [--rows N] [--copies N] [--switches N] [--rate N] [--batch N] [--no-verify]
    [--data-dir DIR]

Commits fall due at a fixed rate, in batches, and half of them in the slots that move. No client tries
anything twice. PostgreSQL flushes as in production.
"""

import argparse
import asyncio
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import uvloop

from loadtest.commands import Cluster, running_cluster
from loadtest.devices import make_codes
from loadtest.move_course import Course, Figures
from loadtest.move_ledger import Differences
from loadtest.move_load import Holder, Tally, Writer
from loadtest.move_members import choose_roles, link_members, read_on, seed
from loadtest.move_requests import Asker
from loadtest.move_rows import compare_journals, find_shards

OUTPUT = Path("build/bench/move.json")
ACCOUNTS = 24
"""In 64 slots: some ten of them share a shard, but hardly a slot."""
MOVING = 8
QUIET = 3
"""Slots that move, too, in which only polls are held."""
ROWS = 1_000_000
COPIES = 10
SWITCHES = 30
"""Of all units: with eight or more of them that makes more than 240 cutovers."""
RATE = 312.0
"""Commits a second."""
BATCH = 8
"""Commits of a request: one by one, two cores have no time left for anything else at that rate."""
QUIET_S = 10.0
"""Of load alone, to know its gaps when nothing moves."""
FLAWS = ("client_errors", "acked_lost", "acked_doubled", "acked_disordered", "stale_reads", "polls_dropped")


@dataclass(frozen=True, slots=True)
class Options:
    """How long it all is."""

    rows: int = ROWS
    copies: int = COPIES
    switches: int = SWITCHES
    rate: float = RATE
    batch: int = BATCH
    quiet_s: float = QUIET_S
    is_verified: bool = True


def main() -> None:
    """Run it, print the figures and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--rows", type=int, default=ROWS, help="of journal in the moving slots, to begin with"
    )
    parser.add_argument("--copies", type=int, default=COPIES, help="full moves, there and back in turn")
    parser.add_argument("--switches", type=int, default=SWITCHES, help="and rollbacks, in all")
    parser.add_argument("--rate", type=float, default=RATE, help="commits a second")
    parser.add_argument("--batch", type=int, default=BATCH, help="commits in a request")
    parser.add_argument("--no-verify", action="store_true", help="compare nothing before a switch")
    parser.add_argument("--data-dir", type=Path, help="keep the cluster's data here")
    given = parser.parse_args()
    options = Options(
        given.rows,
        given.copies,
        given.switches,
        given.rate,
        given.batch,
        is_verified=not given.no_verify,
    )
    try:
        with running_cluster(given.data_dir) as cluster:
            os.environ["PGPASSFILE"] = cluster.ctl("dev", "status")["passfile"]
            say(f"{ACCOUNTS} accounts")
            figures = uvloop.run(run_all(cluster, make_codes(cluster, ACCOUNTS), options))
    except KeyboardInterrupt:
        sys.exit("stopped, and the cluster with it")
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    OUTPUT.write_text(json.dumps(figures, indent=2) + "\n")
    print_table(figures)
    wrong = [name for name in FLAWS if figures[name] != 0]
    sys.exit(f"wrong: {', '.join(wrong)}" if wrong else 0)


async def run_all(cluster: Cluster, codes: Sequence[str], options: Options) -> Figures:
    """The figures of a whole run on a cluster of two shards; it ends with the slots at either."""
    asker, notifserver = Asker(cluster.urls), Asker([cluster.notifserver_url])
    tally = Tally()
    try:
        members = await link_members(asker, cluster.blockserver_url, codes)
        roles = choose_roles(cluster, members, MOVING, QUIET)
        say(f"{options.rows:,} rows in {len(roles.moving)} namespaces of {roles.source}")
        await seed(asker, roles.moving, options.rows)
        holders = [Holder(asker, notifserver, member, tally) for member in roles.quiet]
        shards = find_shards(cluster)
        course = Course(shards, roles, asker, holders, tally, options.is_verified)
        for member in roles.all:
            await read_on(asker, member, 0)
        say(f"{options.rate:g} commits a second, in batches of {options.batch}")
        times = await run_under_load(course, Writer(asker, roles, tally, options.batch), options)
        say("the journals")
        found = await asyncio.to_thread(compare_journals, cluster, shards, roles.all)
        return summarise(course, tally, times, found)
    finally:
        asker.close()
        notifserver.close()


@dataclass(frozen=True, slots=True)
class Times:
    """Of the monotonic clock, in seconds."""

    began: float
    """The load."""
    moved: float
    """The first move began."""
    ended: float


async def run_under_load(course: Course, writer: Writer, options: Options) -> Times:
    """The whole course, and some time of load before it."""
    stop = asyncio.Event()
    began = time.monotonic()
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(writer.run(options.rate, stop))
            await asyncio.sleep(options.quiet_s)
            moved = time.monotonic()
            await course.run(options.copies, options.switches)
            ended = time.monotonic()
            stop.set()
    finally:
        for holder in course.holders:
            holder.let_go()
    return Times(began, moved, ended)


def summarise(course: Course, tally: Tally, times: Times, found: Differences) -> Figures:
    """The figures, flat."""
    copied_rows = sum(copy["rows"] for copy in course.copies)
    copied_bytes = sum(copy["bytes"] for copy in course.copies)
    copied_s = sum(copy["copy_s"] for copy in course.copies)
    commits = sum(answer.commits for answer in tally.answers)
    waits_ms = [answer.wait_ms for answer in tally.answers]
    parts = {
        name: [unit[f"{key}_ms"] for unit in course.cutovers]
        for name, key in (("fence", "fence"), ("drain", "drain"), ("cutover", "total"))
    }
    return {
        "copies": len(course.copies),
        "switches": course.switches,
        "switches_refused": course.refusals,
        "cutovers": len(course.cutovers),
        "rows_moved": copied_rows,
        "copy_rows_per_s": round(copied_rows / copied_s),
        "copy_mb_per_s": round(copied_bytes / copied_s / 1e6, 1),
        "plain_copy_rows_per_s": round(statistics.harmonic_mean(course.plain_rows_per_s)),
        **{
            f"{name}_ms_{suffix}": round(value, 2)
            for name, values in parts.items()
            for suffix, value in describe(values).items()
        },
        "commit_gap_ms_max": round(tally.longest_gap_ms(times.moved, times.ended), 1),
        "commit_gap_unmoved_ms_max": round(tally.longest_gap_ms(times.began, times.moved), 1),
        **{f"commit_ms_{suffix}": round(value, 1) for suffix, value in describe(waits_ms).items()},
        "commits": commits,
        "commits_per_s": round(commits / (times.ended - times.began), 1),
        "reads": tally.reads,
        "stale_reads": tally.stale_reads,
        "polls_held": tally.polls_held,
        "polls_dropped": tally.polls_dropped,
        "poll_wake_ms_max": round(max(tally.wake_ms, default=0.0), 1),
        "client_errors": tally.client_errors,
        "acked_lost": found.lost,
        "acked_doubled": found.doubled,
        "acked_disordered": found.disordered,
    }


def describe(values: Sequence[float]) -> dict[str, float]:
    """Median, 99th percentile and maximum."""
    return {
        "p50": statistics.median(values),
        "p99": statistics.quantiles(values, n=100, method="inclusive")[98],
        "max": max(values),
    }


def print_table(figures: Figures) -> None:
    """The table as it stands in docs/resharding.md; what has three figures is in one row."""
    print("\n| | median or only figure | p99 | max |\n| --- | --- | --- | --- |")
    for name, value in figures.items():
        if name.endswith("_p50"):
            stem = name.removesuffix("_p50")
            print(f"| {stem} | {value:,} | {figures[stem + '_p99']:,} | {figures[stem + '_max']:,} |")
        elif name.removesuffix("_p99").removesuffix("_max") + "_p50" not in figures:
            print(f"| {name} | {value:,} | | |")


def say(what: str) -> None:
    """Tell how far it is."""
    print(f"--- {what}", flush=True)


if __name__ == "__main__":
    main()
