"""From operations as they come over the wire to requests that the rules understand."""

from metaserver.model.operations import (
    CommitRequest,
    CopyRequest,
    CreateFolderRequest,
    DeleteRequest,
    MoveRequest,
    Request,
    RestoreRequest,
    Target,
)
from metaserver.model.rows import Content
from runtime.clock import parse_time_us
from wire.api import CommitFile, Copy, CreateFolder, Delete, Move, Operation, Restore, WriteMode
from wire.errors import BadRequest, ContentMismatch
from wire.hashes import MAX_FILE_BYTES, ContentHash, block_count, content_hash, parse_hash, parse_hashes
from wire.ids import Jid, NsId, parse_rev
from wire.names import parse_target


def parse_operation(operation: Operation, root_ns: NsId) -> tuple[NsId, Request]:
    """The namespace of an operation, and what it asks there.

    Raises:
        ShardboxError: a malformed path, id, rev, time or hash; content that does not fit itself; places in
            two namespaces.
    """
    match operation:
        case CommitFile():
            return _parse_commit(operation, root_ns)
        case CreateFolder():
            ns_id, target = _target(operation.path, root_ns)
            return ns_id, CreateFolderRequest(target, operation.autorename)
        case Move():
            ns_id, source, target = _two_targets(operation, root_ns)
            return ns_id, MoveRequest(source, target, operation.autorename)
        case Copy():
            ns_id, source, target = _two_targets(operation, root_ns)
            return ns_id, CopyRequest(source, target, operation.autorename)
        case Restore():
            ns_id, target = _target(operation.path, root_ns)
            return ns_id, RestoreRequest(target, _rev_in(operation.rev, ns_id))
        case Delete():
            ns_id, target = _target(operation.path, root_ns)
            rev_jid = None if operation.parent_rev is None else _rev_in(operation.parent_rev, ns_id)
            seen_jid = None if operation.seen_jid is None else Jid(operation.seen_jid)
            return ns_id, DeleteRequest(target, rev_jid, seen_jid)


def _parse_commit(operation: CommitFile, root_ns: NsId) -> tuple[NsId, CommitRequest]:
    ns_id, target = _target(operation.path, root_ns)
    if (operation.rev is not None) != (operation.mode is WriteMode.UPDATE):
        raise BadRequest("`rev` goes with mode update, and only with it")
    if operation.size > MAX_FILE_BYTES:
        raise ContentMismatch(f"a file has at most {MAX_FILE_BYTES} bytes")
    blocks = parse_hashes(operation.blocks)
    if len(blocks) != block_count(operation.size):
        raise ContentMismatch(f"a file of {operation.size} bytes has {block_count(operation.size)} blocks")
    claimed = ContentHash(parse_hash(operation.content_hash))
    if content_hash(blocks) != claimed:
        raise ContentMismatch("content_hash is not that of the blocks")
    try:
        client_modified_us = parse_time_us(operation.client_modified)
    except ValueError as error:
        raise BadRequest("client_modified has the form 2015-05-12T15:50:38Z") from error
    content = Content(operation.size, claimed, client_modified_us, b"".join(blocks))
    rev_jid = None if operation.rev is None else _rev_in(operation.rev, ns_id)
    return ns_id, CommitRequest(
        target, content, blocks, operation.mode, rev_jid, operation.autorename, operation.strict_conflict
    )


def _target(path: str, root_ns: NsId) -> tuple[NsId, Target]:
    ns_id, anchor, names = parse_target(path, root_ns)
    return ns_id, Target(anchor, names)


def _two_targets(operation: Move | Copy, root_ns: NsId) -> tuple[NsId, Target, Target]:
    ns_id, source = _target(operation.from_path, root_ns)
    to_ns, target = _target(operation.to_path, root_ns)
    if to_ns != ns_id:
        raise BadRequest("a move or copy stays inside one namespace")
    return ns_id, source, target


def _rev_in(text: str, ns_id: NsId) -> Jid:
    rev_ns, jid = parse_rev(text)
    # A rev of another namespace is no rev of this file; 0 is nobody's.
    return jid if rev_ns == ns_id else Jid(0)
