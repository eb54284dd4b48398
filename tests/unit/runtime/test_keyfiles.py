"""Files of keys that change under a running process."""

from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from runtime import keyfiles
from runtime.keyfiles import KeyFiles
from runtime.tokens import TokenIssuer, TokenVerifier, generate_keys
from tests.support.waiting import wait_until
from wire.errors import Unauthenticated
from wire.ids import AccountId, DeviceId
from wire.internal import DeviceCaller
from wire.keys import KeyRing

CALLER = DeviceCaller(AccountId("a"), DeviceId("d"))


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyfiles, "KEYS_CHECK_S", 0.01)


async def test_a_ring_follows_its_file_and_keeps_its_keys_while_that_is_broken(tmp_path: Path):
    path, registry = tmp_path / "ring", CollectorRegistry()
    path.write_bytes(KeyRing.generate())
    files = KeyFiles(registry)
    ring = files.ring("cursor", path)
    old = ring.current.id
    files.start()
    try:
        too_short = b'{"keys": [{"id": "a", "secret": "YQ=="}]}'  # pragma: allowlist secret
        for broken in (b"", b"{", b'{"keys": []}', too_short):
            path.write_bytes(broken)
            await wait_until(lambda found=broken: files._files[0].refused == found, "the file being refused")
            assert ring.current.id == old
        path.unlink()
        path.write_bytes(KeyRing.generate())
        await wait_until(lambda: ring.current.id != old, "the new key")
    finally:
        await files.stop()
    shown = generate_latest(registry).decode()
    assert f'shardbox_keys{{key_id="{ring.current.id}",kind="cursor"}} 1.0' in shown
    assert old not in shown


async def test_issuer_and_verifier_change_together_or_not_at_all(tmp_path: Path):
    path = tmp_path / "tokens"
    (private, _), (other, public) = generate_keys(), generate_keys()
    path.write_bytes(private)
    verifier, issuer = TokenVerifier(private), TokenIssuer(private)
    files = KeyFiles(CollectorRegistry())
    files.tokens(path, verifier, issuer)
    old_token = issuer.issue(CALLER)
    assert await verifier.verify(f"Bearer {old_token}") == CALLER
    files.start()
    try:
        path.write_bytes(public)  # verifies, and cannot sign
        await wait_until(lambda: files._files[0].refused == public, "the file being refused")
        assert await verifier.verify(f"Bearer {issuer.issue(CALLER)}") == CALLER
        path.write_bytes(other)
        await wait_until(
            lambda: issuer.issue(CALLER) != old_token and files._files[0].refused is None, "the new key"
        )
    finally:
        await files.stop()
    assert await verifier.verify(f"Bearer {issuer.issue(CALLER)}") == CALLER
    with pytest.raises(Unauthenticated):  # remembered or not
        await verifier.verify(f"Bearer {old_token}")
