"""Requests at the edges of what they may hold: refused when they are read, not by a database."""

import msgspec
import pytest

from wire.api import (
    MAX_PAGE_ENTRIES,
    MAX_REVISIONS,
    CommitFile,
    Delete,
    GetBlockList,
    LinkDevice,
    ListRevisions,
    Search,
)
from wire.names import MAX_NAME_CHARS


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


@pytest.mark.parametrize("query", ["", "x" * (MAX_NAME_CHARS + 1), "a\0b", "\0"])
def test_queries_that_no_name_holds_are_refused(query: str):
    assert msgspec.json.decode(b'{"query":"%s"}' % (b"x" * MAX_NAME_CHARS), type=Search).path == ""
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(msgspec.json.encode({"query": query}), type=Search)
    with pytest.raises(msgspec.DecodeError):  # half a character
        msgspec.json.decode(b'{"query":"a\\ud800"}', type=Search)


@pytest.mark.parametrize("limit", [0, -1, MAX_REVISIONS + 1, MAX_PAGE_ENTRIES + 1])
def test_pages_that_are_too_long_are_refused(limit: int):
    for largest in (1, MAX_REVISIONS):
        msgspec.json.decode(b'{"path":"/a","limit":%d}' % largest, type=ListRevisions)
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(b'{"path":"/a","limit":%d}' % limit, type=ListRevisions)
    if limit > MAX_PAGE_ENTRIES or limit < 1:
        with pytest.raises(msgspec.ValidationError):
            msgspec.json.decode(b'{"query":"a","limit":%d}' % limit, type=Search)
