"""What a namespace holds, read from its tables without any of the code under test.

The journal's rows are replayed one by one: each must be a lawful successor of the state before it, and the
state at any jid is the tree that a reader at that jid must see.
"""

import unicodedata
from dataclasses import dataclass, replace
from hashlib import sha256

import psycopg

FILE, FOLDER = "f", "d"
_ROWS = """
SELECT jid, entry_id, parent_id, prev_jid, rev_jid, at_us, op, kind, is_deleted, name, device, old_path,
       size, client_modified_us, content_hash, blocklist
  FROM ns.server_file_journal WHERE ns_id = %s AND jid > %s ORDER BY jid
"""
_ENTRIES = """
SELECT entry_id, parent_id, created_jid, last_jid, rev_jid, size, kind, is_deleted, name, name_key,
       content_hash
  FROM ns.entries WHERE ns_id = %s ORDER BY entry_id
"""
_NAMESPACE = """
SELECT n.head, n.next_entry_id, n.modified_us, n.live_bytes,
       EXISTS (SELECT 1 FROM ns.usage_debts d WHERE d.ns_id = n.ns_id),
       (SELECT array_agg(o.jid) FROM ns.outbox o WHERE o.ns_id = n.ns_id)
  FROM ns.namespaces n WHERE n.ns_id = %s
"""
_LIVE = """
WITH RECURSIVE live AS (
    SELECT e.* FROM ns.entries e WHERE e.ns_id = %(ns)s AND e.parent_id = 0 AND NOT e.is_deleted
    UNION
    SELECT e.* FROM live l JOIN ns.entries e
        ON e.ns_id = %(ns)s AND e.parent_id = l.entry_id AND NOT e.is_deleted
  )
SELECT entry_id, parent_id, name, kind, rev_jid, size, content_hash, last_jid FROM live
"""


class Difference(AssertionError):
    """A rule of the journal does not hold, or a reader sees another tree than the server's."""


def expect(holds: bool, *what: object) -> None:
    """Raise Difference unless it holds."""
    if not holds:
        raise Difference(" ".join(map(str, what)))


@dataclass(frozen=True, slots=True)
class Node:
    """An entry's state after one journal row."""

    entry_id: int
    parent_id: int
    name: str
    kind: str
    is_deleted: bool
    created_jid: int
    last_jid: int
    rev_jid: int | None
    size: int | None
    content_hash: bytes | None

    @property
    def key(self) -> str:
        """What must be unique among the live children of a folder."""
        folded = unicodedata.normalize("NFC", self.name).casefold()
        return unicodedata.normalize("NFC", folded)

    @property
    def shown(self) -> "Shown":
        """What a reader is to know of it."""
        return (
            self.parent_id,
            self.name,
            self.kind,
            self.rev_jid,
            self.size,
            self.content_hash,
            self.last_jid,
        )


Shown = tuple[int, str, str, int | None, int | None, bytes | None, int]
Tree = dict[int, Shown]
"""Live entries by id."""


@dataclass(frozen=True, slots=True)
class Rev:
    """What the row that made a rev says of it."""

    entry_id: int
    size: int
    content_hash: bytes
    at_us: int
    client_modified_us: int
    blocklist: bytes


