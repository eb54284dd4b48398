"""PostgreSQL's archive_command: a segment of the log is in the archive whole and on disk, or not at all."""

import shlex
from collections.abc import Mapping
from pathlib import Path

from ops.errors import UsageError
from ops.files import write_file

ARCHIVE_TIMEOUT_S = 60
"""A segment that nobody fills is archived after this time: what a lost server may cost at most. Each takes
16 MiB of archive, which is 23 GB a day on a server that is never idle (an idle one archives nothing)."""
EXECUTABLE = 0o755

ARCHIVE_SCRIPT = """\
#!/bin/sh
# archive-wal PATH NAME FOLDER: PostgreSQL's archive_command = 'archive-wal "%p" "%f" FOLDER'.
#
# Exit status 0 says: FOLDER/NAME holds this segment, whole, and a power cut does not take it away. Written by
# `shardctl backup archiver`; it needs nothing but the system's own programs.
set -eu
target="$3/$2"
temporary="$3/.$2.$$"
if [ -e "$target" ]; then
    # PostgreSQL asks again when it was stopped between our success and its note of it. Another content under
    # this name belongs to another server or another history: it is never replaced.
    cmp -s -- "$1" "$target" || { echo "archive-wal: $target is there with another content" >&2; exit 1; }
    sync "$target" "$3"
    exit 0
fi
trap 'rm -f -- "$temporary"' EXIT
cp -- "$1" "$temporary"
sync "$temporary"
# A link fails where the name is taken; a rename would replace.
ln -T -- "$temporary" "$target"
sync "$3"
"""


def install_archiver(path: Path) -> None:
    """Write the program that archives; replacing it under a running server is harmless."""
    write_file(path, ARCHIVE_SCRIPT.encode(), mode=EXECUTABLE)


def archive_settings(program: Path, wal_folder: Path) -> Mapping[str, str]:
    """What PostgreSQL has to be told; archive_mode takes a restart.

    Args:
        program: the archiver, which PostgreSQL's user can run.
        wal_folder: where to, which PostgreSQL's user can write to.

    Raises:
        UsageError: a path cannot stand there.
    """
    # PostgreSQL puts %p and %f in, and takes %% for a percent sign.
    command = f'{shlex.quote(str(program))} "%p" "%f" {shlex.quote(str(wal_folder))}'
    if "%" in str(program) + str(wal_folder):
        raise UsageError("a path with a percent sign cannot stand in archive_command")
    return {
        "archive_mode": "on",
        "archive_command": command,
        "archive_timeout": str(ARCHIVE_TIMEOUT_S),
    }


def restore_command(wal_folder: Path) -> str:
    """PostgreSQL's restore_command for an archive."""
    return f'cp -- {shlex.quote(str(wal_folder))}/"%f" "%p"'
