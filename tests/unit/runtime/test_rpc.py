"""Calls from server to server."""

import pytest

from runtime.rpc import ServiceClient
from wire.errors import UpstreamUnavailable
from wire.internal import AskHeads, Heads
from wire.keys import KeyRing


async def test_where_there_are_no_servers_none_answers():
    async with ServiceClient([], KeyRing.parse(KeyRing.generate())) as client:
        with pytest.raises(UpstreamUnavailable):
            await client.call("/internal/heads", AskHeads([]), Heads, timeout_s=1)
