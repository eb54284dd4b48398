"""Whole files and locks."""

from pathlib import Path

import pytest

from ops.errors import ClusterBusy
from ops.files import locked, tail, write_file, write_json
from ops.planning import slot_ranges


def test_a_file_is_replaced_whole_and_private(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    write_file(path, b"one")
    write_file(path, b"two")

    assert path.read_bytes() == b"two"
    assert path.stat().st_mode & 0o777 == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["secret"]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "kept"
    write_json(path, {"n": 1})
    with pytest.raises(TypeError):
        write_json(path, object())

    assert path.read_bytes() == b'{\n  "n": 1\n}\n'
    assert [p.name for p in tmp_path.iterdir()] == ["kept"]


def test_a_lock_is_held_once_and_let_go_of(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with locked(path), pytest.raises(ClusterBusy, match="another run"), locked(path, wait=False):
        pass
    with locked(path, wait=False):
        pass


def test_the_tail_of_a_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert tail(log) == ""
    log.write_text("".join(f"line {i}\n" for i in range(100_000)))
    assert tail(log, 2) == "line 99998\nline 99999"


@pytest.mark.parametrize(
    ("slots", "text"), [([], ""), ([4], "4"), ([0, 1, 2, 5, 7, 8], "0-2, 5, 7-8"), ([0, 2], "0, 2")]
)
def test_slots_in_short(slots: list[int], text: str) -> None:
    assert slot_ranges(slots) == text
