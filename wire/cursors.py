"""Cursors: which namespaces a reader follows, and how far it has read each. Signed, opaque to clients.

A cursor says by itself what a long-poll needs, so a notification server holds a poll without a database or a
login. States (docs/walkthrough.md has the picture):

    scanning(base, after)  ──last page──►  following(jid)
    walking(levels)        ──last page──►  ended
"""

from typing import Literal

import msgspec

from wire.errors import InvalidCursor
from wire.ids import AccountId, EntryId, Jid, NsId
from wire.keys import KeyRing
from wire.names import NameKey
from wire.signed import open_text, sign_text


class Scanning(msgspec.Struct, frozen=True, array_like=True, tag="s"):
    """Reading what was there when the listing began.

    `base` is the head at the start; `after_entry` (scope whole) or `after_key` (scope children) is the last
    one read.
    """

    base: Jid
    after_entry: EntryId
    after_key: NameKey = NameKey("")


class Following(msgspec.Struct, frozen=True, array_like=True, tag="f"):
    """Everything up to and including `jid` has been read."""

    jid: Jid


class WalkLevel(msgspec.Struct, frozen=True, array_like=True):
    """A folder on the way down, and the last name key in it that has been walked."""

    folder: EntryId
    after_key: NameKey


class Walking(msgspec.Struct, frozen=True, array_like=True, tag="w"):
    """Walking down a folder; `levels` from that folder on. None left: all has been told."""

    levels: tuple[WalkLevel, ...]


class Position(msgspec.Struct, frozen=True, array_like=True):
    """How far one namespace has been read.

    `folder` is None for the whole namespace, else the folder whose children are listed, or that is walked.
    """

    ns_id: NsId
    state: Scanning | Following | Walking
    folder: EntryId | None = None


class Cursor(msgspec.Struct, frozen=True, array_like=True):
    """A reader's place, bound to its account and to the flags of its listing."""

    account_id: AccountId
    positions: tuple[Position, ...]
    limit: int
    include_blocks: bool = False


class SearchCursor(msgspec.Struct, frozen=True, array_like=True):
    """A search's place: names of `ns_id` that hold `key`, below `folder`, looked at up to `after`."""

    account_id: AccountId
    ns_id: NsId
    key: NameKey
    folder: EntryId
    after: EntryId
    limit: int


MAX_CURSOR_CHARS = 16_384
"""A header of 64 KiB is refused by most proxies; 16 KiB hold a cursor of some 500 namespaces, or a walk below
any path that POSIX can name (4,096 bytes)."""

_KIND = b"\x01"
_SEARCH_KIND = b"\x03"
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Cursor)
_search_decoder = msgspec.msgpack.Decoder(SearchCursor)


def format_cursor(cursor: Cursor, keys: KeyRing) -> str:
    """The cursor as a signed text."""
    return sign_text(_KIND, _encoder.encode(cursor), keys)


def parse_cursor(text: str, keys: KeyRing) -> Cursor:
    """The cursor, if one of our keys signed it.

    Raises:
        InvalidCursor: malformed, forged, or signed under a key that is no longer in the ring.
    """
    try:
        return _decoder.decode(_open(_KIND, text, keys))
    except msgspec.MsgspecError as error:
        raise InvalidCursor("the cursor is not one of ours") from error


def format_search_cursor(cursor: SearchCursor, keys: KeyRing) -> str:
    """The cursor as a signed text of a kind of its own: neither is taken for the other."""
    return sign_text(_SEARCH_KIND, _encoder.encode(cursor), keys)


def parse_search_cursor(text: str, keys: KeyRing) -> SearchCursor:
    """The search's place, if one of our keys signed it.

    Raises:
        InvalidCursor: as `parse_cursor`.
    """
    try:
        return _search_decoder.decode(_open(_SEARCH_KIND, text, keys))
    except msgspec.MsgspecError as error:
        raise InvalidCursor("the cursor is not one of ours") from error


def _open(kind: bytes, text: str, keys: KeyRing) -> bytes:
    if len(text) > MAX_CURSOR_CHARS:
        raise InvalidCursor("the cursor is too long")
    try:
        return open_text(kind, text, keys)
    except ValueError as error:
        raise InvalidCursor("the cursor is not one of ours") from error


def seen_jid(position: Position) -> Jid | Literal[-1]:
    """The jid up to which a poll's holder has seen a namespace; -1 (always behind) before it follows."""
    return position.state.jid if isinstance(position.state, Following) else -1
