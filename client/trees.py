"""The three trees in memory, with what is out of step, and a record of changes for the disk. Pure.

About 1 kB per entry. Every change goes through here, so `dirty` is always right: the ids whose three states
differ, which is all that a plan has to look at.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Generic, Protocol, TypeVar

from client.model import ROOT, LocalNode, RemoteNode, SyncedNode
from wire.names import NameKey
from wire.names import name_key as _name_key


@lru_cache(maxsize=65_536)
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


class Tree(Generic[N]):
    """Nodes by id, by parent, and by folder and name key.

    While pages of a listing are staged two nodes may hold one name; `child` then gives one of them.
    """

    def __init__(self) -> None:
        self._nodes: dict[int, N] = {}
        self._children: dict[int, dict[int, None]] = {}
        self._by_key: dict[tuple[int, NameKey], int] = {}
        self._shadowed: dict[tuple[int, NameKey], set[int]] = {}

    def __len__(self) -> int:
        return len(self._nodes)

    def __contains__(self, node_id: int) -> bool:
        return node_id in self._nodes

    def __iter__(self) -> Iterator[int]:
        return iter(self._nodes)

    def get(self, node_id: int) -> N | None:
        """The node, or None."""
        return self._nodes.get(node_id)

    def nodes(self) -> Iterable[N]:
        """All nodes, in no order."""
        return self._nodes.values()

    def children(self, parent: int) -> list[int]:
        """The ids in a folder."""
        return list(self._children.get(parent, ()))

    def has_children(self, parent: int) -> bool:
        """Whether anything is in the folder."""
        return bool(self._children.get(parent))

    def child(self, parent: int, name: str) -> int | None:
        """Who holds this name (up to case and normalisation) in the folder."""
        return self._by_key.get((parent, name_key(name)))

    def ancestors(self, node_id: int) -> Iterator[int]:
        """The folders above, nearest first, without the root; ends where the chain is broken or loops."""
        seen = {node_id}
        node = self._nodes.get(node_id)
        while node is not None and node.parent != ROOT and node.parent not in seen:
            seen.add(node.parent)
            yield node.parent
            node = self._nodes.get(node.parent)

    def is_reachable(self, node_id: int) -> bool:
        """Whether the chain of folders leads to the root."""
        seen: set[int] = set()
        while node_id != ROOT:
            node = self._nodes.get(node_id)
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
        self.drop(node.id)
        self._nodes[node.id] = node
        self._children.setdefault(node.parent, {})[node.id] = None
        key = (node.parent, name_key(node.name))
        holder = self._by_key.get(key)
        if holder is not None:
            self._shadowed.setdefault(key, set()).add(holder)
        self._by_key[key] = node.id

    def drop(self, node_id: int) -> None:
        """Remove one node, if it is there; what is below stays, unreachable."""
        node = self._nodes.pop(node_id, None)
        if node is None:
            return
        siblings = self._children[node.parent]
        del siblings[node_id]
        if not siblings:
            del self._children[node.parent]
        key = (node.parent, name_key(node.name))
        others = self._shadowed.get(key)
        if others is not None:
            others.discard(node_id)
        if self._by_key.get(key) == node_id:
            if others:
                self._by_key[key] = others.pop()
            else:
                del self._by_key[key]
        if others is not None and not others:
            del self._shadowed[key]


Change = tuple[str, int, "RemoteNode | SyncedNode | LocalNode | None"]
"""A tree's name, an id, and its node from now on."""


class Trees:
    """Remote, synced and local, and which ids are out of step."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.remote: Tree[RemoteNode] = Tree()
        self.synced: Tree[SyncedNode] = Tree()
        self.local: Tree[LocalNode] = Tree()
        self.dirty: set[int] = set()
        self.by_inode: dict[int, int] = {}
        self.next_temp = -1
        self.changes: list[Change] = []
        self.renumbered: list[tuple[int, int]] = []

    def put_remote(self, node: RemoteNode) -> None:
        """The server has this."""
        self.remote.put(node)
        self._note("remote", node.id, node)

    def put_synced(self, node: SyncedNode) -> None:
        """Both sides have this."""
        self.synced.put(node)
        self._note("synced", node.id, node)

    def put_local(self, node: LocalNode) -> None:
        """The disk has this."""
        self._forget_inode(node.id)
        self.local.put(node)
        self.by_inode[node.fingerprint.inode] = node.id
        self._note("local", node.id, node)

    def drop_remote(self, node_id: int) -> None:
        """The server has it no more."""
        if node_id in self.remote:
            self.remote.drop(node_id)
            self._note("remote", node_id, None)

    def drop_synced(self, node_id: int) -> None:
        """Nothing is agreed of it any more."""
        if node_id in self.synced:
            self.synced.drop(node_id)
            self._note("synced", node_id, None)

    def drop_local(self, node_id: int) -> None:
        """The disk has it no more."""
        if node_id in self.local:
            self._forget_inode(node_id)
            self.local.drop(node_id)
            self._note("local", node_id, None)

    def new_temp(self) -> int:
        """An id of our own."""
        temp = self.next_temp
        self.next_temp -= 1
        return temp

    def renumber(self, old: int, new: int) -> None:
        """The local entry `old` is called `new` from now on, also by what lies in it."""
        node = self.local.get(old)
        if node is not None:
            self.drop_local(old)
            self.put_local(replace(node, id=new))
        for child in self.local.children(old):
            self.put_local(replace(_there(self.local.get(child)), parent=new))
        for child in self.synced.children(old):
            self.put_synced(replace(_there(self.synced.get(child)), parent=new))
        self.renumbered.append((old, new))

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

    def take_changes(self) -> tuple[list[Change], list[tuple[int, int]]]:
        """What has changed since the last call, in order."""
        changes, self.changes = self.changes, []
        renumbered, self.renumbered = self.renumbered, []
        return changes, renumbered

    def _note(self, tree: str, node_id: int, node: RemoteNode | SyncedNode | LocalNode | None) -> None:
        self.changes.append((tree, node_id, node))
        if self._is_clean(node_id):
            self.dirty.discard(node_id)
        else:
            self.dirty.add(node_id)

    def _is_clean(self, node_id: int) -> bool:
        r, s, here = self.remote.get(node_id), self.synced.get(node_id), self.local.get(node_id)
        if r is None or s is None or here is None:
            return r is None and s is None and here is None
        return (
            r.content == s.content == here.content
            and r.rev == s.rev
            and r.name == s.name == here.name
            and r.parent == s.parent == here.parent
            and not here.is_parked
        )

    def _forget_inode(self, node_id: int) -> None:
        node = self.local.get(node_id)
        if node is not None and self.by_inode.get(node.fingerprint.inode) == node_id:
            del self.by_inode[node.fingerprint.inode]


def _there(node: N | None) -> N:
    assert node is not None, "the caller knows that the node is there"
    return node
