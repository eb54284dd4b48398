"""The process that keeps an embedded cluster's processes running.

`python -m ops.supervisor FOLDER`. It starts what `processes.json` asks for, starts again what dies, and
writes what it sees to `state.json`. SIGHUP makes it read `processes.json` again; SIGTERM stops everything,
in order.

Its children need nothing of it: each leads a session of its own and writes to its own log. Killed, it leaves
them running, and the next one adopts them by the marks in their environments.
"""

import contextlib
import os
import pwd
import select
import shutil
import signal
import socket
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from ops.errors import OpsError, PortTaken
from ops.files import locked, write_json
from ops.layout import DevLayout
from ops.osuser import OsUser
from ops.ports import PortReservation
from ops.postgres import clear_remains
from ops.processes import ProcessHandle, base_environment, find_marked, spawn
from ops.specs import ProcessKind, ProcessSpec
from ops.state import (
    ProcessState,
    ProcessStatus,
    SupervisorState,
    read_added_environment,
    read_specs,
    read_state,
)

SUPERVISOR = "supervisor"
STEADY_S = 5.0
"""A process that lived this long died of something new: it is started again at once."""
FIRST_BACKOFF_S = 0.2
MAX_BACKOFF_S = 10.0
"""A process that cannot start costs a few hundred milliseconds of CPU at each try."""
REMAINS_GRACE_S = 2.0
"""For the backends of a PostgreSQL that was killed; they look for it at least once in a latch's time-out."""
REMAINS_POLL_S = 0.05
MAX_LOG_BYTES = 16 * 1024 * 1024
LOG_CHECK_S = 1.0
KILL_GRACE_S = 5.0


