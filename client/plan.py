"""What to do next, from the three trees. Pure; the hard rules of syncing live here and nowhere else.

A plan holds what can be done *now*. Whoever carries it out changes the trees and asks again; what had to
wait for something (a free name, a folder that is to come) turns up in a later plan. The rules:

* Content and place are merged apart. Only one side changed: the other follows. Both to the same: agreed.
* Both changed the content: ours is sent on top of the rev that we knew, and the server keeps both.
* Both moved: ours is sent, so the later commit wins. A move that the server cannot make is undone here.
* Deleted on one side, untouched on the other: deleted. Changed on the other: it stays (a folder stays for
  what is in it).
* A name held by something that is about to leave is waited for; cycles of such waits are broken by a passing
  name.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from client.model import (
    ROOT,
    Action,
    Adopt,
    Agree,
    Detach,
    DiskAction,
    Fetch,
    Forget,
    Hash,
    Kind,
    LocalNode,
    MakeFolder,
    MoveLocal,
    Park,
    RemoteNode,
    RemoveFile,
    RemoveFolder,
    SendAction,
    SendDelete,
    SendFile,
    SendFolder,
    SendMove,
    Settlement,
    SyncedNode,
    Undo,
)
from client.removal import Removals
from client.trees import Trees

ENOUGH_ACTIONS = 2_000
"""Two full batches: what is planned beyond that would be planned again before its turn comes."""
WAITING_PER_ACTION = 10
"""A new folder may hold a million files, all of which wait for it: so many are looked at in vain for each
action that would be enough, then the first folders are made."""


@dataclass(slots=True)
class Plan:
    """What can be done now, by where it is done."""

    settle: list[Settlement] = field(default_factory=list)
    disk: list[DiskAction] = field(default_factory=list)
    send: list[SendAction] = field(default_factory=list)
    hash: list[Hash] = field(default_factory=list)
    waiting: dict[int, set[int]] = field(default_factory=dict)
    """Who has to wait, and for whom."""
    is_whole: bool = False
    """Whether all that was asked about has been looked at."""

    def actions(self) -> list[Action]:
        """All of it."""
        return [*self.settle, *self.disk, *self.send, *self.hash]


def make_plan(trees: Trees, ids: Iterable[int] | None = None, *, enough: int = ENOUGH_ACTIONS) -> Plan:
    """What can be done now about these ids, in their order, or about all that are out of step.

    With `enough` to do it does not look further, nor with something to do and many that wait: who carries it
    out asks again anyway. Deletions do not count, as they may have to wait for an answer.
    """
    planner = _Planner(trees)
    for node_id in trees.dirty if ids is None else ids:
        planner.decide(node_id)
        has_many_waiting = len(planner.plan.waiting) >= WAITING_PER_ACTION * enough
        if planner.count >= enough or (planner.count and has_many_waiting):
            break
    else:
        planner.plan.is_whole = True
        planner.break_cycles()
    # A stable sort: new folders stay in the order of their depth. Moves come before commits, as a commit that
    # loses becomes another entry.
    planner.plan.send.sort(key=lambda action: _SEND_ORDER[type(action)])
    return planner.plan


_SEND_ORDER = {SendFolder: 0, SendMove: 1, SendDelete: 2, SendFile: 3}


class _Planner:
    def __init__(self, trees: Trees):
        self.remote, self.synced, self.local = trees.remote, trees.synced, trees.local
        self.hidden = trees.hidden
        self.removals = Removals(trees)
        self.plan = Plan()
        self._decided: set[int] = set()
        self._folders: set[int] = set()
        """New folders that this plan sends under their own name: what is new in them can go along."""
        self._kept: set[int] = set()
        """Folders that live on, so that nothing further that is found in them matters."""
        self._waiting_sends: set[int] = set()
        self._waiting_moves: set[int] = set()
        self._deletes = 0

    @property
    def count(self) -> int:
        """How much there is to do, without deletions."""
        plan = self.plan
        return len(plan.settle) + len(plan.disk) + len(plan.hash) + len(plan.send) - self._deletes

    def decide(self, node_id: int) -> None:
        """Look at one entry."""
        if node_id in self._decided:
            return
        self._decided.add(node_id)
        r, s, here = self.remote.get(node_id), self.synced.get(node_id), self.local.get(node_id)
        if here is not None:
            self._keep_above(here)
            if here.is_blocked:
                return
        if s is None:
            if r is None and here is not None:
                self._depart(here)
            elif r is not None and here is None:
                self._arrive(r)
            elif r is not None and here is not None:
                self.plan.settle.append(Detach(node_id))
        elif here is None:
            self._decide_gone_here(s, r)
        elif r is None:
            self._decide_gone_there(s, here)
        else:
            self._merge_content(r, s, here)
            self._merge_place(r, s, here)

    def _keep_above(self, here: LocalNode) -> None:
        """Decide anew on folders above that turn out to have to live on."""
        kept = [x for x in self.removals.kept_above(here) if x not in self._kept]
        self._kept.update(kept)
        self._decided.difference_update(kept)
        for node_id in reversed(kept):
            self.plan.waiting.pop(node_id, None)
            self.decide(node_id)

    # ---- Both sides have it

    def _merge_content(self, r: RemoteNode, s: SyncedNode, here: LocalNode) -> None:
        if here.content is None:
            self._add_send(SendFile(here.id)) if r.content == s.content else self.plan.hash.append(
                Hash(here.id)
            )
        elif r.content == here.content:
            if (s.content, s.rev) != (r.content, r.rev):
                self.plan.settle.append(Agree(here.id))
        elif here.content == s.content:
            self.plan.disk.append(Fetch(here.id))
        else:
            self._add_send(SendFile(here.id))

    def _merge_place(self, r: RemoteNode, s: SyncedNode, here: LocalNode) -> None:
        if here.is_parked:
            self._move_here(r)
        elif here.place == r.place:
            if s.place != r.place:
                self.plan.settle.append(Agree(here.id))
        elif here.place != s.place:
            self._move_there(here)
        else:
            self._move_here(r)

    def _move_here(self, r: RemoteNode) -> None:
        if self._is_free_here(r):
            self.plan.disk.append(MoveLocal(r.id))
        else:
            self._waiting_moves.add(r.id)

    def _is_free_here(self, r: RemoteNode) -> bool:
        """Whether the disk can take the entry at its remote place; if not, notes what to wait for."""
        waits = self.plan.waiting.setdefault(r.id, set())
        if r.parent != ROOT and r.parent not in self.local:
            waits.add(r.parent)
        else:
            chain = [r.parent, *self.local.ancestors(r.parent)]
            if r.id in chain:
                waits.update(chain[: chain.index(r.id)])
            holder = self.local.child(r.parent, r.name)
            if holder is not None and holder != r.id:
                waits.add(holder)
        if not waits:
            del self.plan.waiting[r.id]
        return not waits

    def _move_there(self, here: LocalNode) -> None:
        waits = self.plan.waiting.setdefault(here.id, set())
        if here.parent != ROOT and here.parent not in self.remote:
            waits.add(here.parent)
        else:
            chain = [here.parent, *self.remote.ancestors(here.parent)]
            if here.id in chain:
                above = chain[: chain.index(here.id)]
                movers = {x for x in above if self._is_moving_there(x)}
                if not movers:
                    del self.plan.waiting[here.id]
                    self.plan.settle.append(Undo(here.id))
                    return
                waits |= movers
            holder = self.remote.child(here.parent, here.name)
            if holder is not None and holder != here.id and self._is_leaving(holder):
                waits.add(holder)
        if waits:
            self._waiting_sends.add(here.id)
        else:
            del self.plan.waiting[here.id]
            self._add_send(SendMove(here.id))

    def _is_moving_there(self, node_id: int) -> bool:
        r, s, here = self.remote.get(node_id), self.synced.get(node_id), self.local.get(node_id)
        if r is None or s is None or here is None or here.is_parked or here.is_blocked:
            return False
        return here.place not in (s.place, r.place)

    def _is_leaving(self, node_id: int) -> bool:
        """Whether we are about to move or delete what holds a name on the server."""
        if node_id in self.local:
            return self._is_moving_there(node_id)
        return node_id in self.synced and not self.removals.is_news_there(node_id)

    # ---- One side has it, and the other never had

    def _arrive(self, r: RemoteNode) -> None:
        if self._is_free_here(r):
            self.plan.disk.append(MakeFolder(r.id) if r.kind is Kind.FOLDER else Fetch(r.id))

    def _depart(self, here: LocalNode) -> None:
        holder = None
        if here.parent < ROOT:
            self._decide_above(here)
            has_parent = here.parent in self._folders
        else:
            has_parent = here.parent == ROOT or here.parent in self.remote
            holder = self.remote.child(here.parent, here.name) if has_parent else None
        if here.kind is Kind.FOLDER and (has_parent or self._is_only_kept(here)):
            self._depart_folder(here, holder)
        elif has_parent:
            self._depart_file(here, holder)
        else:
            self.plan.waiting[here.id] = {here.parent}
            if here.kind is Kind.FILE:
                self._add_send(SendFile(here.id, is_ready=False))

    def _is_only_kept(self, here: LocalNode) -> bool:
        return here.is_kept and here.id not in self._kept

    def _decide_above(self, here: LocalNode) -> None:
        """Decide on the new folders above, the uppermost first: a tree may be deeper than Python's stack."""
        above = [x for x in (here.parent, *self.local.ancestors(here.parent)) if x < ROOT]
        for node_id in reversed(above):
            self.decide(node_id)

    def _depart_folder(self, here: LocalNode, holder: int | None) -> None:
        r = self.remote.get(holder) if holder is not None else None
        if r is not None and r.kind is Kind.FOLDER and r.id not in self.local:
            self._kept.add(here.id)
            self.plan.settle.append(Adopt(here.id, r.id))
        elif self._is_only_kept(here):
            if not self.local.has_children(here.id):
                self.plan.disk.append(RemoveFolder(here.id))
        elif r is None and self.hidden.child(here.parent, here.name) is not None:
            # It gets another name (selection.py); what is in it goes along when that is known.
            self._add_send(SendFolder(here.id, autorename=True))
        elif r is None:
            self._folders.add(here.id)
            self._add_send(SendFolder(here.id))
        elif self._is_leaving(r.id):
            self.plan.waiting[here.id] = {r.id}
        else:
            self._add_send(SendFolder(here.id, autorename=True))

    def _depart_file(self, here: LocalNode, holder: int | None) -> None:
        # A file in a folder that this very plan sends goes along with a later plan: by then the folder has
        # an id, and its name is final.
        is_ready = here.parent >= ROOT
        r = self.remote.get(holder) if holder is not None else None
        if r is not None and r.kind is Kind.FILE and r.id not in self.local:
            s = self.synced.get(r.id)
            if s is not None and self.removals.is_news_there(r.id):
                self.plan.waiting[here.id] = {r.id}
                is_ready = False
            elif s is not None or here.content == r.content:
                # Deleted and made again between two looks is an edit; made alike on both sides is one file.
                self.plan.settle.append(Adopt(here.id, r.id))
                return
            elif here.content is None:
                is_ready = False
        elif r is not None and self._is_leaving(r.id):
            self.plan.waiting[here.id] = {r.id}
            is_ready = False
        self._add_send(SendFile(here.id, is_ready=is_ready))

    # ---- One side has lost it

    def _decide_gone_here(self, s: SyncedNode, r: RemoteNode | None) -> None:
        if r is None or self.removals.is_news_there(s.id):
            self.plan.settle.append(Forget(s.id, was_moved=self.removals.was_moved_there(s.id)))
        elif not self._is_covered(r):
            waits = self.removals.movers_out(s.id)
            if waits:
                self.plan.waiting[s.id] = set(waits)
            else:
                self._deletes += 1
                self._add_send(SendDelete(s.id))

    def _is_covered(self, r: RemoteNode) -> bool:
        """Whether the folder above is deleted as well, or has been, which takes this along."""
        above = r.parent
        if above == ROOT or above in self.local:
            return False
        if above not in self.remote:
            # What was moved out of it in time, and what was not, is for the listing to tell.
            return True
        return above in self.synced and not self.removals.is_news_there(above)

    def _decide_gone_there(self, s: SyncedNode, here: LocalNode) -> None:
        fate = here.id in self._kept or self.removals.stays_here(here.id)
        if fate is None:
            self.plan.hash.append(Hash(here.id))
        elif fate:
            self._kept.add(here.id)
            is_kept = here.kind is Kind.FOLDER and not self.removals.was_moved_here(here.id)
            self.plan.settle.append(Detach(here.id, is_kept=is_kept))
        elif here.kind is Kind.FILE:
            self.plan.disk.append(RemoveFile(here.id))
        elif not self.local.has_children(here.id):
            self.plan.disk.append(RemoveFolder(here.id))

    # ---- Cycles

    def break_cycles(self) -> None:
        """Give one member of each cycle of waits a passing name."""
        done: set[int] = set()
        for start in sorted(self._waiting_sends | self._waiting_moves):
            if start in done:
                continue
            cycle = self._find_cycle(start)
            if not cycle or done & cycle:
                continue
            done |= cycle
            send = min(cycle & self._waiting_sends, default=None)
            if send is not None:
                self._add_send(SendMove(send, is_passing=True))
                continue
            move = min(cycle & self._waiting_moves, default=None)
            if move is not None:
                here = self.local.get(move)
                if here is not None and not here.is_parked:
                    self.plan.disk.append(Park(move))

    def _find_cycle(self, start: int) -> set[int]:
        """The ids on some way through the waits from `start` back to it."""
        came_from: dict[int, int] = {}
        todo = [start]
        while todo:
            at = todo.pop()
            for other in self.plan.waiting.get(at, ()):
                if other == start:
                    cycle = {start, at}
                    while at != start:
                        at = came_from[at]
                        cycle.add(at)
                    return cycle
                if other not in came_from:
                    came_from[other] = at
                    todo.append(other)
        return set()

    def _add_send(self, action: SendAction) -> None:
        self.plan.send.append(action)
