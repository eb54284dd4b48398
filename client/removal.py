"""What one side's deletion does when the other side has changed something. Pure; part of the planner.

Both questions run over whole subtrees, so their answers are kept for the life of one plan.
"""

from client.model import Kind, LocalNode
from client.trees import Trees


class Removals:
    """Answers about entries that one side has lost, for trees that do not change meanwhile."""

    def __init__(self, trees: Trees):
        self._remote, self._synced, self._local = trees.remote, trees.synced, trees.local
        self._hidden = trees.hidden
        self._news: dict[int, bool] = {}
        self._movers: dict[int, frozenset[int]] = {}
        self._stays: dict[int, bool | None] = {}

    # ---- Gone here, still there

    def is_news_there(self, node_id: int) -> bool:
        """Whether the server has something new in or at an entry that the disk has lost."""
        if node_id not in self._news:
            self._weigh(node_id)
        return self._news[node_id]

    def movers_out(self, node_id: int) -> frozenset[int]:
        """What lies below it on the server and is elsewhere on the disk: it has to be moved out first."""
        if node_id not in self._movers:
            self._weigh(node_id)
        return self._movers[node_id]

    def _weigh(self, top: int) -> None:
        # Without recursion: a tree may be deeper than Python's stack.
        order = [top]
        for at in order:
            if at not in self._news and self._is_gone_here(at):
                order += self._remote.children(at)
        for at in reversed(order):
            if at in self._news:
                continue
            if not self._is_gone_here(at):
                is_mover = self._is_moved_here(at)
                self._news[at] = not is_mover
                self._movers[at] = frozenset({at}) if is_mover else frozenset()
                continue
            below = self._remote.children(at)
            # What is left out here has not been seen by whoever deletes here.
            is_news = self._differs(at) or self._hidden.has_children(at)
            self._news[at] = is_news or any(self._news[x] for x in below)
            self._movers[at] = frozenset().union(*(self._movers[x] for x in below))

    def _is_gone_here(self, node_id: int) -> bool:
        return node_id in self._synced and node_id not in self._local

    def _differs(self, node_id: int) -> bool:
        r, s = self._remote.get(node_id), self._synced.get(node_id)
        return r is None or s is None or r.place != s.place or r.content != s.content

    # ---- Gone there, still here

    def stays_here(self, node_id: int) -> bool | None:
        """Whether an entry that the server has lost must live on, with what the disk has below it.

        None: not known yet, as a file in it has to be read first or has to move away first.
        """
        if self.was_moved_here(node_id):
            return True
        if node_id not in self._stays:
            self._weigh_stays(node_id)
        return self._stays[node_id]

    def was_moved_here(self, node_id: int) -> bool:
        """Whether it, or a folder above that the server has lost too, was moved on the disk."""
        chain = [node_id, *self._local.ancestors(node_id)]
        return any(self._is_gone_there(x) and self._is_moved_here(x) for x in chain)

    def _weigh_stays(self, top: int) -> None:
        order = [top]
        for at in order:
            if at not in self._stays and self._is_gone_there(at):
                order += self._local.children(at)
        for at in reversed(order):
            if at not in self._stays:
                self._stays[at] = self._stays_one(at)

    def _stays_one(self, node_id: int) -> bool | None:
        here = self._local.get(node_id)
        assert here is not None, "only what the disk has is asked for"
        if here.is_blocked:
            return True
        if not self._is_gone_there(node_id):
            return self._is_company(here)
        if self._is_moved_here(node_id):
            return True
        if here.kind is Kind.FILE:
            s = self._synced.get(node_id)
            return None if here.content is None else s is not None and here.content != s.content
        below = [self._stays[x] for x in self._local.children(node_id)]
        if any(below):
            return True
        return None if None in below else False

    def _is_gone_there(self, node_id: int) -> bool:
        return node_id in self._synced and node_id not in self._remote

    def _is_moved_here(self, node_id: int) -> bool:
        here, s = self._local.get(node_id), self._synced.get(node_id)
        return here is not None and s is not None and not here.is_parked and here.place != s.place

    def _is_company(self, here: LocalNode) -> bool:
        """Whether something that is not gone keeps the folder that it lies in on the disk."""
        s, r = self._synced.get(here.id), self._remote.get(here.id)
        if s is None or r is None:
            return not here.is_kept or self.has_company(here.id)
        # Moved in here: it needs the folder. Moved away there: it is about to leave.
        return here.place not in (s.place, r.place) and not here.is_parked

    def has_company(self, folder: int) -> bool:
        """Whether a folder that was only kept has got something that has to be sent."""
        for found in self._local.below(folder):
            node = self._local.get(found)
            if node is None or node.is_blocked or node.is_kept:
                continue
            s, r = self._synced.get(found), self._remote.get(found)
            if s is None or (r is not None and node.place not in (s.place, r.place)):
                return True
        return False
