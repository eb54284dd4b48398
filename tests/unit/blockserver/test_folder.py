"""The folder of objects, on a real file system: nothing half-written, whoever is killed when."""

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from blockserver.storage.backend import ObjectMissing, ObjectName, StoredObject
from blockserver.storage.folder import BlockFolder
from wire import faults
from wire.errors import StorageFull, UpstreamUnavailable
from wire.hashes import BLOCK_BYTES, block_hash

DATA = bytes(range(256)) * 5_000
NAME = ObjectName(block_hash(DATA), b"generation-one--")
OTHER = ObjectName(block_hash(DATA), b"generation-two--")
REPLACING = ["blockserver.mend.before_rename", "blockserver.mend.after_rename"]
POINTS = [name for name in faults.declared() if name.startswith("blockserver.object.")]
DIES_BEFORE_LINK = {"before_write", "half_written", "before_link"}
REPOSITORY = Path(__file__).parents[3]

WRITER = """
import sys
from pathlib import Path
from blockserver.storage.backend import ObjectName
from blockserver.storage.folder import BlockFolder
from wire import faults
from wire.hashes import block_hash
faults.arm_from_environment()
data = bytes(range(256)) * 5_000
folder = BlockFolder(Path(sys.argv[1]), min_free_bytes=0)
name = ObjectName(block_hash(data), b"generation-one--")
if sys.argv[2] == "live":
    print("ready", flush=True)
    sys.stdin.read()
folder.replace(name, data) if sys.argv[2] == "replace" else folder.put(name, data)
folder.delete(ObjectName(block_hash(b"none"), bytes(16)))
folder.close()
"""


def run_writer(root: Path, fault: str, mode: str = "put") -> int:
    env = os.environ | {"SHARDBOX_FAULT": fault}
    command = [sys.executable, "-c", WRITER, str(root), mode]
    return subprocess.run(command, env=env, cwd=REPOSITORY, timeout=60, check=False).returncode


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[BlockFolder]:
    found = BlockFolder(tmp_path / "blocks", min_free_bytes=0)
    yield found
    found.close()


def files_of(root: Path) -> set[str]:
    return {str(p.relative_to(root)) for p in root.rglob("*") if p.is_file()}


def test_an_object_comes_back_and_goes(folder: BlockFolder, tmp_path: Path):
    folder.put(NAME, DATA)
    assert folder.get(NAME) == DATA
    assert folder.exists(NAME)
    assert not folder.exists(OTHER)
    digits = NAME.hash.hex()
    place = tmp_path / "blocks" / "objects" / digits[:3] / f"{digits}.{NAME.generation.hex()}"
    assert place.read_bytes() == DATA
    assert place.stat().st_nlink == 1
    folder.put(OTHER, memoryview(DATA))
    folder.delete(NAME)
    folder.delete(NAME)
    assert folder.get(OTHER) == DATA
    with pytest.raises(ObjectMissing):
        folder.get(NAME)


def test_an_object_is_never_overwritten(folder: BlockFolder):
    folder.put(NAME, DATA)
    folder.put(NAME, b"something else")
    assert folder.get(NAME) == DATA


def test_many_threads_write_the_same_and_others(folder: BlockFolder):
    blocks = [os.urandom(2_000) for _ in range(100)]
    names = [ObjectName(block_hash(data), bytes(16)) for data in blocks]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(folder.put, names * 3, blocks * 3))
    assert [folder.get(name) for name in names] == blocks


@pytest.mark.parametrize("point", POINTS)
def test_killed_at_any_point(tmp_path: Path, point: str):
    """Before the link there is no object, after it there is the whole of it; the next start cleans up."""
    root = tmp_path / "blocks"
    assert run_writer(root, point) == -signal.SIGKILL
    folder = BlockFolder(root, min_free_bytes=0)
    try:
        if point.rpartition(".")[2] in DIES_BEFORE_LINK:
            assert not folder.exists(NAME)
        else:
            assert folder.get(NAME) == DATA
        assert [f for f in files_of(root / "writing") if not f.endswith(".lock")] == []
        assert len(files_of(root / "writing")) == 1, "the dead process's lock is left"
        folder.put(NAME, DATA)
        assert folder.get(NAME) == DATA
        assert run_writer(root, "") == 0
    finally:
        folder.close()
    assert files_of(root / "writing") == set()


