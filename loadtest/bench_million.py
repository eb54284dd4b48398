"""`make bench-million`: a great many small files, up from one device and down to another, and what it costs.

Writes build/bench/million.json. The files are of 1 to 200 bytes, all different unless --contents says so,
in a folder per thousand (at least a thousand folders, two levels deep).

python -m loadtest.bench_million [--count N] [--contents N] [--data-dir DIR]
"""

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from loadtest.commands import Cluster, Device, running_cluster

OUTPUT = Path("build/bench/million.json")
COUNT = 1_000_000
MIN_FOLDERS = 1_000
FILES_PER_FOLDER = 1_000
FOLDERS_PER_FOLDER = 40
MAX_BYTES = 200

Figures = dict[str, Any]


def main() -> None:
    """Run it and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=COUNT, help="how many files")
    parser.add_argument("--contents", type=int, help="how many different contents; as many as files")
    parser.add_argument("--data-dir", type=Path, help="keep the cluster's data here")
    options = parser.parse_args()
    folders = Path(tempfile.mkdtemp(prefix="shardbox-million-", dir="/var/tmp"))
    try:
        with running_cluster(options.data_dir) as cluster:
            figures = run_course(cluster, folders, options.count, options.contents or options.count)
    finally:
        shutil.rmtree(folders, ignore_errors=True)
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    OUTPUT.write_text(json.dumps(figures, indent=2) + "\n")
    for name, value in figures.items():
        print(f"{name:32} {value}")
    sys.exit(0 if figures["trees_equal"] else "the trees differ")


def run_course(cluster: Cluster, folders: Path, count: int, contents: int) -> Figures:
    """Up, down, and once more with nothing to do."""
    cluster.add_user("ada@bench.example", "Ada")
    a = cluster.link("ada@bench.example", folders / "a", "A")
    b = cluster.link("ada@bench.example", folders / "b", "B")
    say(f"{count} files of {contents} contents")
    made_folders = make_tree(a.folder, count, contents)
    say("up from A")
    up_s, up_cpu_s, up_rss = sync(a)
    say("down to B")
    down_s, down_cpu_s, down_rss = sync(b)
    say("nothing to do on A")
    again_s, _, again_rss = sync(a)
    return {
        "files": count,
        "folders": made_folders,
        "contents": contents,
        "up_s": round(up_s, 1),
        "up_files_per_s": round(count / up_s, 1),
        "up_cpu_s": round(up_cpu_s, 1),
        "up_rss_mb_max": round(up_rss / 1e6, 1),
        "down_s": round(down_s, 1),
        "down_files_per_s": round(count / down_s, 1),
        "down_cpu_s": round(down_cpu_s, 1),
        "down_rss_mb_max": round(down_rss / 1e6, 1),
        "again_s": round(again_s, 1),
        "again_rss_mb_max": round(again_rss / 1e6, 1),
        "state_mb": round((a.folder / ".shardbox/state.db").stat().st_size / 1e6, 1),
        "trees_equal": is_same(os.fsencode(a.folder), os.fsencode(b.folder)),
    }


def make_tree(root: Path, count: int, contents: int) -> int:
    """Write the files; how many folders there are."""
    folders = max(MIN_FOLDERS, -(-count // FILES_PER_FOLDER))
    for folder in range(folders):
        path = root / f"part {folder // FOLDERS_PER_FOLDER:03}" / f"folder {folder:05}"
        path.mkdir(parents=True)
        for number in range(folder, count, folders):
            (path / f"file {number:07}.txt").write_bytes(content_of(number % contents))
    return folders + -(-folders // FOLDERS_PER_FOLDER)


def content_of(number: int) -> bytes:
    """1 to 200 bytes that no other number has."""
    rng = random.Random(number)
    text = f"{number:x} "
    return (text + "x" * rng.randrange(MAX_BYTES - len(text))).encode()


def sync(device: Device) -> tuple[float, float, int]:
    """Sync once; the seconds that it took, those of the processor, and the most memory that it held."""
    device.rss_bytes_max = 0
    return device.sync(), device.cpu_s, device.rss_bytes_max


def is_same(one: bytes, other: bytes) -> bool:
    """Whether two trees hold the same names and bytes, with a folder of each in memory at a time."""
    found = [sorted(os.scandir(path), key=lambda x: x.name) for path in (one, other)]
    left, right = ([x for x in entries if x.name != b".shardbox"] for entries in found)
    if [x.name for x in left] != [x.name for x in right]:
        return False
    return all(_is_same_entry(x, y) for x, y in zip(left, right, strict=True))


def _is_same_entry(one: "os.DirEntry[bytes]", other: "os.DirEntry[bytes]") -> bool:
    if one.is_dir() or other.is_dir():
        return one.is_dir() and other.is_dir() and is_same(one.path, other.path)
    return Path(os.fsdecode(one.path)).read_bytes() == Path(os.fsdecode(other.path)).read_bytes()


def say(what: str) -> None:
    """Tell how far it is."""
    print(f"--- {what}", flush=True)


if __name__ == "__main__":
    main()