class Truth:
    """One namespace, replayed."""

    def __init__(self, ns_id: int, device: bytes):
        self.ns_id = ns_id
        self._device = device
        self.nodes: dict[int, Node] = {}
        self.head = 0
        self.ops: list[str] = [""]
        """The op of each row, by jid."""
        self.names_at: list[int] = [0]
        """The entry of each row, by jid."""
        self.revs: dict[int, Rev] = {}
        self._at_us = 0
        self._trees: list[Tree] = [{}]
        self._raw: list[tuple[object, ...]] = [()]

    # ---- Looking

    def tree_at(self, jid: int) -> Tree:
        """The live entries as of a jid."""
        expect(jid < len(self._trees), "a reader is at jid", jid, "and the head is", self.head)
        return self._trees[jid]

    @property
    def tree(self) -> Tree:
        """The live entries now."""
        return self._trees[-1]

    def is_live(self, entry_id: int) -> bool:
        """Whether it is there now; the root always is."""
        return entry_id == 0 or entry_id in self.tree

    def path_of(self, entry_id: int) -> str:
        """The displayed path of a live entry."""
        parts: list[str] = []
        while entry_id:
            node = self.nodes[entry_id]
            parts.append(node.name)
            entry_id = node.parent_id
        return "".join("/" + part for part in reversed(parts))

    def children(self, folder: int, jid: int) -> Tree:
        """The live children of a folder as of a jid."""
        return {i: shown for i, shown in self.tree_at(jid).items() if shown[0] == folder}

    def below(self, folder: int) -> list[int]:
        """What lives below a folder, at any depth."""
        found: list[int] = []
        for entry_id in self.tree:
            at = entry_id
            while at and at != folder:
                at = self.nodes[at].parent_id
            if at == folder and entry_id != folder:
                found.append(entry_id)
        return found

    # ---- Reading

    async def catch_up(self, conn: psycopg.AsyncConnection) -> list[str]:
        """Replay what has been appended; the ops of the new rows.

        Raises:
            Difference: a row that no rule allows.
        """
        cursor = await conn.execute(_ROWS, [self.ns_id, self.head], binary=True)
        rows = await cursor.fetchall()
        for row in rows:
            self._replay(row)
        return [row[6] for row in rows]

    async def check_tables(self, conn: psycopg.AsyncConnection) -> None:
        """Hold entries, head, outbox and the whole journal against what was replayed.

        Raises:
            Difference: they differ.
        """
        cursor = await conn.execute(_NAMESPACE, [self.ns_id], binary=True)
        found = await cursor.fetchone()
        assert found is not None
        head, next_entry_id, modified_us, live_bytes, has_debts, outbox = found
        expect(head == self.head, "head is", head, "and the journal ends at", self.head)
        expect(next_entry_id > max(self.nodes, default=0), "next_entry_id", next_entry_id, "is taken")
        expect(modified_us == self._at_us, "modified_us is not the last row's")
        used = sum(shown[4] or 0 for shown in self.tree.values())
        expect(live_bytes == used or (has_debts and live_bytes > used), "live bytes:", live_bytes, "of", used)
        expect(outbox == ([head] if head else None), "the outbox holds", outbox, "at head", head)
        cursor = await conn.execute(_ENTRIES, [self.ns_id], binary=True)
        entries = {
            r[0]: (Node(r[0], r[1], r[8], r[6], r[7], r[2], r[3], r[4], r[5], r[10]), r[9])
            for r in await cursor.fetchall()
        }
        for entry_id in entries.keys() | self.nodes.keys():
            node, key = entries.get(entry_id, (None, ""))
            expect(node == self.nodes.get(entry_id), "entries:", node, "journal:", self.nodes.get(entry_id))
            expect(node is None or key == node.key, "the name key of", node, "is", key)
        cursor = await conn.execute(_LIVE, {"ns": self.ns_id}, binary=True)
        live = {row[0]: row[1:] for row in await cursor.fetchall()}
        expect(live == self.tree, "live entries:", live, "replayed:", self.tree)
        cursor = await conn.execute(_ROWS, [self.ns_id, 0], binary=True)
        expect(await cursor.fetchall() == self._raw[1:], "rows of the journal have changed")

    # ---- Replaying

    def _replay(self, row: tuple) -> None:
        jid, entry_id, parent_id, prev_jid, rev_jid, at_us, op, kind, is_deleted, name = row[:10]
        device, old_path, size, client_us, content_hash, blocklist = row[10:]
        old = self.nodes.get(entry_id)
        expect(jid == self.head + 1, "jid", jid, "comes after", self.head)
        expect(at_us >= self._at_us, "server_modified goes back at jid", jid)
        expect(device == self._device, "who wrote jid", jid)
        expect(parent_id == 0 or (self.is_live(parent_id) and self.nodes[parent_id].kind == FOLDER),
               "jid", jid, "lies in", parent_id, "which is no live folder")  # fmt: skip
        if old is None:
            expect(entry_id > max(self.nodes, default=0), "entry id", entry_id, "is not above the others")
            expect(prev_jid is None and op in "cf" and not is_deleted, "a first row:", row)
        else:
            expect(
                self.is_live(entry_id) == (op != "r"),
                "jid",
                jid,
                "changes a dead entry, or revives a live one",
            )
            expect(prev_jid == old.last_jid, "prev_jid of", jid, "is", prev_jid, "and not", old.last_jid)
            expect(op in "cmdr" and kind == old.kind, "a later row:", row)
            expect(is_deleted == (op == "d"), "is_deleted of", jid)
            expect(op in "mr" or (parent_id, name) == (old.parent_id, old.name), "op", op, "moves:", row)
        expect(old_path == (self.path_of(entry_id) if op in "md" else None), "old_path of", jid, old_path)
        expect(kind == {"c": FILE, "r": FILE, "f": FOLDER}.get(op, kind), "op and kind of", jid)
        made = op in "cr"
        contents = (size, client_us, content_hash, blocklist)
        expect(all((part is not None) == made for part in contents), "the content of jid", jid, contents)
        if made:
            expect(
                sha256(blocklist).digest() == content_hash, "the blocks of jid", jid, "are another content's"
            )
        kept_rev = old.rev_jid if old else None
        expect(rev_jid == (jid if made else kept_rev), "rev_jid of", jid, "is", rev_jid)
        node = Node(entry_id, parent_id, name, kind, is_deleted, jid, jid, rev_jid, size, content_hash)
        if old is not None:
            node = replace(node, created_jid=old.created_jid)
            if not made:
                node = replace(node, size=old.size, content_hash=old.content_hash)
        if made:
            self.revs[jid] = Rev(entry_id, size, content_hash, at_us, client_us, blocklist)
        self.nodes[entry_id] = node
        self.head, self._at_us = jid, at_us
        self._raw.append(row)
        self.ops.append(op)
        self.names_at.append(entry_id)
        self._trees.append(self._grow())

    def _grow(self) -> Tree:
        below: dict[int, list[Node]] = {}
        for node in self.nodes.values():
            if not node.is_deleted:
                below.setdefault(node.parent_id, []).append(node)
        tree: Tree = {}
        todo = [0]
        while todo:
            children = below.get(todo.pop(), ())
            expect(len({node.key for node in children}) == len(children), "one name twice:", children)
            for node in children:
                tree[node.entry_id] = node.shown
                todo.append(node.entry_id)
        mine = self.names_at[-1]
        lost = not self.nodes[mine].is_deleted and mine not in tree
        expect(not lost, "entry", mine, "hangs below itself or something dead")
        return tree
