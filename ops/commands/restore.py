"""`shardctl restore`."""

import os
import pwd
import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import psycopg
import typer

from ops.backup.repository import BackupMissing, ShardBackups
from ops.cluster import DIRECTORY_DSN_VARIABLE, find_directory_dsn
from ops.commands.backup import folder_of
from ops.commands.dev import DataDirOption, layout_of
from ops.errors import EXIT_CONFLICT, OpsError, UsageError
from ops.osuser import OsUser, ensure_server_user
from ops.output import OutputFormat, OutputOption, print_table, say, show
from ops.programs import find_programs
from ops.restore.directory import DirectoryReport, ask_shards, newest_map, write_directory
from ops.restore.embedded import (
    abandon_embedded_restore,
    migrate_directory,
    restore_embedded_directory,
    restore_embedded_shard,
)
from ops.restore.recover import Recovery
from ops.restore.shard import Cluster, RestoreReport, check_old_is_gone, reconcile_at, recover_shard
from ops.restore.steps import DOING, Step
from ops.restore.work import Target, work_of
from ops.session import CONNECT_TIMEOUT_S
from sharding.shardmap import ShardMap, read_map_file
from wire.errors import NotFound, ShardUnavailable

app = typer.Typer(
    no_args_is_help=True,
    help="Bring a lost server back. A restore that ends early goes on when the command is run again.",
)

WithoutOption = Annotated[
    list[str] | None, typer.Option(help="A shard that is lost as well, to be restored later; repeatable.")
]
YesOption = Annotated[bool, typer.Option("--yes", help="Do not ask.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Only tell the steps.")]


class RestoreUnfinished(OpsError):
    """The server records a restore that was begun and not finished."""

    code, exit_status = "restore_unfinished", EXIT_CONFLICT


@app.command()
def shard(
    name: Annotated[str, typer.Argument(help="The shard.")],
    source: Annotated[
        Path | None,
        typer.Option("--from", help="The folder of the backups. Default: the embedded cluster's."),
    ] = None,
    to_time: Annotated[
        str | None, typer.Option(help="A moment, with its time zone: 2026-01-02T03:04:05Z.")
    ] = None,
    to_lsn: Annotated[str | None, typer.Option(help="A position in the log: 0/3000148.")] = None,
    timeline: Annotated[str, typer.Option(help="Of the log; a number, or latest.")] = "latest",
    backup_id: Annotated[
        str | None, typer.Option("--backup", help="Default: the newest before the moment.")
    ] = None,
    pgdata: Annotated[
        Path | None, typer.Option(help="The data folder of a server of your own, on this machine.")
    ] = None,
    run_as: Annotated[
        str | None, typer.Option(help="With --pgdata: the user that PostgreSQL runs as.")
    ] = None,
    at: Annotated[
        str | None,
        typer.Option(
            help="The address (DSN) of a server that was brought back by other means, and that metaservers "
            "cannot reach yet: only makes it fit the others."
        ),
    ] = None,
    public_dsn: Annotated[
        str | None, typer.Option(help="With --at: where metaservers will reach it. Default: as before.")
    ] = None,
    restore_id: Annotated[
        str | None, typer.Option(help="With --at: the unfinished restore, or `new`.")
    ] = None,
    without: WithoutOption = None,
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    data_dir: DataDirOption = None,
    output: OutputOption = OutputFormat.TEXT,
) -> None:
    """Bring one shard back: to the end of its archive, or to a moment before.

    Until it is done the shard answers nobody, and its namespaces get retryable errors. What was acknowledged
    after the moment is lost on the server; clients bring it back from their disks (docs/operations.md).
    """
    target = parse_target(to_time, to_lsn, timeline)
    if dry_run:
        _show_plan(name, folder_of(source, data_dir), target, backup_id, output, has_files=at is None)
        return
    _confirm(yes, output, f"Restore {name} to {target.text}? Whatever came after it is given up.")
    others = without or []
    if at is not None:
        cluster = Cluster(find_directory_dsn(data_dir), others)
        report = _reconcile(cluster, name, at, public_dsn, restore_id)
    elif pgdata is not None:
        cluster = Cluster(find_directory_dsn(data_dir), others)
        recovery = _own_recovery(pgdata.absolute(), ShardBackups(folder_of(source, data_dir), name), run_as)
        report = recover_shard(cluster, recovery, target, backup_id, password=None)
        recovery.finish()
    elif _is_own_cluster(data_dir):
        raise UsageError("name the data folder (--pgdata), or a server that is back by other means (--at)")
    else:
        layout = layout_of(data_dir)
        report = restore_embedded_shard(
            layout, name, folder_of(source, data_dir), target, backup_id, others, say
        )
    show(report, output, lambda: _print_report(report))


