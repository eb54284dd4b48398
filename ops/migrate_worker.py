"""One database brought to its head, in a process of its own.

alembic keeps the running migration in module globals, so two of them cannot share a process: in threads, one
shard's steps would run on another's connection. `ops/migrate.py` starts a worker for each database, hands it
a job on stdin (a DSN may hold a password, which has no place in an argv) and reads its messages from stdout.
"""

import sys
from collections.abc import Callable
from typing import Any

import msgspec
import psycopg
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.script.revision import RevisionError
from alembic.util import CommandError

from migrations import Tree
from ops.migrate_messages import CONNECT_TIMEOUT_S, Applied, Failed, Message, MigrationJob, Planned
from sharding.locks import MIGRATION_LOCK_CLASS

WORKER_LOCK = 1
"""(MIGRATION_LOCK_CLASS, 1) in the migrated database: a worker whose parent was killed goes on, and by then
the parent's own lock is gone."""


def make_config(tree: Tree) -> Config:
    """alembic's settings for a tree; env.py finds its connection in `attributes`."""
    config = Config()
    config.set_main_option("script_location", str(tree.folder).replace("%", "%%"))
    return config


def newest_revision(tree: Tree) -> str | None:
    """The revision that this version of the program brings a database to."""
    return ScriptDirectory.from_config(make_config(tree)).get_current_head()


def make_engine(job: MigrationJob) -> sa.Engine:
    """An engine whose one connection has the job's time-outs."""

    def connect() -> psycopg.Connection:
        return psycopg.connect(
            job.dsn,
            connect_timeout=CONNECT_TIMEOUT_S,
            application_name="shardctl migrate",
            options=f"-c lock_timeout={job.lock_timeout_ms} -c statement_timeout={job.statement_timeout_ms}",
        )

    return sa.create_engine("postgresql+psycopg://", creator=connect, poolclass=sa.NullPool)


def plan_steps(connection: sa.Connection, tree: Tree) -> Planned:
    """Where a database stands and what is ahead of it; reads only.

    Raises:
        CommandError: it stands at a revision that this version of the program does not know.
    """
    script = ScriptDirectory.from_config(make_config(tree))
    migration = MigrationContext.configure(connection, opts={"version_table_schema": tree.version_schema})
    current = migration.get_current_revision()
    head = script.get_current_head()
    connection.rollback()
    if head is None or current == head:
        return Planned(current, head, [])
    ahead = [step.revision for step in script.iterate_revisions(head, current or "base")]
    return Planned(current, head, ahead[::-1])


def run_job(job: MigrationJob, report: Callable[[Message], None]) -> None:
    """Plan and, unless it is a dry run, apply; every outcome is reported."""
    engine = make_engine(job)
    try:
        with engine.connect() as connection:
            if not _try_lock(connection):
                report(Failed("another migration of this database is still running", is_busy=True))
                return
            planned = plan_steps(connection, job.tree)
            report(planned)
            if planned.steps and not job.is_dry_run:
                _upgrade(connection, job.tree, report)
    except (CommandError, RevisionError) as error:
        report(Failed(f"{error}; is the database newer than this program?"))
    except (sa.exc.DBAPIError, psycopg.Error) as error:
        # Of SQLAlchemy's text only the driver's part: the rest quotes the statement and links to a page.
        report(Failed(str(getattr(error, "orig", None) or error).strip()))
    finally:
        engine.dispose()


def _try_lock(connection: sa.Connection) -> bool:
    query = sa.text("SELECT pg_try_advisory_lock(:class, :key)")
    got = connection.execute(query, {"class": MIGRATION_LOCK_CLASS, "key": WORKER_LOCK}).scalar_one()
    connection.commit()  # the lock is the session's
    return bool(got)


def _upgrade(connection: sa.Connection, tree: Tree, report: Callable[[Message], None]) -> None:
    def on_version_apply(*, step: Any, **_: Any) -> None:
        report(Applied(step.up_revision_id))

    config = make_config(tree)
    config.attributes.update(connection=connection, on_version_apply=on_version_apply)
    command.upgrade(config, "head")


def main() -> None:
    """Run the job that stands on stdin."""
    job = msgspec.json.decode(sys.stdin.buffer.read(), type=MigrationJob)

    def report(message: Message) -> None:
        sys.stdout.buffer.write(msgspec.json.encode(message) + b"\n")
        sys.stdout.buffer.flush()

    run_job(job, report)


if __name__ == "__main__":
    main()
