"""Brings the server's changes to the disk: every step's intent stored before, its outcome confirmed after."""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, replace

import msgspec

from client.disk import look
from client.download import Fetched
from client.folder import MARKER_DIR, Folder
from client.model import (
    FOLDER_CONTENT,
    ROOT,
    DiskAction,
    Fetch,
    Fingerprint,
    Kind,
    LocalNode,
    MakeFolder,
    MoveLocal,
    Park,
    RemoteNode,
    RemoveFile,
    RemoveFolder,
    SyncedNode,
)
from client.scan import is_racy
from client.state import State
from client.steps import Outcome, Step, StepKind, do_step, flush_folders, trash_name
from client.transfer import Failed, failure
from wire.errors import ShardboxError
from wire.names import check_name

BATCH_STEPS = 500
"""Steps per pair of transactions: two flushes shared by so many; after a crash so many are looked at."""


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one step; `fingerprint` is that of the thing at its place now."""

    step: Step
    outcome: Outcome | Failed
    fingerprint: Fingerprint | None = None


class Applier:
    """Carries out disk actions in batches."""

    def __init__(self, folder: Folder, state: State):
        self._folder, self._state = folder, state

    async def run(self, actions: Iterable[DiskAction], fetched: dict[int, Fetched]) -> list[Result]:
        """Do these; moves singly and alone, as one changes the paths of others. Fetches need their Fetched.

        Raises:
            FolderProblem: the folder is no longer itself; nothing was touched.
        """
        actions = list(actions)
        results: list[Result] = []
        moves = [x for x in actions if isinstance(x, MoveLocal | Park)]
        if moves:
            for move in moves:
                results += await self._run_batch([move], fetched)
            if any(x.outcome is Outcome.DONE for x in results):
                return results
            # None could be made: what else there is must not wait for them.
            actions = [x for x in actions if x not in moves]
        for at in range(0, len(actions), BATCH_STEPS):
            results += await self._run_batch(actions[at : at + BATCH_STEPS], fetched)
        return results

    async def _run_batch(self, actions: list[DiskAction], fetched: dict[int, Fetched]) -> list[Result]:
        results: list[Result] = []
        steps: list[Step] = []
        for action in actions:
            step = self._prepare(action, fetched)
            if isinstance(step, Step):
                steps.append(step)
            elif step is not None:
                results.append(Result(Step(kind=StepKind.MKDIR, id=action.id), step))
        if not steps:
            return results
        await asyncio.to_thread(self._folder.check)
        with self._state.tx("intent"):
            numbers = [self._state.put_intent(msgspec.msgpack.encode(step)) for step in steps]
        done = await asyncio.to_thread(_do_steps, steps)
        with self._state.tx("confirm"):
            for number, result in zip(numbers, done, strict=True):
                self._state.delete_intent(number)
                if result.outcome is Outcome.DONE:
                    confirm(self._state, result.step, result.fingerprint)
                    if isinstance(fetched.get(result.step.id), Fetched):
                        blocks = fetched[result.step.id].blocks
                        self._state.put_local_blocks(result.step.id, blocks)
        return results + done

    def _prepare(self, action: DiskAction, fetched: dict[int, Fetched]) -> Step | Failed | None:
        """The action as a step; None when the trees have moved on since it was planned."""
        trees = self._state.trees
        r, here = trees.remote.get(action.id), trees.local.get(action.id)
        match action:
            case RemoveFile(node_id) | RemoveFolder(node_id) if here is not None:
                path = self._path(node_id)
                return Step(
                    kind=StepKind.TRASH if here.kind is Kind.FILE else StepKind.RMDIR,
                    id=node_id,
                    source=path,
                    trash=trash_name(self._folder.trash, here.disk_name),
                    expected=here.fingerprint,
                )
            case Park(node_id) if here is not None:
                name = f"{here.name[:50]} (moving {node_id})".encode()
                return self._move(here, ROOT, name.decode(), StepKind.PARK)
            case MoveLocal(node_id) if here is not None and r is not None:
                chain = [r.parent, *trees.local.ancestors(r.parent)]
                holder = trees.local.child(r.parent, r.name)
                is_free = holder in (None, node_id) and node_id not in chain
                if not is_free or not (r.parent == ROOT or r.parent in trees.local):
                    return None
                return _check_name(r) or self._move(here, r.parent, r.name, StepKind.MOVE)
            case MakeFolder() if r is not None:
                target = self._new_path(r)
                return _check_name(r) or Step(
                    kind=StepKind.MKDIR,
                    id=r.id,
                    target=target,
                    place=r.place,
                    disk_name=r.name.encode(),
                )
            case Fetch() if r is not None and r.id in fetched:
                return _check_name(r) or self._place(r, here, fetched[r.id])
            case _:
                return None

    def _move(self, here: LocalNode, parent: int, name: str, kind: StepKind) -> Step:
        return Step(
            kind=kind,
            id=here.id,
            source=self._path(here.id),
            target=_join(self._path(parent), name.encode()),
            inode=here.fingerprint.inode,
            place=(parent, name),
            disk_name=name.encode(),
        )

    def _place(self, r: RemoteNode, here: LocalNode | None, got: Fetched) -> Step:
        return Step(
            kind=StepKind.PLACE,
            id=r.id,
            source=got.job.temp,
            target=self._new_path(r) if here is None else self._path(r.id),
            trash=trash_name(self._folder.trash, r.name.encode()),
            inode=got.fingerprint.inode,
            sealed=got.fingerprint,
            expected=None if here is None else here.fingerprint,
            place=r.place if here is None else here.place,
            disk_name=r.name.encode() if here is None else here.disk_name,
            rev=got.job.rev,
            size=got.job.size,
            content=got.job.content,
        )

    def _path(self, node_id: int) -> bytes:
        return self._folder.disk_path(self._state.trees.local_path(node_id))

    def _new_path(self, r: RemoteNode) -> bytes:
        return _join(self._path(r.parent), r.name.encode())


def confirm(state: State, step: Step, found: Fingerprint | None) -> None:
    """Write what a step did into the trees. Tx: the caller's."""
    trees = state.trees
    here, s = trees.local.get(step.id), trees.synced.get(step.id)
    if step.kind in (StepKind.TRASH, StepKind.RMDIR):
        trees.drop_local(step.id)
        trees.drop_synced(step.id)
        return
    parent, name = step.place
    if step.kind in (StepKind.MOVE, StepKind.PARK):
        is_parked = step.kind is StepKind.PARK
        if here is not None:
            seen = found or here.fingerprint
            is_same = here.kind is Kind.FOLDER or seen.is_same_body(here.fingerprint)
            trees.put_local(
                replace(
                    here,
                    parent=parent,
                    name=name,
                    disk_name=step.disk_name,
                    fingerprint=seen,
                    content=here.content if is_same else None,
                    is_parked=is_parked,
                )
            )
        if s is not None and not is_parked:
            trees.put_synced(replace(s, parent=parent, name=name))
        return
    if found is None:
        return
    kind = Kind.FOLDER if step.kind is StepKind.MKDIR else Kind.FILE
    content = FOLDER_CONTENT if kind is Kind.FOLDER else step.content
    is_untouched = step.sealed is None or found.is_same_body(step.sealed)
    trees.put_local(
        LocalNode(
            id=step.id,
            parent=parent,
            name=name,
            disk_name=step.disk_name,
            kind=kind,
            fingerprint=found,
            content=content if is_untouched else None,
            is_racy=kind is Kind.FILE and is_racy(found.mtime_ns, found.ctime_ns),
        )
    )
    base = s or SyncedNode(id=step.id, parent=parent, name=name, kind=kind)
    trees.put_synced(replace(base, rev=step.rev, size=step.size, content=content))


def _do_steps(steps: list[Step]) -> list[Result]:
    """All steps, in a thread, then what they did flushed to the disk."""
    results = [_do_one(step) for step in steps]
    flush_folders([result.step for result in results if result.outcome is Outcome.DONE])
    return results


def _do_one(step: Step) -> Result:
    try:
        outcome = do_step(step)
        found = look(step.target) if outcome is Outcome.DONE and step.target else None
        return Result(step, outcome, found[1] if found else None)
    except OSError as problem:
        return Result(step, failure(step.id, problem))


def _check_name(r: RemoteNode) -> Failed | None:
    """The server's names are checked like everybody's: nothing may lead out of the folder."""
    try:
        check_name(r.name)
    except ShardboxError as error:
        return Failed(r.id, error.code, str(error))
    if r.parent == ROOT and r.name.casefold().encode() == MARKER_DIR:
        return Failed(r.id, "disallowed_name", "the name belongs to the client's own folder")
    return None


def _join(folder: bytes, name: bytes) -> bytes:
    return folder + b"/" + name
