"""`make bench-rebalance`: one shard becomes four, then six, then three others go, under load.

Writes build/bench/rebalance.json. Exits with 1 if a client saw an error, if trees differ in the end, if a
shard is too full after a step, or if more was moved than should be.

python -m loadtest.bench_rebalance [--users N] [--people N] [--accounts N] [--rows N] [--data-dir DIR]

All the while devices work as in `make loadtest`, two to an account, and people change files on two synced
devices each; other accounts rest and are only moved. PostgreSQL flushes as in production.
"""

import argparse
import asyncio
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadtest.commands import Cluster, running_cluster
from loadtest.rebalance_clients import Person, make_person
from loadtest.rebalance_course import BOUND, Course, Step, count_refused
from loadtest.rebalance_load import Mix, find_changed, store

OUTPUT = Path("build/bench/rebalance.json")
MAX_MOVED = 1.2
"""Times the least that has to move."""
GROWN = (4, 6)
GOING = ("shard-1", "shard-3", "shard-5")
"""Of the six: the one that held everything in the beginning, and one of each batch that came."""

Figures = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Options:
    """How much there is, and goes on."""

    users: int = 20
    people: int = 2
    accounts: int = 96
    """At rest. Some and a half in a slot: with fewer, slots differ much in size."""
    rows: int = 100_000
    """That these hold."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run came to."""

    steps: list[Step]
    mix: Mix
    people: list[Person]
    refused: int
    changed: list[str]


def main() -> None:
    """Run it, print the figures and write them."""
    options = Options()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--users", type=int, default=options.users, help="devices under Locust")
    parser.add_argument("--people", type=int, default=options.people, help="with two synced folders each")
    parser.add_argument("--accounts", type=int, default=options.accounts, help="at rest")
    parser.add_argument("--rows", type=int, default=options.rows, help="that these hold")
    parser.add_argument("--data-dir", type=Path, help="keep the cluster's data here")
    given = parser.parse_args()
    options = Options(given.users, given.people, given.accounts, given.rows)
    folders = Path(tempfile.mkdtemp(prefix="shardbox-rebalance-", dir="/var/tmp"))
    try:
        with running_cluster(given.data_dir, shards=1) as cluster:
            outcome = run_course(cluster, folders, options, GROWN, GOING)
    except KeyboardInterrupt:
        sys.exit("stopped; nothing is left of the cluster")
    finally:
        shutil.rmtree(folders, ignore_errors=True)
    figures = summarise(outcome)
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    OUTPUT.write_text(json.dumps(figures, indent=2) + "\n")
    print_steps(outcome.steps)
    for name, value in figures.items():
        print(f"{name:32} {value}")
    wrong = find_wrong(outcome)
    sys.exit("\n".join(["wrong:", *wrong]) if wrong else 0)


def run_course(
    cluster: Cluster, folders: Path, options: Options, grown: Sequence[int], going: Sequence[str]
) -> Outcome:
    """Grow to each of these counts, then let shards go, all under load."""
    say(f"{options.accounts} accounts at rest, {options.rows:,} rows")
    members = asyncio.run(store(cluster, options.accounts, options.rows)) if options.accounts else []
    say(f"{options.people} people with two synced devices each, {options.users} devices under Locust")
    people = [make_person(cluster, f"person{number}", folders) for number in range(options.people)]
    course, mix, steps = Course(cluster), Mix(cluster, options.users), list[Step]()
    # The devices under Locust stop first, with their comparisons; then the folders come to rest.
    with ExitStack() as working:
        for person in people:
            working.enter_context(person.working())
        with mix.running():
            for count in grown:
                say(f"growing to {count} shards")
                steps.append(course.grow(count))
            say(f"emptying and removing {', '.join(going)}")
            steps.append(course.shrink(going))
        say("coming to rest")
    return Outcome(steps, mix, people, count_refused(cluster), asyncio.run(find_changed(cluster, members)))


def summarise(outcome: Outcome) -> Figures:
    """The figures, flat."""
    steps = outcome.steps
    moved, least = sum(s.moved_share for s in steps), sum(s.min_share for s in steps)
    sync_errors = sum(len(person.errors) for person in outcome.people)
    return {
        "steps": len(steps),
        "moves": sum(s.moves for s in steps),
        "moved_share": round(moved, 4),
        "min_share": round(least, 4),
        "moved_over_min": round(moved / least, 3),
        "moved_slots": sum(s.moved_slots for s in steps),
        "min_slots": sum(s.min_slots for s in steps),
        "max_over_fair": round(max(s.over_fair for s in steps), 4),
        "client_errors": outcome.mix.failures + sync_errors + outcome.refused,
        "failed_requests": outcome.mix.failures,
        "sync_errors": sync_errors,
        "refused_requests": outcome.refused,
        "requests": outcome.mix.requests,
        "folder_changes": sum(person.changes for person in outcome.people),
        "trees_equal": not outcome.changed and all(person.is_in_step for person in outcome.people),
        "longest_cutover_ms": round(max(s.longest_cutover_ms for s in steps), 1),
        "ails": sum(len(s.ails) for s in steps),
        "taken_s": round(sum(s.taken_s for s in steps), 1),
    }


def find_wrong(outcome: Outcome) -> list[str]:
    """What is not as it should be, in words."""
    figures = summarise(outcome)
    wrong = [error for person in outcome.people for error in person.errors]
    wrong += [*outcome.mix.errors, *outcome.changed]
    wrong += [f"{step.name}: {ail}" for step in outcome.steps for ail in step.ails]
    wrong += [
        f"{step.name}: some shard has {step.over_fair:.3f} of its fair share"
        for step in outcome.steps
        if step.over_fair > BOUND
    ]
    if outcome.refused:
        wrong.append(f"servers failed or put off {outcome.refused} requests")
    if not figures["trees_equal"]:
        wrong.append("trees differ")
    if figures["moved_share"] > MAX_MOVED * figures["min_share"]:
        wrong.append(f"{figures['moved_over_min']} times the least was moved")
    if figures["moved_slots"] > MAX_MOVED * figures["min_slots"]:
        wrong.append(f"{figures['moved_slots']} slots were moved, and {figures['min_slots']} had to")
    return wrong


def print_steps(steps: Sequence[Step]) -> None:
    """A line for each step."""
    print(f"\n{'step':14} moves   moved   least over fair    cutover    taken  slots")
    for s in steps:
        slots = " ".join(f"{name}:{count}" for name, count in s.slots.items())
        print(
            f"{s.name:14} {s.moves:5} {s.moved_share:7.3f} {s.min_share:7.3f} {s.over_fair:9.3f}"
            f" {s.longest_cutover_ms:7.1f} ms {s.taken_s:6.0f} s  {slots}"
        )
    print()


def say(what: str) -> None:
    """Tell how far it is."""
    print(f"--- {what}", flush=True)


if __name__ == "__main__":
    main()
