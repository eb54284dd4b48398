"""The client's SQLite file, `.shardbox/state.db`: its tables, and how it is opened."""

import sqlite3
from pathlib import Path

from client.tree import name_key

VERSION = 2

TREES = """
-- The listing as staged so far, orphans included; always in one transaction with the cursor.
CREATE TABLE remote (
    id INTEGER PRIMARY KEY, parent INTEGER NOT NULL, name TEXT NOT NULL, kind TEXT NOT NULL,
    jid INTEGER NOT NULL, rev TEXT NOT NULL, size INTEGER NOT NULL, content BLOB NOT NULL,
    modified TEXT NOT NULL, key TEXT NOT NULL
);
CREATE INDEX remote_place ON remote (parent, key);
-- The part of it that is left out on this device: `remote` is without it.
CREATE TABLE hidden (
    id INTEGER PRIMARY KEY, parent INTEGER NOT NULL, name TEXT NOT NULL, kind TEXT NOT NULL,
    jid INTEGER NOT NULL, rev TEXT NOT NULL, size INTEGER NOT NULL, content BLOB NOT NULL,
    modified TEXT NOT NULL, key TEXT NOT NULL
);
CREATE INDEX hidden_place ON hidden (parent, key);
CREATE TABLE synced (
    id INTEGER PRIMARY KEY, parent INTEGER NOT NULL, name TEXT NOT NULL, kind TEXT NOT NULL,
    rev TEXT NOT NULL, size INTEGER NOT NULL, content BLOB NOT NULL, key TEXT NOT NULL
);
CREATE INDEX synced_place ON synced (parent, key);
CREATE TABLE local (
    id INTEGER PRIMARY KEY, parent INTEGER NOT NULL, name TEXT NOT NULL, disk_name BLOB NOT NULL,
    kind TEXT NOT NULL, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, ctime_ns INTEGER NOT NULL,
    inode INTEGER NOT NULL, device INTEGER NOT NULL, content BLOB,
    is_racy INTEGER NOT NULL, is_blocked INTEGER NOT NULL, is_kept INTEGER NOT NULL,
    is_parked INTEGER NOT NULL, key TEXT NOT NULL
);
CREATE INDEX local_place ON local (parent, key);
CREATE INDEX local_inode ON local (inode);
-- The entries whose three states differ: all that a plan has to look at.
CREATE TABLE dirty (id INTEGER PRIMARY KEY);
-- The block lists of remote and hidden entries.
CREATE TABLE remote_blocks (id INTEGER PRIMARY KEY, rev TEXT NOT NULL, blocks BLOB NOT NULL);
-- Where on this disk a block can be read instead of fetched. Always verified: it may have changed since.
CREATE TABLE local_blocks (
    id INTEGER NOT NULL, position INTEGER NOT NULL, hash BLOB NOT NULL, PRIMARY KEY (id, position)
) WITHOUT ROWID;
CREATE INDEX local_blocks_hash ON local_blocks (hash);
-- Folders left out on this device, by entry; the path is where it was when that was last looked at.
CREATE TABLE exclusions (id INTEGER PRIMARY KEY, path TEXT NOT NULL);
"""

_REST = """
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;

-- While a listing begins anew: what it has shown so far.
CREATE TABLE relisted (id INTEGER PRIMARY KEY);
-- While pages come in: folders that went with something in them; entries that may have changed sides.
CREATE TABLE orphaned (id INTEGER PRIMARY KEY);
CREATE TABLE touched (id INTEGER PRIMARY KEY);

-- Writes that may or may not have happened: sent again unchanged until there is an answer.
CREATE TABLE requests (key TEXT PRIMARY KEY, body BLOB NOT NULL, context BLOB NOT NULL,
    made_at REAL NOT NULL) WITHOUT ROWID;
-- Disk steps that may or may not have happened (apply.py, recover.py).
CREATE TABLE intents (number INTEGER PRIMARY KEY AUTOINCREMENT, step BLOB NOT NULL);
-- What the command line has asked for and the next sync carries out (selection.py).
CREATE TABLE orders (number INTEGER PRIMARY KEY AUTOINCREMENT, verb TEXT NOT NULL, id INTEGER NOT NULL,
    path TEXT NOT NULL);

-- What is left alone, and why; a path in bytes, relative to the folder.
CREATE TABLE problems (path BLOB NOT NULL, source TEXT NOT NULL, reason TEXT NOT NULL, detail TEXT NOT NULL,
    PRIMARY KEY (path, source)) WITHOUT ROWID;
"""

