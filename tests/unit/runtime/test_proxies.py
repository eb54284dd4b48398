"""Whose word is taken for where a request comes from."""

from ipaddress import ip_network

import pytest
from pydantic import ValidationError

from runtime.proxies import find_client_address, find_household
from runtime.settings import ServerSettings

PROXIES = [ip_network("10.0.0.0/24"), ip_network("192.0.2.7/32"), ip_network("fd00::/64")]


@pytest.mark.parametrize(
    ("peer", "forwarded_for", "expected"),
    [
        # Nobody in front, or somebody who is not ours.
        ("203.0.113.5", [], "203.0.113.5"),
        ("203.0.113.5", ["198.51.100.1"], "203.0.113.5"),
        ("203.0.113.5", ["10.0.0.1"], "203.0.113.5"),
        # One proxy, which adds whom it talks to.
        ("10.0.0.1", ["198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", [], "10.0.0.1"),
        # What the client had sent stands before that, and counts for nothing.
        ("10.0.0.1", ["6.6.6.6, 198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", ["6.6.6.6", "198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", ["10.0.0.9, 198.51.100.1"], "198.51.100.1"),
        # Two proxies in a row.
        ("10.0.0.1", ["6.6.6.6, 198.51.100.1, 192.0.2.7"], "198.51.100.1"),
        ("10.0.0.1", ["192.0.2.7"], "192.0.2.7"),
        ("fd00::1", ["2001:db8::9"], "2001:db8::9"),
        ("::ffff:10.0.0.1", ["198.51.100.1"], "198.51.100.1"),
        # What is no address is nobody's word.
        ("10.0.0.1", ["198.51.100.1, unknown"], "10.0.0.1"),
        ("10.0.0.1", [""], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.1:4711"], "10.0.0.1"),
        ("10.0.0.1", ["<script>"], "10.0.0.1"),
        ("", ["198.51.100.1"], ""),
    ],
)
def test_the_nearest_address_that_is_not_ours(peer: str, forwarded_for: list[str], expected: str):
    assert find_client_address(peer, forwarded_for, PROXIES) == expected
    assert find_client_address(peer, forwarded_for, []) == peer


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("203.0.113.5", "203.0.113.5"),
        ("2001:db8:1:2::9", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff:ffff:ffff:ffff", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::9", "2001:db8:1:3::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::ffff:203.0.113.5", "::ffff:203.0.113.5"),
        ("", ""),
    ],
)
def test_a_household_has_one_rate(address: str, expected: str):
    assert find_household(address) == expected


def test_networks_in_settings(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SHARDBOX_LISTEN_PORT", "0")
    monkeypatch.setenv("SHARDBOX_SERVICE_KEYS_FILE", "x")
    assert ServerSettings().trusted_proxies == []  # type: ignore[call-arg]
    monkeypatch.setenv("SHARDBOX_TRUSTED_PROXIES", "10.0.0.0/24, 192.0.2.7 ,fd00::/64")
    assert ServerSettings().trusted_proxies == PROXIES  # type: ignore[call-arg]
    for wrong in ("10.0.0.300", "10.0.0.1/24", "proxy.example"):
        monkeypatch.setenv("SHARDBOX_TRUSTED_PROXIES", wrong)
        with pytest.raises(ValidationError):
            ServerSettings()  # type: ignore[call-arg]
