"""Keeps the local tree like the disk: whole scans, scans of some folders, and when one leads to the other."""

import asyncio
import contextlib
import os
import time
from collections.abc import Iterable, Iterator

from client.disk import rename_new
from client.folder import Folder
from client.match import Matcher
from client.model import Kind
from client.reading import FileChanging, NotAFile, hash_file
from client.scan import Lister
from client.state import State
from client.trees import Trees

MAX_FOLDERS = 1_000
"""More folders than this at once: a whole scan is as quick and leaves no doubt."""
MAX_WIDENINGS = 3
MAX_CONFLICT_NAMES = 100
"""Names tried for one of two that differ in case only; with more it is left alone and reported."""


class Rescan:
    """What has to be looked at, and the looking."""

    def __init__(self, folder: Folder, state: State):
        self._folder, self._state = folder, state
        self._is_whole_due = True
        self._folders: set[bytes] = set()
        self._problems: dict[bytes, tuple[str, str]] = {}
        self.whole_s = 0.0
        """How long the last look at everything took."""

    @property
    def is_due(self) -> bool:
        """Whether something is to be looked at."""
        return self._is_whole_due or bool(self._folders)

    def want_all(self) -> None:
        """Look at everything next time."""
        self._is_whole_due = True

    def want(self, folders: Iterable[bytes]) -> None:
        """Look at these folders (relative paths) next time."""
        self._folders.update(folders)
        if len(self._folders) > MAX_FOLDERS:
            self._is_whole_due = True

    def want_below(self, folder: bytes) -> None:
        """Look at a folder (relative path) and all that are known below it next time."""
        local = self._state.trees.local
        found = self._state.trees.find_local(folder)
        below = local.below(found) if found is not None else ()
        nodes = ((node_id, local.get(node_id)) for node_id in below)
        paths = [self._state.trees.local_path(i) for i, node in nodes if node and node.kind is Kind.FOLDER]
        self.want([folder, *paths])

    def want_around(self, path: bytes) -> None:
        """Look at the folder that an absolute path lies in."""
        self.want([os.path.dirname(path)[len(self._folder.root) + 1 :]])

    async def run(self) -> None:
        """Bring the local tree up to date with what is due.

        Raises:
            FolderProblem: the folder is not itself any more; nothing was called gone for that.
        """
        folders = None if self._is_whole_due else self._folders
        self._is_whole_due, self._folders = False, set()
        try:
            for _ in range(MAX_WIDENINGS):
                further = await self._look(folders)
                if further is not None and not further:
                    return
                folders = further
            await self._look(None)
        except BaseException:
            self._is_whole_due = True
            raise

    async def _look(self, folders: set[bytes] | None) -> set[bytes] | None:
        """Look at some folders, or at all; gives what to look at next (None: all, an empty set: nothing)."""
        trees, began = self._state.trees, time.monotonic()
        known = None if folders is None else {_nearest_known(trees, folder) for folder in folders}
        await asyncio.to_thread(self._folder.check)
        lister = Lister(self._folder.root)
        matcher = Matcher(trees, lister, known)
        await self._go_through(matcher, matcher.look())
        if known is not None and matcher.has_vanished:
            # What is gone may have gone to where nobody has looked yet.
            return None
        await self._go_through(matcher, matcher.take_new())
        contents = await asyncio.to_thread(self._hash_candidates, matcher)
        renamed = await asyncio.to_thread(self._set_apart, matcher.clashes)
        with self._state.tx("scan"):
            matcher.finish(contents)
            self._take_problems(matcher, lister, renamed, is_whole=known is None)
        if known is None:
            self.whole_s = time.monotonic() - began
        further = {_nearest_known(trees, folder) for folder in matcher.doubts} - (known or set())
        return known | further if known is not None and further else set()

    async def _go_through(self, matcher: Matcher, steps: Iterator[None]) -> None:
        is_done = False
        while not is_done:
            is_done = await asyncio.to_thread(_is_exhausted, steps)
            # A disk that was unmounted meanwhile looks empty.
            await asyncio.to_thread(self._folder.check)
            if not is_done:
                with self._state.tx("scan"):
                    matcher.flush()

    def _hash_candidates(self, matcher: Matcher) -> dict[bytes, bytes]:
        contents: dict[bytes, bytes] = {}
        for candidate in matcher.candidates():
            with contextlib.suppress(OSError, FileChanging, NotAFile):
                contents[candidate.path] = hash_file(self._folder.disk_path(candidate.path)).content
        return contents

    def _set_apart(self, clashes: Iterable[bytes]) -> set[bytes]:
        """Give what differs from something else only in case a name that does not; the paths renamed."""
        renamed: set[bytes] = set()
        for path in clashes:
            folder, name = os.path.split(path)
            for number in range(MAX_CONFLICT_NAMES):
                target = os.path.join(folder, _conflict_name(name, number))
                try:
                    rename_new(self._folder.disk_path(path), self._folder.disk_path(target))
                except FileExistsError:
                    continue
                except OSError:
                    break
                renamed.add(path)
                self.want([folder])
                break
        return renamed

    def _take_problems(
        self, matcher: Matcher, lister: Lister, renamed: set[bytes], *, is_whole: bool
    ) -> None:
        kept = {
            path: problem
            for path, problem in self._problems.items()
            if not is_whole and os.path.dirname(path) not in matcher.listed
        }
        clashes = {path: problem for path, problem in matcher.clashes.items() if path not in renamed}
        found = kept | lister.problems | clashes
        if found != self._problems or is_whole:
            self._problems = found
            self._state.replace_problems("scan", [(path, *problem) for path, problem in found.items()])


def _conflict_name(name: bytes, number: int) -> bytes:
    stem, dot, ending = name.rpartition(b".")
    if not stem or len(ending) > 20:
        stem, dot, ending = name, b"", b""
    again = f" {number}" if number else ""
    return stem + f" (Case Conflict{again})".encode() + dot + ending


def _is_exhausted(steps: Iterator[None]) -> bool:
    return next(steps, _END) is _END


_END = object()


def _nearest_known(trees: Trees, folder: bytes) -> bytes:
    """The folder itself, or the nearest one above it that is known."""
    while folder and trees.find_local(folder) is None:
        folder = os.path.dirname(folder)
    return folder
