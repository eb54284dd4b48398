"""/v1/devices/…: linking, refreshing, listing and revoking devices."""

from typing import Any

from metaserver.handlers.base import UserHandler
from metaserver.services.devices import DeviceService
from runtime.bodies import SMALL_BODY_BYTES
from runtime.openapi import endpoint
from wire.api import (
    AccessGranted,
    CurrentDevice,
    DeviceList,
    Empty,
    LinkDevice,
    LinkedDevice,
    LinkIdentity,
    RefreshAccess,
    RevokeDevice,
)
from wire.errors import (
    DeviceRevoked,
    Forbidden,
    InvalidLinkCode,
    InvalidRefreshToken,
    NotFound,
    TooManyEntries,
)


class DeviceHandler(UserHandler):
    """The base."""

    def initialize(self, *, devices: DeviceService, **rest: Any) -> None:  # type: ignore[override]
        """Wired by the route table."""
        super().initialize(**rest)
        self._devices = devices


class LinkHandler(DeviceHandler):
    """POST /v1/devices/link, without a token"""

    route = "devices/link"
    limit_bytes = SMALL_BODY_BYTES
    needs_token = False

    @endpoint(LinkDevice, LinkedDevice, InvalidLinkCode, InvalidRefreshToken, DeviceRevoked, TooManyEntries)
    async def post(self) -> None:
        """Use a link code up."""
        self.answer(await self._devices.link(self.body_as(LinkDevice)))


class LinkIdentityHandler(DeviceHandler):
    """POST /v1/devices/link_identity, with a token of an outside issuer"""

    route = "devices/link_identity"

    @endpoint(LinkIdentity, LinkedDevice, Forbidden, InvalidRefreshToken, TooManyEntries)
    async def post(self) -> None:
        """Link a device to the account that the token's holder stands for."""
        caller = self.caller()
        self.answer(await self._devices.link_identity(caller, self.body_as(LinkIdentity)))


class RefreshHandler(DeviceHandler):
    """POST /v1/devices/refresh, without an access token"""

    route = "devices/refresh"
    needs_token = False
    limit_bytes = SMALL_BODY_BYTES

    @endpoint(RefreshAccess, AccessGranted, InvalidRefreshToken, DeviceRevoked)
    async def post(self) -> None:
        """A new access token."""
        self.answer(await self._devices.refresh(self.body_as(RefreshAccess)))


class ListDevicesHandler(DeviceHandler):
    """POST /v1/devices/list"""

    route = "devices/list"

    @endpoint(Empty, DeviceList)
    async def post(self) -> None:
        """The devices of the caller's account."""
        caller = self.caller()
        self.body_as(Empty)
        self.answer(DeviceList(await self._devices.list_own(caller)))


class CurrentHandler(DeviceHandler):
    """POST /v1/devices/current"""

    route = "devices/current"
    limit_bytes = SMALL_BODY_BYTES

    @endpoint(Empty, CurrentDevice)
    async def post(self) -> None:
        """Whom the access token stands for."""
        caller = self.caller()
        self.body_as(Empty)
        self.answer(await self._devices.describe_own(caller))


class RevokeHandler(DeviceHandler):
    """POST /v1/devices/revoke"""

    route = "devices/revoke"

    @endpoint(RevokeDevice, Empty, NotFound)
    async def post(self) -> None:
        """Unlink the calling device or another of its account."""
        caller = self.caller()
        await self._devices.revoke_own(caller, self.body_as(RevokeDevice).device_id)
        self.answer(Empty())
