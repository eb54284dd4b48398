"""Keeps the local tree like the disk: whole scans, scans of some folders, and when one leads to the other."""

import asyncio
import contextlib
import os
from collections.abc import Iterable

from client.folder import Folder
from client.match import Matcher
from client.model import Kind
from client.reading import FileChanging, NotAFile, hash_file
from client.scan import Listing, Seen, scan_all, scan_some
from client.state import State
from client.trees import Trees

MAX_FOLDERS = 1_000
"""More folders than this at once: a whole scan is as quick and leaves no doubt."""
MAX_WIDENINGS = 3


class Rescan:
    """What has to be looked at, and the looking."""

    def __init__(self, folder: Folder, state: State):
        self._folder, self._state = folder, state
        self._is_whole_due = True
        self._folders: set[bytes] = set()
        self._problems: dict[bytes, tuple[str, str]] = {}

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

    async def run(self) -> set[int]:
        """Bring the local tree up to date with what is due; gives the ids that were touched.

        Raises:
            FolderProblem: the folder is not itself any more; the tree is as it was.
        """
        is_whole, folders = self._is_whole_due, self._folders
        self._is_whole_due, self._folders = False, set()
        try:
            matcher = await self._look(is_whole, folders)
            contents = await asyncio.to_thread(self._hash_candidates, matcher)
        except BaseException:
            self._is_whole_due = True
            raise
        with self._state.tx("scan"):
            touched = matcher.apply(contents)
            self._take_problems(matcher)
        return touched

    async def _look(self, is_whole: bool, folders: set[bytes]) -> Matcher:
        for _ in range(MAX_WIDENINGS):
            if is_whole:
                break
            known = {_nearest_known(self._state.trees, folder) for folder in folders}
            matcher = await asyncio.to_thread(self._look_at, known)
            # What is gone may have gone to where nobody has looked yet.
            if matcher.has_vanished:
                break
            further = {_nearest_known(self._state.trees, folder) for folder in matcher.doubts} - known
            if not further:
                return matcher
            folders = known | further
        return await asyncio.to_thread(self._look_at, None)

    def _look_at(self, folders: set[bytes] | None) -> Matcher:
        self._folder.check()
        trees = self._state.trees
        if folders is None:
            listing = scan_all(self._folder.root)
        else:
            listing = scan_some(self._folder.root, folders, lambda path, seen: _is_known(trees, path, seen))
        # A disk that was unmounted meanwhile looks empty.
        self._folder.check()
        matcher = Matcher(trees, listing)
        matcher.look()
        self._listing: Listing = listing
        return matcher

    def _hash_candidates(self, matcher: Matcher) -> dict[bytes, bytes]:
        contents: dict[bytes, bytes] = {}
        for candidate in matcher.candidates():
            with contextlib.suppress(OSError, FileChanging, NotAFile):
                contents[candidate.path] = hash_file(self._folder.disk_path(candidate.path)).content
        return contents

    def _take_problems(self, matcher: Matcher) -> None:
        listed = self._listing.folders
        kept = {
            path: problem
            for path, problem in self._problems.items()
            if not self._listing.is_whole and os.path.dirname(path) not in listed
        }
        found = kept | {path: (reason, detail) for path, reason, detail in matcher.problems}
        if found != self._problems or self._listing.is_whole:
            self._problems = found
            self._state.replace_problems("scan", [(path, *problem) for path, problem in found.items()])


def _nearest_known(trees: Trees, folder: bytes) -> bytes:
    """The folder itself, or the nearest one above it that is known."""
    while folder and trees.find_local(folder) is None:
        folder = os.path.dirname(folder)
    return folder


def _is_known(trees: Trees, path: bytes, seen: Seen) -> bool:
    found = trees.find_local(path)
    node = trees.local.get(found) if found is not None else None
    return node is not None and node.kind is Kind.FOLDER and node.fingerprint.inode == seen.fingerprint.inode
