"""`shardbox` and `shardctl` in processes of their own, forked from one that has imported them already.

An interpreter takes a second to import a command, and tests start hundreds; what they see is the same: exit
status (negative: the signal that killed it), standard output, standard error.
"""

import importlib
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from multiprocessing.context import ForkServerContext
from pathlib import Path

import coverage

CLIENT = "client.cli"
OPERATOR = "ops.cli"


def run_command(
    module: str,
    *args: str,
    env: Mapping[str, str] | None = None,
    timeout_s: float = 60,
) -> "subprocess.CompletedProcess[str]":
    """Call a module's `main()` with these arguments.

    Args:
        module: CLIENT or OPERATOR.
        args: Without the program's name.
        env: Added to this process's environment.
        timeout_s: After it the process is killed.

    Raises:
        subprocess.TimeoutExpired: it was.
    """
    with tempfile.TemporaryDirectory() as folder:
        child = _context().Process(  # type: ignore[attr-defined]
            target=_run_in_child, args=(module, args, {**os.environ, **(env or {})}, folder), daemon=True
        )
        child.start()
        child.join(timeout_s)
        is_late = child.is_alive()
        if is_late:
            child.kill()
            child.join()
        status = child.exitcode
        child.close()
        texts = [path.read_text(errors="replace") if path.exists() else "" for path in _outputs(folder)]
    if is_late:
        raise subprocess.TimeoutExpired([module, *args], timeout_s, *texts)
    return subprocess.CompletedProcess([module, *args], status, *texts)


def _context() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([CLIENT, OPERATOR, __name__])
    return context


def _outputs(folder: str) -> tuple[Path, Path]:
    return Path(folder, "out"), Path(folder, "err")


def _run_in_child(module: str, args: tuple[str, ...], env: Mapping[str, str], folder: str) -> None:
    for number, path in enumerate(_outputs(folder), start=1):
        with path.open("wb") as file:
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
