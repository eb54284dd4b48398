"""The files between the supervisor and everybody else: what should run, what does, what its owner adds."""

from enum import StrEnum

import msgspec

from ops.files import write_json
from ops.layout import DevLayout
from ops.processes import ProcessIdentity
from ops.specs import ProcessKind, ProcessSpec


class ProcessStatus(StrEnum):
    """What a supervised process is doing."""

    RUNNING = "running"
    BACKOFF = "backoff"
    """It died and is started again in a moment."""
    STOPPED = "stopped"


class ProcessState(msgspec.Struct, kw_only=True):
    """One process as the supervisor sees it."""

    name: str
    kind: ProcessKind
    status: ProcessStatus = ProcessStatus.STOPPED
    pid: int | None = None
    start_ticks: int | None = None
    """With the pid and the boot it names one process for ever."""
    boot_id: str | None = None
    started_at: str | None = None
    adopted: bool = False
    """Whether it was found running rather than started by this supervisor."""
    restarts: int = 0
    """How often it died and was started again."""
    last_exit: str | None = None
    last_exit_at: str | None = None
    port: int | None = None
    url: str | None = None
    log: str

    @classmethod
    def of(cls, spec: ProcessSpec) -> "ProcessState":
        """The state of a process that has not been started yet."""
        return cls(name=spec.name, kind=spec.kind, port=spec.port, url=spec.url, log=spec.log)

    @property
    def identity(self) -> ProcessIdentity | None:
        """The process, which may have ended by now; None when it is not running."""
        if self.pid is None or self.start_ticks is None or self.boot_id is None:
            return None
        return ProcessIdentity(self.pid, self.start_ticks, self.boot_id)

    def set_identity(self, identity: ProcessIdentity | None) -> None:
        """Record which process it is now."""
        self.pid = identity.pid if identity else None
        self.start_ticks = identity.start_ticks if identity else None
        self.boot_id = identity.boot_id if identity else None


class SupervisorState(msgspec.Struct, kw_only=True):
    """The whole of `state.json`."""

    supervisor_pid: int | None
    updated_at: str
    processes: list[ProcessState]


class _ProcessList(msgspec.Struct, frozen=True):
    processes: list[ProcessSpec]


class _AddedConfig(msgspec.Struct, frozen=True):
    env: dict[str, dict[str, str]] = {}


def read_specs(layout: DevLayout) -> dict[str, ProcessSpec]:
    """What should run, by name; empty while the cluster is down."""
    try:
        found = msgspec.json.decode(layout.processes_file.read_bytes(), type=_ProcessList)
    except FileNotFoundError:
        return {}
    return {spec.name: spec for spec in found.processes}


def read_demo_specs(layout: DevLayout) -> list[ProcessSpec]:
    """The demonstration's devices, which run beside the servers; none before `shardctl dev demo`."""
    try:
        return msgspec.json.decode(layout.demo_file.read_bytes(), type=_ProcessList).processes
    except FileNotFoundError:
        return []


def write_demo_specs(layout: DevLayout, specs: list[ProcessSpec]) -> None:
    """Record the demonstration's devices."""
    write_json(layout.demo_file, _ProcessList(specs))


def write_specs(layout: DevLayout, specs: list[ProcessSpec]) -> None:
    """Say what should run; the supervisor reads it on SIGHUP."""
    write_json(layout.processes_file, _ProcessList(specs))


def read_state(layout: DevLayout) -> SupervisorState:
    """What the supervisor last saw; it may have been killed since."""
    try:
        return msgspec.json.decode(layout.state_file.read_bytes(), type=SupervisorState)
    except FileNotFoundError:
        return SupervisorState(supervisor_pid=None, updated_at="", processes=[])


def read_added_environment(layout: DevLayout) -> dict[str, dict[str, str]]:
    """The owner's own variables, by process name or kind; none when the file is absent or malformed."""
    try:
        return msgspec.json.decode(layout.config_file.read_bytes(), type=_AddedConfig).env
    except (FileNotFoundError, msgspec.DecodeError):
        return {}
