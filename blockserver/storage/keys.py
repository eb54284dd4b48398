"""How objects are named in a store."""

import re

from blockserver.storage.backend import ObjectName, StagedName
from wire.hashes import BlockHash

_OBJECT = re.compile(r"([0-9a-f]{64})\.([0-9a-f]{32})")


def format_object(name: ObjectName) -> str:
    """`<hash>.<generation>`, in hex. Sorts by hash, then generation."""
    return f"{name.hash.hex()}.{name.generation.hex()}"


def parse_object(text: str) -> ObjectName | None:
    """The name that `format_object` wrote; None: not one of ours."""
    found = _OBJECT.fullmatch(text)
    return found and ObjectName(BlockHash(bytes.fromhex(found[1])), bytes.fromhex(found[2]))


def format_staged(name: StagedName) -> str:
    """`<session>/<hash>`, in hex."""
    return f"{name.session_id.hex()}/{name.hash.hex()}"
