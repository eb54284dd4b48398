"""The client's durable state: the three trees, and everything that must survive a crash.

All of it is used from the event loop's thread alone. `tx` is the only way to change anything: what the body
did to the trees and to the tables is committed together, or not at all.
"""

import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from client.schema import open_database
from client.trees import Trees
from wire.faults import declare, fault_point
from wire.hashes import BlockHash, split_blocklist

TX_NAMES = (
    "link",
    "token",
    "page",
    "listed",
    "scan",
    "hashed",
    "settle",
    "request",
    "verdicts",
    "intent",
    "confirm",
    "report",
    "order",
    "exclude",
    "config",
)
FLUSHED_TX = {"link", "token", "request", "intent", "order", "config"}
"""What a power cut must not undo, as something is done next that cannot be taken back. The others repeat what
disk or server can tell again (a lost verdict is asked for again, a lost confirmation judged again); they
survive the death of the process all the same."""
declare(*(f"client.state.{name}_{when}" for name in TX_NAMES for when in ("before", "after")))


class State:
    """One open state file."""

    def __init__(self, path: Path, *, create: bool = False, read_only: bool = False):
        self.path = path
        self._conn = open_database(path, create=create, read_only=read_only)
        self.trees = Trees(self._conn)
        self._next_temp = self.trees.next_temp = int(self.find_fact("next_temp") or -1)

    def close(self) -> None:
        """Give the file back."""
        self._conn.close()

    @contextmanager
    def tx(self, name: str) -> Iterator[sqlite3.Connection]:
        """A transaction; `name` is also that of its two fault points.

        When it fails all that is remembered of the trees is forgotten: memory never runs ahead of the file.
        """
        self._conn.execute(f"PRAGMA synchronous = {'FULL' if name in FLUSHED_TX else 'NORMAL'}")
        self._conn.execute("BEGIN IMMEDIATE")
        try:
            yield self._conn
            if self.trees.next_temp != self._next_temp:
                self.put_fact("next_temp", str(self.trees.next_temp))
            fault_point(f"client.state.{name}_before")
            self._conn.execute("COMMIT")
        except BaseException:
            if self._conn.in_transaction:
                self._conn.execute("ROLLBACK")
            self.trees.forget()
            raise
        self._next_temp = self.trees.next_temp
        fault_point(f"client.state.{name}_after")

    # ---- Facts: single values by name

    def find_fact(self, name: str) -> str | None:
        """The value, or None."""
        row = self._conn.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return None if row is None else str(row[0])

    def get_fact(self, name: str) -> str:
        """The value of a fact that must be there."""
        value = self.find_fact(name)
        if value is None:
            raise KeyError(name)
        return value

    def put_fact(self, name: str, value: str | None) -> None:
        """Set or, with None, clear. Tx: the caller's."""
        if value is None:
            self._conn.execute("DELETE FROM facts WHERE name = ?", (name,))
        else:
            self._conn.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value))

    def data_version(self) -> int:
        """A number that changes when another process has written."""
        return int(self._conn.execute("PRAGMA data_version").fetchone()[0])

    def add_counts(self, counts: dict[str, int]) -> None:
        """Add to the counters that `status` shows. Tx: the caller's."""
        for name, more in counts.items():
            if more:
                self._conn.execute(
                    "INSERT INTO facts VALUES (?, ?) ON CONFLICT (name)"
                    " DO UPDATE SET value = CAST(value AS INTEGER) + excluded.value",
                    (f"count.{name}", str(more)),
                )

    def list_counts(self) -> dict[str, int]:
        """The counters since the link."""
        rows = self._conn.execute("SELECT name, value FROM facts WHERE name LIKE 'count.%'")
        return {str(name).removeprefix("count."): int(value) for name, value in rows}

    # ---- Block lists

    def put_remote_blocks(self, entry_id: int, rev: str, blocks: bytes) -> None:
        """Keep the block list of a rev. Tx: the caller's."""
        self._conn.execute("INSERT OR REPLACE INTO remote_blocks VALUES (?, ?, ?)", (entry_id, rev, blocks))

    def delete_remote_blocks(self, entry_id: int) -> None:
        """Forget the block list of an older rev. Tx: the caller's."""
        self._conn.execute("DELETE FROM remote_blocks WHERE id = ?", (entry_id,))

    def find_remote_blocks(self, entry_id: int, rev: str) -> list[BlockHash] | None:
        """The block list of a rev, if the listing gave it or it was asked for before."""
        row = self._conn.execute(
            "SELECT blocks FROM remote_blocks WHERE id = ? AND rev = ?", (entry_id, rev)
        ).fetchone()
        return None if row is None else split_blocklist(row[0])

    def put_local_blocks(self, entry_id: int, blocks: list[BlockHash]) -> None:
        """Note which blocks a local file consists of. Tx: the caller's."""
        self._conn.execute("DELETE FROM local_blocks WHERE id = ?", (entry_id,))
        self._conn.executemany(
            "INSERT INTO local_blocks VALUES (?, ?, ?)", ((entry_id, n, h) for n, h in enumerate(blocks))
        )

    def list_local_blocks(self, entry_id: int) -> list[BlockHash]:
        """The blocks of a local file as it was last read."""
        rows = self._conn.execute("SELECT hash FROM local_blocks WHERE id = ? ORDER BY position", (entry_id,))
        return [BlockHash(row[0]) for row in rows]

    def find_local_blocks(self, hashes: Iterable[BlockHash]) -> dict[BlockHash, list[tuple[int, int]]]:
        """Where blocks may be read on this disk: entry ids and positions, a few for each."""
        # One is enough unless it has changed since. Not all at once: a thousand files may have one block.
        sql = "SELECT id, position FROM local_blocks WHERE hash = ? LIMIT 4"
        places = {block: self._conn.execute(sql, (block,)).fetchall() for block in hashes}
        return {block: rows for block, rows in places.items() if rows}

    # ---- Requests and intents

    def put_request(self, key: str, body: bytes, context: bytes) -> None:
        """Keep a write before it is sent. Tx: the caller's."""
        self._conn.execute("INSERT INTO requests VALUES (?, ?, ?, ?)", (key, body, context, time.time()))

    def delete_request(self, key: str) -> None:
        """The write has been answered. Tx: the caller's."""
        self._conn.execute("DELETE FROM requests WHERE key = ?", (key,))

    def list_requests(self) -> list[tuple[str, bytes, bytes, float]]:
        """Writes without an answer: key, body, context, and when they were made."""
        return list(self._conn.execute("SELECT key, body, context, made_at FROM requests ORDER BY made_at"))

    def put_intent(self, step: bytes) -> int:
        """Keep a disk step before it is done; gives its number. Tx: the caller's."""
        number = self._conn.execute("INSERT INTO intents (step) VALUES (?)", (step,)).lastrowid
        assert number is not None
        return number

    def delete_intent(self, number: int) -> None:
        """The step has been done, or never will be. Tx: the caller's."""
        self._conn.execute("DELETE FROM intents WHERE number = ?", (number,))

    def list_intents(self) -> list[tuple[int, bytes]]:
        """Steps of unknown outcome, in order."""
        return list(self._conn.execute("SELECT number, step FROM intents ORDER BY number"))

    # ---- Selective sync (selection.py)

    def list_exclusions(self) -> list[tuple[int, str]]:
        """Entry and path of the folders left out."""
        return list(self._conn.execute("SELECT id, path FROM exclusions"))

    def list_orders(self) -> list[tuple[int, str, int, str]]:
        """What is to be carried out: number, verb, entry and path, in order."""
        return list(self._conn.execute("SELECT number, verb, id, path FROM orders ORDER BY number"))

    # ---- Problems

    def list_problems(self) -> list[tuple[bytes, str, str, str]]:
        """Path, source, reason, detail."""
        return list(self._conn.execute("SELECT path, source, reason, detail FROM problems ORDER BY path"))

    def replace_problems(self, source: str, problems: Iterable[tuple[bytes, str, str]]) -> None:
        """What one source reports now. Tx: the caller's."""
        self._conn.execute("DELETE FROM problems WHERE source = ?", (source,))
        self._conn.executemany(
            "INSERT OR REPLACE INTO problems VALUES (?, ?, ?, ?)",
            ((path, source, reason, detail) for path, reason, detail in problems),
        )


def is_disk_full(problem: sqlite3.OperationalError) -> bool:
    """Whether the state cannot be written for want of room; SQLite's shared memory says it in its own way."""
    return problem.sqlite_errorname in ("SQLITE_FULL", "SQLITE_IOERR_SHMSIZE")
