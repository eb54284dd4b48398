"""The trees, with what is out of step.

Every change goes through here, so `dirty` is always right: the ids whose three states differ, which is all
that a plan has to look at. All of it lies in one SQLite file and is written in its transactions (state.py).
"""

import heapq
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from typing import TypeVar

from client.model import ROOT, LocalNode, RemoteNode, SyncedNode
from client.schema import open_memory
from client.tree import HIDDEN, LOCAL, REMOTE, SYNCED, Tree, iter_ids, iter_own_ids

T = TypeVar("T")


class Dirty:
    """The ids that are out of step."""

    def __init__(self, conn: sqlite3.Connection):
        self._conn = conn

    def __len__(self) -> int:
        found: int = self._conn.execute("SELECT count(*) FROM dirty").fetchone()[0]
        return found

    def __contains__(self, node_id: object) -> bool:
        return self._conn.execute("SELECT 1 FROM dirty WHERE id = ?", (node_id,)).fetchone() is not None

    def __iter__(self) -> Iterator[int]:
        """Folders mostly before what is in them: both the server and we count upwards."""
        own, theirs = iter_own_ids(self._conn, "dirty"), iter_ids(self._conn, "dirty", above=0)
        return heapq.merge(own, theirs, key=abs)

    def add(self, node_id: int) -> None:
        """It is out of step."""
        self._conn.execute("INSERT OR IGNORE INTO dirty VALUES (?)", (node_id,))

    def discard(self, node_id: int) -> None:
        """It is in step."""
        self._conn.execute("DELETE FROM dirty WHERE id = ?", (node_id,))


