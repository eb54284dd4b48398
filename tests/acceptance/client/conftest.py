"""An account with two linked folders, on a cluster that all these tests share."""

import secrets
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.acceptance.client.devices import Accounts, Device
from tests.support.dev import DevCluster


class Pair(NamedTuple):
    """Two devices of one account."""

    a: Device
    b: Device


@pytest.fixture(scope="module")
def accounts(shared_cluster: DevCluster, own_passfile: None) -> Accounts:
    """Makes accounts on the cluster."""
    shared_cluster.ensure_up()
    return Accounts(shared_cluster)


@pytest.fixture
def pair(accounts: Accounts, tmp_path: Path) -> Pair:
    """Two empty folders linked to a new account."""
    email = f"{secrets.token_hex(6)}@example.org"
    accounts.add_user(email)
    return Pair(accounts.link(email, tmp_path / "a"), accounts.link(email, tmp_path / "b"))
