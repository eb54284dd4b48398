"""An account with two linked folders, on a cluster that the tests of a module share."""

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
def accounts(dev_cluster: DevCluster) -> Accounts:
    """Makes accounts on the module's cluster."""
    return Accounts(dev_cluster)


@pytest.fixture
def pair(accounts: Accounts, tmp_path: Path) -> Pair:
    """Two empty folders linked to a new account."""
    email = f"{secrets.token_hex(6)}@example.org"
    accounts.add_user(email)
    return Pair(accounts.link(email, tmp_path / "a"), accounts.link(email, tmp_path / "b"))
