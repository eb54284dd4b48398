"""Files of keys, read again when they change, so that keys are rotated without a restart.

One mechanism for all kinds: every file is looked at each few seconds, and what it holds takes the place of
the old keys in the very objects that use them. A file that cannot be used changes nothing.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from prometheus_client import CollectorRegistry, Gauge

from runtime.logs import get_log
from runtime.settings import read_ring
from runtime.tasks import end
from runtime.tokens import TokenIssuer, TokenVerifier, key_ids
from wire.keys import KeyRing

_log = get_log(__name__)

KEYS_CHECK_S = 1.0
"""How often the files are looked at: a few system calls. `shardctl keys rotate` waits until all have."""

Take = Callable[[bytes], list[str]]
"""Takes a file's content into use, wholly or not at all; the ids of its keys, the signing one first."""


@dataclass(slots=True)
class _File:
    kind: str
    path: Path
    take: Take
    has_signer: bool
    """Whether this process signs, or only verifies what others have signed."""
    stamp: tuple[int, int, int] | None
    refused: bytes | None = None
    """What was last found and could not be used: it is told of once."""
    ids: list[str] = field(default_factory=list[str])


class KeyFiles:
    """The files of one process."""

    def __init__(self, registry: CollectorRegistry):
        self._files: list[_File] = []
        self._task: asyncio.Task[None] | None = None
        self._loaded = Gauge(
            "shardbox_keys",
            "Keys in use: 1 if the key signs, 0 if it only verifies.",
            ["kind", "key_id"],
            registry=registry,
        )

    def ring(self, kind: str, path: Path) -> KeyRing:
        """The key ring of a file, kept fresh."""
        ring = read_ring(path)

        def take(content: bytes) -> list[str]:
            ring.replace(KeyRing.parse(content))
            return ring.ids

        self._watch(kind, path, take, has_signer=True)
        return ring

    def tokens(self, path: Path, verifier: TokenVerifier, issuer: TokenIssuer | None = None) -> None:
        """Keep the keys of the access tokens fresh."""

        def take(content: bytes) -> list[str]:
            fresh = TokenIssuer(content) if issuer is not None else None
            verifier.replace_keys(content)
            if issuer is not None and fresh is not None:
                issuer.replace(fresh)
            return key_ids(content)

        self._watch("token", path, take, has_signer=issuer is not None)

    def start(self) -> None:
        """Begin to look."""
        self._task = asyncio.create_task(self._run(), name="key files")

    async def stop(self) -> None:
        """End."""
        await end(self._task)

    def _watch(self, kind: str, path: Path, take: Take, *, has_signer: bool) -> None:
        # Before the content: a change between the two is seen as one.
        file = _File(kind, path, take, has_signer, _stamp(path))
        self._apply(file, path.read_bytes())
        self._files.append(file)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(KEYS_CHECK_S)
            for file in self._files:
                self._look(file)

    def _look(self, file: _File) -> None:
        stamp = _stamp(file.path)
        if stamp == file.stamp:
            return
        content = b""
        try:
            content = file.path.read_bytes()
            self._apply(file, content)
        except Exception as error:  # whatever stands in a file, the others are looked at
            if content != file.refused:
                file.refused = content
                # Not what was found: it is a secret, or nearly one.
                _log.error("keys_refused", kind=file.kind, file=str(file.path), error=type(error).__name__)
            return
        file.stamp, file.refused = stamp, None
        _log.info("keys_loaded", kind=file.kind, file=str(file.path), signs=file.ids[0], keys=file.ids)

    def _apply(self, file: _File, content: bytes) -> None:
        ids = file.take(content)
        for key_id in set(file.ids) - set(ids):
            self._loaded.remove(file.kind, key_id)
        for position, key_id in enumerate(ids):
            self._loaded.labels(file.kind, key_id).set(file.has_signer and position == 0)
        file.ids = ids


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """What changes when a file is replaced or written anew; None when it is not there."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
