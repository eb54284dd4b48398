"""Cursors: signed, opaque, good for as long as their key is in the ring."""

import base64

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire.cursors import (
    MAX_CURSOR_CHARS,
    Cursor,
    Following,
    Position,
    Scanning,
    SearchCursor,
    Walking,
    WalkLevel,
    format_cursor,
    format_search_cursor,
    parse_cursor,
    parse_search_cursor,
    seen_jid,
)
from wire.errors import InvalidCursor
from wire.ids import AccountId, EntryId, Jid, NsId
from wire.keys import Key, KeyRing
from wire.names import NameKey

OLD, NEW = Key("old", b"o" * 32), Key("new", b"n" * 32)
BIGINT = st.integers(0, 2**63 - 1)
STATES = st.one_of(
    st.builds(Following, BIGINT),
    st.builds(Scanning, st.integers(-1, 2**63 - 1), BIGINT, st.text(max_size=30)),
    st.lists(st.builds(WalkLevel, BIGINT, st.text(max_size=30)), max_size=5).map(tuple).map(Walking),
)
POSITIONS = st.lists(st.builds(Position, BIGINT, STATES, st.none() | BIGINT), max_size=5).map(tuple)
CURSORS = st.builds(Cursor, st.text(max_size=40), POSITIONS, st.integers(1, 2_000), st.booleans())
CURSOR = Cursor(
    AccountId("dbid:x"),
    (
        Position(NsId(7), Following(Jid(3))),
        Position(NsId(8), Scanning(Jid(9), EntryId(2), NameKey("k")), EntryId(4)),
    ),
    500,
)


@given(CURSORS)
def test_cursors_come_back(cursor):
    ring = KeyRing([NEW])
    assert parse_cursor(format_cursor(cursor, ring), ring) == cursor


def test_keys_are_rotated():
    before, during, after = KeyRing([OLD]), KeyRing([NEW, OLD]), KeyRing([NEW])
    old = format_cursor(CURSOR, before)
    assert parse_cursor(old, during) == CURSOR
    new = format_cursor(CURSOR, during)
    assert parse_cursor(new, after) == CURSOR
    with pytest.raises(InvalidCursor):
        parse_cursor(old, after)
    with pytest.raises(InvalidCursor):
        parse_cursor(new, before)
    with pytest.raises(InvalidCursor):  # the same id with another secret
        parse_cursor(old, KeyRing([Key("old", b"x" * 32)]))


def test_every_changed_bit_is_noticed():
    ring = KeyRing([NEW])
    text = format_cursor(CURSOR, ring)
    raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    for index in range(len(raw)):
        for bit in (1, 128):
            forged = raw[:index] + bytes([raw[index] ^ bit]) + raw[index + 1 :]
            with pytest.raises(InvalidCursor):
                parse_cursor(base64.urlsafe_b64encode(forged).rstrip(b"=").decode(), ring)


def test_every_truncation_is_noticed():
    ring = KeyRing([NEW])
    text = format_cursor(CURSOR, ring)
    for length in range(len(text)):
        with pytest.raises(InvalidCursor):
            parse_cursor(text[:length], ring)
    for longer in (text + "AAAA", "A" + text, text + "\n", " " + text, text + "===="):
        with pytest.raises(InvalidCursor):
            parse_cursor(longer, ring)


@given(st.text(max_size=200))
def test_any_text_is_refused(text):
    with pytest.raises(InvalidCursor):
        parse_cursor(text, KeyRing([NEW]))


def test_what_is_signed_and_yet_no_cursor():
    ring = KeyRing([NEW])
    for body in (b"", b"\xc1", msgspec.msgpack.encode([1, 2]), msgspec.msgpack.encode({"a": 1})):
        signed = b"\x01" + bytes([3]) + b"new" + body
        with pytest.raises(InvalidCursor):
            parse_cursor(base64.urlsafe_b64encode(signed + ring.sign(signed)).rstrip(b"=").decode(), ring)
    signed = b"\x02" + bytes([3]) + b"new" + msgspec.msgpack.encode(CURSOR)
    with pytest.raises(InvalidCursor):
        parse_cursor(base64.urlsafe_b64encode(signed + ring.sign(signed)).rstrip(b"=").decode(), ring)


def test_a_long_cursor_is_refused_unread():
    with pytest.raises(InvalidCursor, match="too long"):
        parse_cursor("A" * (MAX_CURSOR_CHARS + 1), KeyRing([NEW]))
    many = Cursor(
        AccountId("dbid:" + "x" * 35),
        tuple(Position(NsId(2**62 + i), Following(Jid(2**40))) for i in range(500)),
        1,
    )
    ring = KeyRing([NEW])
    assert parse_cursor(format_cursor(many, ring), ring) == many


def test_what_a_poll_has_seen():
    assert seen_jid(CURSOR.positions[0]) == 3
    assert seen_jid(CURSOR.positions[1]) == -1


def test_rings():
    ring = KeyRing.parse(KeyRing.generate())
    assert ring.accepts(ring.credential())
    assert not ring.accepts(KeyRing([NEW]).credential())
    for wrong in (
        "",
        "Service",
        "Service x:y",
        "Bearer " + ring.credential(),
        ring.credential() + "x",
        "Service :",
    ):
        assert not ring.accepts(wrong)
    for keys in ([], [Key("", b"x" * 32)], [Key("a", b"x" * 31)], [NEW, NEW], [Key("a" * 33, b"x" * 32)]):
        with pytest.raises(ValueError, match=r"ring"):
            KeyRing(keys)


def test_neither_kind_of_cursor_is_taken_for_the_other():
    ring = KeyRing([NEW])
    search = SearchCursor(AccountId("dbid:x"), NsId(7), NameKey("k"), EntryId(4), EntryId(9), 100)
    text = format_search_cursor(search, ring)
    assert parse_search_cursor(text, ring) == search
    for wrong in (format_cursor(CURSOR, ring), text[:-1], text + "A" * MAX_CURSOR_CHARS):
        with pytest.raises(InvalidCursor):
            parse_search_cursor(wrong, ring)
    with pytest.raises(InvalidCursor):
        parse_cursor(text, ring)


def test_a_poll_with_the_cursor_of_a_walk_is_behind():
    assert seen_jid(Position(NsId(7), Walking(()), EntryId(4))) == -1