@pytest.mark.parametrize("point", REPLACING)
def test_killed_while_it_mends(tmp_path: Path, point: str):
    """What lies there is the damaged object or the whole of the new one."""
    root = tmp_path / "blocks"
    folder = BlockFolder(root, min_free_bytes=0)
    try:
        folder.put(NAME, b"damaged")
        assert run_writer(root, point, "replace") == -signal.SIGKILL
        assert folder.get(NAME) == (DATA if point.endswith("after_rename") else b"damaged")
        assert run_writer(root, "", "replace") == 0
        assert folder.get(NAME) == DATA
        assert [f for f in files_of(root / "writing") if not f.endswith(".lock")] == []
    finally:
        folder.close()


def test_objects_are_listed_in_order(folder: BlockFolder, tmp_path: Path):
    blocks = [os.urandom(100) for _ in range(40)]
    names = [ObjectName(block_hash(data), os.urandom(16)) for data in [*blocks, *blocks[:10]]]
    for name, data in zip(names, [*blocks, *blocks[:10]], strict=True):
        folder.put(name, data)
    digits = names[0].hash.hex()
    (tmp_path / "blocks" / "objects" / digits[:3] / f"{digits}.old").write_text("not ours")
    found: list[StoredObject] = []
    while page := folder.list_objects(found[-1].name if found else None, 7):
        assert len(page) <= 7
        found += page
    assert found == [StoredObject(name, 100) for name in sorted(names, key=lambda n: (n.hash, n.generation))]


def test_a_living_process_keeps_what_it_writes(tmp_path: Path):
    root = tmp_path / "blocks"
    command = [sys.executable, "-c", WRITER, str(root), "live"]
    with subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        assert writer.stdin is not None
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"ready\n"
        folder = BlockFolder(root, min_free_bytes=0)
        writer.stdin.close()
        assert writer.wait(30) == 0
        assert folder.get(NAME) == DATA
        folder.close()


def test_room_is_kept_free(tmp_path: Path):
    root = tmp_path / "blocks"
    stat = os.statvfs(tmp_path)
    folder = BlockFolder(root, min_free_bytes=stat.f_blocks * stat.f_frsize)
    try:
        assert folder.find_free_bytes() == 0
        with pytest.raises(StorageFull):
            folder.put(NAME, DATA)
        assert not folder.exists(NAME)
    finally:
        folder.close()


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB; where mounting is not allowed, files that may not grow."""
    mounted = tmp_path / "tiny"
    mounted.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m,nr_inodes=20k", "shardbox-test", str(mounted)]
    is_mounted = os.getuid() == 0 and subprocess.run(mount, check=False, capture_output=True).returncode == 0
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if not is_mounted:
        resource.setrlimit(resource.RLIMIT_FSIZE, (BLOCK_BYTES // 2, limits[1]))
    try:
        yield mounted
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        if is_mounted:
            subprocess.run(["umount", str(mounted)], check=True)


def test_a_full_disk_costs_writes_alone(tiny: Path):
    folder = BlockFolder(tiny / "blocks", min_free_bytes=0)
    try:
        folder.put(NAME, DATA)
        # The guard must not be what answers: the disk fills up between its look and the write.
        folder.find_free_bytes = lambda: 2**40  # type: ignore[method-assign]
        large = os.urandom(BLOCK_BYTES)
        written = 0
        with pytest.raises(StorageFull):  # noqa: PT012
            for i in range(3):
                folder.put(ObjectName(block_hash(large), bytes([i]) * 16), large)
                written += 1
        assert written < 3
        assert not folder.exists(ObjectName(block_hash(large), bytes([written]) * 16))
        assert folder.get(NAME) == DATA
        assert [f for f in files_of(tiny / "blocks" / "writing") if not f.endswith(".lock")] == []
        folder.delete(ObjectName(block_hash(large), bytes(16)))
        folder.put(OTHER, DATA)
        assert folder.get(OTHER) == DATA
    finally:
        folder.close()


def test_what_the_disk_refuses_is_told(folder: BlockFolder, tmp_path: Path):
    place = tmp_path / "blocks" / "objects" / NAME.hash.hex()[:3]
    place.rmdir()
    place.write_text("in the way")
    with pytest.raises(UpstreamUnavailable):
        folder.put(NAME, DATA)
    with pytest.raises(UpstreamUnavailable):
        folder.get(NAME)


def test_another_layout_is_left_alone(tmp_path: Path):
    (tmp_path / "layout").write_text("something newer\n")
    with pytest.raises(ValueError, match="layout"):
        BlockFolder(tmp_path, min_free_bytes=0)
    assert not (tmp_path / "objects").exists()
