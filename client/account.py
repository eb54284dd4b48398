"""Which account the folder belongs to: linking, and access tokens.

A token that is about to be used is stored first: a crash between sending and hearing the answer must find
the very same one again.
"""

import asyncio
import contextlib
import fcntl
import os
import secrets
import time
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import msgspec

from client.calls import Calls, discover
from client.folder import NotLinked
from client.state import State
from wire.api import AccessGranted, Discovery, LinkDevice, RefreshAccess
from wire.errors import InvalidRefreshToken
from wire.faults import declare, fault_point
from wire.ids import NsId, parse_ns_id

declare("client.account.link_sent", "client.account.refresh_sent")

_TOKEN_BYTES = 32
LOCK_POLL_S = 0.05
KEPT_TOKENS = 48
"""Refresh tokens that are kept after their use, one for each hour of syncing. A server that was restored to a
moment of the last two days knows one of them still."""
RENEW_BEFORE_S = 120
"""Tokens live an hour; two minutes leave room for a slow request and a clock that is a little off."""


class Account:
    """The linked device's identity, kept in the state.

    Raises:
        NotLinked: the link was refused or cut short.
    """

    def __init__(self, state: State, session: aiohttp.ClientSession):
        self._state = state
        if state.find_fact("device_id") is None:
            raise NotLinked("the folder is not linked yet: shardbox link was not done to its end")
        servers = msgspec.json.decode(state.get_fact("servers"), type=Discovery)
        self.ns_id: NsId = parse_ns_id(state.get_fact("root_ns"))
        self.display_name = state.get_fact("display_name")
        self.calls = Calls(session, servers, self.ns_id, self.get_token)
        self._session = session
        self._token: str | None = state.find_fact("access_token")
        self._good_until = float(state.find_fact("access_until") or 0)
        self._lock = asyncio.Lock()

    async def get_token(self, refused: str | None) -> str:
        """An access token that should be good; another one if `refused` is the one at hand."""
        async with self._lock:
            if self._token is None or self._token == refused or time.time() > self._good_until:
                await self._renew()
            assert self._token is not None, "a renewal gives a token or raises"
            return self._token

    async def _renew(self) -> None:
        # A command beside a running sync is the same device: two renewals at once would not agree.
        async with _alone(self._state.path.with_name("token.lock")):
            if not self._take_stored():
                await self._renew_alone()

    def _take_stored(self) -> bool:
        """Whether another process has got a token that is good."""
        stored, until = (
            self._state.find_fact("access_token"),
            float(self._state.find_fact("access_until") or 0),
        )
        if stored is None or stored == self._token or time.time() > until:
            return False
        self._token, self._good_until = stored, until
        return True

    async def _renew_alone(self) -> None:
        state = self._state
        following = state.find_fact("next_refresh_token")
        if following is None:
            following = secrets.token_urlsafe(_TOKEN_BYTES)
            with state.tx("token"):
                state.put_fact("next_refresh_token", following)
        token, granted = await self._refresh(following)
        fault_point("client.account.refresh_sent")
        with state.tx("token"):
            # What is newer than the one that was taken is lost to the server, and of no use any more.
            used = [state.get_fact("refresh_token"), *self._former_tokens()]
            kept = used[used.index(token) :][:KEPT_TOKENS]
            state.put_fact("former_refresh_tokens", " ".join(kept))
            state.put_fact("refresh_token", following)
            state.put_fact("next_refresh_token", None)
            _put_access(state, granted.access_token, granted.expires_in)
        self._token = granted.access_token
        self._good_until = float(state.get_fact("access_until"))

    async def _refresh(self, following: str) -> tuple[str, AccessGranted]:
        """A new access token, and the refresh token that it was given for.

        A server that does not know our newest token has lost it, and knows an older one as the newest. (One
        that does know it is never sent an older one, which it would take for stolen.)
        """
        device_id, older = self._state.get_fact("device_id"), self._former_tokens()
        for token in (self._state.get_fact("refresh_token"), *older):
            request = RefreshAccess(device_id=device_id, refresh_token=token, next_refresh_token=following)
            try:
                return token, await self.calls.refresh(request)
            except InvalidRefreshToken:
                if not older or token == older[-1]:
                    raise
        raise AssertionError("the last one is taken or refused")

    def _former_tokens(self) -> list[str]:
        return (self._state.find_fact("former_refresh_tokens") or "").split()

    async def rediscover(self) -> None:
        """Learn which servers there are by now; the old ones stay known when nobody answers."""
        found = None
        for url in [self._state.get_fact("url"), *self.calls.meta.urls]:
            with contextlib.suppress(Exception):
                found = await discover(self._session, url, patience_s=1.0)
                break
        if found is None or found.cluster_id != self._state.get_fact("cluster_id"):
            return
        with self._state.tx("token"):
            self._state.put_fact("servers", msgspec.json.encode(found).decode())
        self.calls.meta.urls, self.calls.block.urls = found.metaservers, found.blockservers
        self.calls.notif.urls = found.notifservers


async def link(
    state: State,
    session: aiohttp.ClientSession,
    *,
    url: str,
    servers: Discovery,
    code: str,
    device_name: str,
) -> None:
    """Make this folder a device of the account that the code was given out for, at the servers of that URL.

    A link that was cut short is taken up again with the same request, so that the code makes one device.

    Raises:
        InvalidLinkCode: unknown, used by somebody else, or expired.
    """
    if state.find_fact("link_code") != code:
        with state.tx("link"):
            state.put_fact("link_code", code)
            state.put_fact("link_request", secrets.token_urlsafe(_TOKEN_BYTES))
            state.put_fact("refresh_token", secrets.token_urlsafe(_TOKEN_BYTES))
    calls = Calls(session, servers, NsId(0), None)
    linked = await calls.link(
        LinkDevice(
            code=code,
            request_id=state.get_fact("link_request"),
            refresh_token=state.get_fact("refresh_token"),
            device_name=device_name,
        )
    )
    fault_point("client.account.link_sent")
    with state.tx("link"):
        facts = {
            "url": url,
            "cluster_id": servers.cluster_id,
            "servers": msgspec.json.encode(servers).decode(),
            "device_id": linked.device_id,
            "device_name": device_name,
            "account_id": linked.account_id,
            "email": linked.email,
            "display_name": linked.display_name,
            "root_ns": linked.root_ns,
        }
        for name, value in facts.items():
            state.put_fact(name, value)
        state.put_fact("link_code", None)
        state.put_fact("former_refresh_tokens", None)
        state.put_fact("link_request", None)
        _put_access(state, linked.access_token, linked.expires_in)


@contextlib.asynccontextmanager
async def _alone(path: Path) -> AsyncIterator[None]:
    """Hold a lock among processes; the system gives it back if this one dies."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        while True:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            await asyncio.sleep(LOCK_POLL_S)
        yield
    finally:
        os.close(handle)


def _put_access(state: State, token: str, expires_in_s: int) -> None:
    state.put_fact("access_token", token)
    state.put_fact("access_until", str(time.time() + max(0, expires_in_s - RENEW_BEFORE_S)))
