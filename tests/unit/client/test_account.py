"""Refresh tokens and a server that has lost the newest of them."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import aiohttp
import msgspec
import pytest

from client.account import KEPT_TOKENS, Account
from client.folder import Folder
from client.state import State
from wire.api import AccessGranted, Discovery, RefreshAccess
from wire.errors import InvalidRefreshToken

SERVERS = Discovery(cluster_id="c", metaservers=["http://127.0.0.1:1"], blockservers=[], notifservers=[])


class Server:
    """Takes the tokens that it knows, as a metaserver does: the current one and the next."""

    def __init__(self) -> None:
        self.known: list[str] = ["token-0"]
        self.asked: list[str] = []

    async def refresh(self, request: RefreshAccess) -> AccessGranted:
        self.asked.append(request.refresh_token)
        if request.refresh_token not in self.known[-2:]:
            raise InvalidRefreshToken()
        self.known = [*self.known[: self.known.index(request.refresh_token) + 1], request.next_refresh_token]
        return AccessGranted(f"access {len(self.asked)}", 3_600)


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    folder = Folder(tmp_path / "synced")
    folder.create().close()
    with contextlib.closing(folder.open()) as opened:
        with opened.tx("link"):
            facts = {"servers": msgspec.json.encode(SERVERS).decode(), "root_ns": "7", "display_name": "Ada"}
            for name, value in (facts | {"device_id": "device:x", "refresh_token": "token-0"}).items():
                opened.put_fact(name, value)
        yield opened


def account_at(state: State, server: Server) -> Account:
    account = Account(state, cast("aiohttp.ClientSession", None))
    account.calls.refresh = server.refresh  # type: ignore[method-assign]
    return account


async def renew(account: Account, times: int = 1) -> None:
    for _ in range(times):
        await account.get_token(account._token)


async def test_the_newest_token_alone_is_sent_while_it_is_known(state: State) -> None:
    server = Server()
    await renew(account_at(state, server), 5)
    assert server.asked == server.known[:5]


@pytest.mark.parametrize("lost", [1, 3, KEPT_TOKENS])
async def test_an_older_token_takes_the_device_back(state: State, lost: int) -> None:
    server = Server()
    account = account_at(state, server)
    await renew(account, KEPT_TOKENS + 5)
    server.known = server.known[:-lost]  # restored to a moment before as many renewals
    server.asked.clear()

    await renew(account)
    assert len(server.asked) == lost + 1  # the newest first, then back in time
    server.asked.clear()
    await renew(account, 3)
    assert len(server.asked) == 3


async def test_beyond_the_tokens_that_are_kept_the_device_is_refused(state: State) -> None:
    server = Server()
    account = account_at(state, server)
    await renew(account, KEPT_TOKENS + 5)
    server.known = server.known[: -KEPT_TOKENS - 2]

    with pytest.raises(InvalidRefreshToken):
        await renew(account)
    assert len(server.asked) == KEPT_TOKENS + 5 + KEPT_TOKENS + 1
