"""The state's file: rolled back as one, and brought up from the version before."""

import contextlib
import sqlite3
from pathlib import Path

import pytest

from client.model import Fingerprint, Kind, LocalNode, RemoteNode, SyncedNode
from client.schema import WrongVersion, open_database
from client.selection import Verb, conflict_name, list_exclusions, order, place
from client.state import State
from client.tree import REMEMBERED_NODES, SOME_IDS

VERSION_1 = """
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE remote (id INTEGER PRIMARY KEY, parent INTEGER NOT NULL, name TEXT NOT NULL, kind TEXT NOT NULL,
    jid INTEGER NOT NULL, rev TEXT NOT NULL, size INTEGER NOT NULL, content BLOB NOT NULL,
    modified TEXT NOT NULL);
CREATE TABLE remote_blocks (id INTEGER PRIMARY KEY, rev TEXT NOT NULL, blocks BLOB NOT NULL);
CREATE TABLE relisted (id INTEGER PRIMARY KEY);
CREATE TABLE synced (id INTEGER PRIMARY KEY, parent INTEGER NOT NULL, name TEXT NOT NULL, kind TEXT NOT NULL,
    rev TEXT NOT NULL, size INTEGER NOT NULL, content BLOB NOT NULL);
CREATE TABLE local (id INTEGER PRIMARY KEY, parent INTEGER NOT NULL, name TEXT NOT NULL,
    disk_name BLOB NOT NULL, kind TEXT NOT NULL, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,
    ctime_ns INTEGER NOT NULL, inode INTEGER NOT NULL, device INTEGER NOT NULL, content BLOB,
    is_racy INTEGER NOT NULL, is_blocked INTEGER NOT NULL, is_kept INTEGER NOT NULL,
    is_parked INTEGER NOT NULL);
CREATE TABLE local_blocks (id INTEGER NOT NULL, position INTEGER NOT NULL, hash BLOB NOT NULL,
    PRIMARY KEY (id, position)) WITHOUT ROWID;
CREATE INDEX local_blocks_hash ON local_blocks (hash);
CREATE TABLE requests (key TEXT PRIMARY KEY, body BLOB NOT NULL, context BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE intents (number INTEGER PRIMARY KEY AUTOINCREMENT, step BLOB NOT NULL);
CREATE TABLE problems (path BLOB NOT NULL, source TEXT NOT NULL, reason TEXT NOT NULL, detail TEXT NOT NULL,
    PRIMARY KEY (path, source)) WITHOUT ROWID;
PRAGMA user_version = 1;
INSERT INTO facts VALUES ('next_temp', '-7');
INSERT INTO remote VALUES (1, 0, 'Ünï', 'file', 3, 'r', 4, x'aa', 'm'),
    (2, 0, 'new', 'folder', 4, '', 0, x'', '');
INSERT INTO synced VALUES (1, 0, 'Ünï', 'file', 'r', 4, x'aa'), (3, 0, 'gone', 'file', 'r3', 4, x'bb');
INSERT INTO local VALUES (1, 0, 'Ünï', x'c39c6ec3af', 'file', 4, 5, 6, 7, 8, x'aa', 0, 0, 0, 0),
    (-6, 0, 'own', x'6f776e', 'file', 1, 1, 1, 9, 8, NULL, 0, 0, 0, 0);
INSERT INTO local_blocks VALUES (1, 0, x'aabb');
INSERT INTO remote_blocks VALUES (1, 'r', x'');
INSERT INTO requests VALUES ('key', x'01', x'02');
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.db"


@pytest.mark.parametrize("read_only", [False, True])
def test_a_state_of_version_1_is_brought_up(path: Path, read_only: bool) -> None:
    with contextlib.closing(sqlite3.connect(path)) as conn:
        conn.executescript(VERSION_1)
    with contextlib.closing(State(path, read_only=read_only)) as state:
        trees = state.trees
        assert trees.local.get(1) == LocalNode(
            1, 0, "Ünï", "Ünï".encode(), Kind.FILE, Fingerprint(4, 5, 6, 7, 8), b"\xaa"
        )
        assert trees.remote.child(0, "ÜNÏ") == 1
        assert trees.list_by_inode(9) == [-6]
        assert list(trees.dirty) == [2, 3, -6]
        assert trees.next_temp == -7
        assert state.list_local_blocks(1) == [b"\xaa\xbb"]
        assert state.list_requests() == [("key", b"\x01", b"\x02", 0.0)]


def test_a_later_version_is_refused(path: Path) -> None:
    State(path, create=True).close()
    with contextlib.closing(sqlite3.connect(path)) as conn:
        conn.execute("PRAGMA user_version = 99")
    with pytest.raises(WrongVersion):
        open_database(path)


def test_what_fails_leaves_the_trees_as_they_were(path: Path) -> None:
    with contextlib.closing(State(path, create=True)) as state:
        trees = state.trees
        with state.tx("scan"):
            trees.put_remote(RemoteNode(1, 0, "a", Kind.FOLDER))
        with contextlib.suppress(ZeroDivisionError), state.tx("scan"):
            trees.put_remote(RemoteNode(1, 0, "b", Kind.FOLDER))
            trees.put_synced(SyncedNode(1, 0, "b", Kind.FOLDER))
            _ = 1 / 0
        assert trees.remote.get(1) == RemoteNode(1, 0, "a", Kind.FOLDER)
        assert trees.remote.child(0, "b") is None
        assert 1 not in trees.synced
        assert list(trees.dirty) == [1]


def test_ids_are_gone_through_in_portions_while_they_change(path: Path) -> None:
    count = 2 * SOME_IDS + 3
    with contextlib.closing(State(path, create=True)) as state, state.tx("scan"):
        trees = state.trees
        for n in range(1, count + 1):
            trees.put_remote(RemoteNode(n, 0, f"{n}", Kind.FOLDER))
            trees.put_local(LocalNode(-n, 0, f"own {n}", b"", Kind.FILE))
        seen = []
        for node_id in trees.dirty:
            seen.append(node_id)
            trees.drop_remote(node_id)
            trees.drop_local(node_id)
        assert sorted(seen, key=abs) == seen
        assert set(seen) == {*range(1, count + 1), *range(-count, 0)}
        assert len(trees.dirty) == len(trees.remote) == 0
        assert len(trees.remote._nodes) <= REMEMBERED_NODES


def test_sides_are_changed_with_all_that_is_below(path: Path) -> None:
    with contextlib.closing(State(path, create=True)) as state:
        trees = state.trees
        with state.tx("listed"):
            for node_id, parent in ((1, 0), (2, 1), (3, 2), (4, 3), (5, 0)):
                trees.put_remote(RemoteNode(node_id, parent, f"{node_id}", Kind.FOLDER))
        for node_id in (3, 1):
            exclude(state, node_id)
        assert [*trees.hidden] == [1, 2, 3, 4]
        assert [x.path for x in list_exclusions(state)] == ["1", "1/2/3"]
        with state.tx("exclude") as conn:
            conn.execute("DELETE FROM exclusions WHERE id = 1")
            place(trees, 1)
        assert [*trees.hidden] == [3, 4], "what was left out for itself stays so"
        with state.tx("listed"):
            trees.put_remote(RemoteNode(4, 5, "4", Kind.FOLDER))
            assert 4 in trees.hidden, "until somebody says where it belongs"
            place(trees, 4)
        assert [*trees.hidden] == [3]
        assert 4 in trees.dirty


def exclude(state: State, node_id: int) -> None:
    with state.tx("exclude") as conn:
        conn.execute("INSERT INTO exclusions VALUES (?, '')", (node_id,))
        place(state.trees, node_id)


def test_the_last_order_for_a_folder_counts(path: Path) -> None:
    with contextlib.closing(State(path, create=True)) as state:
        order(state, Verb.ADD, 1, "d")
        assert [(x.path, x.state) for x in list_exclusions(state)] == [("d", "waiting")]
        order(state, Verb.REMOVE, 1, "d")
        assert list_exclusions(state) == []


@pytest.mark.parametrize(
    ("name", "is_folder", "wanted"),
    [
        ("a.txt", False, "a (Selective Sync Conflict).txt"),
        ("a.txt", True, "a.txt (Selective Sync Conflict)"),
        (".rc", False, ".rc (Selective Sync Conflict)"),
        ("x" * 255, False, "x" * 229 + " (Selective Sync Conflict)"),
    ],
)
def test_conflict_names(name: str, is_folder: bool, wanted: str) -> None:
    assert conflict_name(name, is_folder=is_folder) == wanted
