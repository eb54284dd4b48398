"""Which cluster a command is about: the one of SHARDBOX_DIRECTORY_DSN, else the embedded one."""

import os
from pathlib import Path

from ops.dev_setup import read_record
from ops.errors import NoCluster
from ops.layout import DevLayout, choose_data_dir
from ops.postgres import use_passfile
from ops.specs import DIRECTORY

DIRECTORY_DSN_VARIABLE = "SHARDBOX_DIRECTORY_DSN"


def find_directory_dsn(data_dir: Path | None) -> str:
    """The directory's address; for an embedded cluster PGPASSFILE is set to its passwords.

    Args:
        data_dir: an embedded cluster's folder; named, it goes before the variable.

    Raises:
        NoCluster: neither is there.
    """
    dsn = os.environ.get(DIRECTORY_DSN_VARIABLE)
    if dsn and data_dir is None:
        return dsn
    layout = DevLayout(choose_data_dir(data_dir))
    try:
        record = read_record(layout)
    except NoCluster as error:
        raise NoCluster(f"{error}; or set {DIRECTORY_DSN_VARIABLE}") from None
    use_passfile(layout.passfile)
    return record.dsn(DIRECTORY)


def find_embedded(data_dir: Path | None) -> DevLayout | None:
    """The files of the cluster, if it is an embedded one; None if it is that of SHARDBOX_DIRECTORY_DSN."""
    if os.environ.get(DIRECTORY_DSN_VARIABLE) and data_dir is None:
        return None
    layout = DevLayout(choose_data_dir(data_dir))
    return layout if layout.record_file.exists() else None
