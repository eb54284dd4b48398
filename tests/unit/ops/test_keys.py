"""The files of keys, step by step."""

import time
from pathlib import Path

import msgspec
import pytest

from ops import keys as module
from ops.errors import ClusterBusy, UsageError
from ops.keys import LIFE_S, KeyKind, KeysInUse, KeyStore
from runtime.tokens import TokenIssuer, TokenVerifier, generate_keys
from wire.ids import AccountId, DeviceId
from wire.internal import DeviceCaller
from wire.keys import KeyRing


def store_of(kind: KeyKind, folder: Path) -> KeyStore:
    file = folder / "keys.json"
    if kind is not KeyKind.TOKEN:
        file.write_bytes(KeyRing.generate())
        file.chmod(0o640)
        return KeyStore(kind, file)
    private, public = generate_keys()
    file.write_bytes(private)
    file.chmod(0o640)
    (folder / "public.json").write_bytes(public)
    return KeyStore(kind, file, folder / "public.json")


def roles(store: KeyStore) -> list[tuple[str, str]]:
    return [(info.key_id, info.role) for info in store.list_keys()]


@pytest.mark.parametrize("kind", list(KeyKind))
def test_a_key_is_added_signs_and_goes(kind: KeyKind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    store = store_of(kind, tmp_path)
    ((old, _),) = roles(store)

    new = store.ensure_next()
    assert roles(store) == [(old, "signs"), (new, "next")]
    assert store.ensure_next() == new  # cut short here, it is the one that goes on
    store.sign_with(new)
    assert roles(store) == [(new, "signs"), (old, "verifies")]
    store.sign_with(new)
    assert roles(store) == [(new, "signs"), (old, "verifies")]
    with pytest.raises(KeysInUse):
        store.retire(is_forced=False)
    assert store.find_next() is None
    later = time.time() + LIFE_S[kind] + 1
    monkeypatch.setattr(module, "_now", lambda: int(later))
    assert store.retire(is_forced=False) == [old]
    assert roles(store) == [(new, "signs")]
    assert store.retire(is_forced=False) == []
    assert store.file.stat().st_mode & 0o777 == 0o640


def test_of_two_rotations_one_is_refused(tmp_path: Path):
    store = store_of(KeyKind.CURSOR, tmp_path)
    with store.alone(), pytest.raises(ClusterBusy), store.alone():
        pytest.fail("two at once")
    with store.alone():
        pass
    with pytest.raises(UsageError):
        KeyStore(KeyKind.CURSOR, tmp_path / "nowhere" / "keys.json").alone()


@pytest.mark.parametrize("kind", [KeyKind.CURSOR, KeyKind.SERVICE])
def test_a_ring_takes_the_file_at_each_step(kind: KeyKind, tmp_path: Path):
    store = store_of(kind, tmp_path)
    ring = KeyRing.parse(store.file.read_bytes())
    old_mac, old = ring.sign(b"x"), ring.current.id
    new = store.ensure_next()
    ring.replace(KeyRing.parse(store.file.read_bytes()))
    assert (ring.current.id, ring.ids) == (old, [old, new])
    store.sign_with(new)
    ring.replace(KeyRing.parse(store.file.read_bytes()))
    assert ring.current.id == new
    assert ring.is_valid(old, b"x", old_mac)
    store.retire(is_forced=True)
    ring.replace(KeyRing.parse(store.file.read_bytes()))
    assert not ring.is_valid(old, b"x", old_mac)


async def test_whoever_has_the_public_keys_verifies_before_the_new_one_signs(tmp_path: Path):
    store = store_of(KeyKind.TOKEN, tmp_path)
    public = tmp_path / "public.json"
    caller = DeviceCaller(AccountId("a"), DeviceId("d"))
    verifier = TokenVerifier(public.read_bytes())
    old_token = TokenIssuer(store.file.read_bytes()).issue(caller)

    # Cut short after the public file: what it has left there is nobody's, and goes with the next try.
    before = store.file.read_bytes()
    store.ensure_next()
    store.file.write_bytes(before)
    new = store.ensure_next()
    kids = [key["kid"] for key in msgspec.json.decode(public.read_bytes())["keys"]]
    assert kids == [key_id for key_id, _ in roles(store)]

    verifier.replace_keys(public.read_bytes())
    store.sign_with(new)
    new_token = TokenIssuer(store.file.read_bytes()).issue(caller)
    for token in (old_token, new_token):
        assert await verifier.verify(f"Bearer {token}") == caller
    assert "d" not in msgspec.json.decode(public.read_bytes())["keys"][1]  # nothing private


def test_other_files_are_refused(tmp_path: Path):
    for content in (b"", b"[]", b'{"keys": [{"kid": "x"}]}'):
        (tmp_path / "f").write_bytes(content)
        with pytest.raises(UsageError):
            KeyStore(KeyKind.CURSOR, tmp_path / "f").list_keys()
    with pytest.raises(UsageError):
        KeyStore(KeyKind.CURSOR, tmp_path / "none").list_keys()