class Supervisor:
    """Keeps the processes of one cluster as its files say."""

    def __init__(self, layout: DevLayout):
        self._layout = layout
        self._pid: int | None = os.getpid()
        self._specs: dict[str, ProcessSpec] = {}
        self._handles: dict[str, ProcessHandle] = {}
        self._states: dict[str, ProcessState] = {}
        self._due: dict[str, float] = {}
        """When to start what is not running, on the monotonic clock."""
        self._died: dict[str, float] = {}
        self._backoff: dict[str, float] = {}
        self._started: dict[str, float] = {}
        self._ports: dict[int, PortReservation] = {}
        self._logs_checked = 0.0

    # ---- What should run

    def load(self) -> None:
        """Read what should run; what runs and should not is stopped."""
        specs = read_specs(self._layout)
        for name in [name for name in self._handles if name not in specs]:
            _say(f"{name} is not wanted any more")
            self._stop([name])
            self._states.pop(name, None)
        self._specs = specs
        self._states = {name: self._states.get(name) or ProcessState.of(spec) for name, spec in specs.items()}
        self._due = {name: due for name, due in self._due.items() if name in specs}
        for name, spec in specs.items():
            state = self._states[name]
            state.kind, state.port, state.url, state.log = spec.kind, spec.port, spec.url, spec.log
            if name not in self._handles:
                self._due.setdefault(name, time.monotonic())
        self._write_state()

    def adopt(self) -> None:
        """Take hold of what a former supervisor left running, and of its counts."""
        former = {state.name: state for state in read_state(self._layout).processes}
        self._specs = read_specs(self._layout)
        for name, identity in find_marked(self._layout.mark_prefix).items():
            if name == SUPERVISOR:
                continue
            try:
                self._handles[name] = ProcessHandle(identity)
            except ProcessLookupError:
                continue
            self._started[name] = time.monotonic()
            _say(f"{name} (pid {identity.pid}) is running: adopted")
        for name, spec in self._specs.items():
            state = self._states[name] = former.get(name) or ProcessState.of(spec)
            handle = self._handles.get(name)
            if handle is None and state.status is ProcessStatus.RUNNING:
                state.last_exit, state.last_exit_at = "ended while nobody watched", _now()
                state.restarts += 1
            state.status = ProcessStatus.RUNNING if handle else ProcessStatus.BACKOFF
            state.adopted = handle is not None
            state.set_identity(handle.identity if handle else None)

    # ---- Starting

    def start_due(self) -> None:
        """Start what is due."""
        now = time.monotonic()
        for name in [name for name, due in self._due.items() if due <= now]:
            self._start(self._specs[name])

    def _start(self, spec: ProcessSpec) -> None:
        if spec.data_dir is not None and not self._is_clear(spec):
            return
        self._hold_port(spec)
        self._due.pop(spec.name, None)
        state = self._states[spec.name]
        try:
            handle = spawn(
                spec.argv,
                mark=self._layout.mark(spec.name),
                env=self._environment(spec),
                log=Path(spec.log),
                cwd=Path(spec.cwd),
                user=_user(spec.user) if spec.user else None,
                umask=spec.umask,
            )
        except OpsError as error:
            self._note_end(spec.name, str(error))
            return
        self._handles[spec.name] = handle
        self._started[spec.name] = time.monotonic()
        state.status, state.adopted, state.started_at = ProcessStatus.RUNNING, False, _now()
        state.set_identity(handle.identity)
        _say(f"{spec.name} (pid {handle.pid}) started")
        self._write_state()

    def _is_clear(self, spec: ProcessSpec) -> bool:
        since = self._died.setdefault(spec.name, time.monotonic())
        is_patient = time.monotonic() - since < REMAINS_GRACE_S
        if clear_remains(Path(spec.data_dir or ""), is_patient=is_patient):
            return True
        self._due[spec.name] = time.monotonic() + REMAINS_POLL_S
        return False

    def _hold_port(self, spec: ProcessSpec) -> None:
        """Keep strangers off the port while its server is down."""
        if spec.port is None or spec.port in self._ports:
            return
        try:
            self._ports[spec.port] = PortReservation(spec.port)
        except PortTaken:
            _say(f"port {spec.port} of {spec.name} is taken by another process")

    def _environment(self, spec: ProcessSpec) -> dict[str, str]:
        own = spec.env if spec.kind is ProcessKind.POSTGRES else base_environment() | spec.env
        added = read_added_environment(self._layout)
        return own | added.get(spec.kind.value, {}) | added.get(spec.name, {})

    # ---- Watching

    def notice_ends(self) -> None:
        """Note what has ended, and when to start it again."""
        for name, handle in list(self._handles.items()):
            if handle.wait(0):
                text = handle.exit_text()
                handle.close()
                del self._handles[name]
                self._note_end(name, text)

    def _note_end(self, name: str, text: str) -> None:
        now = time.monotonic()
        is_steady = now - self._started.get(name, now) >= STEADY_S
        delay_s = 0.0 if is_steady else self._backoff.get(name, 0.0)
        self._backoff[name] = min(max(delay_s * 2, FIRST_BACKOFF_S), MAX_BACKOFF_S)
        self._died[name] = now
        self._due[name] = now + delay_s
        state = self._states[name]
        state.status, state.last_exit, state.last_exit_at = ProcessStatus.BACKOFF, text, _now()
        state.restarts += 1
        pid = state.pid
        state.set_identity(None)
        _say(f"{name} (pid {pid}) ended: {text}; starting it again in {delay_s:.1f} s")
        self._write_state()

    def wait(self, wakeup: "SignalFlags") -> None:
        """Return when something may have to be done."""
        poller = select.poll()
        poller.register(wakeup, select.POLLIN)
        for handle in self._handles.values():
            poller.register(handle, select.POLLIN)
        pending = [due - time.monotonic() for due in self._due.values()]
        poller.poll(max(0.0, min([LOG_CHECK_S, *pending])) * 1000)

    def bound_logs(self) -> None:
        """Cut the logs that have grown too long, keeping one older piece of each."""
        if time.monotonic() < self._logs_checked + LOG_CHECK_S:
            return
        self._logs_checked = time.monotonic()
        for log in [self._layout.log(SUPERVISOR), *(Path(spec.log) for spec in self._specs.values())]:
            if log.exists() and log.stat().st_size > MAX_LOG_BYTES:
                # In place, as the process goes on writing to the end of this very file.
                shutil.copyfile(log, log.with_suffix(".log.1"))
                os.truncate(log, 0)

    # ---- Stopping

    def stop_all(self) -> None:
        """Stop everything, clients first, databases last; then nothing is asked for any more."""
        self._due.clear()
        stages = {name: self._specs[name].stage if name in self._specs else 0 for name in self._handles}
        for stage in sorted(set(stages.values()), reverse=True):
            self._stop([name for name in stages if stages[name] == stage])
        self._layout.processes_file.unlink(missing_ok=True)
        for held in self._ports.values():
            held.close()
        self._pid = None
        self._write_state()

    def _stop(self, names: list[str]) -> None:
        deadline = time.monotonic() + max((self._grace_s(name) for name in names), default=0)
        for name in names:
            self._handles[name].send(signal.SIGINT if self._is_postgres(name) else signal.SIGTERM)
            self._handles[name].send(signal.SIGCONT)  # a stopped process sees no other signal
        for name in names:
            handle = self._handles.pop(name)
            ended = handle.wait(max(0.0, deadline - time.monotonic()))
            if not ended and self._is_postgres(name):
                handle.send(signal.SIGQUIT)
                ended = handle.wait(KILL_GRACE_S)
            if not ended:
                handle.send(signal.SIGKILL)
                handle.wait(KILL_GRACE_S)
            text = handle.exit_text() if ended else "killed, as it did not stop by itself"
            handle.close()
            _say(f"{name} (pid {handle.pid}) stopped: {text}")
            if (state := self._states.get(name)) is not None:
                state.status, state.last_exit, state.last_exit_at = ProcessStatus.STOPPED, text, _now()
                state.set_identity(None)
            self._write_state()

    def _is_postgres(self, name: str) -> bool:
        return name in self._specs and self._specs[name].kind is ProcessKind.POSTGRES

    def _grace_s(self, name: str) -> float:
        return self._specs[name].grace_s if name in self._specs else KILL_GRACE_S

    # ---- Telling

    def _write_state(self) -> None:
        state = SupervisorState(
            supervisor_pid=self._pid, updated_at=_now(), processes=list(self._states.values())
        )
        try:
            write_json(self._layout.state_file, state)
        except OSError as error:  # a full disk is no reason to leave the processes alone
            _say(f"cannot write {self._layout.state_file}: {error}")


