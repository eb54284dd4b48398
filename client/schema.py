"""The client's SQLite file, `.shardbox/state.db`: its tables, and how it is opened."""

import sqlite3
from pathlib import Path

VERSION = 1

_SCHEMA = """
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;

-- The listing as staged so far, orphans included; always in one transaction with the cursor.
CREATE TABLE remote (
    id INTEGER PRIMARY KEY, parent INTEGER NOT NULL, name TEXT NOT NULL, kind TEXT NOT NULL,
    jid INTEGER NOT NULL, rev TEXT NOT NULL, size INTEGER NOT NULL, content BLOB NOT NULL,
    modified TEXT NOT NULL
);
CREATE TABLE remote_blocks (id INTEGER PRIMARY KEY, rev TEXT NOT NULL, blocks BLOB NOT NULL);
-- While a listing begins anew: what it has shown so far.
CREATE TABLE relisted (id INTEGER PRIMARY KEY);

CREATE TABLE synced (
    id INTEGER PRIMARY KEY, parent INTEGER NOT NULL, name TEXT NOT NULL, kind TEXT NOT NULL,
    rev TEXT NOT NULL, size INTEGER NOT NULL, content BLOB NOT NULL
);

CREATE TABLE local (
    id INTEGER PRIMARY KEY, parent INTEGER NOT NULL, name TEXT NOT NULL, disk_name BLOB NOT NULL,
    kind TEXT NOT NULL, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, ctime_ns INTEGER NOT NULL,
    inode INTEGER NOT NULL, device INTEGER NOT NULL, content BLOB,
    is_racy INTEGER NOT NULL, is_blocked INTEGER NOT NULL, is_kept INTEGER NOT NULL,
    is_parked INTEGER NOT NULL
);
-- Where on this disk a block can be read instead of fetched. Always verified: it may have changed since.
CREATE TABLE local_blocks (
    id INTEGER NOT NULL, position INTEGER NOT NULL, hash BLOB NOT NULL, PRIMARY KEY (id, position)
) WITHOUT ROWID;
CREATE INDEX local_blocks_hash ON local_blocks (hash);

-- Writes that may or may not have happened: sent again unchanged until there is an answer.
CREATE TABLE requests (key TEXT PRIMARY KEY, body BLOB NOT NULL, context BLOB NOT NULL) WITHOUT ROWID;
-- Disk steps that may or may not have happened (apply.py, recover.py).
CREATE TABLE intents (number INTEGER PRIMARY KEY AUTOINCREMENT, step BLOB NOT NULL);

-- What is left alone, and why; a path in bytes, relative to the folder.
CREATE TABLE problems (path BLOB NOT NULL, source TEXT NOT NULL, reason TEXT NOT NULL, detail TEXT NOT NULL,
    PRIMARY KEY (path, source)) WITHOUT ROWID;
"""


class WrongVersion(Exception):
    """The state was written by another version of this program."""


def open_database(path: Path, *, create: bool = False, read_only: bool = False) -> sqlite3.Connection:
    """A connection in autocommit mode with the schema in place.

    Raises:
        FileNotFoundError: it is not there and `create` is False.
        WrongVersion: the schema is not this version's.
    """
    if not create and not path.exists():
        raise FileNotFoundError(path)
    if create:
        path.touch(mode=0o600, exist_ok=True)
    mode = "ro" if read_only else "rw"
    # 10 s: `status` reads beside a sync, whose transactions take milliseconds.
    conn = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}", uri=True, timeout=10, isolation_level=None
    )
    if not read_only:
        conn.execute("PRAGMA journal_mode = WAL")
        conn.execute("PRAGMA cache_size = -8000")
    version = conn.execute("PRAGMA user_version").fetchone()[0]
    if version == 0 and create:
        conn.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {VERSION}; COMMIT;")
    elif version != VERSION:
        conn.close()
        raise WrongVersion(f"the state has version {version}, this program writes version {VERSION}")
    return conn
