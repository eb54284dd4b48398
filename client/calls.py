"""The calls that the client makes, typed. One object per linked device."""

from typing import TypeVar

import aiohttp
import msgspec

from client.api import Api, NoShardbox, Request, Servers, TokenSource
from client.limits import Bucket
from wire import api as wire_api
from wire import blocks as wire_blocks
from wire.errors import ShardboxError
from wire.hashes import BlockHash, parse_hash
from wire.ids import NsId, format_ns_id

PATIENCE_S = 20.0
"""How long one call is retried before its caller is told; the caller tries again later, with fresh eyes."""
LONGPOLL_SLACK_S = 30

T = TypeVar("T")


class Calls:
    """Metadata, blocks and long-polls, for one account."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        servers: wire_api.Discovery,
        ns_id: NsId,
        tokens: TokenSource | None,
    ):
        self._api = Api(session, tokens)
        self.meta = Servers(servers.metaservers)
        self.block = Servers(servers.blockservers)
        self.notif = Servers(servers.notifservers)
        self._ns_id = ns_id
        self.up, self.down = Bucket(), Bucket()
        """What all transfers of blocks share."""

    async def _post(
        self, servers: Servers, path: str, body: msgspec.Struct, answer: type[T], *, needs_token: bool = True
    ) -> T:
        request = Request(method="POST", path=path, body=msgspec.json.encode(body), needs_token=needs_token)
        return await self._api.ask(servers, request, answer, patience_s=PATIENCE_S)

    # ---- Metadata

    async def list_whole(self, limit: int) -> wire_api.ListFolderResult:
        """The first page of a listing of the whole namespace."""
        body = wire_api.ListFolder(path="", recursive=True, limit=limit, include_blocks=True)
        return await self._post(self.meta, "/v1/files/list_folder", body, wire_api.ListFolderResult)

    async def list_on(self, cursor: str) -> wire_api.ListFolderResult:
        """The next page."""
        body = wire_api.ListFolderContinue(cursor)
        return await self._post(self.meta, "/v1/files/list_folder/continue", body, wire_api.ListFolderResult)

    async def list_folder(self, path: str, *, is_recursive: bool) -> wire_api.ListFolderResult:
        """The first page of a folder's listing."""
        body = wire_api.ListFolder(path=path, recursive=is_recursive, limit=wire_api.MAX_PAGE_ENTRIES)
        return await self._post(self.meta, "/v1/files/list_folder", body, wire_api.ListFolderResult)

    async def get_metadata(self, path: str) -> wire_api.Metadata:
        """One live entry."""
        body = wire_api.GetMetadata(path=path)
        return await self._post(self.meta, "/v1/files/get_metadata", body, wire_api.Metadata)

    async def list_revisions(
        self, path: str, *, limit: int, before_rev: str | None = None
    ) -> wire_api.ListRevisionsResult:
        """The newest revs of a file, or those before one."""
        body = wire_api.ListRevisions(path=path, limit=limit, before_rev=before_rev)
        return await self._post(self.meta, "/v1/files/list_revisions", body, wire_api.ListRevisionsResult)

    async def restore(self, key: str, path: str, rev: str) -> wire_api.Metadata:
        """Make a rev the current content, once under this idempotency key."""
        request = Request(
            method="POST",
            path="/v1/files/restore",
            body=msgspec.json.encode(wire_api.Restore(path=path, rev=rev)),
            headers={wire_api.IDEMPOTENCY_HEADER: key},
        )
        return await self._api.ask(self.meta, request, wire_api.Metadata, patience_s=PATIENCE_S)

    async def get_blocks(self, rev: str) -> list[BlockHash]:
        """The whole block list of a rev."""
        blocks: list[str] = []
        while True:
            body = wire_api.GetBlockList(rev=rev, start=len(blocks))
            page = await self._post(self.meta, "/v1/files/get_block_list", body, wire_api.BlockList)
            blocks += page.blocks
            if len(blocks) >= page.total or not page.blocks:
                return [parse_hash(text) for text in blocks]

    async def send_batch(self, key: str, body: bytes) -> wire_api.BatchResult:
        """Operations under an idempotency key; `body` is sent as it is."""
        request = Request(
            method="POST",
            path="/v1/files/batch",
            body=body,
            headers={wire_api.IDEMPOTENCY_HEADER: key},
        )
        return await self._api.ask(self.meta, request, wire_api.BatchResult, patience_s=PATIENCE_S)

    async def longpoll(self, cursor: str, timeout_s: int) -> wire_api.LongpollResult:
        """Wait until the cursor is behind."""
        body = wire_api.Longpoll(cursor, timeout_s)
        request = Request(
            method="POST",
            path="/v1/files/list_folder/longpoll",
            body=msgspec.json.encode(body),
            needs_token=False,
            timeout_s=timeout_s + wire_api.MAX_POLL_JITTER_S + LONGPOLL_SLACK_S,
        )
        return await self._api.ask(self.notif, request, wire_api.LongpollResult, patience_s=PATIENCE_S)

    # ---- Blocks

    async def ask_missing(self, hashes: list[BlockHash]) -> set[BlockHash]:
        """Which of these the namespace has not got."""
        missing: set[BlockHash] = set()
        for at in range(0, len(hashes), wire_blocks.MAX_MISSING_HASHES):
            some = [h.hex() for h in hashes[at : at + wire_blocks.MAX_MISSING_HASHES]]
            body = wire_blocks.MissingBlocks(ns_id=format_ns_id(self._ns_id), hashes=some)
            result = await self._post(self.block, "/v1/blocks/missing", body, wire_blocks.MissingResult)
            missing |= {parse_hash(text) for text in result.missing}
        return missing

    async def put_block(self, block: BlockHash, data: bytes) -> wire_blocks.PutVerdict:
        """Send one block."""
        request = Request(
            method="PUT",
            path=f"/v1/blocks/{block.hex()}?ns={self._ns_id}",
            body=data,
            content_type="application/octet-stream",
            up=self.up,
        )
        return await self._api.ask(self.block, request, wire_blocks.PutVerdict, patience_s=PATIENCE_S)

    async def put_pack(self, pack: bytes) -> wire_blocks.PutPackResult:
        """Send many blocks."""
        request = Request(
            method="POST",
            path=f"/v1/blocks/put_pack?ns={self._ns_id}",
            body=pack,
            content_type=wire_blocks.PACK_CONTENT_TYPE,
            up=self.up,
        )
        return await self._api.ask(self.block, request, wire_blocks.PutPackResult, patience_s=PATIENCE_S)

    async def get_pack(self, hashes: list[BlockHash]) -> bytes:
        """Up to 1,000 blocks as a pack."""
        body = wire_blocks.GetPack(ns_id=format_ns_id(self._ns_id), hashes=[h.hex() for h in hashes])
        request = Request(
            method="POST", path="/v1/blocks/get_pack", body=msgspec.json.encode(body), down=self.down
        )
        return await self._api.send(self.block, request, patience_s=PATIENCE_S)

    # ---- Devices

    async def link(self, body: wire_api.LinkDevice) -> wire_api.LinkedDevice:
        """Use a link code up."""
        return await self._post(self.meta, "/v1/devices/link", body, wire_api.LinkedDevice, needs_token=False)

    async def refresh(self, body: wire_api.RefreshAccess) -> wire_api.AccessGranted:
        """A new access token."""
        return await self._post(
            self.meta, "/v1/devices/refresh", body, wire_api.AccessGranted, needs_token=False
        )

    async def revoke_self(self) -> None:
        """Unlink this device on the server."""
        await self._post(self.meta, "/v1/devices/revoke", wire_api.RevokeDevice(), wire_api.Empty)


async def discover(
    session: aiohttp.ClientSession, url: str, *, patience_s: float = 10.0
) -> wire_api.Discovery:
    """The servers behind a URL.

    Raises:
        NoShardbox: what answers is something else, or a server that devices do not link to.
        Unreachable: nobody answers.
    """
    request = Request(method="GET", path="/.well-known/shardbox", needs_token=False)
    try:
        answer = await Api(session).send(Servers([url]), request, patience_s=patience_s)
        found = msgspec.json.decode(answer, type=wire_api.Discovery)
    except (ShardboxError, msgspec.DecodeError) as error:
        raise NoShardbox(f"{url} is not a Shardbox server") from error
    if not found.metaservers:
        return msgspec.structs.replace(found, metaservers=[url])
    return found
