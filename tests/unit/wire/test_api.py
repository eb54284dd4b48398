"""Requests at the edges of what they may hold: refused when they are read, not by a database."""

import msgspec
import pytest

from wire.api import CommitFile, Delete, GetBlockList, LinkDevice


def commit(size: int) -> bytes:
    rest = b'"op":"commit","path":"/a","blocks":[],"content_hash":"","client_modified":""'
    return b'{%s,"size":%d}' % (rest, size)


def link(name: str) -> bytes:
    token = "t" * 32
    return msgspec.json.encode(
        {"code": "1-a", "request_id": token, "refresh_token": token, "device_name": name}
    )


def test_the_largest_numbers_are_taken():
    largest = 2**63 - 1
    delete = msgspec.json.decode(b'{"op":"delete","path":"/a","seen_jid":%d}' % largest, type=Delete)
    assert delete.seen_jid == largest
    assert msgspec.json.decode(commit(largest), type=CommitFile).size == largest
    assert msgspec.json.decode(link("Ada's Gerät"), type=LinkDevice).device_name == "Ada's Gerät"


@pytest.mark.parametrize("number", [-1, 2**63, 2**64, 10**30])
def test_numbers_that_no_database_holds_are_refused(number: int):
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(b'{"op":"delete","path":"/a","seen_jid":%d}' % number, type=Delete)
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(b'{"rev":"a","start":%d}' % number, type=GetBlockList)
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(commit(number), type=CommitFile)


@pytest.mark.parametrize("name", ["", "a\0b", "\0", "a\n\0", "x" * 256])
def test_names_of_devices_that_no_database_holds_are_refused(name: str):
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(link(name), type=LinkDevice)
