"""`shardctl blocks scrub` over a folder and over an S3 store: what is damaged is told and left alone."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from blockserver.services.scrub import PAGE_OBJECTS
from blockserver.storage.backend import ObjectName
from blockserver.storage.folder import BlockFolder
from blockserver.storage.s3 import S3Bucket
from ops.errors import EXIT_BUSY, EXIT_FAILURE, EXIT_OK, EXIT_UNAVAILABLE, EXIT_USAGE
from ops.files import locked
from tests.support.commands import OPERATOR, run_command
from tests.support.s3 import S3Store, running_rclone
from wire.hashes import block_hash

FAST = str(10**9)
OBJECTS = PAGE_OBJECTS + 44


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with more than a page of objects."""
    root = tmp_path_factory.mktemp("scrub") / "blocks"
    folder = BlockFolder(root, min_free_bytes=0)
    for _ in range(OBJECTS):
        folder.put(*new_block())
    yield root
    folder.close()


@pytest.fixture
def store(filled: Path) -> Iterator[dict[str, Path]]:
    """It, with three objects damaged meanwhile, by what was done to them."""
    places = sorted(filled.glob("objects/*/*"))
    damaged = {"flipped": places[0], "cut": places[100], "unreadable": places[-1]}
    contents = {place: place.read_bytes() for place in damaged.values()}
    damaged["flipped"].write_bytes(b"?" + contents[damaged["flipped"]][1:])
    damaged["cut"].write_bytes(b"")
    damaged["unreadable"].unlink()
    damaged["unreadable"].mkdir()
    yield damaged
    damaged["unreadable"].rmdir()
    for place, content in contents.items():
        place.write_bytes(content)


def new_block() -> tuple[ObjectName, bytes]:
    data = os.urandom(100)
    return ObjectName(block_hash(data), os.urandom(16)), data


def scrub(*args: str, status: int, rate: str = FAST, **env: str) -> Any:
    done = run_command(OPERATOR, "blocks", "scrub", "--rate-bytes", rate, "--output", "json", *args, env=env)
    assert done.returncode == status, done.stderr
    return msgspec.json.decode(done.stdout) if done.stdout else done.stderr


def in_folder(root: Path) -> dict[str, str]:
    return {"SHARDBOX_BLOCK_STORE": "folder", "SHARDBOX_BLOCK_DIR": str(root)}


def assert_all_found(report: Any, damaged: dict[str, Path]) -> None:
    assert report["is_complete"]
    assert report["object_count"] == OBJECTS
    found = {damage["object"]: damage["kind"] for damage in report["damaged"]}
    assert found == {
        damaged["flipped"].name: "corrupt",
        damaged["cut"].name: "corrupt",
        damaged["unreadable"].name: "unreadable",
    }
    assert (report["corrupt_count"], report["unreadable_count"]) == (2, 1)


def test_damaged_objects_are_told_and_left_alone(filled: Path, store: dict[str, Path], tmp_path: Path):
    metrics = tmp_path / "scrub.prom"
    report = scrub("--metrics-file", str(metrics), status=EXIT_FAILURE, **in_folder(filled))
    assert_all_found(report, store)
    assert store["cut"].read_bytes() == b""
    lines = metrics.read_text().splitlines()
    assert "shardbox_scrub_corrupt_objects 2.0" in lines
    assert "shardbox_scrub_is_complete 1.0" in lines


@pytest.mark.parametrize("point", ["scrub.page.checked", "scrub.page.saved"])
def test_cut_short_it_goes_on_where_it_was(filled: Path, store: dict[str, Path], tmp_path: Path, point: str):
    """Each object counts once, whether or not the page that was being looked at had been noted down."""
    state = ["--state-file", str(tmp_path / "state.json")]
    scrub(*state, status=-signal.SIGKILL, SHARDBOX_FAULT=point, **in_folder(filled))
    assert (tmp_path / "state.json").exists() == point.endswith("saved")
    assert_all_found(scrub(*state, status=EXIT_FAILURE, **in_folder(filled)), store)
    # A pass that has come to its end is followed by a new one.
    again = scrub(*state, status=EXIT_FAILURE, **in_folder(filled))
    assert_all_found(again, store)


def test_it_reads_no_faster_than_it_is_told(filled: Path):
    began_s = time.monotonic()
    report = scrub(status=EXIT_OK, rate="20000", **in_folder(filled))
    assert (report["byte_count"], report["damaged"]) == (OBJECTS * 100, [])
    assert time.monotonic() - began_s > OBJECTS * 100 / 20_000 * 0.9


def test_wrong_usage_and_a_scrub_too_many(filled: Path, tmp_path: Path):
    assert "SHARDBOX_S3_BUCKET" in scrub(status=EXIT_USAGE, SHARDBOX_BLOCK_STORE="s3")
    state = tmp_path / "state.json"
    with locked(tmp_path / "state.json.lock"):
        scrub("--state-file", str(state), status=EXIT_BUSY, **in_folder(filled))
    state.write_text("{}")
    assert "no state" in scrub("--state-file", str(state), status=EXIT_USAGE, **in_folder(filled))


def test_an_s3_store_is_scrubbed(tmp_path: Path):
    with running_rclone(tmp_path) as found:
        bucket = S3Bucket(found.options(), max_connections=4)
        blocks = [new_block() for _ in range(5)]
        for name, data in blocks:
            bucket.put(name, data)
        bucket.close()
        assert scrub(status=EXIT_OK, **found.settings())["object_count"] == 5
        _damage(found, blocks[0][0])
        report = scrub(status=EXIT_FAILURE, **found.settings())
        assert [damage["kind"] for damage in report["damaged"]] == ["corrupt"]
        found.kill()
        assert "upstream_unavailable" in scrub(status=EXIT_UNAVAILABLE, **found.settings())


def _damage(store: S3Store, name: ObjectName) -> None:
    store.overwrite(f"objects/{name.hash.hex()}.{name.generation.hex()}", b"something else")
