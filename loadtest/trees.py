"""Trees of files: real ones, unusual ones, and whether two are the same."""

import os
import random
import shutil
import sysconfig
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from wire.hashes import BLOCK_BYTES, block_hash, content_hash

MARKER = b".shardbox"
UNUSUAL_NAMES = [
    "with space.txt",
    "ünïcödé.txt",
    "日本語のファイル.txt",
    "emoji 🎉.txt",
    "e\u0301 decomposed.txt",  # becomes NFC on the other device: see same_trees
    "-leading dash",
    ".hidden",
    "quote'\"`$(x).txt",
    "a" * 200,
    "semi;colon&amp.txt",
    "percent%20.txt",
    "UPPER lower.TXT",
    "trailing.dot.",
    "عربى.txt",
]


def copy_standard_library(target: Path) -> tuple[int, int]:
    """This Python's standard library without site-packages; (files, bytes)."""
    source = Path(sysconfig.get_path("stdlib"))
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("site-packages"), symlinks=False)
    sizes = [path.stat().st_size for path in target.rglob("*") if path.is_file()]
    return len(sizes), sum(sizes)


def add_unusual_names(folder: Path) -> int:
    """Files with names that break careless programs; how many."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(UNUSUAL_NAMES):
        (folder / name).write_bytes(f"unusual {number}\n".encode())
    (folder / "empty folder").mkdir()
    (folder / "empty file").touch()
    return len(UNUSUAL_NAMES) + 1


def write_random_file(path: Path, size_bytes: int, seed: int) -> None:
    """A file whose blocks are all different."""
    rng = random.Random(seed)
    with path.open("wb") as file:
        for start in range(0, size_bytes, BLOCK_BYTES):
            file.write(rng.randbytes(min(BLOCK_BYTES, size_bytes - start)))


def file_hash(path: bytes) -> bytes:
    """A file's content_hash."""
    hashes = []
    with open(path, "rb") as file:
        while block := file.read(BLOCK_BYTES):
            hashes.append(block_hash(block))
    return content_hash(hashes)


def iter_tree(folder: Path) -> Iterator[tuple[bytes, bytes | None]]:
    """(relative path, content hash; None for a folder) of everything but the client's own folder."""
    top = os.fsencode(folder)
    for where, folders, files in os.walk(top):
        if where == top and MARKER in folders:
            folders.remove(MARKER)
        for name in folders:
            yield os.path.relpath(os.path.join(where, name), top), None
        for name in files:
            path = os.path.join(where, name)
            yield os.path.relpath(path, top), file_hash(path)


def read_tree(folder: Path) -> dict[str, bytes | None]:
    """The tree by NFC path: a disk may hold a name decomposed, the service holds it in NFC."""
    return {unicodedata.normalize("NFC", os.fsdecode(path)): found for path, found in iter_tree(folder)}
