"""Ids: what is written can be read, and each has one spelling."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire import ids
from wire.errors import MalformedId
from wire.ids import MAX_COUNT, MAX_SLOTS, EntryId, Jid, NsId, Slot

BIGINT = st.integers(0, 2**63 - 1)
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"  # pragma: allowlist secret


@given(st.integers(0, MAX_SLOTS - 1), st.integers(0, MAX_COUNT))
def test_an_ns_id_is_slot_and_count(slot, count):
    ns_id = ids.make_ns_id(Slot(slot), count)
    assert 0 <= ns_id < 2**63
    assert ids.slot_of(ns_id) == slot
    assert ids.system_ns(Slot(slot)) == ns_id - count
    assert ids.parse_ns_id(ids.format_ns_id(ns_id)) == ns_id


@pytest.mark.parametrize(("slot", "count"), [(-1, 0), (MAX_SLOTS, 0), (0, -1), (0, MAX_COUNT + 1)])
def test_what_is_out_of_range(slot, count):
    with pytest.raises(ValueError, match="out of range"):
        ids.make_ns_id(Slot(slot), count)


@given(BIGINT, BIGINT)
def test_revs_and_file_ids_come_back(ns_id, number):
    rev = ids.format_rev(NsId(ns_id), Jid(number))
    assert ids.parse_rev(rev) == (ns_id, number)
    assert len(rev) == 32
    file_id = ids.format_file_id(NsId(ns_id), EntryId(number))
    assert ids.parse_file_id(file_id) == (ns_id, number)
    assert len(file_id) == 25


@given(BIGINT, BIGINT, BIGINT, BIGINT)
def test_packed_ids_sort_like_numbers(a, b, c, d):
    assert ((a, b) < (c, d)) == (ids.format_rev(NsId(a), Jid(b)) < ids.format_rev(NsId(c), Jid(d)))


@given(BIGINT, st.binary(min_size=18, max_size=18), st.binary(min_size=16, max_size=16))
def test_accounts_and_devices_carry_their_root(root_ns, account_random, device_random):
    account = ids.format_account_id(NsId(root_ns), account_random)
    assert len(account) == 40
    assert ids.root_ns_of_account(account) == root_ns
    device = ids.format_device_id(NsId(root_ns), device_random)
    assert ids.root_ns_of_device(device) == root_ns
    assert ids.pack_device_id(device) == root_ns.to_bytes(8, "big") + device_random
    for wrong in (account, device.replace("device:", "dbid:"), device + "A", device[:-1], ""):
        with pytest.raises(MalformedId):
            ids.root_ns_of_device(wrong)
    for wrong in (device, account + "A", account[:-1], account.upper(), " " + account):
        with pytest.raises(MalformedId):
            ids.root_ns_of_account(wrong)


@given(BIGINT, st.binary(min_size=16, max_size=16))
def test_upload_ids_carry_their_namespace(ns_id, session):
    text = ids.format_upload_id(NsId(ns_id), session)
    assert ids.parse_upload_id(text) == (ns_id, session)
    for wrong in (text[:-1], text + "A", text.replace("up:", "id:"), text.upper(), text[3:], ""):
        with pytest.raises(MalformedId):
            ids.parse_upload_id(wrong)


def test_random_parts_have_their_length():
    with pytest.raises(ValueError, match="16"):
        ids.format_upload_id(NsId(1), bytes(17))
    with pytest.raises(ValueError, match="18"):
        ids.format_account_id(NsId(1), bytes(17))
    with pytest.raises(ValueError, match="16"):
        ids.format_device_id(NsId(1), bytes(17))


@given(BIGINT, st.integers(0, 15))
def test_a_second_spelling_of_the_last_character_is_refused(number, flip):
    """22 characters hold 132 bits, and the id 128: the last four must be zero."""
    text = ids.format_file_id(NsId(number), EntryId(1))
    last = ALPHABET.index(text[-1])
    other = text[:-1] + ALPHABET[(last & 0b110000) | flip]
    if other == text:
        assert ids.parse_file_id(other)
    else:
        with pytest.raises(MalformedId):
            ids.parse_file_id(other)


GOOD_FILE = ids.format_file_id(NsId(1 << 51 | 7), EntryId(0x3FBEFBEFBE))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "id:",
        "id",
        GOOD_FILE[3:],
        GOOD_FILE + "=",
        GOOD_FILE + "==",
        GOOD_FILE[:-1],
        GOOD_FILE + "A",
        GOOD_FILE + "\n",
        " " + GOOD_FILE,
        "ID" + GOOD_FILE[2:],
        "id:" + GOOD_FILE,
        GOOD_FILE[:8] + "+" + GOOD_FILE[9:],
        GOOD_FILE[:8] + "/" + GOOD_FILE[9:],
        GOOD_FILE[:8] + "é" + GOOD_FILE[9:],
        "id:" + base64.urlsafe_b64encode(b"\xff" * 16).rstrip(b"=").decode(),
        "id:" + base64.urlsafe_b64encode(bytes(8) + b"\x80" + bytes(7)).rstrip(b"=").decode(),
    ],
)
def test_what_is_no_file_id(text):
    with pytest.raises(MalformedId):
        ids.parse_file_id(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0" * 31,
        "0" * 33,
        "A" * 32,
        "g" * 32,
        "-" + "0" * 31,
        "0" * 32 + "\n",
        "８" * 32,
        "f" * 32,
        "8" + "0" * 31,
    ],
)
def test_what_is_no_rev(text):
    with pytest.raises(MalformedId):
        ids.parse_rev(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-1",
        "+1",
        "01",
        "00",
        " 1",
        "1 ",
        "1\n",
        "1_0",
        "0x1",
        "１",
        str(2**63),
        "9" * 19,
        "1" * 20,
        "1.0",
    ],
)
def test_what_is_no_ns_id(text):
    with pytest.raises(MalformedId):
        ids.parse_ns_id(text)


@given(st.text(max_size=60))
def test_any_text_is_an_id_or_malformed(text):
    for parse in (
        ids.parse_ns_id,
        ids.parse_rev,
        ids.parse_file_id,
        ids.root_ns_of_account,
        ids.root_ns_of_device,
    ):
        for whole in (text, "id:" + text, "dbid:" + text, "device:" + text):
            try:
                parse(whole)
            except MalformedId:
                continue


@given(st.binary(max_size=40), st.integers(1, MAX_SLOTS))
def test_the_slot_of_a_hash_is_in_use(key, slots):
    assert 0 <= ids.slot_of_hash(key, slots) < slots


def test_the_slot_of_a_hash_never_changes():
    assert ids.slot_of_hash(b"ada@example.org", 64) == 38
    assert ids.slot_of_digest(bytes(7) + b"\x41" + bytes(24), 64) == 1
