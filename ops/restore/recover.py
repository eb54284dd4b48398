"""The files of a restore: the copy of a base backup, its recovery, and its being put in place."""

import os
import secrets
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from ops.backup.archive import restore_command
from ops.backup.base import verify_copy
from ops.backup.repository import BackupMissing, BaseBackup, ShardBackups
from ops.errors import DataLost, UsageError
from ops.osuser import OsUser
from ops.postgres import find_postmaster
from ops.programs import PgPrograms
from ops.restore.private import Tell, end_leftover
from ops.restore.work import Phase, RestoreState, Target, WorkPaths
from wire import faults

faults.declare(
    "ops.restore.noted",
    "ops.restore.half_copied",
    "ops.restore.copied",
    "ops.restore.former_set_aside",
    "ops.restore.placed",
)


@dataclass(frozen=True, slots=True)
class Recovery:
    """The work on the files of one restore, with what it needs."""

    work: WorkPaths
    backups: ShardBackups
    programs: PgPrograms
    user: OsUser
    tell: Tell

    def begin(self, target: Target, backup_id: str | None) -> RestoreState:
        """The restore that is under way if it is the same one, else a new one.

        Raises:
            UsageError: another one is past the point of no return.
            BackupMissing: nothing reaches the target.
            DataLost: the server runs.
        """
        former = self.work.read_state()
        is_placed = former is not None and former.phase is Phase.PLACED
        if not is_placed and find_postmaster(self.work.data) is not None:
            raise DataLost(f"the server of {self.work.data} runs: stop it first")
        if former is not None and _is_same(former, target, backup_id, self.backups):
            self.tell(f"taking up restore {former.restore_id}: {former.phase}")
            return former
        if former is not None and former.phase in (Phase.LET_IN, Phase.PLACED):
            raise UsageError(
                f"restore {former.restore_id} to {former.target.text} is all but done: finish it first"
            )
        if former is not None:
            self.tell(
                f"giving up restore {former.restore_id} to {former.target.text}, which nobody has seen yet"
            )
            self.drop_copies()
        backup = self.choose(target, backup_id)
        state = RestoreState(
            restore_id=f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}",
            shard=self.backups.shard,
            source=str(self.backups.root),
            backup_id=backup.backup_id,
            target=target,
        )
        self.work.write_state(state)
        faults.fault_point("ops.restore.noted")
        return state

    def choose(self, target: Target, backup_id: str | None) -> BaseBackup:
        """The backup to begin with.

        Raises:
            BackupMissing: there is none, or the archive ends before it or has a gap on the way.
        """
        backup = self.backups.get_backup(backup_id) if backup_id else self.backups.newest_before(target.time)
        reach = self.backups.reach(backup)
        if reach.missing is not None and target.time is None and target.lsn is None:
            raise BackupMissing(
                f"the archive lacks {reach.missing.name} and holds later ones; name a moment before it"
            )
        return backup

    def abandon(self) -> RestoreState:
        """Forget a restore whose log has not been replayed to its end; the server has its former data.

        Raises:
            UsageError: there is none, it is further than that, or the former data are gone.
        """
        state = self.work.read_state()
        if state is None:
            raise UsageError(f"no restore of {self.backups.shard} is under way")
        if state.phase not in (Phase.COPYING, Phase.COPIED):
            raise UsageError(f"restore {state.restore_id} is too far ({state.phase}): finish it")
        if not self.work.data.exists():
            raise UsageError(f"{self.work.data} is gone: there is nothing to go back to")
        self.drop_copies()
        self.finish()
        return state

    def drop_copies(self) -> None:
        """Delete what an attempt has made."""
        end_leftover(self.work.restoring)
        for folder in (self.work.copying, self.work.restoring):
            if folder.exists():
                shutil.rmtree(folder)

    def ensure_copied(self, state: RestoreState) -> RestoreState:
        """Copy and check the base backup."""
        if state.phase is not Phase.COPYING:
            return state
        self.drop_copies()
        source = self.backups.data(state.backup_id)
        self.tell(f"checking and copying backup {state.backup_id}")
        verify_copy(self.programs, source)
        shutil.copytree(source, self.work.copying, symlinks=True)
        faults.fault_point("ops.restore.half_copied")
        (self.work.copying / "recovery.signal").touch()
        (self.work.copying / "postgresql.conf").touch()  # some systems keep it elsewhere
        for path in [self.work.copying, *self.work.copying.rglob("*")]:
            self.user.give(path)
        self.work.copying.chmod(0o700)
        os.sync()
        self.work.copying.rename(self.work.restoring)
        return self.advance(state, Phase.COPIED, "ops.restore.copied")

    def advance(self, state: RestoreState, phase: Phase, point: str | None = None) -> RestoreState:
        """Note that a phase has been reached."""
        state = msgspec.structs.replace(state, phase=phase)
        self.work.write_state(state)
        if point is not None:
            faults.fault_point(point)
        return state

    def settings(self, target: Target) -> dict[str, str]:
        """What makes PostgreSQL replay up to the target; without meaning once it has."""
        settings = {
            "restore_command": restore_command(self.backups.wal),
            "recovery_target_timeline": target.timeline,
            "recovery_target_action": "promote",
        }
        if target.time is not None:
            settings["recovery_target_time"] = target.time.isoformat()
        if target.lsn is not None:
            settings["recovery_target_lsn"] = target.lsn
        return settings

    def place(self, state: RestoreState) -> Path | None:
        """Put the copy where the server looks for its data; where the former data are now, or None."""
        aside = self.work.former(state.restore_id)
        if self.work.restoring.exists():
            if self.work.data.exists():
                self.work.data.rename(aside)
                faults.fault_point("ops.restore.former_set_aside")
            self.work.restoring.rename(self.work.data)
        os.sync()
        self.advance(state, Phase.PLACED, "ops.restore.placed")
        return aside if aside.exists() else None

    def finish(self) -> None:
        """Forget about the restore."""
        self.work.state.unlink(missing_ok=True)
        self.work.log.unlink(missing_ok=True)


def _is_same(former: RestoreState, target: Target, backup_id: str | None, backups: ShardBackups) -> bool:
    is_unsaid = target == Target() and backup_id is None
    is_source = former.source == str(backups.root)
    return is_source and (is_unsaid or (former.target == target and backup_id in (None, former.backup_id)))
