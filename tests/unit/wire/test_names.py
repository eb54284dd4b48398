"""Names and paths: every kind that is refused, and what makes two names one."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire.errors import DisallowedName, MalformedId, MalformedPath
from wire.ids import EntryId, NsId, format_file_id
from wire.names import MAX_PATH_DEPTH, check_name, format_child, name_key, parse_target, split_path

CONTROLS = [chr(c) for c in [*range(32), *range(0x7F, 0xA0)]]


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "....",
        "trailing ",
        " ",
        "a" * 256,
        "a/b",
        "a\\b",
        "\ud800",
        "a\udfff",
        *(f"a{control}b" for control in CONTROLS),
    ],
)
def test_malformed_names(name):
    with pytest.raises(MalformedPath):
        check_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "desktop.ini",
        "Desktop.INI",
        "thumbs.db",
        "Thumbs.db",
        ".ds_store",
        ".DS_Store",
        "icon\r",
        "Icon\r",
        ".dropbox",
        ".dropbox.attr",
        ".DROPBOX",
        "~$report.docx",
        "~$",
        ".~lock.odt#",
        ".~",
        "~wrl0001.tmp",
        "~X.TMP",
        "~.tmp",
    ],
)
def test_names_that_are_never_synced(name):
    with pytest.raises(DisallowedName):
        check_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "a",
        ".a",
        "a.",
        "...a",
        " a",
        "a" * 255,
        "é" * 255,
        "desktop.ini.bak",
        "~a",
        "a~$",
        "~a.tmp.x",
        "x~.tmp",
        "icon",
        ".dropbox2",
        "\u00a0x",
        "tab’s “name” — 名前 🦊",
        "con",
        'a:b*c?d"e<f>g|h',
    ],
)
def test_names_that_are_taken_as_they_are(name):
    assert check_name(name) == name


def test_names_are_kept_in_nfc():
    assert check_name("e\u0301") == "é"
    assert check_name("a" * 254 + "e\u0301") == "a" * 254 + "é"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("README", "readme"),
        ("É", "e\u0301"),
        ("Straße", "STRASSE"),
        ("ΣΊΣΥΦΟΣ", "σίσυφος"),
        ("Ǆ", "ǆ"),
        ("ﬁ", "FI"),
    ],
)
def test_names_that_are_one(one, other):
    assert name_key(one) == name_key(other)


@pytest.mark.parametrize(("one", "other"), [("a", "b"), ("ı", "i"), ("e", "é"), ("a", "a ")])
def test_names_that_are_two(one, other):
    assert name_key(one) != name_key(other)


@given(st.text(max_size=40))
def test_a_checked_name_stays_checked(text):
    try:
        name = check_name(text)
    except (MalformedPath, DisallowedName):
        return
    assert check_name(name) == name
    assert unicodedata.is_normalized("NFC", name)
    assert name_key(name) == name_key(unicodedata.normalize("NFD", name))
    key = name_key(name)
    assert name_key(key) == key
    assert "/" not in key


def test_a_name_that_grows_when_folded_is_bounded():
    assert check_name("ﬃ" * 255)
    assert len(name_key("ΐ" * 255)) <= 4 * 255


def test_paths():
    assert split_path("") == ()
    assert split_path("/a/b c/É") == ("a", "b c", "É")
    assert len(split_path("/a" * MAX_PATH_DEPTH)) == MAX_PATH_DEPTH
    for path in (
        "/",
        "a",
        "a/b",
        "//",
        "/a/",
        "/a//b",
        " /a",
        "/a" * (MAX_PATH_DEPTH + 1),
        "/.",
        "/a/../b",
        "\n",
    ):
        with pytest.raises(MalformedPath):
            split_path(path)
    with pytest.raises(DisallowedName):
        split_path("/a/.DS_Store/b")


def test_targets():
    root, other = NsId(5), NsId(9)
    file_id = format_file_id(other, EntryId(3))
    assert parse_target("", root) == (root, 0, ())
    assert parse_target("/a/b", root) == (root, 0, ("a", "b"))
    assert parse_target("ns:9", root) == (other, 0, ())
    assert parse_target("ns:9/a", root) == (other, 0, ("a",))
    assert parse_target(file_id, root) == (other, 3, ())
    assert parse_target(file_id + "/a/b", root) == (other, 3, ("a", "b"))
    assert parse_target(format_child(other, EntryId(3), "id:x"), root) == (other, 3, ("id:x",))
    for text in ("ns:", "ns:09", "ns:-1/a", "id:", "id:x/a", "ns:9999999999999999999"):
        with pytest.raises(MalformedId):
            parse_target(text, root)
    for text in ("ns:9/", "ns:9//a", file_id + "/", file_id + "//"):
        with pytest.raises(MalformedPath):
            parse_target(text, root)