def parse_target(to_time: str | None, to_lsn: str | None, timeline: str) -> Target:
    """The moment of the options.

    Raises:
        UsageError: both, or not a moment.
    """
    if to_time is not None and to_lsn is not None:
        raise UsageError("--to-time and --to-lsn exclude each other")
    moment = None
    if to_time is not None:
        try:
            moment = datetime.fromisoformat(to_time)
        except ValueError as error:
            raise UsageError(f"not a time: {to_time!r}") from error
        if moment.tzinfo is None:
            raise UsageError(f"{to_time} names no time zone: add Z for UTC")
    if to_lsn is not None:
        high, _, low = to_lsn.partition("/")
        if not all(part and set(part) <= set("0123456789abcdefABCDEF") for part in (high, low)):
            raise UsageError(f"not a position in the log: {to_lsn!r}")
    if timeline != "latest" and not timeline.isdigit():
        raise UsageError(f"not a timeline: {timeline!r}")
    return Target(time=moment, lsn=to_lsn, timeline=timeline)


def _confirm(yes: bool, output: OutputFormat, question: str) -> None:
    if yes:
        return
    if output is OutputFormat.JSON:
        raise UsageError("with --output json nobody can be asked: add --yes")
    typer.confirm(question, abort=True)


def _show_plan(
    name: str,
    folder: Path,
    target: Target,
    backup_id: str | None,
    output: OutputFormat,
    *,
    has_files: bool,
) -> None:
    steps = [(step.value, DOING[step]) for step in Step]
    chosen = None
    if has_files:
        backups = ShardBackups(folder, name)
        backup = backups.get_backup(backup_id) if backup_id else backups.newest_before(target.time)
        reach = backups.reach(backup)
        if reach.missing is not None and target == Target():
            raise BackupMissing(f"the archive lacks {reach.missing.name} and holds later ones")
        chosen = backup.backup_id
        files = [
            ("copied", f"check and copy backup {chosen}, made {backup.finished_at:%Y-%m-%d %H:%M:%SZ}"),
            ("recovered", f"replay the log to {target.text}, reachable for nobody else"),
        ]
        steps = [*files, *steps, ("placed", "put the data in place and start the server")]
    result = {"shard": name, "restored_to": target.text, "backup_id": chosen, "steps": [s for s, _ in steps]}
    show(result, output, lambda: print_table(["step", ""], steps))


def _own_recovery(pgdata: Path, backups: ShardBackups, run_as: str | None) -> Recovery:
    user = ensure_server_user(say)
    if run_as is not None:
        try:
            entry = pwd.getpwnam(run_as)
        except KeyError:
            raise UsageError(f"there is no user {run_as!r}") from None
        user = OsUser(entry.pw_name, entry.pw_uid, entry.pw_gid)
    return Recovery(work_of(pgdata), backups, find_programs(user), user, say)


def _reconcile(
    cluster: Cluster, name: str, at: str, public_dsn: str | None, restore_id: str | None
) -> RestoreReport:
    known = cluster.shard_map(name).shards[name].dsn
    if known not in (at, public_dsn):
        check_old_is_gone(known, name)
    restore_id = _choose_id(at, restore_id)
    say(f"restore {restore_id}; should it end early, go on with --restore-id {restore_id}")
    counts = reconcile_at(cluster, name, at, restore_id, "a moment of its own", say, public_dsn=public_dsn)
    return RestoreReport(
        restore_id=restore_id,
        shard=name,
        restored_to="a moment of its own",
        backup_id=None,
        former_data=None,
        step=Step.PUBLISHED.value,
        counts=counts,
    )


