"""The changes of the trees that a plan or an answer of the server asks for. Pure."""

from dataclasses import replace

from client.model import (
    Adopt,
    Agree,
    Detach,
    Forget,
    Kind,
    Place,
    RemoteNode,
    Settlement,
    SyncedNode,
    Undo,
)
from client.trees import Trees


def settle(trees: Trees, action: Settlement) -> None:
    """Carry out one action that needs neither disk nor server."""
    match action:
        case Agree(node_id):
            _agree(trees, node_id)
        case Adopt(temp, node_id):
            trees.renumber(temp, node_id)
            here = trees.local.get(node_id)
            if here is not None and here.is_kept:
                trees.put_local(replace(here, is_kept=False))
            _agree(trees, node_id)
        case Detach(node_id, is_kept):
            detach(trees, node_id, is_kept=is_kept)
        case Forget(node_id, was_moved):
            if was_moved:
                _mark_moved(trees, node_id)
            trees.drop_synced(node_id)
        case Undo(node_id):
            undo_move(trees, node_id)


def detach(trees: Trees, node_id: int, *, is_kept: bool = False) -> int:
    """Let the local entry live on as a new one; gives its new id."""
    trees.drop_synced(node_id)
    temp = trees.new_temp()
    # A folder that is not only kept was moved here, or lies in one that was: what is in it stays, too.
    trees.renumber(node_id, temp, is_moved=not is_kept)
    here = trees.local.get(temp)
    if here is not None:
        trees.put_local(replace(here, is_kept=is_kept, is_parked=False))
    return temp


def _mark_moved(trees: Trees, folder: int) -> None:
    """Call what the disk has lost of a folder agreed on beside it: so it is seen to be moved on the server
    whenever a plan comes to it."""
    here = trees.synced.get(folder)
    if here is None:
        return
    for child in trees.synced.children(folder):
        s = trees.synced.get(child)
        if s is not None and child not in trees.local:
            trees.put_synced(replace(s, parent=here.parent))


def undo_move(trees: Trees, node_id: int) -> None:
    """Call the local place agreed, so that the server's looks like the change."""
    s, here = trees.synced.get(node_id), trees.local.get(node_id)
    if s is not None and here is not None:
        trees.put_synced(replace(s, parent=here.parent, name=here.name))


def _agree(trees: Trees, node_id: int) -> None:
    r, s, here = trees.remote.get(node_id), trees.synced.get(node_id), trees.local.get(node_id)
    if r is None or here is None:
        return
    if s is None:
        # Met by name: a spelling that differs in case gives way to the server's.
        if r.content == here.content:
            trees.put_synced(replace(synced_as(r), parent=here.parent, name=here.name))
        return
    if r.place == here.place:
        s = replace(s, parent=r.parent, name=r.name)
    if r.content == here.content:
        s = replace(s, rev=r.rev, size=r.size, content=r.content)
    trees.put_synced(s)


def synced_as(r: RemoteNode) -> SyncedNode:
    """A synced node that is all that the remote one is."""
    return SyncedNode(
        id=r.id, parent=r.parent, name=r.name, kind=r.kind, rev=r.rev, size=r.size, content=r.content
    )


# ---- What an accepted operation means


def note_folder_sent(trees: Trees, temp: int, sent: Place, r: RemoteNode) -> None:
    """The server made the folder that was sent as `sent`."""
    trees.put_remote(r)
    _take_id(trees, temp, r.id)
    trees.put_synced(replace(synced_as(r), parent=sent.parent, name=sent.name))


def note_file_added(trees: Trees, temp: int, sent: Place, content: bytes, r: RemoteNode) -> None:
    """The server made a file of what was sent as new."""
    trees.put_remote(r)
    if not _take_id(trees, temp, r.id):
        return
    trees.put_synced(replace(synced_as(r), parent=sent.parent, name=sent.name, content=content))


def note_file_updated(trees: Trees, node_id: int, content: bytes, r: RemoteNode, sent: Place) -> None:
    """The server took new content for `node_id`, or made a conflicted copy of it (another id)."""
    trees.put_remote(r)
    if r.id == node_id:
        s = trees.synced.get(node_id)
        if s is not None:
            trees.put_synced(replace(s, rev=r.rev, size=r.size, content=content))
        return
    # Ours became another entry: the one that we had is the server's again, to be fetched as new.
    trees.drop_synced(node_id)
    if _take_id(trees, node_id, r.id):
        trees.put_synced(replace(synced_as(r), parent=sent.parent, name=sent.name, content=content))


def note_moved(trees: Trees, node_id: int, sent: Place, r: RemoteNode) -> None:
    """The server moved the entry, perhaps under another name than the one sent."""
    trees.put_remote(r)
    s = trees.synced.get(node_id)
    if s is not None:
        trees.put_synced(replace(s, parent=sent.parent, name=sent.name))


def note_deleted(trees: Trees, node_id: int) -> None:
    """The server deleted the entry and all below it.

    What was below stays known until the listing tells of the deletion: somebody may have moved it out before,
    and of what lies in a moved folder the listing says nothing more.
    """
    trees.drop_remote(node_id)


def _take_id(trees: Trees, old: int, new: int) -> bool:
    """Call the local entry `old` by the server's id; False if another local entry already is that one.

    Then both hold the same content, and the one that was sent is called agreed and gone on the server:
    the next plan moves it into the trash.
    """
    if new not in trees.local or old == new:
        trees.renumber(old, new)
        return True
    node = trees.local.get(old)
    if node is None:
        return False
    if old > 0:
        temp = trees.new_temp()
        trees.renumber(old, temp)
        node = replace(node, id=temp)
    if node.kind is Kind.FILE and node.content is not None:
        trees.put_synced(
            SyncedNode(
                id=node.id,
                parent=node.parent,
                name=node.name,
                kind=node.kind,
                size=node.fingerprint.size,
                content=node.content,
            )
        )
    return False
