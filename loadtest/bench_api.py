"""`make bench-api`: what one metaserver process does with each kind of request. Writes build/bench/api.json.

python -m loadtest.bench_api [--seconds S] [--profile] [--data-dir DIR]

Each is measured with 32 requests under way and with 1, spread over 16 accounts: how many a second, how long
they took, and the processor time that the metaserver spent on each. PostgreSQL flushes as in production.
With --profile py-spy then looks at the metaserver under each kind once more: its stacks are in
build/bench/profile, and the functions with the most samples are printed.
"""

import argparse
import asyncio
import itertools
import json
import platform
import re
import statistics
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import psutil
import uvloop

from loadtest.commands import BIN, Cluster, running_cluster
from loadtest.connection import Answer, Connection
from loadtest.devices import LoadDevice, link_all, make_codes, put_block
from wire.api import (
    Batch,
    BatchResult,
    CommitFile,
    Empty,
    GetMetadata,
    ListFolder,
    ListFolderContinue,
    ListFolderResult,
    Operation,
)
from wire.hashes import block_hash, content_hash

OUTPUT = Path("build/bench/api.json")
ACCOUNTS = 16
"""More than one, so that writers do not wait for one namespace."""
CONCURRENCIES = (32, 1)
SECONDS = 5.0
WARM_UP_S = 1.0
BATCH_COMMITS = 100
DELTA_ENTRIES = 10
"""How far behind a device's cursor is when it asks: a few files saved at once."""
MIN_REQUESTS = 100
"""Fewer have no 99th percentile: a slow kind is measured for longer."""
DEADLINE_S = 120.0
PROFILE_DIR = Path("build/bench/profile")
PROFILE_HZ = 200
PROFILE_LINES = 12
BUSY_STATUSES = (429, 503)
"""Counted by themselves: a slow machine puts writers off."""
CONTENT = b"bench"
TIME = "2026-01-02T03:04:05Z"

_FRAME_LINE = re.compile(r":\d+\)$")
"""The line in a frame's name."""

Figures = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Account:
    """A device, and what its requests name."""

    device: LoadDevice
    path: str
    cursor: str


@dataclass(frozen=True, slots=True)
class Load:
    """One kind of request."""

    name: str
    path: str
    make_body: Callable[[Account, int], msgspec.Struct]
    is_write: bool = False


@dataclass(slots=True)
class Sample:
    """How long each request took, and how many were put off."""

    waits_s: list[float] = field(default_factory=list)
    busy_count: int = 0


_numbers = itertools.count()


def file_at(path: str) -> CommitFile:
    """The operation that makes a file of one block."""
    name = block_hash(CONTENT)
    return CommitFile(
        path=path,
        blocks=[name.hex()],
        size=len(CONTENT),
        content_hash=content_hash([name]).hex(),
        client_modified=TIME,
    )


def many_files(_account: Account, number: int) -> Batch:
    """A batch of new files in a folder of its own."""
    return Batch([file_at(f"/batch/{number}/{index}.txt") for index in range(BATCH_COMMITS)])


LOADS = [
    Load("authentication alone", "/v1/devices/current", lambda _account, _number: Empty()),
    Load(
        "metadata of a path",
        "/v1/files/get_metadata",
        lambda account, _number: GetMetadata(path=account.path),
    ),
    Load(
        f"delta of {DELTA_ENTRIES} changes",
        "/v1/files/list_folder/continue",
        lambda account, _number: ListFolderContinue(account.cursor),
    ),
    Load(
        "commit of a file",
        "/v1/files/commit",
        lambda _account, number: file_at(f"/single/{number}.txt"),
        is_write=True,
    ),
    Load(f"batch of {BATCH_COMMITS} commits", "/v1/files/batch", many_files, is_write=True),
]


