"""Block lists are decoded in pieces, to the same end as whole."""

import asyncio
import json

import msgspec
import pytest

from metaserver.handlers import sessions


def decode(body: bytes) -> list[str]:
    return asyncio.run(sessions._decode_pieces(body))


@pytest.mark.parametrize("separators", [(",", ":"), (" ,\n", ":"), (", ", ":")])
@pytest.mark.parametrize(
    "texts",
    [
        [],
        ["a"],
        [f"{number:064x}" for number in range(200)],
        ["", ",", ",,", '"', '",', '\\",', "\\", "[", "]", "a,b", "é"] * 9,
    ],
)
def test_pieces_make_the_whole(
    monkeypatch: pytest.MonkeyPatch, texts: list[str], separators: tuple[str, str]
):
    body = json.dumps(texts, separators=separators).encode()
    for turn in (0, 1, 2, 3, 7, 66, 67, 68, 1_000, 1_000_000):
        monkeypatch.setattr(sessions, "TURN_BYTES", turn)
        assert decode(body) == texts


@pytest.mark.parametrize("body", [b"null", b"{}", b'"x"', b"[1]", b'["a",1]', b'["a",,"b"]', b'["a","b"'])
def test_what_is_no_list_of_texts_is_refused(monkeypatch: pytest.MonkeyPatch, body: bytes):
    for turn in (0, 1, 1_000):
        monkeypatch.setattr(sessions, "TURN_BYTES", turn)
        with pytest.raises(msgspec.MsgspecError):
            decode(body)


def test_a_list_that_is_no_json_is_not_cut_at_all():
    with pytest.raises(msgspec.MsgspecError):
        msgspec.json.decode(b'{"upload_id":"x","block_list":["a",]}', type=sessions._RawCommitUpload)
