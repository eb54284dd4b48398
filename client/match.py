"""From what is on the disk to the local tree: which entry is which.

A path that still exists keeps its entry. Among the paths that vanished and those that appeared, the same
inode and then the same content make a rename. What is left appeared anew, or is gone.

The folder is walked twice, so that no more than changes has to be remembered: first what is known is held
against the disk, which tells what has vanished; then what is new is taken in, of which only what could be
something vanished waits for the end. On the way changes are handed out in batches.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from client.model import ROOT, Fingerprint, Kind, LocalNode
from client.scan import Lister, Seen
from client.tree import name_key
from client.trees import Trees

BATCH_NODES = 5_000
"""Changes per transaction: some 100 ms."""


@dataclass(frozen=True, slots=True)
class Appeared:
    """Something at a path where nothing was known."""

    parent: int
    path: bytes
    seen: Seen


class Matcher:
    """One look at the disk, held against the local tree.

    `look`, then `take_new`, with a `flush` whenever one of them yields; then hash what `candidates` gives,
    and `finish`. Looking is done in a thread, flushing in a transaction.
    """

    def __init__(self, trees: Trees, lister: Lister, folders: Iterable[bytes] | None = None):
        """`folders`: look at these (relative paths) and at what is new in them only; None: at all."""
        self._trees, self._local, self._lister = trees, trees.local, lister
        self._is_whole = folders is None
        self._wanted = {b""} if folders is None else set(folders)
        self._puts: dict[int, LocalNode] = {}
        self._vanished: set[int] = set()
        self._placed: set[int] = set()
        """Known entries found elsewhere."""
        self._looked: set[int] = set()
        """Folders that have been looked at, and what they are called."""
        self._with_new: list[tuple[int, bytes]] = []
        self._waiting: list[Appeared] = []
        self.listed: set[bytes] = set()
        self.doubts: set[bytes] = set()
        """Folders to look at too: something here may have come from there. It has not been taken in."""
        self.clashes: dict[bytes, tuple[str, str]] = {}
        """Paths of what differs from something else only in case or normalisation: reason and detail."""

    def look(self) -> Iterator[None]:
        """Hold what is known against the disk."""
        todo = []
        for path in self._wanted:
            found = self._trees.find_local(path)
            if found is not None:
                todo.append((found, path))
        while todo:
            node_id, path = todo.pop()
            if node_id in self._looked:
                continue
            seens = self._list(node_id, path)
            if seens is None:
                self._block(node_id)
                continue
            pairs, new, missing = self._pair(node_id, path, seens)
            if new:
                self._with_new.append((node_id, path))
            for node in missing:
                self._vanished |= {node.id, *self._local.below(node.id)}
            todo += self._keep_all(node_id, path, pairs)
            if len(self._puts) >= BATCH_NODES:
                yield

    def take_new(self) -> Iterator[None]:
        """Take in what is new where something was known."""
        sizes = self._vanished_sizes()
        for known_id, known_path in self._with_new:
            todo = [(known_id, known_path)]
            while todo:
                node_id, path = todo.pop()
                seens = self._list(node_id, path)
                if seens is None:
                    self._block(node_id)
                    continue
                pairs, new, _ = self._pair(node_id, path, seens)
                if node_id in self._placed:
                    todo += self._keep_all(node_id, path, pairs)
                for seen in new:
                    todo += self._take(Appeared(node_id, _join(path, seen.disk_name), seen), sizes)
                if len(self._puts) >= BATCH_NODES:
                    yield

    @property
    def has_vanished(self) -> bool:
        """Whether something has neither stayed nor been found elsewhere."""
        return bool(self._vanished)

    def candidates(self) -> list[Appeared]:
        """New files that may be vanished ones: of the same size as one. They want to be hashed."""
        sizes = self._vanished_sizes()
        return [x for x in self._waiting if x.seen.fingerprint.size in sizes]

    def flush(self) -> None:
        """Write what has been found so far. Tx: the caller's, "scan"."""
        puts, self._puts = self._puts, {}
        for node in puts.values():
            self._trees.put_local(node)

    def finish(self, contents: Mapping[bytes, bytes]) -> None:
        """Match by content (path → content hash), and write the rest.

        Tx: the caller's, "scan".
        """
        self._match_contents(contents)
        for node_id in self._vanished:
            self._trees.drop_local(node_id)
        self.flush()

    # ---- By path

    def _list(self, node_id: int, path: bytes) -> list[Seen] | None:
        self._looked.add(node_id)
        if not self._is_whole:
            self.listed.add(path)
        return self._lister.list_folder(path)

    def _pair(
        self, node_id: int, path: bytes, seens: Iterable[Seen]
    ) -> tuple[list[tuple[LocalNode, Seen]], list[Seen], list[LocalNode]]:
        """A folder's known entries with what has their names; what is new; known ones that are not there."""
        left = {x: self._node(x) for x in self._local.children(node_id) if x not in self._placed}
        by_disk_name = {node.disk_name: child for child, node in left.items()}
        pairs: list[tuple[LocalNode, Seen]] = []
        new: list[Seen] = []
        for seen in self._pick_names(node_id, path, seens):
            child = by_disk_name.get(seen.disk_name)
            if child is None and left:
                child = self._local.child(node_id, seen.name) if seen.kind is not None else None
            node = left.get(child) if child is not None else None
            if node is not None and seen.kind in (None, node.kind):
                del left[node.id]
                pairs.append((node, seen))
            elif seen.kind is not None:
                new.append(seen)
        return pairs, new, list(left.values())

    def _keep_all(
        self, parent: int, path: bytes, pairs: list[tuple[LocalNode, Seen]]
    ) -> list[tuple[int, bytes]]:
        """Known entries stay what they are; gives the folders among them that are to be looked at."""
        deeper: list[tuple[int, bytes]] = []
        is_elsewhere = parent in self._placed
        for node, seen in pairs:
            self._vanished.discard(node.id)
            if seen.kind is None:
                self._put(replace(node, is_blocked=True))
                continue
            self._keep(node, parent, seen, is_moved=node.disk_name != seen.disk_name)
            if node.kind is not Kind.FOLDER:
                continue
            if is_elsewhere:
                self._placed.add(node.id)
            child_path = _join(path, seen.disk_name)
            is_other = node.fingerprint.inode != seen.fingerprint.inode
            if is_elsewhere or self._is_whole or is_other or child_path in self._wanted:
                deeper.append((node.id, child_path))
        return deeper

    def _pick_names(self, parent: int, path: bytes, seens: Iterable[Seen]) -> Iterable[Seen]:
        """Of names that differ only in case or normalisation one: the known one, else the first."""
        groups: dict[object, list[Seen]] = {}
        for seen in seens:
            key = seen.disk_name if seen.kind is None else name_key(seen.name)
            groups.setdefault(key, []).append(seen)
        for group in groups.values():
            if len(group) > 1:
                known = self._local.child(parent, group[0].name)
                known_name = None if known is None else self._node(known).disk_name
                group.sort(key=lambda x: (x.disk_name != known_name, x.disk_name))
                for other in group[1:]:
                    shown = group[0].disk_name.decode(errors="replace")
                    detail = f"differs only in case or normalisation from {shown!r}"
                    self.clashes[_join(path, other.disk_name)] = ("name_clash", detail)
            yield group[0]

    def _keep(self, node: LocalNode, parent: int, seen: Seen, *, is_moved: bool) -> None:
        content, racy = node.content, node.is_racy
        if node.kind is Kind.FILE:
            if is_moved:
                is_same = seen.fingerprint.is_same_body(node.fingerprint)
            else:
                # Not the device: its number may change from one mount to the next.
                is_same = seen.fingerprint[:4] == node.fingerprint[:4]
            if not is_same or (racy and self._is_whole):
                content, racy = None, False
        self._put(
            replace(
                node,
                parent=parent,
                name=seen.name,
                disk_name=seen.disk_name,
                fingerprint=seen.fingerprint,
                content=content,
                is_racy=racy,
                is_blocked=False,
                is_parked=node.is_parked and not is_moved,
            )
        )

    def _block(self, node_id: int) -> None:
        if node_id != ROOT:
            self._put(replace(self._node(node_id), is_blocked=True))

    # ---- By inode

    def _take(self, x: Appeared, sizes: set[int]) -> list[tuple[int, bytes]]:
        """Take one new thing in, or let it wait; gives the folder that is to be looked at, if it is one."""
        nodes = [self._node(found) for found in self._trees.list_by_inode(x.seen.fingerprint.inode)]
        alike = [node for node in nodes if node.kind is x.seen.kind and node.id not in self._placed]
        node = next((node for node in alike if self._is_vanished_as(node, x)), None)
        if node is not None:
            self._vanished.discard(node.id)
            self._placed.add(node.id)
            self._keep(node, x.parent, x.seen, is_moved=True)
            return [(node.id, x.path)] if node.kind is Kind.FOLDER else []
        if not self._is_whole:
            elsewhere = {node.parent for node in alike if node.parent not in self._looked}
            self.doubts |= {self._trees.local_path(parent) for parent in elsewhere}
            if elsewhere:
                return []
        if x.seen.kind is Kind.FILE:
            if x.seen.fingerprint.size in sizes:
                self._waiting.append(x)
            else:
                self._put_new(x)
            return []
        return [(self._put_new(x), x.path)]

    def _is_vanished_as(self, node: LocalNode, x: Appeared) -> bool:
        return node.id in self._vanished and (node.kind is Kind.FILE or self._is_likely_same(node, x))

    def _is_likely_same(self, node: LocalNode, x: Appeared) -> bool:
        """A new folder may have got a dead one's inode: the same also has its mtime, or shares a name."""
        if node.fingerprint.mtime_ns == x.seen.fingerprint.mtime_ns:
            return True
        names = {self._node(child).disk_name for child in self._local.children(node.id)}
        return any(seen.disk_name in names for seen in self._lister.list_folder(x.path) or ())

    # ---- By content, and what is new

    def _vanished_sizes(self) -> set[int]:
        """The sizes of the files that have vanished, as far as their content is known, without 0."""
        nodes = map(self._node, self._vanished)
        return {node.fingerprint.size for node in nodes if node.kind is Kind.FILE and node.content} - {0}

    def _match_contents(self, contents: Mapping[bytes, bytes]) -> None:
        by_content: dict[bytes, list[LocalNode]] = {}
        for node in map(self._node, self._vanished if contents else ()):
            if node.kind is Kind.FILE and node.content and node.fingerprint.size:
                by_content.setdefault(node.content, []).append(node)
        for x in self._waiting:
            content = contents.get(x.path)
            nodes = by_content.get(content) if content is not None else None
            if not nodes:
                self._put_new(x)
                continue
            nodes.sort(key=lambda node: node.name == x.seen.name)
            node = nodes.pop()
            self._vanished.discard(node.id)
            self._keep(node, x.parent, x.seen, is_moved=True)
            # Another inode with the same bytes: nothing to read again.
            self._put(replace(self._node(node.id), content=content))

    def _put_new(self, x: Appeared) -> int:
        node_id = self._trees.new_temp()
        seen = x.seen
        assert seen.kind is not None, "what is never synced does not appear"
        self._puts[node_id] = LocalNode(
            id=node_id,
            parent=x.parent,
            name=seen.name,
            disk_name=seen.disk_name,
            kind=seen.kind,
            fingerprint=seen.fingerprint,
            content=None if seen.kind is Kind.FILE else b"",
        )
        return node_id

    def _put(self, node: LocalNode) -> None:
        if node.id in self._puts or self._local.get(node.id) != node:
            self._puts[node.id] = node

    def _node(self, node_id: int) -> LocalNode:
        node = self._puts.get(node_id) or self._local.get(node_id)
        assert node is not None, "a child of a tree is in the tree"
        return node


def _join(folder: bytes, name: bytes) -> bytes:
    return folder + b"/" + name if folder else name


def has_same_stat(node: LocalNode, fingerprint: Fingerprint) -> bool:
    """Whether a file is as the local tree has it; the device's number does not count."""
    return node.fingerprint[:4] == fingerprint[:4]
