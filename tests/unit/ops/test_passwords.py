"""Which lines of a password file a new password goes to."""

from pathlib import Path

import pytest

from ops.errors import UsageError
from ops.passwords import _replaced

ADDRESS = {"host": "10.0.0.1", "port": "5432", "dbname": "shard_1", "user": "shardbox"}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("10.0.0.1:5432:shard_1:shardbox:old", "10.0.0.1:5432:shard_1:shardbox:new"),
        ("# note\n10.0.0.1:5432:*:shardbox:old", "# note\n10.0.0.1:5432:*:shardbox:new"),
        (  # one role, two databases of the server
            "10.0.0.1:5432:directory:shardbox:old\n10.0.0.1:5432:shard_1:shardbox:old",
            "10.0.0.1:5432:directory:shardbox:new\n10.0.0.1:5432:shard_1:shardbox:new",
        ),
        (  # the other servers keep theirs
            "*:*:*:shardbox:old",
            "10.0.0.1:5432:*:shardbox:new\n*:*:*:shardbox:old",
        ),
        (
            "10.0.0.2:5432:shard_1:shardbox:its\n10.0.0.1:*:*:*:old",
            "10.0.0.2:5432:shard_1:shardbox:its\n10.0.0.1:5432:*:shardbox:new\n10.0.0.1:*:*:*:old",
        ),
    ],
)
def test_the_lines_of_the_role_on_the_server(tmp_path: Path, before: str, after: str):
    file = tmp_path / "pgpass"
    file.write_text(before + "\n")
    assert _replaced(file, ADDRESS, "new") == after + "\n"


def test_a_file_without_the_address_is_refused(tmp_path: Path):
    (tmp_path / "pgpass").write_text("10.0.0.2:5432:*:shardbox:its\n")
    with pytest.raises(UsageError):
        _replaced(tmp_path / "pgpass", ADDRESS, "new")
