"""From entries to the metadata records of the API."""

from collections.abc import Sequence
from dataclasses import replace

from metaserver.model.rows import Entry, Kind, Rev, RevTimes
from runtime.clock import format_us
from wire.api import Metadata, Tag
from wire.hashes import BlockHash
from wire.ids import NsId, format_file_id, format_rev
from wire.names import MAX_SHOWN_PATH_CHARS

LIVE_TAG = {Kind.FILE: Tag.FILE, Kind.FOLDER: Tag.FOLDER}


def present_entry(
    ns_id: NsId,
    entry: Entry,
    *,
    path: str | None = None,
    times: RevTimes | None = None,
    blocks: Sequence[BlockHash] | None = None,
) -> Metadata:
    """A file or folder; with its path, a rev's times and blocks where they are known."""
    fields: dict[str, object] = {
        "parent_id": format_file_id(ns_id, entry.parent_id),
        "name": entry.name,
        "jid": entry.last_jid,
    }
    if path is not None and len(path) <= MAX_SHOWN_PATH_CHARS:
        fields |= {"path_display": path, "path_lower": path.lower()}
    if entry.kind is Kind.FILE and entry.rev_jid is not None and entry.content_hash is not None:
        fields |= {
            "rev": format_rev(ns_id, entry.rev_jid),
            "size": entry.size,
            "content_hash": entry.content_hash.hex(),
        }
    if times is not None:
        fields |= {
            "client_modified": format_us(times.client_modified_us),
            "server_modified": format_us(times.server_modified_us),
        }
    if blocks is not None:
        fields["blocks"] = [block.hex() for block in blocks]
    return Metadata(tag=LIVE_TAG[entry.kind], id=format_file_id(ns_id, entry.entry_id), **fields)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def present_rev(ns_id: NsId, entry: Entry, path: str | None, rev: Rev) -> Metadata:
    """A version of a file; name and place are the file's own."""
    then = replace(entry, last_jid=rev.jid, rev_jid=rev.jid, size=rev.size, content_hash=rev.content_hash)
    return present_entry(ns_id, then, path=path, times=rev.times)