def _choose_id(at: str, given: str | None) -> str:
    if given is not None and given != "new":
        return given
    try:
        with psycopg.connect(at, autocommit=True, connect_timeout=CONNECT_TIMEOUT_S) as conn:
            there = conn.execute("SELECT to_regclass('local.restores') IS NOT NULL").fetchone()
            unfinished = None
            if there is not None and there[0]:
                unfinished = conn.execute(
                    "SELECT restore_id FROM local.restores WHERE finished_at IS NULL ORDER BY began_at DESC"
                ).fetchone()
    except psycopg.OperationalError as error:
        raise ShardUnavailable(f"{at} does not answer: {str(error).strip()}") from error
    if unfinished is not None and given is None:
        raise RestoreUnfinished(
            f"restore {unfinished[0]} is unfinished there: --restore-id {unfinished[0]} goes on with it; "
            "if the server has been brought back once more since, --restore-id new"
        )
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}"


def _is_own_cluster(data_dir: Path | None) -> bool:
    """Whether a cluster of one's own is meant, and not the embedded one."""
    return bool(os.environ.get(DIRECTORY_DSN_VARIABLE)) and data_dir is None


def _print_report(report: RestoreReport) -> None:
    print(f"{report.shard} is back, as of {report.restored_to} (restore {report.restore_id})")
    print_table(["", ""], [(name.replace("_", " "), count) for name, count in sorted(report.counts.items())])
    if report.former_data is not None:
        print(f"the data that were there before lie in {report.former_data}")
    print("take a base backup of it now: `shardctl backup base`")


@app.command()
def abandon(
    name: Annotated[str, typer.Argument(help="The shard.")],
    pgdata: Annotated[
        Path | None, typer.Option(help="The data folder of a server of your own, on this machine.")
    ] = None,
    data_dir: DataDirOption = None,
    output: OutputOption = OutputFormat.TEXT,
) -> None:
    """Forget a restore that did not get to its moment; the server can be started with its former data.

    Refused once the log has been replayed, or where those data are gone.
    """
    if pgdata is not None:
        state = _own_recovery(pgdata.absolute(), ShardBackups(pgdata.absolute(), name), None).abandon()
    elif _is_own_cluster(data_dir):
        raise UsageError("name the data folder: --pgdata")
    else:
        state = abandon_embedded_restore(layout_of(data_dir), name, say)
    show(state, output, lambda: print(f"restore {state.restore_id} is forgotten; start the server now"))


@app.command()
def directory(
    shards: Annotated[
        list[str] | None,
        typer.Option("--shard", help="NAME=DSN, of every shard; not for the embedded cluster."),
    ] = None,
    map_file: Annotated[
        list[Path] | None,
        typer.Option(help="What a metaserver has kept (SHARDBOX_MAP_FILE); repeatable, the newest counts."),
    ] = None,
    without: WithoutOption = None,
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    data_dir: DataDirOption = None,
    output: OutputOption = OutputFormat.TEXT,
) -> None:
    """Make a lost directory again, of the shards' own records of what they own.

    It is written into an empty database. Servers that run go on meanwhile with the map that they know.
    """
    others = without or []
    if not dry_run:
        _confirm(yes, output, "Write a new directory from what the shards say?")
    if _is_own_cluster(data_dir):
        report = _restore_own_directory(shards or [], map_file or [], others, is_dry_run=dry_run)
    else:
        report = restore_embedded_directory(layout_of(data_dir), others, say, is_dry_run=dry_run)
    show(report, output, lambda: _print_directory(report))


def _restore_own_directory(
    shards: list[str], map_files: list[Path], without: list[str], *, is_dry_run: bool
) -> DirectoryReport:
    known = newest_map([_read_map(path) for path in map_files])
    dsns = {name: info.dsn for name, info in known.shards.items()} if known is not None else {}
    for text in shards:
        name, sign, dsn = text.partition("=")
        if not (name and sign and dsn):
            raise UsageError(f"--shard takes NAME=DSN, not {text!r}")
        dsns[name] = dsn
    if not dsns:
        raise UsageError("name every shard (--shard NAME=DSN), or a map that a metaserver has kept")
    found = ask_shards(dsns, known, without)
    directory_dsn = os.environ[DIRECTORY_DSN_VARIABLE]
    if not is_dry_run:
        migrate_directory(directory_dsn)
    return write_directory(directory_dsn, found, say, is_dry_run=is_dry_run)


def _read_map(path: Path) -> ShardMap:
    kept = read_map_file(path)
    if kept is None:
        raise NotFound(f"{path} is no shard map")
    return kept


def _print_directory(report: DirectoryReport) -> None:
    word = "wrote" if report.is_written else "would write"
    print(f"{word} cluster {report.cluster_id}, map version {report.map_version}")
    print_table(["shard", "slots"], sorted(report.slots_by_shard.items()))
