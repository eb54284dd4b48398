"""The identifiers that a client can hold. Each names a namespace, never a shard.

An ns_id is 63 bits: 12 bits of slot above 51 bits of a count within the slot. Packed, every id is
8 bytes big-endian, so packed ids sort like numbers.
"""

import base64
import binascii
import re
import struct
from hashlib import sha256
from typing import NewType

from wire.errors import MalformedId

NsId = NewType("NsId", int)
"""A namespace: slot << 51 | count; count 0 is the slot's system namespace."""
Jid = NewType("Jid", int)
"""A position in one namespace's journal, from 1, dense; 0 stands before the first row."""
EntryId = NewType("EntryId", int)
"""A file or folder within its namespace, from 1; 0 is the root folder, which has no row."""
Slot = NewType("Slot", int)
AccountId = NewType("AccountId", str)
DeviceId = NewType("DeviceId", str)

SLOT_BITS = 12
COUNT_BITS = 51
MAX_SLOTS = 1 << SLOT_BITS
MAX_COUNT = (1 << COUNT_BITS) - 1
ROOT_ENTRY = EntryId(0)
LOST_IDS = 1 << 32
"""How far a namespace's jids and entry ids jump when its shard is restored: as many as 10,000 changes a
second make in five days. As they have 63 bits, a namespace can be restored two thousand million times."""

ACCOUNT_RANDOM_BYTES = 18
DEVICE_RANDOM_BYTES = 16
SESSION_ID_BYTES = 16
_ACCOUNT_PREFIX = "dbid:"
_DEVICE_PREFIX = "device:"
_FILE_PREFIX = "id:"
_UPLOAD_PREFIX = "up:"
_U64 = struct.Struct(">Q")
_U64_PAIR = struct.Struct(">QQ")
_REV = re.compile(r"[0-9a-f]{32}")
_DECIMAL = re.compile(r"0|[1-9][0-9]{0,18}")
_MAX_BIGINT = (1 << 63) - 1


def make_ns_id(slot: Slot, count: int) -> NsId:
    """The ns_id of a count within a slot."""
    if not 0 <= slot < MAX_SLOTS or not 0 <= count <= MAX_COUNT:
        raise ValueError(f"slot {slot} or count {count} out of range")
    return NsId(slot << COUNT_BITS | count)


def slot_of(ns_id: NsId) -> Slot:
    """The slot that an ns_id lies in."""
    return Slot(ns_id >> COUNT_BITS)


def system_ns(slot: Slot) -> NsId:
    """The namespace that holds a slot's rows which belong to no namespace."""
    return make_ns_id(slot, 0)


def slot_of_hash(key: bytes, slot_count: int) -> Slot:
    """The slot of a key that has no namespace: the first 8 bytes of its SHA-256, modulo the slots."""
    return slot_of_digest(sha256(key).digest(), slot_count)


def slot_of_digest(digest: bytes, slot_count: int) -> Slot:
    """The slot of something that already is a SHA-256 digest, such as a block's name."""
    return Slot(int(_U64.unpack_from(digest)[0]) % slot_count)


def format_ns_id(ns_id: NsId) -> str:
    """Decimal: in JSON an ns_id is a string, as it does not fit a double."""
    return str(ns_id)


def parse_ns_id(text: str) -> NsId:
    """An ns_id from its decimal form.

    Raises:
        MalformedId: not a canonical decimal below 2^63.
    """
    if not _DECIMAL.fullmatch(text) or int(text) > _MAX_BIGINT:
        raise MalformedId(f"not a namespace id: {text[:40]!r}")
    return NsId(int(text))


def format_rev(ns_id: NsId, jid: Jid) -> str:
    """32 lower-case hex digits: a rev is the journal row that made the content."""
    return _U64_PAIR.pack(ns_id, jid).hex()


def parse_rev(text: str) -> tuple[NsId, Jid]:
    """The namespace and jid of a rev.

    Raises:
        MalformedId: not a rev.
    """
    if not _REV.fullmatch(text):
        raise MalformedId(f"not a rev: {text[:40]!r}")
    ns_id, jid = _U64_PAIR.unpack(bytes.fromhex(text))
    return _checked(ns_id, text), Jid(_checked(jid, text))