def run(layout: DevLayout) -> None:
    """Supervise until SIGTERM.

    Raises:
        ClusterBusy: this cluster has a supervisor.
    """
    with locked(layout.supervisor_lock, wait=False, what="another supervisor"):
        signals = SignalFlags()
        supervisor = Supervisor(layout)
        supervisor.adopt()
        supervisor.load()
        while not signals.take(signal.SIGTERM, signal.SIGINT):
            if signals.take(signal.SIGHUP):
                supervisor.load()
            supervisor.notice_ends()
            supervisor.start_due()
            supervisor.bound_logs()
            supervisor.wait(signals)
        supervisor.stop_all()


class SignalFlags:
    """Signals that have arrived; readable for `poll` when one does, so that none is slept through."""

    def __init__(self) -> None:
        self._arrived: set[int] = set()
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda number, _frame: self._arrived.add(number))

    def fileno(self) -> int:
        """Becomes readable when a signal arrives."""
        return self._reader.fileno()

    def take(self, *numbers: int) -> bool:
        """Whether one of these has arrived since it was last asked for."""
        with contextlib.suppress(BlockingIOError):
            self._reader.recv(4096)
        has_arrived = not self._arrived.isdisjoint(numbers)
        self._arrived.difference_update(numbers)
        return has_arrived


def _user(name: str) -> OsUser:
    entry = pwd.getpwnam(name)
    return OsUser(entry.pw_name, entry.pw_uid, entry.pw_gid)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _say(text: str) -> None:
    print(f"{_now()} {text}", flush=True)


if __name__ == "__main__":
    run(DevLayout(Path(sys.argv[1])))
