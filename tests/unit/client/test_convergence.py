"""Two devices and a server in memory: whatever both do, they end alike and no content is lost."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from client.model import (
    ROOT,
    Fetch,
    Kind,
    LocalNode,
    MakeFolder,
    MoveLocal,
    Park,
    Place,
    RemoteNode,
    RemoveFile,
    RemoveFolder,
    SendDelete,
    SendFile,
    SendFolder,
    SendMove,
)
from client.plan import ENOUGH_ACTIONS, Plan, make_plan
from client.settle import (
    note_deleted,
    note_file_added,
    note_file_updated,
    note_folder_sent,
    note_moved,
    settle,
    synced_as,
    undo_move,
)
from client.tree import Tree
from client.trees import Trees

T = TypeVar("T")
NAMES = ["a", "b", "c", "A"]


class Refused(Exception):
    pass


class Server:
    """The rules of semantics.md, as far as the client meets them."""

    def __init__(self) -> None:
        self.tree: Tree[RemoteNode] = Trees().remote
        self.jid = 0
        self.next_id = 1
        self.log: list[int] = []

    def _put(self, node: RemoteNode) -> RemoteNode:
        self.jid += 1
        node = replace(node, jid=self.jid)
        self.tree.put(node)
        self.log.append(node.id)
        return node

    def _check_parent(self, parent: int) -> None:
        node = self.tree.get(parent)
        if parent != ROOT and (node is None or node.kind is not Kind.FOLDER):
            raise Refused("no such folder")

    def _free(self, parent: int, name: str, suffix: str, me: int = 0) -> str:
        tried, n = name, 0
        while self.tree.child(parent, tried) not in (None, me or None):
            n += 1
            tried = f"{name}{suffix}{n}"
        return tried

    def create_folder(self, parent: int, name: str, autorename: bool) -> RemoteNode:
        self._check_parent(parent)
        if self.tree.child(parent, name) is not None:
            if not autorename:
                raise Refused("conflict")
            name = self._free(parent, name, "-")
        self.next_id += 1
        return self._put(RemoteNode(self.next_id - 1, parent, name, Kind.FOLDER))

    def add(self, parent: int, name: str, content: bytes) -> RemoteNode:
        self._check_parent(parent)
        tried, n = name, 0
        while (held := self.tree.child(parent, tried)) is not None:
            node = self.tree.get(held)
            assert node is not None
            if node.kind is Kind.FILE and node.content == content:
                return node
            n += 1
            tried = f"{name}-{n}"
        self.next_id += 1
        return self._put(
            RemoteNode(
                self.next_id - 1, parent, tried, Kind.FILE, rev=f"r{self.jid + 1}", size=1, content=content
            )
        )

    def update(self, node_id: int, rev: str, content: bytes) -> RemoteNode:
        node = self.tree.get(node_id)
        if node is None:
            raise Refused("not found")
        if node.content == content:
            return node
        if node.rev != rev:
            return self.add(node.parent, node.name + "-conflict", content)
        return self._put(replace(node, rev=f"r{self.jid + 1}", content=content))

    def move(self, node_id: int, parent: int, name: str) -> RemoteNode:
        node = self.tree.get(node_id)
        if node is None:
            raise Refused("not found")
        self._check_parent(parent)
        if node_id == parent or node_id in self.tree.ancestors(parent):
            raise Refused("into itself")
        return self._put(replace(node, parent=parent, name=self._free(parent, name, "-", node_id)))

    def delete(self, node_id: int, rev: str, seen_jid: int) -> None:
        node = self.tree.get(node_id)
        if node is None:
            return
        below = [x for x in map(self.tree.get, self.tree.below(node_id)) if x is not None]
        if node.kind is Kind.FILE:
            if node.rev != rev:
                raise Refused("changed")
        elif any(x.jid > seen_jid for x in [node, *below]):
            raise Refused("changed")
        self.jid += 1
        for x in [*below, node]:
            self.tree.drop(x.id)
            self.log.append(x.id)


@dataclass
class Device:
    """One client: trees, and a disk that is its local tree."""

    server: Server
    gone: "Gone"
    """What the devices have done away with."""
    trees: Trees = field(default_factory=Trees)
    cursor: int = 0
    seen: int = 0

    def read_delta(self) -> None:
        news = list(dict.fromkeys(self.server.log[self.cursor :]))
        for node_id in news:
            if node_id not in self.server.tree and self.is_moved(node_id):
                self.gone.deleted.difference_update(self.contents_at(node_id))
        for node_id in news:
            node = self.server.tree.get(node_id)
            self.trees.drop_remote(node_id) if node is None else self.trees.put_remote(node)
        self.cursor, self.seen = len(self.server.log), self.server.jid

    def step(self, enough: int = ENOUGH_ACTIONS, *, busy: int | None = None) -> bool:
        """One plan, carried out; False when there was nothing to do. Every third entry may be busy."""
        ids = [x for x in self.trees.dirty if x % 3 != busy]
        return self._act(make_plan(self.trees, ids, enough=enough)) or (
            enough < ENOUGH_ACTIONS and self._act(make_plan(self.trees, ids))
        )

    def _act(self, plan: Plan) -> bool:
        if plan.settle:
            for settlement in plan.settle:
                settle(self.trees, settlement)
            return True
        for action in plan.disk:
            self._on_disk(action)
        for sent in plan.send:
            self._send(sent)
        for hashed in plan.hash:
            raise AssertionError(f"the model's files are always hashed: {hashed}")
        return bool(plan.disk or [x for x in plan.send if not isinstance(x, SendFile) or x.is_ready])

    def _on_disk(self, action: object) -> None:
        t = self.trees
        match action:
            case MakeFolder(i) | Fetch(i):
                r, here, s = t.remote.get(i), t.local.get(i), t.synced.get(i)
                assert r is not None
                if here is None:
                    assert t.local.child(r.parent, r.name) is None
                    assert r.parent == ROOT or r.parent in t.local
                    t.put_local(LocalNode(i, r.parent, r.name, r.name.encode(), r.kind, content=r.content))
                    t.put_synced(synced_as(r))
                else:
                    assert s is not None
                    assert here.content == s.content, "only what is synced may be replaced"
                    t.put_local(replace(here, content=r.content))
                    t.put_synced(replace(s, content=r.content, rev=r.rev))
            case MoveLocal(i):
                r, here, s = t.remote.get(i), t.local.get(i), t.synced.get(i)
                assert r is not None
                assert here is not None
                assert s is not None
                if t.local.child(r.parent, r.name) not in (None, i):
                    return  # two moves of one plan met; the next plan sorts them
                assert i not in [r.parent, *t.local.ancestors(r.parent)]
                t.put_local(
                    replace(here, parent=r.parent, name=r.name, disk_name=r.name.encode(), is_parked=False)
                )
                t.put_synced(replace(s, parent=r.parent, name=r.name))
            case Park(i):
                here = t.local.get(i)
                assert here is not None
                t.put_local(replace(here, parent=ROOT, name=f".parked{i}", is_parked=True))
            case RemoveFile(i) | RemoveFolder(i):
                here, s = t.local.get(i), t.synced.get(i)
                assert here is not None
                assert not t.local.has_children(i)
                assert here.is_kept if s is None else here.content == s.content
                t.drop_local(i)
                t.drop_synced(i)

    def _send(self, action: object) -> None:
        try:
            self._try_send(action)
        except Refused:
            if isinstance(action, SendMove) and action.id in self.server.tree:
                here = self.trees.local.get(action.id)
                if here is not None and (here.parent == ROOT or here.parent in self.server.tree):
                    undo_move(self.trees, action.id)

    def _try_send(self, action: object) -> None:
        t = self.trees
        match action:
            case SendFolder(i, autorename):
                here = t.local.get(i)
                assert here is not None
                note_folder_sent(
                    t, i, here.place, self.server.create_folder(here.parent, here.name, autorename)
                )
            case SendMove(i, is_passing):
                here, r = t.local.get(i), t.remote.get(i)
                assert here is not None
                assert r is not None
                place = Place(ROOT, f"passing{i}") if is_passing else here.place
                note_moved(t, i, place, self.server.move(i, *place))
            case SendDelete(i):
                s = t.synced.get(i)
                assert s is not None
                self.server.delete(i, s.rev, self.seen)
                note_deleted(t, i)
            case SendFile(i, is_ready):
                here, s = t.local.get(i), t.synced.get(i)
                assert here is not None
                assert here.content is not None
                if not is_ready:
                    return
                if i < 0:
                    note_file_added(
                        t, i, here.place, here.content, self.server.add(here.parent, here.name, here.content)
                    )
                else:
                    assert s is not None
                    note_file_updated(
                        t, i, here.content, self.server.update(i, s.rev, here.content), here.place
                    )

    # ---- What the user does

    def contents_at(self, node_id: int) -> Iterator[bytes]:
        """What an entry and all below it hold."""
        for node in map(self.trees.local.get, [*self.trees.local.below(node_id), node_id]):
            if node is not None and node.kind is Kind.FILE and node.content is not None:
                yield node.content

    def is_moved(self, node_id: int) -> bool:
        """Whether it is elsewhere on the disk than last agreed."""
        here, s = self.trees.local.get(node_id), self.trees.synced.get(node_id)
        return here is not None and s is not None and not here.is_parked and here.place != s.place

    def move(self, node: LocalNode) -> None:
        """Put it elsewhere. If the deletion is known already it may be back at its old place, and go."""
        if node.id in self.trees.synced and node.id not in self.trees.remote:
            self.gone.deleted.update(self.contents_at(node.id))
        self.trees.put_local(node)

    def folders(self) -> list[int]:
        return [ROOT, *sorted(x.id for x in self.trees.local.nodes() if x.kind is Kind.FOLDER)]

    def act(self, pick: "Choices", contents: list[bytes]) -> None:
        t = self.trees
        ids = sorted(x.id for x in t.local.nodes() if not x.is_parked)
        what = pick(["create", "mkdir", "edit", "move", "delete", "move", "replace"])
        folder = pick(self.folders())
        name = pick(NAMES)
        if what in ("create", "mkdir"):
            if t.local.child(folder, name) is None:
                content = b"" if what == "mkdir" else contents.pop()
                kind = Kind.FOLDER if what == "mkdir" else Kind.FILE
                t.put_local(LocalNode(t.new_temp(), folder, name, name.encode(), kind, content=content))
            return
        if not ids:
            return
        node = t.local.get(pick(ids))
        assert node is not None
        if what == "edit" and node.kind is Kind.FILE:
            self.gone.replaced.add(node.content or b"")
            t.put_local(replace(node, content=contents.pop()))
        elif what == "move":
            held = t.local.child(folder, name)
            if held in (None, node.id) and node.id not in [folder, *t.local.ancestors(folder)]:
                self.move(replace(node, parent=folder, name=name, disk_name=name.encode()))
        elif what == "delete":
            self.gone.deleted.update(self.contents_at(node.id))
            for x in [*t.local.below(node.id), node.id]:
                t.drop_local(x)
        elif what == "replace":
            # Two entries swap names, which only several looks at the disk can have seen as renames.
            twin = t.local.get(pick(ids))
            assert twin is not None
            if twin.parent == node.parent and twin.id != node.id:
                self.move(replace(node, name=twin.name))
                self.move(replace(twin, name=node.name))


@dataclass
class Gone:
    """Contents that need not be there in the end."""

    replaced: set[bytes] = field(default_factory=set)
    deleted: set[bytes] = field(default_factory=set)
    """By one device, and not moved by the other before it heard of that."""


def shape(tree: Tree[RemoteNode] | Tree[LocalNode]) -> dict[tuple[str, ...], bytes | None]:
    found: dict[tuple[str, ...], bytes | None] = {}
    for node in tree.nodes():
        path = [node.name]
        for above in tree.ancestors(node.id):
            parent = tree.get(above)
            assert parent is not None
            path.append(parent.name)
        assert tree.is_reachable(node.id)
        found[tuple(reversed(path))] = node.content
    return found


class Choices:
    """Decisions from a list of numbers, so that a failure shrinks to few of them."""

    def __init__(self, numbers: list[int]):
        self._numbers = list(reversed(numbers))

    def __call__(self, options: Sequence[T]) -> T:
        return options[self._numbers.pop() % len(options) if self._numbers else 0]

    def __bool__(self) -> bool:
        return bool(self._numbers)


def start_with_folders(server: Server, devices: list[Device], contents: list[bytes]) -> None:
    """Give both devices folders with more in them than a small plan holds."""
    parent = ROOT
    for _ in range(3):
        parent = server.create_folder(parent, "a", False).id
        for name in ("b", "c", "d"):
            server.add(parent, name, contents.pop())
    for device in devices:
        device.read_delta()
        while device.step():
            pass


def play(numbers: list[int], enough: int) -> None:
    server = Server()
    gone = Gone()
    devices = [Device(server, gone), Device(server, gone)]
    contents = [f"content {n}".encode() for n in range(400)]
    made = list(contents)
    pick = Choices(numbers)
    if pick([True, False]):
        start_with_folders(server, devices, contents)
    while pick:
        device = pick(devices)
        match pick(range(6)):
            case 0:
                device.read_delta()
            case 1:
                device.step(pick([ENOUGH_ACTIONS, 2, 1]), busy=pick([None, 0, 1, 2]))
            case _:
                device.act(pick, contents)
    converge(server, devices, enough)
    kept = set(made[len(contents) :]) - gone.replaced - gone.deleted
    assert kept <= set(shape(server.tree).values())


def converge(server: Server, devices: list[Device], enough: int) -> None:
    for _ in range(400):
        idle = 0
        for device in devices:
            device.read_delta()
            idle += not device.step(enough)
        if idle == 2 and all(d.cursor == len(server.log) for d in devices):
            break
    for device in devices:
        assert shape(device.trees.local) == shape(server.tree), (make_plan(device.trees), device.trees.dirty)
        assert not device.trees.dirty


@settings(max_examples=500, deadline=None)
# Without a least size most lists would have about five numbers, which is one or two acts.
@given(st.lists(st.integers(0, 255), min_size=40, max_size=160), st.sampled_from([ENOUGH_ACTIONS, 3, 1]))
def test_two_devices_converge_and_lose_nothing(numbers: list[int], enough: int) -> None:
    play(numbers, enough)


@pytest.mark.parametrize("enough", [ENOUGH_ACTIONS, 1])
def test_a_folder_moved_out_of_one_that_is_deleted_comes_whole(enough: int) -> None:
    server = Server()
    devices = [Device(server, Gone()), Device(server, Gone())]
    start_with_folders(server, devices, [f"content {n}".encode() for n in range(9)])
    mover, deleter = devices
    top = server.tree.child(ROOT, "a")
    assert top is not None
    inner = mover.trees.local.get(server.tree.child(top, "a") or 0)
    assert inner is not None
    mover.move(replace(inner, parent=ROOT, name="b"))
    mover.step()
    for node_id in [*deleter.trees.local.below(top), top]:
        deleter.trees.drop_local(node_id)
    deleter.step()
    converge(server, devices, enough)
    assert sum(x.kind is Kind.FILE for x in server.tree.nodes()) == 6
