"""One tree of entries in the client's SQLite file: by id, by folder, and by folder and name.

A tree of a million entries is no burden: what is not looked at stays in the file. A bounded number of nodes
is remembered between looks.
"""

import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Any, Generic, Protocol, TypeVar

from client.model import ROOT, Fingerprint, Kind, LocalNode, RemoteNode, SyncedNode
from wire.names import NameKey
from wire.names import name_key as _name_key

REMEMBERED_NODES = 8_192
"""Per tree; a plan and its batch look at some thousands of entries, each several times. About 5 MB."""
SOME_IDS = 1_000
"""How many ids are read from the file at a time where all are gone through."""


@lru_cache(maxsize=16_384)
def name_key(name: str) -> NameKey:
    """wire.names.name_key, remembered: a plan asks for the same names again and again."""
    return _name_key(name)


class Node(Protocol):
    """What all trees' nodes have."""

    @property
    def id(self) -> int: ...
    @property
    def parent(self) -> int: ...
    @property
    def name(self) -> str: ...


N = TypeVar("N", bound=Node)


@dataclass(frozen=True, slots=True)
class Table(Generic[N]):
    """Where a tree's nodes lie, and how a node becomes a row; `id`, `parent`, `name` come first."""

    name: str
    columns: str
    encode: Callable[[N], tuple[Any, ...]]
    decode: Callable[[tuple[Any, ...]], N]


