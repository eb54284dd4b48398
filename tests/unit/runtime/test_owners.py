"""Whose rate a request takes: an account's."""

import pytest

from runtime import owners as module
from runtime.owners import Owners
from wire.ids import AccountId, DeviceId
from wire.internal import DeviceCaller, IdentityCaller

LAPTOP = DeviceCaller(AccountId("dbid:ada"), DeviceId("device:laptop"))
ONE, TWO = IdentityCaller("https://a.example.org", "1"), IdentityCaller("https://a.example.org", "2")


def test_an_identity_takes_its_accounts_rate_once_it_is_known():
    owners = Owners()
    assert owners.find(LAPTOP) == "dbid:ada"
    assert len({owners.find(who) for who in (LAPTOP, ONE, TWO)}) == 3
    for who in (LAPTOP, ONE, TWO):
        owners.learn(who, "dbid:ada")
    assert {owners.find(who) for who in (LAPTOP, ONE, TWO)} == {"dbid:ada"}
    # With an address or without it is the same identity.
    assert owners.find(IdentityCaller(ONE.issuer, ONE.subject, "ada@example.org")) == "dbid:ada"
    owners.learn(TWO, "dbid:bob")
    owners.forget(ONE)
    owners.forget(LAPTOP)
    assert owners.find(TWO) == "dbid:bob"
    assert owners.find(ONE) not in ("dbid:ada", "dbid:bob")
    assert owners.find(LAPTOP) == "dbid:ada"


def test_only_so_many_are_remembered(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "MAX_REMEMBERED", 2)
    owners = Owners()
    for number in range(3):
        owners.learn(IdentityCaller(ONE.issuer, str(number)), "dbid:ada")
    known = [owners.find(IdentityCaller(ONE.issuer, str(number))) == "dbid:ada" for number in range(3)]
    assert known == [False, False, True]