class Trees:
    """Remote, synced and local, what is hidden of remote, and which ids are out of step."""

    def __init__(self, conn: sqlite3.Connection | None = None):
        self._conn = conn or open_memory()
        self.remote = Tree(self._conn, REMOTE)
        self.hidden = Tree(self._conn, HIDDEN)
        """What the server has in folders left out here (selection.py); to a plan it is not there."""
        self.synced = Tree(self._conn, SYNCED)
        self.local = Tree(self._conn, LOCAL)
        self.dirty = Dirty(self._conn)
        self.next_temp = -1

    def forget(self) -> None:
        """Remember nothing of what was read before."""
        for tree in (self.remote, self.hidden, self.synced, self.local):
            tree.forget()

    def find_remote(self, node_id: int) -> RemoteNode | None:
        """What the server has, hidden or not."""
        return self.remote.get(node_id) or self.hidden.get(node_id)

    def put_remote(self, node: RemoteNode) -> None:
        """The server has this. It stays hidden if it was: who reads the listing says who changes sides."""
        if node.id in self.hidden:
            self.hidden.put(node)
            return
        self.remote.put(node)
        self._note(node.id)

    def put_synced(self, node: SyncedNode) -> None:
        """Both sides have this."""
        self.synced.put(node)
        self._note(node.id)

    def put_local(self, node: LocalNode) -> None:
        """The disk has this."""
        self.local.put(node)
        self._note(node.id)

    def drop_remote(self, node_id: int) -> None:
        """The server has it no more."""
        if node_id in self.hidden:
            self.hidden.drop(node_id)
        elif node_id in self.remote:
            self.remote.drop(node_id)
            self._note(node_id)
        else:
            return
        self._conn.execute("DELETE FROM remote_blocks WHERE id = ?", (node_id,))

    def hide(self, node_id: int) -> None:
        """Take it out of what a plan sees of the server."""
        node = self.remote.get(node_id)
        if node is not None:
            self.remote.drop(node_id)
            self.hidden.put(node)
            self._note(node_id)

    def show(self, node_id: int) -> None:
        """Let a plan see it again."""
        node = self.hidden.get(node_id)
        if node is not None:
            self.hidden.drop(node_id)
            self.remote.put(node)
            self._note(node_id)

    def drop_synced(self, node_id: int) -> None:
        """Nothing is agreed of it any more."""
        if node_id in self.synced:
            self.synced.drop(node_id)
            self._note(node_id)

    def drop_local(self, node_id: int) -> None:
        """The disk has it no more."""
        if node_id in self.local:
            self.local.drop(node_id)
            self._conn.execute("DELETE FROM local_blocks WHERE id = ?", (node_id,))
            self._note(node_id)

    def new_temp(self) -> int:
        """An id of our own."""
        temp = self.next_temp
        self.next_temp -= 1
        return temp

    def renumber(self, old: int, new: int, *, is_moved: bool = False) -> None:
        """The local entry `old` is called `new` from now on, also by what lies in it.

        `is_moved`: what lies in it was moved along. What the server has lost of that stays agreed on where it
        was, and so is seen to be moved whenever a plan comes to it.
        """
        self._conn.execute("DELETE FROM local_blocks WHERE id = ?", (new,))
        self._conn.execute("UPDATE local_blocks SET id = ? WHERE id = ?", (new, old))
        node = self.local.get(old)
        if node is not None:
            self.drop_local(old)
            self.put_local(replace(node, id=new))
        for child in self.local.children(old):
            self.put_local(replace(_there(self.local.get(child)), parent=new))
        for child in self.synced.children(old):
            if is_moved and child not in self.remote:
                continue
            self.put_synced(replace(_there(self.synced.get(child)), parent=new))

    def local_path(self, node_id: int) -> bytes:
        """The path on the disk, relative to the synced folder; the root's is empty."""
        parts: list[bytes] = []
        while node_id != ROOT:
            node = _there(self.local.get(node_id))
            parts.append(node.disk_name)
            node_id = node.parent
        return b"/".join(reversed(parts))

    def find_local(self, path: bytes) -> int | None:
        """The id at a relative path on the disk, by exact names."""
        at = ROOT
        for part in path.split(b"/") if path else ():
            found = self.local.child(at, part.decode(errors="surrogateescape"))
            if found is None or _there(self.local.get(found)).disk_name != part:
                return None
            at = found
        return at

    def list_by_inode(self, inode: int) -> list[int]:
        """The local entries with an inode: more than one for a file with several names."""
        return [row[0] for row in self._conn.execute("SELECT id FROM local WHERE inode = ?", (inode,))]

    def count_gone_here(self) -> int:
        """Entries that both sides had, the server still has, and the disk has lost."""
        found: int = self._conn.execute(
            "SELECT count(*) FROM dirty JOIN synced USING (id) JOIN remote USING (id)"
            " WHERE id NOT IN (SELECT id FROM local)"
        ).fetchone()[0]
        return found

    def count_unsent(self, folder: int) -> int:
        """Changes of a folder of the disk and of what is in it that the server has not got yet."""
        found: int = self._conn.execute(
            "WITH RECURSIVE there (id) AS (SELECT id FROM local WHERE id = ? UNION"
            " SELECT l.id FROM local l JOIN there ON l.parent = there.id)"
            " SELECT (SELECT count(*) FROM there JOIN dirty USING (id) JOIN local l USING (id)"
            "   LEFT JOIN synced s USING (id) WHERE NOT l.is_blocked AND NOT l.is_kept AND (s.id IS NULL"
            "   OR l.parent <> s.parent OR l.name <> s.name OR l.content IS NOT s.content))"
            " + (SELECT count(*) FROM there JOIN synced s ON s.parent = there.id"
            "   JOIN remote r ON r.id = s.id WHERE s.id NOT IN (SELECT id FROM local))",
            (folder,),
        ).fetchone()[0]
        return found

    def is_excluded(self, node_id: int) -> bool:
        """Whether it is the top of what is left out on this device."""
        sql = "SELECT 1 FROM exclusions WHERE id = ?"
        return self._conn.execute(sql, (node_id,)).fetchone() is not None

    def count_pending(self) -> tuple[int, int]:
        """Entries that have changed here, and on the server, since both agreed."""
        row = self._conn.execute(
            "SELECT count(*) FILTER (WHERE l.parent IS NOT s.parent OR l.name IS NOT s.name"
            " OR l.content IS NOT s.content),"
            " count(*) FILTER (WHERE r.parent IS NOT s.parent OR r.name IS NOT s.name"
            " OR r.content IS NOT s.content)"
            " FROM dirty d LEFT JOIN remote r ON r.id = d.id LEFT JOIN synced s ON s.id = d.id"
            " LEFT JOIN local l ON l.id = d.id"
        ).fetchone()
        return int(row[0]), int(row[1])

    def _note(self, node_id: int) -> None:
        assert self._conn.in_transaction, "the trees change in transactions only"
        if self._is_clean(node_id):
            self.dirty.discard(node_id)
        else:
            self.dirty.add(node_id)

    def _is_clean(self, node_id: int) -> bool:
        here = self.local.get(node_id)
        if here is not None and node_id < ROOT:
            return False  # our own, which the server has not got
        r, s = self.remote.get(node_id), self.synced.get(node_id)
        if r is None or s is None or here is None:
            return r is None and s is None and here is None
        return (
            r.content == s.content == here.content
            and r.rev == s.rev
            and r.name == s.name == here.name
            and r.parent == s.parent == here.parent
            and not here.is_parked
        )


def _there(node: T | None) -> T:
    assert node is not None, "the caller knows that the node is there"
    return node