def main() -> None:
    """Measure, print a table, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for each kind at each concurrency")
    parser.add_argument("--data-dir", type=Path, help="keep the cluster's data here")
    parser.add_argument("--profile", action="store_true", help="then say where the time goes")
    options = parser.parse_args()
    with running_cluster(options.data_dir, metaservers=1) as cluster:
        codes = make_codes(cluster, ACCOUNTS)
        figures = uvloop.run(measure_all(cluster, codes, options.seconds, is_profiling=options.profile))
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    OUTPUT.write_text(json.dumps(figures, indent=2) + "\n")
    print_table(figures)


async def measure_all(
    cluster: Cluster, codes: list[str], seconds: float, *, is_profiling: bool = False
) -> Figures:
    """Every kind at every concurrency; profiled afterwards, as that takes time of its own."""
    accounts = await prepare(cluster, codes)
    process = psutil.Process(cluster.pid("metaserver-1"))
    rows = []
    for load in LOADS:
        for concurrency in CONCURRENCIES:
            print(f"--- {load.name}, {concurrency} at once", flush=True)
            await run_load(cluster.url, accounts, load, concurrency, WARM_UP_S)
            before = process.cpu_times()
            started = time.perf_counter()
            sample = await run_load(cluster.url, accounts, load, concurrency, seconds, MIN_REQUESTS)
            elapsed_s = time.perf_counter() - started
            after = process.cpu_times()
            cpu_s = after.user + after.system - before.user - before.system
            rows.append(summarise(load, concurrency, sample, elapsed_s, cpu_s))
    for load in LOADS if is_profiling else []:
        await profile(cluster, accounts, load, seconds, process.pid)
    return {
        "machine": {"cpus": psutil.cpu_count(), "python": platform.python_version()},
        "accounts": ACCOUNTS,
        "rows": rows,
    }


async def prepare(cluster: Cluster, codes: list[str]) -> list[Account]:
    """A device, a block, a file and a cursor that is behind for each account."""
    devices = await link_all(cluster.url, codes)
    await put_block(cluster.blockserver_url, devices, CONTENT)
    connection = await Connection.open(cluster.url)

    async def post(device: LoadDevice, path: str, body: msgspec.Struct) -> bytes:
        answer = await connection.post(path, msgspec.json.encode(body), device.token)
        if answer.status != 200:
            raise RuntimeError(f"{path}: {answer}")
        return answer.body

    accounts = []
    for device in devices:
        page = await post(device, "/v1/files/list_folder", ListFolder(recursive=True))
        cursor = msgspec.json.decode(page, type=ListFolderResult).cursor
        files: list[Operation] = [
            file_at(f"/a/b/{number}.txt") for number in range(DELTA_ENTRIES - 2)
        ]  # and two folders
        await post(device, "/v1/files/batch", Batch(files))
        accounts.append(Account(device, "/a/b/0.txt", cursor))
    connection.close()
    return accounts


async def run_load(
    url: str, accounts: list[Account], load: Load, concurrency: int, seconds: float, min_count: int = 0
) -> Sample:
    """Ask with so many requests under way until the time is over and so many have been answered."""
    started = time.perf_counter()
    sample = Sample()

    def is_over(now: float) -> bool:
        is_enough = len(sample.waits_s) >= min_count
        return now >= started + (seconds if is_enough else max(seconds, DEADLINE_S))

    async def ask_on(connection: Connection, own: list[Account]) -> None:
        for account in itertools.cycle(own):
            if is_over(time.perf_counter()):
                return
            number = next(_numbers)
            body = msgspec.json.encode(load.make_body(account, number))
            key = f"bench-{number}" if load.is_write else ""
            asked = time.perf_counter()
            answer = await connection.post(load.path, body, account.device.token, key)
            if answer.status in BUSY_STATUSES:
                sample.busy_count += 1
                continue
            check(load, answer)
            sample.waits_s.append(time.perf_counter() - asked)

    connections = [await Connection.open(url) for _ in range(concurrency)]
    try:
        async with asyncio.TaskGroup() as group:
            for index, connection in enumerate(connections):
                # At most two ask for one account, and one alone goes round them all.
                own = accounts[index::concurrency] or [accounts[index % len(accounts)]]
                group.create_task(ask_on(connection, own))
    finally:
        for connection in connections:
            connection.close()
    return sample


def check(load: Load, answer: Answer) -> None:
    """Only answers that did what was asked are counted.

    Raises:
        RuntimeError: one did not.
    """
    if answer.status != 200:
        raise RuntimeError(f"{load.name}: {answer.status} {answer.body[:500]!r}")
    if load.path == "/v1/files/batch":
        verdicts = msgspec.json.decode(answer.body, type=BatchResult).verdicts
        if any(verdict.error is not None for verdict in verdicts):
            raise RuntimeError(f"{load.name}: {verdicts[0]}")


def summarise(load: Load, concurrency: int, sample: Sample, elapsed_s: float, cpu_s: float) -> Figures:
    """One row of the table; the processor time is that of all answers, over the good ones."""
    count = len(sample.waits_s)
    if count < MIN_REQUESTS:
        raise RuntimeError(f"{load.name}: {count} requests in {elapsed_s:.1f} s, {sample.busy_count} put off")
    return {
        "request": load.name,
        "concurrency": concurrency,
        "requests": count,
        "busy": sample.busy_count,
        "per_s": round(count / elapsed_s, 1),
        "p50_ms": round(statistics.median(sample.waits_s) * 1e3, 2),
        "p99_ms": round(statistics.quantiles(sample.waits_s, n=100, method="inclusive")[98] * 1e3, 2),
        "cpu_us": round(cpu_s / count * 1e6),
    }


async def profile(cluster: Cluster, accounts: list[Account], load: Load, seconds: float, pid: int) -> None:
    """Have py-spy write down the stacks of a process under one kind, and print where it was most often."""
    PROFILE_DIR.mkdir(parents=True, exist_ok=True)
    output = PROFILE_DIR / f"{load.name}.txt"
    recorder = await asyncio.create_subprocess_exec(
        *(BIN / "py-spy", "record", "--pid", str(pid), "--duration", str(round(seconds))),
        *("--rate", str(PROFILE_HZ), "--format", "raw", "--output", output),
        stdout=asyncio.subprocess.DEVNULL,
    )
    # It attaches within a second; what it sees before and after the load is idle, which it leaves out.
    await run_load(cluster.url, accounts, load, CONCURRENCIES[0], seconds)
    if await recorder.wait() != 0:
        raise RuntimeError("py-spy could not look at the metaserver; may this user trace it?")
    samples: Counter[str] = Counter()
    for line in output.read_text().splitlines():
        stack, _, count = line.rpartition(" ")
        # A function that calls itself is there once.
        samples.update(dict.fromkeys((_FRAME_LINE.sub(")", x) for x in stack.split(";")), int(count)))
    total = max(samples.values(), default=0)
    print(f"\n--- {load.name}: share of {total} samples, callees included")
    # What is below everything, from main() to the event loop, says nothing.
    shares = [(name, found / total) for name, found in samples.most_common() if found < 0.9 * total]
    for name, share in shares[:PROFILE_LINES]:
        print(f"{share:6.0%}  {name}")


def print_table(figures: Figures) -> None:
    """The table as it stands in docs/performance.md."""
    print("\n| request | at once | requests/s | p50 ms | p99 ms | CPU µs of the metaserver |")
    print("| --- | --- | --- | --- | --- | --- |")
    for row in figures["rows"]:
        print(
            f"| {row['request']} | {row['concurrency']} | {row['per_s']:,.0f} | {row['p50_ms']} |"
            f" {row['p99_ms']} | {row['cpu_us']:,} |"
        )


if __name__ == "__main__":
    main()
