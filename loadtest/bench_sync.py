"""`make bench-sync`: two devices, real input, every figure measured. Writes build/bench/sync.json.

python -m loadtest.bench_sync [--short] [--data-dir DIR]

Exits with 1 if something is wrong, however fast it was.
"""

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from loadtest.commands import Cluster, Device, running_cluster
from loadtest.trees import (
    add_unusual_names,
    copy_standard_library,
    read_tree,
    write_random_file,
)

OUTPUT = Path("build/bench/sync.json")
OTHER_ACCOUNTS = 200
BIG_FILE_BYTES = 2 * 2**30
CONFLICTS = 25
PROPAGATIONS = 200
PROPAGATION_DEADLINE_S = 30.0

EXACT = {
    "trees_equal": True,
    "contents_lost": 0,
    "second_device_blocks_sent": 0,
    "big_file_blocks_sent_after_edit": 1,
    "big_file_blocks_fetched_after_edit": 1,
    "rename_journal_rows": 1,
    "rename_blocks_sent": 0,
    "rename_blocks_fetched": 0,
}
"""What does not depend on the machine."""

Figures = dict[str, Any]


def main() -> None:
    """Run the whole course and write its figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="a small tree and file: does the course work?")
    parser.add_argument("--data-dir", type=Path, help="keep the cluster's data here")
    options = parser.parse_args()
    folders = Path(tempfile.mkdtemp(prefix="shardbox-sync-", dir="/var/tmp"))
    try:
        with running_cluster(options.data_dir) as cluster:
            figures = run_course(cluster, folders, is_short=options.short)
    finally:
        shutil.rmtree(folders, ignore_errors=True)
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    OUTPUT.write_text(json.dumps(figures, indent=2) + "\n")
    for name, value in figures.items():
        print(f"{name:32} {value}")
    wrong = [name for name, due in EXACT.items() if figures[name] != due]
    if figures["conflicts_found"] != figures["conflicts_expected"]:
        wrong.append("conflicts_found")
    sys.exit(f"wrong: {', '.join(wrong)}" if wrong else 0)


def run_course(cluster: Cluster, folders: Path, *, is_short: bool) -> Figures:
    """Link two devices and put them through everything."""
    step("accounts")
    for number in range(10 if is_short else OTHER_ACCOUNTS):
        cluster.add_user(f"user{number}@bench.example", f"User {number}")
    cluster.add_user("ada@bench.example", "Ada")
    a = cluster.link("ada@bench.example", folders / "a", "A")
    b = cluster.link("ada@bench.example", folders / "b", "B")
    figures: Figures = {}
    equal: list[bool] = []
    figures |= copy_real_tree(a, b, equal, is_short=is_short)
    figures |= overwrite_one_byte(a, b, equal, 64 * 2**20 if is_short else BIG_FILE_BYTES)
    edit_and_delete(a, b, equal)
    figures |= rename_folder(a, b, equal)
    figures |= edit_both(a, b, equal)
    figures |= propagate(a, b, equal, 20 if is_short else PROPAGATIONS)
    figures["client_rss_mb_max"] = round(max(a.rss_bytes_max, b.rss_bytes_max) / 1e6, 1)
    figures["trees_equal"] = all(equal)
    return figures


def copy_real_tree(a: Device, b: Device, equal: list[bool], *, is_short: bool) -> Figures:
    """The standard library and unusual names, up from A, down to B."""
    step("the standard library")
    files, size_bytes = copy_standard_library(a.folder / "python")
    if is_short:
        shutil.rmtree(a.folder / "python" / "test", ignore_errors=True)
        found = [path.stat().st_size for path in (a.folder / "python").rglob("*") if path.is_file()]
        files, size_bytes = len(found), sum(found)
    files += add_unusual_names(a.folder / "unusual")
    up_s = a.sync()
    down_s = b.sync()
    equal.append(read_tree(a.folder) == read_tree(b.folder))
    return {
        "files": files,
        "bytes": size_bytes,
        "up_files_per_s": round(files / up_s, 1),
        "down_files_per_s": round(files / down_s, 1),
        "up_mb_per_s": round(size_bytes / up_s / 1e6, 2),
        "down_mb_per_s": round(size_bytes / down_s / 1e6, 2),
        "second_device_blocks_sent": b.status()["blocks_sent"],
    }


def overwrite_one_byte(a: Device, b: Device, equal: list[bool], size_bytes: int) -> Figures:
    """A big file goes over, then one byte of it changes."""
    step("a big file")
    big = a.folder / "big.bin"
    write_random_file(big, size_bytes, seed=7)
    up_s = a.sync()
    down_s = b.sync()
    equal.append(read_tree(a.folder) == read_tree(b.folder))
    sent, fetched = a.status()["blocks_sent"], b.status()["blocks_fetched"]
    with big.open("r+b") as file:
        file.seek(size_bytes // 2)
        byte = file.read(1)
        file.seek(size_bytes // 2)
        file.write(bytes([byte[0] ^ 0xFF]))
    a.sync()
    b.sync()
    equal.append(read_tree(a.folder) == read_tree(b.folder))
    figures = {
        "big_file_bytes": size_bytes,
        "big_file_up_mb_per_s": round(size_bytes / up_s / 1e6, 1),
        "big_file_down_mb_per_s": round(size_bytes / down_s / 1e6, 1),
        "big_file_blocks_sent_after_edit": a.status()["blocks_sent"] - sent,
        "big_file_blocks_fetched_after_edit": b.status()["blocks_fetched"] - fetched,
    }
    big.unlink()
    a.sync()
    b.sync()
    return figures


def edit_and_delete(a: Device, b: Device, equal: list[bool]) -> None:
    """Edits and deletes on either side."""
    step("edits and deletes")
    files = sorted(path for path in (a.folder / "python").rglob("*.py") if path.is_file())
    for path in files[:200:2]:
        path.write_bytes(path.read_bytes() + b"# edited on A\n")
    for path in files[1:200:2]:
        path.unlink()
    a.sync()
    shutil.rmtree(b.folder / "python" / "json", ignore_errors=True)
    b.sync()
    a.sync()
    equal.append(read_tree(a.folder) == read_tree(b.folder))


def rename_folder(a: Device, b: Device, equal: list[bool]) -> Figures:
    """A folder with thousands of files gets another name: one journal row, no block."""
    step("a folder's rename")
    before = a.status()
    count = sum(1 for path in (a.folder / "python").rglob("*") if path.is_file())
    (a.folder / "python").rename(a.folder / "Python renamed")
    rename_s = a.sync()
    after = a.status()
    b_before = b.status()
    b.sync()
    equal.append(read_tree(a.folder) == read_tree(b.folder))
    return {
        "rename_files": count,
        "rename_s": round(rename_s, 2),
        "rename_journal_rows": after["jid"] - before["jid"],
        "rename_blocks_sent": after["blocks_sent"] - before["blocks_sent"],
        "rename_blocks_fetched": b.status()["blocks_fetched"] - b_before["blocks_fetched"],
    }


def edit_both(a: Device, b: Device, equal: list[bool]) -> Figures:
    """The same files edited on both devices while neither syncs."""
    step("edits on both devices")
    folder = Path("both")
    (a.folder / folder).mkdir()
    names = [f"file {number}.txt" for number in range(CONFLICTS)]
    for name in names:
        (a.folder / folder / name).write_text(f"{name}, as it was\n")
    a.sync()
    b.sync()
    written = set()
    for device, label in ((a, "A"), (b, "B")):
        for name in names:
            text = f"{name}, edited on {label}\n"
            (device.folder / folder / name).write_text(text)
            written.add(text)
    for device in (a, b, a, b):
        device.sync()
    equal.append(read_tree(a.folder) == read_tree(b.folder))
    found = {path.name: path.read_text() for path in (b.folder / folder).iterdir()}
    return {
        "conflicts_expected": CONFLICTS,
        "conflicts_found": sum("conflicted copy" in name for name in found),
        "contents_lost": len(written - set(found.values())),
    }


def propagate(a: Device, b: Device, equal: list[bool], count: int) -> Figures:
    """From a file's close on A to its bytes on B, both watching."""
    step("propagation")
    waits_ms: list[float] = []
    (a.folder / "live").mkdir()
    with a.watching(), b.watching():
        warm = a.folder / "live" / "warm"
        warm.write_text("up")
        wait_for(b.folder / "live" / "warm", b"up")
        for number in range(count):
            text = f"propagation {number}\n".encode()
            with (a.folder / "live" / f"{number}.txt").open("wb") as file:
                file.write(text)
            started = time.monotonic()
            wait_for(b.folder / "live" / f"{number}.txt", text)
            waits_ms.append((time.monotonic() - started) * 1e3)
    equal.append(read_tree(a.folder) == read_tree(b.folder))
    cuts = statistics.quantiles(waits_ms, n=100)
    return {
        "propagate_n": count,
        "propagate_ms_p50": round(statistics.median(waits_ms), 1),
        "propagate_ms_p99": round(cuts[98], 1),
        "propagate_ms_max": round(max(waits_ms), 1),
    }


def wait_for(path: Path, content: bytes) -> None:
    """Return as soon as a file holds these bytes.

    Raises:
        TimeoutError: not within the deadline.
    """
    deadline = time.monotonic() + PROPAGATION_DEADLINE_S
    while time.monotonic() < deadline:
        try:
            if path.read_bytes() == content:
                return
        except FileNotFoundError:
            pass
        time.sleep(0.001)
    raise TimeoutError(f"{path} did not arrive")


def step(name: str) -> None:
    """Say what comes next."""
    print(f"--- {name}", flush=True)


if __name__ == "__main__":
    main()
