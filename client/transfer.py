"""What uploads and downloads share: jobs in, results out, bounded work in between."""

import asyncio
import errno
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from client.api import Unreachable
from client.reading import FileChanging, NotAFile
from wire.errors import DeviceRevoked, InvalidRefreshToken, ShardboxError

GROUP_BYTES = 8 * 2**20
GROUP_FILES = 400
"""Small files travel in groups of one pack each: big enough that a request's cost is shared, small enough
that four groups on their way fit into memory with room to spare."""
SMALL_FILE_BYTES = 4 * 2**20
"""A file of one block is small; others are streamed block by block."""


class Job(Protocol):
    """Something to transfer, for one entry."""

    @property
    def id(self) -> int: ...
    @property
    def size(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Failed:
    """A transfer that came to nothing; `reason` is a stable word for `status`."""

    id: int
    reason: str
    detail: str
    is_fatal: bool = False
    """The device is no longer linked: nothing will work."""
    retry_after_s: float = 0.0
    """How long the servers asked to be left alone."""


def failure(node_id: int, problem: BaseException) -> Failed:
    """What a failure means for one entry."""
    if isinstance(problem, FileChanging):
        return Failed(node_id, "changing", "the file changed while it was read; it is tried again")
    if isinstance(problem, NotAFile):
        return Failed(node_id, "changing", "something else is in the file's place")
    if isinstance(problem, Unreachable):
        return Failed(node_id, "unreachable", str(problem), retry_after_s=problem.retry_after_s or 0.0)
    if isinstance(problem, DeviceRevoked | InvalidRefreshToken):
        return Failed(node_id, problem.code, str(problem), is_fatal=True)
    if isinstance(problem, ShardboxError):
        return Failed(node_id, problem.code, str(problem))
    if isinstance(problem, OSError):
        if problem.errno in (errno.ENOSPC, errno.EDQUOT):
            return Failed(node_id, "disk_full", "the disk is full")
        if problem.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return Failed(node_id, "changing", "the file is no longer there")
        if problem.errno == errno.ENAMETOOLONG:
            return Failed(node_id, "name_too_long", "the name or path is longer than this disk takes")
        if problem.errno in (errno.EACCES, errno.EPERM):
            return Failed(node_id, "unreadable", problem.strerror or "not permitted")
        return Failed(node_id, "io_error", problem.strerror or str(problem))
    raise problem


J = TypeVar("J", bound=Job)
R = TypeVar("R")


class Transfers(Generic[J, R]):
    """Workers that take small jobs in groups and big ones singly.

    All methods are called on the event loop. `wake` is called whenever results are there to `take`.
    """

    def __init__(
        self,
        *,
        small: Callable[[list[J]], Awaitable[list[R | Failed]]],
        big: Callable[[J], Awaitable[R | Failed]],
        wake: Callable[[], None],
        small_workers: int,
        big_workers: int,
    ):
        self._run_small, self._run_big, self._wake = small, big, wake
        self._small: deque[J] = deque()
        self._big: deque[J] = deque()
        self._changed = asyncio.Event()
        self._results: list[R | Failed] = []
        self.jobs: dict[int, J] = {}
        """What is queued or under way, by entry."""
        self.submitted_count = 0
        runs: list[Coroutine[None, None, None]] = [self._work_small() for _ in range(small_workers)]
        runs += [self._work_big() for _ in range(big_workers)]
        self._tasks = [asyncio.create_task(run) for run in runs]
        for task in self._tasks:
            task.add_done_callback(lambda _: wake())

    def submit(self, job: J) -> None:
        """Queue a job; its entry must have none yet."""
        assert job.id not in self.jobs, "one transfer per entry at a time"
        self.jobs[job.id] = job
        self.submitted_count += 1
        (self._small if job.size <= SMALL_FILE_BYTES else self._big).append(job)
        self._changed.set()

    def take(self) -> list[R | Failed]:
        """The results since the last call.

        Raises:
            RuntimeError: a worker has ended, which none does by itself; what it was at would never be done.
        """
        for task in self._tasks:
            if task.done():
                problem = None if task.cancelled() else task.exception()
                raise RuntimeError("a worker has ended") from problem
        results, self._results = self._results, []
        return results

    @property
    def is_idle(self) -> bool:
        """Nothing under way and nothing to take."""
        return not self.jobs and not self._results

    async def close(self) -> None:
        """Stop all work."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _work_small(self) -> None:
        while True:
            group = self._take_group()
            if not group:
                await self._wait()
                continue
            try:
                self._finish(group, await self._run_small(group))
            except Exception as problem:
                self._fail(group, problem)

    async def _work_big(self) -> None:
        while True:
            if not self._big:
                await self._wait()
                continue
            job = self._big.popleft()
            try:
                self._finish([job], [await self._run_big(job)])
            except Exception as problem:
                self._fail([job], problem)

    def _take_group(self) -> list[J]:
        group: list[J] = []
        total = 0
        while self._small and len(group) < GROUP_FILES and total < GROUP_BYTES:
            job = self._small[0]
            if group and total + job.size > GROUP_BYTES:
                break
            group.append(self._small.popleft())
            total += job.size
        return group

    async def _wait(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    def _finish(self, jobs: list[J], results: list[R | Failed]) -> None:
        for job in jobs:
            del self.jobs[job.id]
        self._results += results
        self._wake()

    def _fail(self, jobs: list[J], problem: Exception) -> None:
        try:
            self._finish(jobs, [failure(job.id, problem) for job in jobs])
        except Exception as unforeseen:
            self._finish(jobs, [Failed(job.id, "internal", repr(unforeseen)) for job in jobs])