class Tree(Generic[N]):
    """Nodes of one table. Invariant: written within a transaction only.

    While pages of a listing are staged two nodes may hold one name; `child` then gives one of them.
    """

    def __init__(self, conn: sqlite3.Connection, table: Table[N]):
        self._conn, self._table, self._nodes = conn, table, dict[int, N | None]()
        count = table.columns.count(",") + 2
        self._select = f"SELECT {table.columns} FROM {table.name}"
        self._insert = (
            f"INSERT OR REPLACE INTO {table.name} ({table.columns}, key) VALUES ({', '.join('?' * count)})"
        )

    def __len__(self) -> int:
        found: int = self._conn.execute(f"SELECT count(*) FROM {self._table.name}").fetchone()[0]
        return found

    def __contains__(self, node_id: int) -> bool:
        return self.get(node_id) is not None

    def __iter__(self) -> Iterator[int]:
        yield from iter_ids(self._conn, self._table.name)

    def forget(self) -> None:
        """Remember nothing: the file may have changed, or been rolled back."""
        self._nodes.clear()

    def get(self, node_id: int) -> N | None:
        """The node, or None."""
        try:
            return self._nodes[node_id]
        except KeyError:
            row = self._conn.execute(f"{self._select} WHERE id = ?", (node_id,)).fetchone()
            return self._remember(node_id, None if row is None else self._table.decode(row))

    def nodes(self) -> Iterator[N]:
        """All nodes, by id."""
        for node_id in self:
            node = self.get(node_id)
            if node is not None:
                yield node

    def children(self, parent: int) -> list[int]:
        """The ids in a folder."""
        return [
            row[0]
            for row in self._conn.execute(f"SELECT id FROM {self._table.name} WHERE parent = ?", (parent,))
        ]

    def has_children(self, parent: int) -> bool:
        """Whether anything is in the folder."""
        sql = f"SELECT 1 FROM {self._table.name} WHERE parent = ? LIMIT 1"
        return self._conn.execute(sql, (parent,)).fetchone() is not None

    def child(self, parent: int, name: str) -> int | None:
        """Who holds this name (up to case and normalisation) in the folder."""
        sql = f"SELECT id FROM {self._table.name} WHERE parent = ? AND key = ? LIMIT 1"
        row = self._conn.execute(sql, (parent, _storable(name_key(name)))).fetchone()
        return None if row is None else int(row[0])

    def ancestors(self, node_id: int) -> Iterator[int]:
        """The folders above, nearest first, without the root; ends where the chain is broken or loops."""
        seen = {node_id}
        node = self.get(node_id)
        while node is not None and node.parent != ROOT and node.parent not in seen:
            seen.add(node.parent)
            yield node.parent
            node = self.get(node.parent)

    def is_reachable(self, node_id: int) -> bool:
        """Whether the chain of folders leads to the root."""
        seen: set[int] = set()
        while node_id != ROOT:
            node = self.get(node_id)
            if node is None or node_id in seen:
                return False
            seen.add(node_id)
            node_id = node.parent
        return True

    def below(self, node_id: int) -> Iterator[int]:
        """All ids under a folder, parents first."""
        todo = self.children(node_id)
        seen: set[int] = set()
        while todo:
            found = todo.pop()
            if found in seen:
                continue
            seen.add(found)
            yield found
            todo += self.children(found)

    def put(self, node: N) -> None:
        """Insert or replace."""
        self._conn.execute(self._insert, (*self._table.encode(node), _storable(name_key(node.name))))
        self._remember(node.id, node)

    def drop(self, node_id: int) -> None:
        """Remove one node, if it is there; what is below stays, unreachable."""
        self._conn.execute(f"DELETE FROM {self._table.name} WHERE id = ?", (node_id,))
        self._remember(node_id, None)

    def _remember(self, node_id: int, node: N | None) -> N | None:
        # Another thread may be reading (match.py): each of these steps is one to it.
        if len(self._nodes) >= REMEMBERED_NODES:
            for old in list(islice(self._nodes, REMEMBERED_NODES // 4)):
                self._nodes.pop(old, None)
        self._nodes[node_id] = node
        return node


def iter_ids(conn: sqlite3.Connection, table: str, *, above: int = -(2**63)) -> Iterator[int]:
    """The ids of a table above one, upwards, some at a time; the table may change meanwhile."""
    sql = f"SELECT id FROM {table} WHERE id > ? ORDER BY id LIMIT {SOME_IDS}"
    return _iter_ids(conn, sql, above)


def iter_own_ids(conn: sqlite3.Connection, table: str) -> Iterator[int]:
    """The ids below 0, the oldest (-1) first; else as `iter_ids`."""
    return _iter_ids(conn, f"SELECT id FROM {table} WHERE id < ? ORDER BY id DESC LIMIT {SOME_IDS}", 0)


def _iter_ids(conn: sqlite3.Connection, sql: str, last: int) -> Iterator[int]:
    while rows := conn.execute(sql, (last,)).fetchall():
        for row in rows:
            yield row[0]
        last = rows[-1][0]


def _storable(text: str) -> str:
    # Names that are not UTF-8 are asked for (find_local), though none is ever stored.
    return text if text.isascii() else text.encode(errors="replace").decode()


# ---- Rows

_REMOTE_COLUMNS = "id, parent, name, kind, jid, rev, size, content, modified"


def _encode_remote(node: RemoteNode) -> tuple[Any, ...]:
    kind = node.kind.value
    return node.id, node.parent, node.name, kind, node.jid, node.rev, node.size, node.content, node.modified


def _decode_remote(row: tuple[Any, ...]) -> RemoteNode:
    return RemoteNode(row[0], row[1], row[2], Kind(row[3]), *row[4:])


def _encode_synced(node: SyncedNode) -> tuple[Any, ...]:
    return node.id, node.parent, node.name, node.kind.value, node.rev, node.size, node.content


def _decode_synced(row: tuple[Any, ...]) -> SyncedNode:
    return SyncedNode(row[0], row[1], row[2], Kind(row[3]), *row[4:])


def _encode_local(node: LocalNode) -> tuple[Any, ...]:
    flags = (node.is_racy, node.is_blocked, node.is_kept, node.is_parked)
    row = (node.id, node.parent, node.name, node.disk_name, node.kind.value)
    return *row, *node.fingerprint, node.content, *flags


def _decode_local(row: tuple[Any, ...]) -> LocalNode:
    racy, blocked, kept, parked = map(bool, row[11:])
    return LocalNode(
        id=row[0],
        parent=row[1],
        name=row[2],
        disk_name=row[3],
        kind=Kind(row[4]),
        fingerprint=Fingerprint(*row[5:10]),
        content=row[10],
        is_racy=racy,
        is_blocked=blocked,
        is_kept=kept,
        is_parked=parked,
    )


REMOTE = Table("remote", _REMOTE_COLUMNS, _encode_remote, _decode_remote)
HIDDEN = Table("hidden", _REMOTE_COLUMNS, _encode_remote, _decode_remote)
SYNCED = Table("synced", "id, parent, name, kind, rev, size, content", _encode_synced, _decode_synced)
LOCAL = Table(
    "local",
    "id, parent, name, disk_name, kind, size, mtime_ns, ctime_ns, inode, device, content,"
    " is_racy, is_blocked, is_kept, is_parked",
    _encode_local,
    _decode_local,
)
