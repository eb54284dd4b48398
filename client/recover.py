"""After a crash: judges each disk step that was intended, from what is on the disk. Blocking; at start only.

A step that was done is confirmed; one that was not is forgotten (its plan will be made again); one that was
cut half-way is finished or taken back.
"""

import contextlib
import os

import msgspec

from client.apply import confirm
from client.disk import look
from client.folder import Folder
from client.model import Fingerprint, Kind
from client.state import State
from client.steps import Outcome, Step, StepKind, finish_exchange, finish_slowly, finish_trash


def recover(folder: Folder, state: State) -> None:
    """Settle all intents, then remove temporary files that nothing needs."""
    judge_intents(folder, state)
    _remove_temps(folder, state)


def judge_intents(folder: Folder, state: State) -> None:
    """Settle all intents; no step may be under way."""
    folder.check()
    decoder = msgspec.msgpack.Decoder(Step)
    for number, packed in state.list_intents():
        step = decoder.decode(packed)
        with contextlib.suppress(FileNotFoundError):
            is_done, found = _judge(step)
            with state.tx("confirm"):
                state.delete_intent(number)
                if is_done:
                    confirm(state, step, found)
            continue
        with state.tx("confirm"):
            state.delete_intent(number)


def _judge(step: Step) -> tuple[bool, Fingerprint | None]:
    """Whether the step has been done (finishing it, if that is what is left to do)."""
    if step.kind is StepKind.MKDIR:
        # A folder that is there is taken for this one by the next plan, as folders of one name merge.
        return False, None
    if step.kind is StepKind.RMDIR:
        return look(step.source) is None, None
    if step.kind is StepKind.TRASH:
        in_trash = look(step.trash)
        return in_trash is not None and finish_trash(step) is Outcome.DONE, None
    if step.kind is StepKind.PLACE and step.expected is not None:
        _finish_replacement(step)
    target = look(step.target)
    if target is None or target[1].inode != step.inode:
        return False, None
    if step.kind is StepKind.PLACE and target[0] is not Kind.FILE:
        return False, None
    return True, target[1]


def _finish_replacement(step: Step) -> None:
    assert step.expected is not None, "only replacements are finished"
    old_inode = step.expected.inode
    source, target, trash = look(step.source), look(step.target), look(step.trash)
    if target is not None and target[1].inode == step.inode:
        if source is not None and source[1].inode == old_inode:
            finish_exchange(step)
    elif target is None and trash is not None and trash[1].inode == old_inode:
        finish_slowly(step)


def _remove_temps(folder: Folder, state: State) -> None:
    """A temporary file is named for entry and content: those still wanted are taken up again."""
    trees = state.trees
    for name in os.listdir(folder.tmp):
        node_id = name.partition(b"-")[0]
        r = trees.remote.get(int(node_id)) if node_id.isdigit() else None
        if r is None or name != temp_name(r.id, r.content) or r.id not in trees.dirty:
            os.unlink(folder.tmp + b"/" + name)


def temp_name(node_id: int, content: bytes) -> bytes:
    """What a download's temporary file is called."""
    return f"{node_id}-{content.hex()}".encode()
