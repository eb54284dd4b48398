"""From what a scan saw to the local tree: which entry is which. Pure.

A path that still exists keeps its entry. Among the paths that vanished and those that appeared, the same
inode and then the same content make a rename. What is left appeared anew, or is gone.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from client.model import ROOT, Fingerprint, Kind, LocalNode
from client.scan import Listing, Seen
from client.trees import Trees, name_key


@dataclass(frozen=True, slots=True)
class Appeared:
    """Something at a path where nothing was known."""

    parent: int
    path: bytes
    seen: Seen


class Matcher:
    """One listing held against the local tree. Call `look`, hash what `candidates` gives, then `apply`."""

    def __init__(self, trees: Trees, listing: Listing):
        self._trees, self._local = trees, trees.local
        self._folders = listing.folders
        self._is_whole = listing.is_whole
        self._puts: dict[int, LocalNode] = {}
        self._vanished: dict[int, LocalNode] = {}
        self._appeared: deque[Appeared] = deque()
        self._new_files: list[Appeared] = []
        self.doubts: set[bytes] = set()
        """Folders to look at too: something here may have come from there."""
        self.problems: list[tuple[bytes, str, str]] = list(listing.problems)

    def look(self) -> None:
        """Match by path, then by inode."""
        if self._is_whole:
            starts = [(ROOT, b"")]
        else:
            starts = []
            for path in self._folders:
                found = self._trees.find_local(path)
                if found is not None:
                    starts.append((found, path))
        compared: set[int] = set()
        while starts:
            node_id, path = starts.pop()
            if node_id not in compared:
                compared.add(node_id)
                starts += self._compare(node_id, path)
        self._match_inodes()

    @property
    def has_vanished(self) -> bool:
        """Whether something has neither stayed nor been found elsewhere."""
        return bool(self._vanished)

    def candidates(self) -> list[Appeared]:
        """New files that may be vanished ones: of the same size as one. They want to be hashed."""
        sizes = {n.fingerprint.size for n in self._vanished.values() if n.kind is Kind.FILE and n.content}
        return [x for x in self._new_files if x.seen.fingerprint.size in sizes - {0}]

    def apply(self, contents: Mapping[bytes, bytes]) -> set[int]:
        """Match by content (path → content hash), then change the local tree; gives the ids touched.

        Tx: the caller's, "scan".
        """
        self._match_contents(contents)
        for x in self._new_files:
            self._put_new(x)
        for node_id in self._vanished:
            self._trees.drop_local(node_id)
        for node in self._puts.values():
            if self._local.get(node.id) != node:
                self._trees.put_local(node)
        return set(self._vanished) | set(self._puts)

    # ---- By path

    def _compare(self, node_id: int, path: bytes) -> list[tuple[int, bytes]]:
        """Hold a known folder against its listing; gives the known folders in it that are listed too."""
        seens = self._folders[path]
        if seens is None:
            self._block(node_id)
            return []
        deeper: list[tuple[int, bytes]] = []
        left = {child: self._node(child) for child in self._local.children(node_id)}
        by_disk_name = {node.disk_name: child for child, node in left.items()}
        for seen in self._pick_names(node_id, path, seens):
            child_path = _join(path, seen.disk_name)
            child = by_disk_name.get(seen.disk_name)
            if child is None:
                child = self._local.child(node_id, seen.name) if seen.kind is not None else None
            node = left.get(child) if child is not None else None
            if node is not None and seen.kind in (None, node.kind):
                del left[node.id]
                self._vanished.pop(node.id, None)
                if seen.kind is None:
                    self._puts[node.id] = replace(node, is_blocked=True)
                    continue
                self._keep(node, node_id, seen, is_moved=node.disk_name != seen.disk_name)
                if node.kind is Kind.FOLDER and child_path in self._folders:
                    deeper.append((node.id, child_path))
            elif seen.kind is not None:
                self._appeared.append(Appeared(node_id, child_path, seen))
        for child, node in left.items():
            self._vanished[child] = node
            for below in self._local.below(child):
                if below not in self._puts:
                    self._vanished[below] = self._node(below)
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
                    self.problems.append((_join(path, other.disk_name), "name_clash", detail))
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
        self._puts[node.id] = replace(
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

    def _block(self, node_id: int) -> None:
        if node_id != ROOT:
            self._puts[node_id] = replace(self._puts.get(node_id) or self._node(node_id), is_blocked=True)

    # ---- By inode

    def _match_inodes(self) -> None:
        while self._appeared:
            x = self._appeared.popleft()
            node = self._find_by_inode(x)
            if node is not None:
                del self._vanished[node.id]
                self._keep(node, x.parent, x.seen, is_moved=True)
                if node.kind is Kind.FOLDER:
                    todo = self._compare(node.id, x.path)
                    while todo:
                        todo += self._compare(*todo.pop())
            elif x.seen.kind is Kind.FILE:
                self._new_files.append(x)
            else:
                self._put_new_folder(x)

    def _find_by_inode(self, x: Appeared) -> LocalNode | None:
        found = self._trees.by_inode.get(x.seen.fingerprint.inode)
        if found is None:
            return None
        node = self._node(found)
        if node.kind is not x.seen.kind:
            return None
        if found not in self._vanished:
            if found not in self._puts:
                self.doubts.add(self._trees.local_path(node.parent))
            return None
        if node.kind is Kind.FOLDER and not self._is_likely_same(node, x):
            return None
        return node

    def _is_likely_same(self, node: LocalNode, x: Appeared) -> bool:
        """A new folder may have got a dead one's inode: the same also has its mtime, or shares a name."""
        if node.fingerprint.mtime_ns == x.seen.fingerprint.mtime_ns:
            return True
        names = {self._node(child).disk_name for child in self._local.children(node.id)}
        return any(seen.disk_name in names for seen in self._folders.get(x.path) or ())

    # ---- By content, and what is new

    def _match_contents(self, contents: Mapping[bytes, bytes]) -> None:
        by_content: dict[bytes, list[LocalNode]] = {}
        for node in self._vanished.values():
            if node.kind is Kind.FILE and node.content and node.fingerprint.size:
                by_content.setdefault(node.content, []).append(node)
        still_new: list[Appeared] = []
        for x in self._new_files:
            content = contents.get(x.path)
            nodes = by_content.get(content) if content is not None else None
            if not nodes:
                still_new.append(x)
                continue
            nodes.sort(key=lambda node: node.name == x.seen.name)
            node = nodes.pop()
            del self._vanished[node.id]
            self._keep(node, x.parent, x.seen, is_moved=True)
            # Another inode with the same bytes: nothing to read again.
            self._puts[node.id] = replace(self._puts[node.id], content=content)
        self._new_files = still_new

    def _put_new(self, x: Appeared) -> int:
        node_id = self._trees.new_temp()
        seen = x.seen
        content = None if seen.kind is Kind.FILE else b""
        assert seen.kind is not None, "what is never synced does not appear"
        self._puts[node_id] = LocalNode(
            id=node_id,
            parent=x.parent,
            name=seen.name,
            disk_name=seen.disk_name,
            kind=seen.kind,
            fingerprint=seen.fingerprint,
            content=content,
        )
        return node_id

    def _put_new_folder(self, x: Appeared) -> None:
        node_id = self._put_new(x)
        seens = self._folders.get(x.path)
        if seens is None:
            self._puts[node_id] = replace(self._puts[node_id], is_blocked=True)
            return
        for seen in self._pick_names(node_id, x.path, seens):
            if seen.kind is not None:
                self._appeared.append(Appeared(node_id, _join(x.path, seen.disk_name), seen))

    def _node(self, node_id: int) -> LocalNode:
        node = self._local.get(node_id)
        assert node is not None, "a child of a tree is in the tree"
        return node


def _join(folder: bytes, name: bytes) -> bytes:
    return folder + b"/" + name if folder else name


def has_same_stat(node: LocalNode, fingerprint: Fingerprint) -> bool:
    """Whether a file is as the local tree has it; the device's number does not count."""
    return node.fingerprint[:4] == fingerprint[:4]
