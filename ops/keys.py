"""Rotating keys: a new key verifies everywhere before it signs anywhere, and an old one goes when what it has
signed has lapsed.

    add      the new key comes last: it verifies (for tokens: at those who hold public keys first)
    sign     once every server has it, it comes first: it signs, and the old one verifies
    retire   the old one goes, after the life of what it signed

Each step is one file replaced whole; a rotation that was cut short goes on where it ended.
"""

import os
import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, cast

import msgspec

from ops.errors import EXIT_CONFLICT, EXIT_UNAVAILABLE, OpsError, UsageError
from ops.files import locked, write_file
from ops.readiness import http_text
from runtime.tokens import ACCESS_TOKEN_S, generate_keys
from wire import faults

DAY_S = 24 * 3_600
LOADED_TIMEOUT_S = 30.0
"""Servers look at their files every second; one that takes this long hangs, or reads another file."""
POLL_S = 0.2

faults.declare("ops.keys.public_added", "ops.keys.added", "ops.keys.signing", "ops.keys.private_retired")


class KeyKind(StrEnum):
    """What a file of keys is for."""

    TOKEN = "token"  # noqa: S105
    CURSOR = "cursor"
    SERVICE = "service"


LIFE_S = {
    # A token's hour, and the leeway of clocks.
    KeyKind.TOKEN: ACCESS_TOKEN_S + 300,
    # Addresses for uploads are signed for 50 minutes; calls between servers carry the key of the moment.
    KeyKind.SERVICE: ACCESS_TOKEN_S,
    # Cursors have no end. A device that comes back after longer than this lists its folder anew.
    KeyKind.CURSOR: 90 * DAY_S,
}


class KeysInUse(OpsError):
    """What a key has signed may still be under way."""

    code, exit_status = "keys_in_use", EXIT_CONFLICT


class KeysNotLoaded(OpsError):
    """A server does not have a key that it was to have."""

    code, exit_status = "keys_not_loaded", EXIT_UNAVAILABLE


class KeyInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A key, without its secret."""

    key_id: str
    role: str
    """signs; next: verifies and will sign; verifies: has signed."""
    made_at: int
    """Unix time; 0: with the cluster."""
    signed_until: int | None
    retirable_at: int | None
    """When nothing that it has signed is good any more."""


@dataclass(frozen=True, slots=True)
class KeyStore:
    """The file, or for tokens the two files, of one kind of keys."""

    kind: KeyKind
    file: Path
    public_file: Path | None = None

    @property
    def _id_field(self) -> str:
        return "kid" if self.kind is KeyKind.TOKEN else "id"

    def alone(self) -> AbstractContextManager[None]:
        """Whoever changes the keys does it alone: of two who read the same file, one would lose his key.

        Raises:
            ClusterBusy: somebody else does.
        """
        self.read()  # a file that is not there needs no lock beside it
        return locked(self.file.with_name(f"{self.file.name}.lock"), wait=False, what="another rotation")

    def read(self) -> list[dict[str, Any]]:
        """The keys as the file has them.

        Raises:
            UsageError: it is not there, or holds something else.
        """
        try:
            found = msgspec.json.decode(self.file.read_bytes(), type=dict[str, list[dict[str, Any]]])
            keys = found["keys"]
            for key in keys:
                assert isinstance(key[self._id_field], str)
        except (OSError, KeyError, AssertionError, msgspec.MsgspecError) as error:
            raise UsageError(f"{self.file} is no file of {self.kind} keys: {type(error).__name__}") from error
        return keys

    def list_keys(self) -> list[KeyInfo]:
        """The keys, the signing one first."""
        keys = self.read()
        return [self._info(key, keys[0]) for key in keys]

    def _info(self, key: dict[str, Any], signing: dict[str, Any]) -> KeyInfo:
        made_at, until = int(key.get("made_at", 0)), key.get("signed_until")
        role = "verifies" if until is not None else "next"
        return KeyInfo(
            key_id=key[self._id_field],
            role="signs" if key is signing else role,
            made_at=made_at,
            signed_until=None if until is None else int(until),
            retirable_at=None if until is None else int(until) + LIFE_S[self.kind],
        )

    def find_next(self) -> str | None:
        """The key that has been added and does not sign yet."""
        return next((info.key_id for info in self.list_keys() if info.role == "next"), None)

    def ensure_next(self) -> str:
        """Add a key that verifies, unless one is there that does not sign yet; its id."""
        keys = self.read()
        known = self.find_next()
        if self.kind is KeyKind.TOKEN:
            return self._ensure_next_token(keys, known)
        if known is not None:
            return known
        key_id = secrets.token_hex(4)
        secret = msgspec.json.decode(msgspec.json.encode(secrets.token_bytes(32)))
        keys.append({"id": key_id, "secret": secret, "made_at": _now()})
        self._write(self.file, keys)
        faults.fault_point("ops.keys.added")
        return key_id

    def _ensure_next_token(self, keys: list[dict[str, Any]], known: str | None) -> str:
        if known is not None:
            return known
        private, public = (cast("dict[str, Any]", msgspec.json.decode(part)) for part in generate_keys())
        made = {"made_at": str(_now())}  # a key set's members are strings
        if self.public_file is not None:
            public_keys = KeyStore(self.kind, self.public_file).read()
            # One that an earlier try has left here has no private twin, and so signs nothing.
            ids = {key["kid"] for key in keys}
            public_keys = [key for key in public_keys if key["kid"] in ids]
            self._write(self.public_file, [*public_keys, public["keys"][0] | made])
            faults.fault_point("ops.keys.public_added")
        self._write(self.file, [*keys, private["keys"][0] | made])
        faults.fault_point("ops.keys.added")
        return str(private["keys"][0]["kid"])

    def sign_with(self, key_id: str) -> None:
        """Let a key sign from now on; those that signed before verify."""
        keys = self.read()
        chosen = next(key for key in keys if key[self._id_field] == key_id)
        others = [key for key in keys if key is not chosen]
        if keys[0] is not chosen:
            now = _now()
            others[0]["signed_until"] = str(now) if self.kind is KeyKind.TOKEN else now
        self._write(self.file, [chosen, *others])
        faults.fault_point("ops.keys.signing")

    def retire(self, *, is_forced: bool) -> list[str]:
        """Take out the keys that have signed and do not any more; their ids.

        Raises:
            KeysInUse: what one of them has signed may still be good.
        """
        old = [info for info in self.list_keys() if info.role == "verifies"]
        early = [info for info in old if (info.retirable_at or 0) > _now()]
        if early and not is_forced:
            wait_s = max(info.retirable_at or 0 for info in early) - _now()
            raise KeysInUse(f"what {early[0].key_id} has signed is good for {wait_s} s more: come back then")
        ids = {info.key_id for info in old}
        if ids:
            self._write(self.file, [key for key in self.read() if key[self._id_field] not in ids])
            faults.fault_point("ops.keys.private_retired")
        if self.public_file is not None:
            there = {key["kid"] for key in self.read()}
            public = KeyStore(self.kind, self.public_file)
            left = [key for key in public.read() if key["kid"] in there]
            if len(left) < len(public.read()):
                self._write(self.public_file, left)
        return sorted(ids)

    def _write(self, path: Path, keys: Sequence[dict[str, Any]]) -> None:
        before = path.stat()
        content = msgspec.json.format(msgspec.json.encode({"keys": keys}), indent=2) + b"\n"
        write_file(path, content, mode=before.st_mode & 0o777)
        if os.geteuid() == 0:
            os.chown(path, before.st_uid, before.st_gid)  # whom the server runs as


def wait_until_loaded(
    kind: KeyKind, key_id: str, urls: Sequence[str], *, signs: bool | None = None, timeout_s: float
) -> None:
    """Return when every server that has keys of this kind has this one.

    Args:
        kind: of the key.
        key_id: the key.
        urls: servers; one that has no keys of the kind is passed over.
        signs: whether it must sign there, or must not; None: it does not matter.
        timeout_s: for all of them.

    Raises:
        KeysNotLoaded: one does not, or does not answer.
    """
    deadline = time.monotonic() + timeout_s
    for url in urls:
        while (trouble := _trouble(kind, key_id, url, signs)) is not None:
            if time.monotonic() > deadline:
                raise KeysNotLoaded(f"{url} {trouble}; run the command again when it does")
            time.sleep(POLL_S)


def _trouble(kind: KeyKind, key_id: str, url: str, signs: bool | None) -> str | None:
    text = http_text(url, "/metrics")
    if text is None:
        return "does not answer"
    lines = [
        line for line in text.splitlines() if line.startswith("shardbox_keys{") and f'kind="{kind}"' in line
    ]
    if not lines:
        return None
    mine = [line for line in lines if f'key_id="{key_id}"' in line]
    if not mine:
        return f"has not got key {key_id} yet"
    is_signing = float(mine[0].rpartition(" ")[2]) == 1
    has_signer = any(float(line.rpartition(" ")[2]) == 1 for line in lines)
    return (
        None if not has_signer or signs in (None, is_signing) else f"does not use key {key_id} as it should"
    )


def rotate(store: KeyStore, urls: Sequence[str], say: Callable[[str], None], *, timeout_s: float) -> str:
    """Add a key, wait until all servers verify by it, then let it sign; its id.

    Raises:
        KeysNotLoaded: a server does not take it; until it does, the old key signs.
    """
    key_id = store.ensure_next()
    say(f"{store.kind} key {key_id} verifies; waiting until all servers have it")
    wait_until_loaded(store.kind, key_id, urls, timeout_s=timeout_s)
    store.sign_with(key_id)
    wait_until_loaded(store.kind, key_id, urls, signs=True, timeout_s=timeout_s)
    say(f"{store.kind} key {key_id} signs")
    return key_id


def _now() -> int:
    return int(time.time())
