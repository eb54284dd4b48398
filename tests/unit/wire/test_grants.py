"""Signed upload addresses: nobody but we can make one, and not for long."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire import signed
from wire.cursors import Cursor, Following, Position, format_cursor, parse_cursor
from wire.errors import InvalidCursor, InvalidUploadUrl
from wire.grants import MAX_GRANT_CHARS, UPLOADS_PATH, UploadGrant, format_upload_url, parse_grant
from wire.hashes import BlockHash, block_hash
from wire.ids import AccountId, DeviceId, Jid, NsId
from wire.internal import DeviceCaller, IdentityCaller
from wire.keys import Key, KeyRing

OLD, NEW = Key("old", b"o" * 32), Key("new", b"n" * 32)
RING = KeyRing([NEW])
CALLER = DeviceCaller(AccountId("dbid:x"), DeviceId("device:y"))
NAME = block_hash(b"bytes")
GRANT = UploadGrant(NsId(7), b"s" * 16, CALLER, NAME, 5, 1_000)


def grant_of(url: str) -> str:
    return url.partition(UPLOADS_PATH)[2].partition("/")[0]


@given(
    st.integers(0, 2**63 - 1),
    st.binary(min_size=16, max_size=16),
    st.none() | st.binary(min_size=32, max_size=32).map(BlockHash),
    st.integers(0, 2**22),
    st.sampled_from([CALLER, IdentityCaller("https://" + "i" * 247, "s" * 255)]),
)
def test_grants_come_back(ns_id, session, name, size, caller):
    grant = UploadGrant(NsId(ns_id), session, caller, name, size, 1_000)
    url = format_upload_url("http://blocks.example/", grant, RING)
    assert parse_grant(grant_of(url), RING, now_s=999.9) == grant
    assert url.startswith("http://blocks.example/v1/uploads/")
    assert url.endswith(f"/{name.hex()}" if name else grant_of(url))
    assert len(grant_of(url)) < MAX_GRANT_CHARS


def test_a_grant_expires():
    text = grant_of(format_upload_url("", GRANT, RING))
    with pytest.raises(InvalidUploadUrl, match="expired"):
        parse_grant(text, RING, now_s=1_000)


def test_keys_are_rotated():
    text = grant_of(format_upload_url("", GRANT, KeyRing([OLD])))
    assert parse_grant(text, KeyRing([NEW, OLD]), now_s=0) == GRANT
    for ring in (RING, KeyRing([Key("old", b"x" * 32)])):
        with pytest.raises(InvalidUploadUrl):
            parse_grant(text, ring, now_s=0)


@given(st.integers(0, 300), st.integers(1, 255))
def test_no_byte_can_be_changed(index, flip):
    text = grant_of(format_upload_url("", GRANT, RING))
    raw = bytearray(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    raw[index % len(raw)] ^= flip
    with pytest.raises(InvalidUploadUrl):
        parse_grant(base64.urlsafe_b64encode(raw).rstrip(b"=").decode(), RING, now_s=0)


@given(st.text(max_size=80))
def test_anything_else_is_refused(text):
    with pytest.raises(InvalidUploadUrl):
        parse_grant(text, RING, now_s=0)


def test_an_endless_text_is_not_even_looked_at():
    with pytest.raises(InvalidUploadUrl):
        parse_grant("A" * (MAX_GRANT_CHARS + 1), RING, now_s=0)


def test_a_cursor_is_no_grant_and_a_grant_no_cursor():
    """Even under one key."""
    cursor = Cursor(AccountId("dbid:x"), (Position(NsId(7), Following(Jid(3))),), 500)
    with pytest.raises(InvalidUploadUrl):
        parse_grant(format_cursor(cursor, RING), RING, now_s=0)
    with pytest.raises(InvalidCursor):
        parse_cursor(grant_of(format_upload_url("", GRANT, RING)), RING)
    body = signed.open_text(b"\x02", grant_of(format_upload_url("", GRANT, RING)), RING)
    with pytest.raises(ValueError, match="signature"):
        signed.open_text(b"\x02", signed.sign_text(b"\x01", body, RING), RING)
