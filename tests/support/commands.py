"""Our programs in processes of their own, forked from one that has imported them already.

An interpreter takes a second to import one, and tests start hundreds; what they see is the same: a pid, an
exit status (negative: the signal that killed it), standard output, standard error.
"""

import importlib
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing.context import ForkServerContext
from pathlib import Path

import coverage

CLIENT = "client.cli"
OPERATOR = "ops.cli"
SERVERS = ("metaserver.main", "blockserver.main", "notifserver.main")


class Program:
    """A module's `main()`, started with these arguments; as a context manager it is killed at the end.

    Args:
        module: CLIENT, OPERATOR, one of SERVERS.
        args: Without the program's name.
        out: Where standard output is appended.
        err: Where standard error is; the same file if it is the same path.
        env: Added to this process's environment.
    """

    def __init__(self, module: str, *args: str, out: Path, err: Path, env: Mapping[str, str] | None = None):
        self._command = [module, *args]
        for path in (out, err):
            path.touch()
        self._process = _context().Process(  # type: ignore[attr-defined]
            target=_run_in_child, args=(module, args, {**os.environ, **(env or {})}, out, err), daemon=True
        )
        self._process.start()

    @property
    def pid(self) -> int:
        """Its process id."""
        return int(self._process.pid)

    def poll(self) -> int | None:
        """Its exit status, None while it runs."""
        return self._process.exitcode  # type: ignore[no-any-return]

    def wait(self, timeout_s: float) -> int:
        """Its exit status.

        Raises:
            subprocess.TimeoutExpired: it still runs.
        """
        self._process.join(timeout_s)
        status = self.poll()
        if status is None:
            raise subprocess.TimeoutExpired(self._command, timeout_s)
        return status

    def send(self, number: signal.Signals) -> None:
        """Send it a signal, if it still runs."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """kill -9, and wait."""
        self.send(signal.SIGKILL)
        self._process.join()

    def __enter__(self) -> "Program":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._process.close()


def run_command(
    module: str,
    *args: str,
    env: Mapping[str, str] | None = None,
    timeout_s: float = 60,
) -> "subprocess.CompletedProcess[str]":
    """Run a program to its end.

    Raises:
        subprocess.TimeoutExpired: it took longer, and was killed.
    """
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        try:
            with Program(module, *args, out=out, err=err, env=env) as program:
                status = program.wait(timeout_s)
        except subprocess.TimeoutExpired as late:
            raise subprocess.TimeoutExpired(late.cmd, late.timeout, _text(out), _text(err)) from None
        return subprocess.CompletedProcess([module, *args], status, _text(out), _text(err))


def _text(path: Path) -> str:
    return path.read_text(errors="replace")


def _context() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([CLIENT, OPERATOR, *SERVERS, __name__])
    return context


def _run_in_child(module: str, args: tuple[str, ...], env: Mapping[str, str], out: Path, err: Path) -> None:
    for number, path in enumerate((out, err), start=1):
        with path.open("ab") as file:
            os.dup2(file.fileno(), number)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", closefd=False)
    sys.argv = [module, *args]
    os.environ.clear()
    os.environ.update(env)
    try:
        importlib.import_module(module).main()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        if (measured := coverage.Coverage.current()) is not None:
            measured.stop()
            measured.save()