def format_file_id(ns_id: NsId, entry_id: EntryId) -> str:
    """`id:` and 22 URL-safe characters, for files and folders alike; entry 0 is the root folder."""
    return _FILE_PREFIX + _b64(_U64_PAIR.pack(ns_id, entry_id))


def parse_file_id(text: str) -> tuple[NsId, EntryId]:
    """The namespace and entry of a file id.

    Raises:
        MalformedId: not a file id.
    """
    raw = _unb64(text.removeprefix(_FILE_PREFIX), 16, text) if text.startswith(_FILE_PREFIX) else b""
    if not raw:
        raise MalformedId(f"not a file id: {text[:40]!r}")
    ns_id, entry_id = _U64_PAIR.unpack(raw)
    return _checked(ns_id, text), EntryId(_checked(entry_id, text))


def format_account_id(root_ns: NsId, random: bytes) -> AccountId:
    """`dbid:` and 35 URL-safe characters (40 in all): the root namespace and 18 random bytes."""
    if len(random) != ACCOUNT_RANDOM_BYTES:
        raise ValueError("an account id has 18 random bytes")
    return AccountId(_ACCOUNT_PREFIX + _b64(_U64.pack(root_ns) + random))


def root_ns_of_account(account_id: str) -> NsId:
    """The root namespace that an account id carries, so that a request routes by it without a look-up.

    Raises:
        MalformedId: not an account id.
    """
    return _leading_ns(account_id, _ACCOUNT_PREFIX, 8 + ACCOUNT_RANDOM_BYTES)


def format_device_id(root_ns: NsId, random: bytes) -> DeviceId:
    """`device:` and 32 URL-safe characters: the account's root namespace and 16 random bytes."""
    if len(random) != DEVICE_RANDOM_BYTES:
        raise ValueError("a device id has 16 random bytes")
    return DeviceId(_DEVICE_PREFIX + _b64(_U64.pack(root_ns) + random))


def root_ns_of_device(device_id: str) -> NsId:
    """The root namespace that a device id carries.

    Raises:
        MalformedId: not a device id.
    """
    return _leading_ns(device_id, _DEVICE_PREFIX, 8 + DEVICE_RANDOM_BYTES)


def pack_device_id(device_id: DeviceId) -> bytes:
    """The 24 bytes of a device id, as journal rows keep it.

    Raises:
        MalformedId: not a device id.
    """
    root_ns_of_device(device_id)
    return _unb64(device_id.removeprefix(_DEVICE_PREFIX), 8 + DEVICE_RANDOM_BYTES, device_id)


def format_upload_id(ns_id: NsId, session_id: bytes) -> str:
    """`up:` and 32 URL-safe characters: the session's namespace and its 16 random bytes."""
    if len(session_id) != SESSION_ID_BYTES:
        raise ValueError("an upload session's id has 16 random bytes")
    return _UPLOAD_PREFIX + _b64(_U64.pack(ns_id) + session_id)


def parse_upload_id(text: str) -> tuple[NsId, bytes]:
    """The namespace of an upload session, and its id there.

    Raises:
        MalformedId: not an upload id.
    """
    ns_id = _leading_ns(text, _UPLOAD_PREFIX, 8 + SESSION_ID_BYTES)
    return ns_id, _unb64(text.removeprefix(_UPLOAD_PREFIX), 8 + SESSION_ID_BYTES, text)[8:]


def _leading_ns(text: str, prefix: str, raw_bytes: int) -> NsId:
    raw = _unb64(text.removeprefix(prefix), raw_bytes, text) if text.startswith(prefix) else b""
    if not raw:
        raise MalformedId(f"not an id: {text[:48]!r}")
    return _checked(_U64.unpack_from(raw)[0], text)


def _checked(number: int, text: str) -> NsId:
    if number > _MAX_BIGINT:
        raise MalformedId(f"id out of range: {text[:48]!r}")
    return NsId(number)


def _b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _unb64(text: str, raw_bytes: int, shown: str) -> bytes:
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise MalformedId(f"not an id: {shown[:48]!r}") from error
    # A second spelling of one id would be a second key in every map: only the canonical one counts.
    if len(raw) != raw_bytes or _b64(raw) != text:
        raise MalformedId(f"not an id: {shown[:48]!r}")
    return raw
