"""Random operations on a namespace, drawn so that the same few names are fought over."""

import random

from tests.journal.truth import FILE, FOLDER, Node, Truth
from tests.journal.world import CONTENTS, commit_operation
from wire.api import Copy, CreateFolder, Delete, Move, Operation, Restore, WriteMode
from wire.ids import EntryId, Jid, NsId, format_file_id, format_rev

MAX_LIVE = 40
"""Entries of a tree from which on nothing more is copied."""
NAMES = ["a", "A", "b", "B", "é", "É", "c.txt"]


class Draw:
    """Draws operations; `live` and `dead` are what the drawer knows, which others may have changed."""

    def __init__(self, rng: random.Random, ns_id: NsId, truth: Truth):
        self._rng = rng
        self._ns_id = ns_id
        self._truth = truth

    def batch(self) -> list[Operation]:
        """One operation mostly, sometimes several."""
        rng = self._rng
        kind = rng.random()
        if not self._truth.tree and kind < 0.8:
            return self._first()
        if kind < 0.72:
            return [self._one()]
        if kind < 0.80:
            return self._swap()
        if kind < 0.87:
            return self._rescue()
        if kind < 0.91:
            return self._short_lived()
        if kind < 0.94:
            return self._revived()
        return [self._one() for _ in range(rng.randint(2, 5))]

    def _one(self) -> Operation:
        kind = self._rng.random()
        if kind < 0.27:
            return self._commit()
        if kind < 0.37:
            return CreateFolder(path=self._place(), autorename=self._rng.random() < 0.2)
        if kind < 0.60:
            return self._move()
        if kind < 0.68:
            return self._copy()
        if kind < 0.78:
            return self._restore()
        return self._delete()

    def _first(self) -> list[Operation]:
        """A tree to begin with."""
        return [
            CreateFolder(path=self._at(0, "a")),
            commit_operation(self._at(0, "a/b/c.txt"), 1),
            commit_operation(self._at(0, "a/b/é/b"), self._rng.randrange(len(CONTENTS))),
            commit_operation(self._at(0, "b"), 2),
            CreateFolder(path=self._at(0, "c.txt")),
        ][: self._rng.randint(2, 5)]

    def _commit(self) -> Operation:
        rng = self._rng
        mode = rng.choice(list(WriteMode))
        file = self._pick(FILE) if rng.random() < 0.6 else None
        path = self._name(file) if file else self._place()
        rev = None
        if mode is WriteMode.UPDATE:
            is_current = file is not None and rng.random() < 0.7
            rev_jid = file.rev_jid if file and is_current else rng.randint(0, self._truth.head)
            rev = format_rev(self._ns_id, Jid(rev_jid or 0))
        return commit_operation(
            path, rng.randrange(len(CONTENTS)), mode=mode, rev=rev, autorename=rng.random() < 0.3
        )

    def _move(self) -> Operation:
        rng = self._rng
        node = self._pick()
        if node is None:
            return CreateFolder(path=self._place())
        kind = rng.random()
        if kind < 0.15:  # the case alone
            to = self._at(node.parent_id, node.name.swapcase())
        elif kind < 0.35:
            to = self._at(node.parent_id, rng.choice(NAMES))
        elif kind < 0.5:  # below itself, or where something dead was
            to = self._at(node.entry_id, rng.choice(NAMES))
        else:
            to = self._place()
        return Move(from_path=self._name(node), to_path=to, autorename=rng.random() < 0.2)

    def _copy(self) -> Operation:
        rng = self._rng
        node = self._pick(FOLDER) if rng.random() < 0.5 else self._pick()
        # Copies of copies would soon be most of the tree.
        if node is None or len(self._truth.tree) > MAX_LIVE:
            return self._delete()
        kind = rng.random()
        if kind < 0.25:  # beside itself
            to = self._at(node.parent_id, node.name)
        elif kind < 0.35:  # below itself
            to = self._at(node.entry_id, rng.choice(NAMES))
        else:
            to = self._place()
        return Copy(from_path=self._name(node), to_path=to, autorename=rng.random() < 0.4)

    def _restore(self) -> Operation:
        rng = self._rng
        revs = sorted(self._truth.revs)
        if not revs:
            return self._commit()
        dead = [jid for jid in revs if not self._truth.is_live(self._truth.revs[jid].entry_id)]
        jid = rng.choice(dead if dead and rng.random() < 0.7 else revs)
        node = self._truth.nodes[self._truth.revs[jid].entry_id]
        if rng.random() < 0.03:
            jid = rng.randint(0, self._truth.head + 2)
        kind = rng.random()
        if kind < 0.4:
            path = self._id(node)
        elif kind < 0.7:  # where it is, or was, if that folder is there still
            path = self._at(node.parent_id, node.name)
        else:
            path = self._place()
        return Restore(path=path, rev=format_rev(self._ns_id, Jid(jid)))

    def _delete(self) -> Operation:
        rng = self._rng
        if rng.random() < 0.3 and self._truth.tree:  # what a scan under way may just have seen
            node: Node | None = max(self._live(), key=lambda live: live.created_jid)
        else:
            node = self._pick(FOLDER) if rng.random() < 0.6 else self._pick()
        if node is None:
            return CreateFolder(path=self._place())
        guards: dict[str, object] = {}
        if rng.random() < 0.2:
            guards["seen_jid"] = rng.choice([self._truth.head, rng.randint(0, self._truth.head)])
        if node.kind == FILE and rng.random() < 0.2:
            guards["parent_rev"] = format_rev(self._ns_id, Jid(node.rev_jid or 0))
        return Delete(path=self._name(node), **guards)  # type: ignore[arg-type]

    def _swap(self) -> list[Operation]:
        """Two entries take each other's place."""
        one, two = self._pick(), self._pick()
        if one is None or two is None or one is two:
            return [self._one()]
        return [
            Move(from_path=self._id(one), to_path=self._at(0, "on its way")),
            Move(from_path=self._id(two), to_path=self._at(one.parent_id, one.name)),
            Move(from_path=self._id(one), to_path=self._at(two.parent_id, two.name)),
        ]

    def _rescue(self) -> list[Operation]:
        """Something moves out of a folder that is deleted next."""
        folder = self._pick(FOLDER)
        inside = [n for n in self._live() if folder and n.parent_id == folder.entry_id]
        if folder is None or not inside:
            return [self._one()]
        node = self._rng.choice(inside)
        return [
            Move(from_path=self._id(node), to_path=self._place(), autorename=True),
            Delete(path=self._id(folder)),
        ]

    def _revived(self) -> list[Operation]:
        """A folder goes, and a file in it comes back, to be deleted again or copied perhaps."""
        file = self._pick(FILE)
        if file is None or not self._truth.is_live(file.entry_id):
            return [self._one()]
        doomed = file.parent_id if file.parent_id and self._rng.random() < 0.7 else file.entry_id
        rev = format_rev(self._ns_id, Jid(file.rev_jid or 0))
        more = [
            [],
            [Delete(path=self._id(file))],
            [Copy(from_path=self._id(file), to_path=self._at(0, "copy"), autorename=True)],
            [Move(from_path=self._id(file), to_path=self._at(0, "moved"), autorename=True)],
        ]
        back = Restore(path=self._id(file), rev=rev)
        return [Delete(path=format_file_id(self._ns_id, EntryId(doomed))), back, *self._rng.choice(more)]

    def _short_lived(self) -> list[Operation]:
        """Something that is gone again when the batch ends."""
        path = self._at(0, self._rng.choice(["short", "short/lived"]))
        if self._rng.random() < 0.4:  # its name is given again
            return [CreateFolder(path=path), Delete(path=path), commit_operation(path, 3)]
        return [commit_operation(path, 3), Delete(path=path)]

    # ---- Places

    def _live(self) -> list[Node]:
        return [self._truth.nodes[i] for i in self._truth.tree]

    def _pick(self, kind: str | None = None) -> Node | None:
        """An entry, a dead one now and then."""
        nodes = list(self._truth.nodes.values()) if self._rng.random() < 0.05 else self._live()
        nodes = [node for node in nodes if kind in (None, node.kind)]
        if nodes and self._rng.random() < 0.2:
            return max(nodes, key=lambda node: node.created_jid)
        return self._rng.choice(nodes) if nodes else None

    def _place(self) -> str:
        """A name in some folder: there or not, live or dead, its parents perhaps missing."""
        rng = self._rng
        folders = [0, *(n.entry_id for n in self._live() if n.kind == FOLDER)]
        if rng.random() < 0.07 and self._truth.nodes:
            folders = list(self._truth.nodes)
        name = rng.choice(NAMES)
        if rng.random() < 0.15:
            name = f"{rng.choice(NAMES)}/{name}"
        return self._at(rng.choice(folders), name)

    def _at(self, folder: int, name: str) -> str:
        if self._truth.is_live(folder) and self._rng.random() < 0.5:
            return f"ns:{self._ns_id}{self._truth.path_of(folder)}/{name}"
        return f"{format_file_id(self._ns_id, EntryId(folder))}/{name}"

    def _name(self, node: Node) -> str:
        if self._truth.is_live(node.entry_id) and self._rng.random() < 0.4:
            return f"ns:{self._ns_id}{self._truth.path_of(node.entry_id)}"
        return self._id(node)

    def _id(self, node: Node) -> str:
        return format_file_id(self._ns_id, EntryId(node.entry_id))
