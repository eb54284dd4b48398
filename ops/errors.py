"""What can go wrong for an operator: a stable code, an exit status, and words that say what to do."""

from typing import ClassVar

EXIT_OK = 0
EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_NOT_FOUND = 3
EXIT_CONFLICT = 4
EXIT_BUSY = 5
EXIT_UNAVAILABLE = 6


class OpsError(Exception):
    """A command cannot go on; the message is for people and names the remedy."""

    code: ClassVar[str] = "failed"
    exit_status: ClassVar[int] = EXIT_FAILURE


class UsageError(OpsError):
    """The options do not make sense together."""

    code, exit_status = "usage", EXIT_USAGE


class ProgramsMissing(OpsError):
    """No PostgreSQL of a usable version is at hand."""

    code = "postgresql_missing"


class AccessDenied(OpsError):
    """A file or folder cannot be used by the user that the servers run as."""

    code = "access_denied"


class StartFailed(OpsError):
    """A process did not come up; the message quotes its log."""

    code = "start_failed"


class PortTaken(OpsError):
    """A port that belongs to a process of ours is held by a stranger."""

    code, exit_status = "port_taken", EXIT_CONFLICT


class DataLost(OpsError):
    """The data of a database are gone, or not back yet."""

    code, exit_status = "data_lost", EXIT_CONFLICT


class ClusterBusy(OpsError):
    """Another `shardctl dev` command is at work on the same folder."""

    code, exit_status = "cluster_busy", EXIT_BUSY


class MigrationBusy(OpsError):
    """Another migration, or a move of slots, is under way."""

    code, exit_status = "migration_busy", EXIT_BUSY


class MigrationFailed(OpsError):
    """At least one database could not be brought to its head."""

    code = "migration_failed"


class NoCluster(OpsError):
    """There is no directory to talk to."""

    code, exit_status = "no_cluster", EXIT_UNAVAILABLE