_UPGRADE_1 = """
ALTER TABLE remote RENAME TO remote_1;
ALTER TABLE synced RENAME TO synced_1;
ALTER TABLE local RENAME TO local_1;
ALTER TABLE remote_blocks RENAME TO remote_blocks_1;
ALTER TABLE local_blocks RENAME TO local_blocks_1;
DROP INDEX local_blocks_hash;
"""
_UPGRADE_2 = """
INSERT INTO remote SELECT *, name_key(name) FROM remote_1;
INSERT INTO synced SELECT *, name_key(name) FROM synced_1;
INSERT INTO local SELECT *, name_key(name) FROM local_1;
INSERT INTO remote_blocks SELECT * FROM remote_blocks_1;
INSERT INTO local_blocks SELECT * FROM local_blocks_1;
DROP TABLE remote_1; DROP TABLE synced_1; DROP TABLE local_1;
DROP TABLE remote_blocks_1; DROP TABLE local_blocks_1;
INSERT INTO dirty
    SELECT id FROM (SELECT id FROM remote UNION SELECT id FROM synced UNION SELECT id FROM local)
    EXCEPT SELECT id FROM remote r JOIN synced s USING (id) JOIN local l USING (id)
    WHERE r.content = s.content AND l.content = s.content AND r.rev = s.rev AND r.name = s.name
    AND l.name = s.name AND r.parent = s.parent AND l.parent = s.parent AND NOT l.is_parked;
CREATE TABLE orphaned (id INTEGER PRIMARY KEY);
CREATE TABLE touched (id INTEGER PRIMARY KEY);
CREATE TABLE orders (number INTEGER PRIMARY KEY AUTOINCREMENT, verb TEXT NOT NULL, id INTEGER NOT NULL,
    path TEXT NOT NULL);
ALTER TABLE requests ADD COLUMN made_at REAL NOT NULL DEFAULT 0;
"""


class WrongVersion(Exception):
    """The state was written by another version of this program."""


def open_database(path: Path, *, create: bool = False, read_only: bool = False) -> sqlite3.Connection:
    """A connection in autocommit mode with the schema in place.

    Raises:
        FileNotFoundError: it is not there and `create` is False.
        WrongVersion: the schema is a later version's.
    """
    if not create and not path.exists():
        raise FileNotFoundError(path)
    if create:
        path.touch(mode=0o600, exist_ok=True)
    mode = "ro" if read_only else "rw"
    # 10 s: `status` reads beside a sync, whose transactions take milliseconds. Threads: scans are matched in
    # one while the loop waits for it; SQLite is built to take turns ("serialized").
    conn = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}",
        uri=True,
        timeout=10,
        isolation_level=None,
        check_same_thread=False,
    )
    if not read_only:
        conn.execute("PRAGMA journal_mode = WAL")
        # 32 MB: the indexes by name, inode and block of a big tree are read all over the place.
        conn.execute("PRAGMA cache_size = -32000")
    version = conn.execute("PRAGMA user_version").fetchone()[0]
    if version == 0 and create:
        conn.executescript(f"BEGIN; {TREES} {_REST} PRAGMA user_version = {VERSION}; COMMIT;")
    elif version == 1 and read_only:
        conn.close()
        open_database(path).close()
        return open_database(path, read_only=True)
    elif version == 1:
        _upgrade(conn)
    elif version != VERSION:
        conn.close()
        raise WrongVersion(f"the state has version {version}, this program writes version {VERSION}")
    return conn


def open_memory() -> sqlite3.Connection:
    """Trees without a file, in a transaction that never ends."""
    conn = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    conn.executescript(TREES)
    conn.execute("BEGIN")
    return conn


def _upgrade(conn: sqlite3.Connection) -> None:
    """From version 1, which kept its trees in memory while it ran."""
    conn.create_function("name_key", 1, lambda name: name_key(name), deterministic=True)
    try:
        conn.executescript(
            f"BEGIN IMMEDIATE; {_UPGRADE_1} {TREES} {_UPGRADE_2} PRAGMA user_version = {VERSION}; COMMIT;"
        )
    except BaseException:
        if conn.in_transaction:
            conn.execute("ROLLBACK")
        raise
