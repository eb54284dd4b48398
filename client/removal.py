"""What one side's deletion does when the other side has changed something. Pure; part of the planner.

What is gone here is weighed from above, over the whole subtree, once in the life of a plan. What is gone
there is weighed from below: each entry that stays says which folders above it have to stay for it. So a plan
of some steps in a large removal looks at little more than what the steps are about.
"""

from collections.abc import Iterator

from client.model import Kind, LocalNode
from client.trees import Trees


class Removals:
    """Answers about entries that one side has lost, for trees that do not change meanwhile."""

    def __init__(self, trees: Trees):
        self._remote, self._synced, self._local = trees.remote, trees.synced, trees.local
        self._hidden = trees.hidden
        self._news: dict[int, bool] = {}
        self._movers: dict[int, frozenset[int]] = {}

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
        was_moved = {top: self.was_moved_there(top)}
        for at in order:
            if at not in self._news and self._is_gone_here(at):
                below = self._remote.children(at)
                order += below
                was_moved |= dict.fromkeys(below, was_moved[at] or self._is_elsewhere_there(at))
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
            is_news = self._differs(at) or self._hidden.has_children(at) or was_moved[at]
            self._news[at] = is_news or any(self._news[x] for x in below)
            self._movers[at] = frozenset().union(*(self._movers[x] for x in below))

    def was_moved_there(self, node_id: int) -> bool:
        """Whether it, or a folder above that the disk has lost too, was moved on the server.

        It lasts, as Forget marks what lies in such a folder.
        """
        chain = [node_id, *self._remote.ancestors(node_id)]
        return any(self._is_gone_here(x) and self._is_elsewhere_there(x) for x in chain)

    def _is_elsewhere_there(self, node_id: int) -> bool:
        r, s = self._remote.get(node_id), self._synced.get(node_id)
        return r is not None and s is not None and r.place != s.place

    def _is_gone_here(self, node_id: int) -> bool:
        return node_id in self._synced and node_id not in self._local

    def _differs(self, node_id: int) -> bool:
        r, s = self._remote.get(node_id), self._synced.get(node_id)
        return r is None or s is None or r.place != s.place or r.content != s.content

    # ---- Gone there, still here

    def stays_here(self, node_id: int) -> bool | None:
        """Whether an entry that the server has lost must live on for what it is itself.

        None: not known yet, as the file has to be read first.
        """
        here, s = self._local.get(node_id), self._synced.get(node_id)
        assert here is not None, "only what the disk has is asked for"
        if self.was_moved_here(node_id):
            return True
        if here.kind is Kind.FOLDER:
            return False
        return None if here.content is None else s is not None and here.content != s.content

    def was_moved_here(self, node_id: int) -> bool:
        """Whether it, or a folder above that the server has lost too, was moved on the disk.

        It lasts: what lies in such a folder looks moved itself once the folder is detached (Trees.renumber).
        """
        chain = [node_id, *self._local.ancestors(node_id)]
        return any(self._is_gone_there(x) and self._is_moved_here(x) for x in chain)

    def kept_above(self, here: LocalNode) -> Iterator[int]:
        """The folders above an entry that must live on for it, nearest first: those that the server has lost,
        and those that were only kept and have got something now that has to be sent."""
        is_company = self._is_company(here)
        is_reason = is_company or here.is_blocked or self._is_changed(here)
        for above in self._local.ancestors(here.id):
            if not (is_reason or is_company):
                return
            if not self._is_gone_there(above):
                # What is in it is no reason to keep what it lies in, unless it has to be made there itself.
                is_reason = is_company and self._is_only_kept(above)
            if is_reason:
                yield above

    def _is_gone_there(self, node_id: int) -> bool:
        return node_id in self._synced and node_id not in self._remote

    def _is_moved_here(self, node_id: int) -> bool:
        here, s = self._local.get(node_id), self._synced.get(node_id)
        return here is not None and s is not None and not here.is_parked and here.place != s.place

    def _is_changed(self, here: LocalNode) -> bool:
        """Whether it was moved or written since the server has lost it."""
        s = self._synced.get(here.id)
        if s is None or not self._is_gone_there(here.id):
            return False
        return here.content not in (None, s.content) or self._is_moved_here(here.id)

    def _is_company(self, here: LocalNode) -> bool:
        """Whether it has to be sent into the folder that it lies in on the disk."""
        if here.is_blocked or here.is_parked:
            return False
        s, r = self._synced.get(here.id), self._remote.get(here.id)
        if s is None:
            return not here.is_kept
        # Moved in here: it needs the folder. Moved away there: it is about to leave.
        return r is not None and here.place not in (s.place, r.place)

    def _is_only_kept(self, folder: int) -> bool:
        here = self._local.get(folder)
        return here is not None and here.is_kept and folder not in self._synced
